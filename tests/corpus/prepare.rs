//! `prepare` from small files: what is kept, what is not, and what the program says about it.

use std::path::Path;

use ctune_dist::cli::Command;
use ctune_dist::commands;
use ctune_dist::corpus::inspect;
use ctune_dist::corpus::prepare::{PrepareOptions, run};
use ctune_dist::corpus::read::documents::Field;
use ctune_dist::corpus::{Filter, Role, Shards, Source};
use ctune_dist::text::Tokenizer;

use super::{message, shared};

const DOCUMENTS: &str = "D1\tu1\tFoxes\tThe quick brown fox jumps over the lazy dog again and again and again\n\
                         D2\tu2\tDogs\tLazy dogs sleep over there\n\
                         D3\tu3\tNobody\tnobody clicked this fox document\n\
                         D4\t\t\t \n\
                         D2\tu2\tAgain\ta second text with the same id\n";
const CLICKS: &str = "q1\tQuick fox\tD1\tu1\n\
                      q2\tlazy dogs sleep\tD2\tu2\n\
                      q1\tQuick fox\tD2\tu2\n\
                      q1\tQuick fox\tD1\tu1\n\
                      q3\tdoes not exist\tD9\tu9\n\
                      q4\tempty document\tD4\tu4\n\
                      q5\t\u{200b}\tD1\tu1\n";

pub struct Case {
    folder: tempfile::TempDir,
    options: PrepareOptions,
}

pub fn case(clicks: &[u8], documents: &[u8]) -> Case {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let options = PrepareOptions {
        sources: vec![
            Source::clicks(put("clicks.tsv", clicks)),
            Source::documents(put("documents.tsv", documents)),
        ],
        out: folder.path().join("out/shards"),
        tokenizer: None,
        vocab: 120,
        max_tokens: 8,
        fields: vec![Field::Title, Field::Body],
        all_documents: true,
        exclude_topics: vec![],
        exclude_qrels: vec![],
        strict: false,
        repair: false,
        part_tokens: 1 << 25,
        filter: Filter::default(),
    };
    Case { folder, options }
}

fn usual() -> Case {
    case(CLICKS.as_bytes(), DOCUMENTS.as_bytes())
}

impl Case {
    pub fn shards(&self) -> Shards {
        run(&self.options).unwrap();
        let shards = Shards::open(&self.options.out).unwrap();
        shards.verify().unwrap();
        shards
    }

    pub fn options(&self) -> &PrepareOptions {
        &self.options
    }

    /// The first fault ends it.
    pub fn strict(&mut self) {
        self.options.strict = true;
    }

    pub fn put(&self, name: &str, content: &str) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A log of two files in the place of the clicks.
    pub fn log_of(&mut self, queries: std::path::PathBuf, qrels: std::path::PathBuf) {
        let log = [Source::of(Role::Queries, queries), Source::of(Role::Qrels, qrels)];
        self.options.sources.splice(..1, log);
    }

    fn clicks(&mut self, path: std::path::PathBuf) {
        self.options.sources[0] = Source::clicks(path);
    }

    fn documents(&mut self, path: std::path::PathBuf) {
        // After the one or two files of the log.
        let last = self.options.sources.len() - 1;
        self.options.sources[last] = Source::documents(path);
    }

    /// The error; also checks that nothing is left behind.
    fn error(&self) -> String {
        let text = message(run(&self.options));
        let out = self.options.out.parent().unwrap();
        let left = std::fs::read_dir(out).map_or(0, Iterator::count);
        assert_eq!(left, 0, "something is left in {}", out.display());
        text
    }
}

fn ids(shards: &Shards) -> (Vec<&str>, Vec<&str>) {
    let documents = (0..shards.documents()).map(|i| shards.document_id(i)).collect();
    (documents, (0..shards.queries()).map(|i| shards.query_id(i)).collect())
}

#[test]
fn text_becomes_tokens_and_rows_become_pairs() {
    let case = usual();
    let shards = case.shards();
    assert_eq!(ids(&shards), (vec!["D1", "D2", "D3"], vec!["q1", "q2"]));
    assert_eq!((0..shards.clicks()).map(|i| shards.click(i)).collect::<Vec<_>>(), [(0, 0), (1, 1), (0, 1)]);
    assert_eq!((shards.clicked(0), shards.clicked(1)), (&[0, 1][..], &[1][..]));
    let tokenizer = shards.tokenizer().unwrap();
    let pieces = |text: &str, most: usize| tokenizer.encode_batch(&[text], most).unwrap().remove(0);
    assert_eq!(shards.query(1).to_vec(), pieces("lazy dogs sleep", usize::MAX));
    assert_eq!(shards.document(1).to_vec(), pieces("Dogs Lazy dogs sleep over there", 8));
    assert_eq!(shards.document(0).len(), 8, "documents are cut");
    let about = shards.manifest();
    assert!(about.documents_cut >= 1);
    let dropped = |reason: &str| about.dropped.get(reason).copied().unwrap_or(0);
    assert_eq!(dropped("clicks that came before"), 1);
    assert_eq!(dropped("clicks whose document is not in the collection"), 1);
    assert_eq!(dropped("clicks whose document has no text"), 1);
    assert_eq!(dropped("clicks whose query has no text"), 1);
    assert_eq!(dropped("documents without text"), 1);
    assert_eq!(dropped("documents whose id came before"), 1);
    assert_eq!(dropped("queries of which no click is left"), 2);
    assert_eq!(about.sources.len(), 2);
    let text = inspect::describe(&shards);
    assert!(text.contains("clicks           3\n"), "{text}");
    assert!(inspect::is_shard_directory(&case.options.out));
    let report = Some(case.folder.path().join("shards.html"));
    commands::run(Command::Inspect { dir: case.options.out.clone(), report }).unwrap();
    let page = std::fs::read_to_string(case.folder.path().join("shards.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 3, "a plot of documents, queries and clicks a query");
    for name in ["document length", "query length", "clicks a query", "clicks that came before"] {
        assert!(page.contains(name), "{name}");
    }
}

#[test]
fn a_query_is_never_cut() {
    let long = "fox dog ".repeat(200);
    let clicks = format!("q1\t{long}\tD1\tu\n");
    let shards = case(clicks.as_bytes(), DOCUMENTS.as_bytes()).shards();
    assert!(shards.query(0).len() >= 400);
    assert!(shards.document(0).len() <= 8);
}

#[test]
fn the_same_files_give_the_same_shards_and_are_not_read_twice() {
    let (a, b) = (usual(), usual());
    assert_eq!(a.shards().fingerprint(), b.shards().fingerprint());
    let made =
        |case: &Case| std::fs::metadata(case.options.out.join("clicks.bin")).unwrap().modified().unwrap();
    let before = made(&a);
    a.shards();
    assert_eq!(made(&a), before, "up to date: not made again");
    let mut other = usual();
    other.shards();
    other.options.max_tokens = 4;
    assert!(message(run(&other.options)).contains("other options"));
    other.options.max_tokens = 8;
    other.put("clicks.tsv", &CLICKS.replace("lazy", "tired"));
    assert!(message(run(&other.options)).contains("other files"));
}

#[test]
fn documents_that_nobody_clicked_can_stay_away() {
    let mut case = usual();
    case.options.all_documents = false;
    let shards = case.shards();
    assert_eq!(ids(&shards).0, ["D1", "D2"]);
    assert_eq!(shards.manifest().dropped["documents that nobody clicked"], 1);
}

#[test]
fn a_given_tokenizer_is_used_and_kept() {
    let mut case = usual();
    let given = case.folder.path().join("given");
    std::fs::create_dir(&given).unwrap();
    let words = "[PAD]\n[unused]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfox\nquick\n";
    std::fs::write(given.join("vocab.txt"), words).unwrap();
    case.options.tokenizer = Some(given.clone());
    let shards = case.shards();
    assert_eq!(shards.query(0).to_vec(), [7, 6]);
    assert_eq!((shards.manifest().vocab, shards.manifest().special.unk), (8, 2));
    assert_eq!(std::fs::read_to_string(case.options.out.join("vocab.txt")).unwrap(), words);
    assert_eq!(Tokenizer::load(&case.options.out).unwrap().vocab(), 8);
    std::fs::write(given.join("vocab.txt"), "fox\n").unwrap();
    case.options.out = case.folder.path().join("out2/shards");
    assert!(case.error().contains("[PAD]"));
}

#[test]
fn dirty_files_are_read_and_strict_refuses_them() {
    let clicks = b"\xef\xbb\xbfq1\tquick fox\tD1\tu\r\nq2\tcaf\xe9 fox\tD2\tu\r\nbroken\r\n";
    let mut case = case(clicks, b"D1\tu\tt\tcaf\xe9 noir\r\nD2\tu\t\t\xd6l\r\nbroken\r\n");
    let shards = case.shards();
    assert_eq!(ids(&shards), (vec!["D1", "D2"], vec!["q1", "q2"]));
    let dropped = &shards.manifest().dropped;
    assert_eq!((dropped["click rows that are damaged"], dropped["document rows that are damaged"]), (1, 1));
    assert_eq!(dropped["document rows with bytes that are not UTF-8 (replaced, not dropped)"], 2);
    case.options.strict = true;
    case.options.out = case.folder.path().join("strict/shards");
    assert!(case.error().contains("line 2"));
    case.put("clicks.tsv", "q1\tfox\tD1\tu\n");
    assert!(case.error().contains("documents.tsv, line 1"));
}

#[test]
fn nothing_joined_shows_an_id_of_each_side() {
    let text = case(b"q1\tfox\tD1265400\tu\n", b"msmarco_doc_00_0\tu\tt\tb\n").error();
    for wanted in ["D1265400", "msmarco_doc_00_0", "version 1"] {
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn no_pair_is_an_error_that_says_why() {
    let text = case(b"q4\tempty\tD4\tu\n", DOCUMENTS.as_bytes()).error();
    assert!(text.contains("1 clicks whose document has no text"), "{text}");
    let text = case("q1\t\u{200b}\tD1\tu\n".as_bytes(), DOCUMENTS.as_bytes()).error();
    assert!(text.contains("1 clicks whose query has no text"), "{text}");
}

#[test]
fn missing_and_empty_files_are_named() {
    let mut case = usual();
    case.documents(case.folder.path().join("none.tsv"));
    assert!(case.error().contains("none.tsv"));
    case.documents(case.put("empty.tsv", ""));
    assert!(case.error().contains("empty.tsv: is empty"));
    case.clicks(case.put("empty-clicks.tsv", ""));
    assert!(case.error().contains("empty-clicks.tsv: is empty"));
}

#[test]
fn a_target_that_holds_something_else_is_left_alone() {
    let case = usual();
    std::fs::create_dir_all(&case.options.out).unwrap();
    std::fs::write(case.options.out.join("precious"), "x").unwrap();
    assert!(message(run(&case.options)).contains("already exists"));
    assert!(case.options.out.join("precious").exists());
}

#[test]
fn test_topics_and_documents_stay_out() {
    let mut case = usual();
    case.options.exclude_topics = vec![case.put("topics.tsv", "301\tLAZY dogs, sleep!\n302\tother words\n")];
    let shards = case.shards();
    assert_eq!(ids(&shards).1, ["q1"]);
    assert_eq!(
        shards.manifest().dropped["clicks whose query is an excluded topic but for case and punctuation"],
        1
    );
    case.options.out = case.folder.path().join("out2/shards");
    case.options.exclude_qrels = vec![case.put("qrels.txt", "301 0 D1 0\n301 0 D2 2\n")];
    let shards = case.shards();
    assert_eq!(ids(&shards).0, ["D1", "D3"]);
    assert_eq!(shards.manifest().dropped["clicks whose document is excluded"], 1);
    assert_eq!(shards.manifest().sources.len(), 4);
    case.options.out = case.folder.path().join("out3/shards");
    case.options.exclude_qrels = vec![case.put("bad.txt", "301 0\n")];
    assert!(case.error().contains("bad.txt"));
    case.options.exclude_qrels = vec![];
    case.options.exclude_topics = vec![case.put("empty.tsv", "")];
    assert!(case.error().contains("no topic"));
}

#[test]
fn options_that_cannot_be_are_refused() {
    let mut case = usual();
    case.options.fields.clear();
    assert!(case.error().contains("fields"));
    case = usual();
    case.options.max_tokens = 0;
    assert!(case.error().contains("max_tokens"));
    case = usual();
    case.options.vocab = 5;
    assert!(case.error().contains("vocab = 5"));
    assert!("headline".parse::<Field>().is_err());
    assert_eq!("body".parse::<Field>().unwrap(), Field::Body);
}

#[test]
fn queries_and_qrels_as_two_files() {
    let mut case = usual();
    let queries =
        case.put("queries.tsv", "q1\tQuick fox\nq2\tlazy dogs sleep\nq9\tnobody clicked\nq2\ttwice\n");
    let qrels = case.put("qrels.txt", "q2 0 D2 1\nq1 0 D1 1\nq1 0 D2 0\nq7 0 D1 1\nq1 0 D1 1\n");
    let documents = case.options.sources[1].clone();
    case.options.sources =
        vec![Source::of(Role::Queries, queries), Source::of(Role::Qrels, qrels), documents];
    let shards = case.shards();
    assert_eq!(ids(&shards).1, ["q1", "q2"]);
    assert_eq!((0..shards.clicks()).map(|i| shards.click(i)).collect::<Vec<_>>(), [(1, 1), (0, 0)]);
    let dropped = &shards.manifest().dropped;
    assert_eq!(dropped["clicks whose query is not among the queries"], 1);
    assert_eq!(dropped["clicks with a label of 0 or less"], 1);
    assert_eq!(dropped["queries whose id came before"], 1);
    assert_eq!(dropped["clicks that came before"], 1);
    // The guard knows the queries of such a log by their ids.
    case.options.out = case.folder.path().join("out2/shards");
    case.options.exclude_topics = vec![case.put("topics.tsv", "301\tlazy dogs sleep\n")];
    let shards = case.shards();
    assert_eq!(ids(&shards).1, ["q1"]);
    assert_eq!(shards.manifest().dropped["clicks whose query is an excluded topic, to the letter"], 1);
    // So it does beside a log that holds its queries' text, whose queries are numbered first.
    case.options.out = case.folder.path().join("out3/shards");
    case.options.sources.push(Source::clicks(case.put("more.tsv", "m1\tred fox\tD1\nm2\tblue fox\tD2\n")));
    let shards = case.shards();
    assert_eq!(ids(&shards).1, ["m1", "m2", "q1"]);
    assert_eq!(shards.manifest().dropped["clicks whose query is an excluded topic, to the letter"], 1);
    assert!(!shards.manifest().dropped.contains_key("clicks whose query has no text"));
}

#[test]
fn repaired_text() {
    let mut case =
        case("q1\tcafÃ© menu\tD1\tu\n".as_bytes(), "D1\tu\tcafÃƒÂ©\tâ€œquotedâ€\u{9d} naïve\n".as_bytes());
    case.options.repair = true;
    case.options.max_tokens = 64;
    let shards = case.shards();
    let tokenizer = shards.tokenizer().unwrap();
    let pieces = |text: &str| tokenizer.encode_batch(&[text], usize::MAX).unwrap().remove(0);
    assert_eq!(shards.query(0).to_vec(), pieces("café menu"));
    assert_eq!(shards.document(0).to_vec(), pieces("café \u{201c}quoted\u{201d} naïve"));
}

#[test]
fn filters_count_what_they_leave_out() {
    let german =
        "Der schnelle braune Fuchs springt über den faulen Hund und läuft danach in den dunklen Wald zurück";
    let english = "The quick brown fox jumps over the lazy dog and then runs back into the dark forest again";
    let documents = format!("D1\tu\t\t{english}\nD2\tu\t\t{german}\nD3\tu\t\t{english}\nD4\tu\t\ttiny\n");
    let clicks = "q1\tquick fox\tD1\tu\nq2\tQuick, FOX!\tD2\tu\nq3\tx\tD1\tu\nq4\tone two three four\tD1\tu\nq5\tlazy dog\tD3\tu\n\
                  q6\tlazy dog\tD1\tu\n";
    let mut case = case(clicks.as_bytes(), documents.as_bytes());
    case.options.filter = Filter {
        languages: vec!["eng".into()],
        min_query_words: 2,
        max_query_words: 3,
        min_document_words: 3,
        duplicate_documents: true,
        duplicate_queries: true,
    };
    case.options.max_tokens = 64;
    let shards = case.shards();
    assert_eq!(ids(&shards), (vec!["D1"], vec!["q1", "q5"]));
    let dropped = &shards.manifest().dropped;
    for (reason, count) in [
        ("documents in another language", 1),
        ("documents with the tokens of an earlier one", 1),
        ("documents with too few words", 1),
        ("clicks whose query has too few words", 1),
        ("clicks whose query has too many words", 1),
        ("queries whose words came before (their clicks are kept)", 2),
        ("clicks whose document is filtered out", 2),
    ] {
        assert_eq!(dropped.get(reason), Some(&count), "{reason}: {dropped:?}");
    }
    assert_eq!(shards.clicked(1), [0], "q6 gave its click to q5");
    case.options.filter.languages = vec!["english".into()];
    case.options.out = case.folder.path().join("out2/shards");
    assert!(case.error().contains("ISO 639-3"));
}

/// A real collection whose training queries are a log of two files, guarded against its own test topics.
#[test]
fn nfcorpus_becomes_shards() {
    let Some(data) = shared("nfcorpus") else { return };
    let mut case = usual();
    case.options.sources = vec![
        Source::of(Role::Queries, data.join("train.titles.queries")),
        Source::of(Role::Qrels, data.join("train.2-1-0.qrel")),
        Source::documents(data.join("docs_union_dev_test.tsv")),
    ];
    case.options.exclude_topics =
        ["dev", "test"].map(|part| data.join(format!("{part}.titles.queries"))).into();
    (case.options.vocab, case.options.max_tokens) = (4000, 512);
    let shards = case.shards();
    let dropped = &shards.manifest().dropped;
    println!("{} clicks of {} queries; {dropped:?}", shards.clicks(), shards.queries());
    assert_eq!(shards.documents(), 3_395);
    // 110,075 links whose document is here, of 2,563 titles, 8 of which are test or dev topics too.
    let excluded: u64 =
        dropped.iter().filter(|(why, _)| why.contains("excluded topic")).map(|(_, n)| n).sum();
    assert!(excluded > 0 && u64::from(shards.clicks()) + excluded >= 110_075, "{dropped:?}");
    assert!(shards.clicks() < 110_075 && (2_500..=2_555).contains(&shards.queries()), "{}", shards.queries());
}

/// More text than one batch holds, so that reading and tokenising overlap.
#[test]
fn many_batches_keep_their_order() {
    let body = "quick brown foxes and lazy dogs ".repeat(40);
    let documents: String = (0..9000).map(|i| format!("D{i}\tu\tt{i}\t{body}\n")).collect();
    let clicks: String = (0..9000).map(|i| format!("q{i}\tfox {i}\tD{}\tu\n", (i * 7) % 9000)).collect();
    assert!(documents.len() > 2 * (4 << 20));
    let case = case(clicks.as_bytes(), documents.as_bytes());
    let shards = case.shards();
    let tokenizer = shards.tokenizer().unwrap();
    for i in (0..9000u32).step_by(501) {
        assert_eq!(shards.click(i), (i, i * 7 % 9000));
        assert_eq!(shards.document_id(i), format!("D{i}"));
        let text = format!("t{i} {body}");
        assert_eq!(shards.document(i).to_vec(), tokenizer.encode_by_crate(&text, 8).unwrap());
    }
    check_folder(Path::new(&case.options.out));
}

fn check_folder(out: &Path) {
    let left: Vec<_> = std::fs::read_dir(out.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the shards stay");
}

/// The queries of a collection as a log: its topics are SGML, its qrels the clicks.
#[test]
fn vaswani_becomes_shards() {
    let Some(data) = shared("vaswani") else { return };
    let mut case = usual();
    let topics = ctune_dist::ir::topics::read_topics(&data.join("query-text.trec")).unwrap();
    let queries: String = topics.iter().map(|topic| format!("{}\t{}\n", topic.id, topic.text)).collect();
    let queries = case.put("queries.tsv", &queries);
    case.log_of(queries, data.join("qrels"));
    case.documents(data.join("doc-text.trec"));
    (case.options.vocab, case.options.max_tokens) = (4000, 256);
    let shards = case.shards();
    assert_eq!((shards.documents(), shards.queries()), (11_429, 93), "{:?}", shards.manifest().dropped);
    let qrels = ctune_dist::ir::qrels::Qrels::read(&data.join("qrels")).unwrap();
    assert_eq!(shards.clicks() as usize, qrels.judgements());
}
