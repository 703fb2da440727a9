//! The first stage.

use std::io::Read;

use ctune_dist::corpus::Source;
use ctune_dist::corpus::read::documents::Field;
use ctune_dist::ir::analysis::{Analysis, Language};
use ctune_dist::ir::bm25::Indexer;
use ctune_dist::ir::topics::TopicField;
use ctune_dist::study::retrieve::{RetrieveOptions, retrieve};

use super::*;

fn options(folder: &tempfile::TempDir) -> RetrieveOptions {
    RetrieveOptions {
        documents: vec![Source::documents(folder.path().join("docs.tsv"))],
        only: None,
        topics: folder.path().join("topics.tsv"),
        clicks: false,
        topic_fields: vec![TopicField::Title],
        out: folder.path().join("run.txt"),
        depth: 1000,
        k1: 0.9,
        b: 0.4,
        fields: vec![Field::Title, Field::Body],
        language: Language::ENGLISH,
        stem: true,
        stop_words: true,
    }
}

const DOCUMENTS: &str = "D1\thttp://x/a\tThe cat\tA cat sat on the mat.\nD2\thttp://x/b\tDog\tDogs chase cats\n\
                         D3\thttp://x/zebra\t\tnothing here\nD4\thttp://x/c\tDog\tDogs chase cats\n";

#[test]
fn scores_follow_the_formula() {
    let folder = folder();
    file(&folder, "docs.tsv", DOCUMENTS);
    file(&folder, "topics.tsv", "q1\tcat cats\nq2\tzebra\nq3\tthe\n");
    retrieve(&options(&folder)).unwrap();
    let text = std::fs::read_to_string(folder.path().join("run.txt")).unwrap();
    // Terms: D1 cat cat sat mat; D2 and D4 dog dog chase cat; D3 noth here. Three of four hold "cat".
    let idf = (1.0 + (4.0 - 3.0 + 0.5) / (3.0 + 0.5_f64)).ln();
    let score = |frequency: f64, length: f64| {
        2.0 * idf * frequency / (frequency + 0.9 * (1.0 - 0.4 + 0.4 * length / (14.0 / 4.0)))
    };
    let lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>()).collect::<Vec<_>>();
    let found = lines.iter().map(|line| (line[0], line[2], line[3])).collect::<Vec<_>>();
    assert_eq!(
        found,
        [("q1", "D1", "1"), ("q1", "D4", "2"), ("q1", "D2", "3")],
        "a tie goes to the higher id"
    );
    for (line, known) in lines.iter().zip([score(2.0, 4.0), score(1.0, 4.0), score(1.0, 4.0)]) {
        assert!((line[4].parse::<f64>().unwrap() - known).abs() < 1e-6, "{line:?} {known}");
        assert_eq!(line[5], "bm25-k0.9-b0.4-porter2-stop-title+body");
    }
}

#[test]
fn options_of_retrieval_do_what_they_say() {
    let folder = folder();
    file(&folder, "docs.tsv", DOCUMENTS);
    file(&folder, "topics.tsv", "q1\tcat\nq2\tzebra\nq3\tthe\n");
    let base = options(&folder);
    let hits = |o: &RetrieveOptions, topic: &str| {
        retrieve(o).unwrap();
        let run = Run::read(&o.out).unwrap();
        run.get(topic).map(|hits| hits.iter().map(|hit| hit.doc.clone()).collect::<Vec<_>>())
    };
    assert_eq!(hits(&RetrieveOptions { stem: false, ..base.clone() }, "q1").unwrap(), ["D1"]);
    assert_eq!(hits(&RetrieveOptions { stop_words: false, ..base.clone() }, "q3").unwrap(), ["D1"]);
    assert_eq!(hits(&RetrieveOptions { fields: vec![Field::Url], ..base.clone() }, "q2").unwrap(), ["D3"]);
    assert_eq!(hits(&RetrieveOptions { depth: 1, ..base.clone() }, "q1").unwrap(), ["D1"]);
    assert_eq!(hits(&base, "q3"), None);
    let only = Some(file(&folder, "only", "D2\nD3\nD9\n"));
    assert_eq!(hits(&RetrieveOptions { only, ..base }, "q1").unwrap(), ["D2"]);
}

#[test]
fn words_of_any_script_are_found() {
    let folder = folder();
    let documents = [
        ("greek", "Ἡ μάθησις Α\u{313}θη\u{342}ναι"),
        ("arabic", "اللغة الع\u{64e}ربية"),
        ("persian", "من می\u{200c}خواهم بروم"),
        ("hindi", "यह हिन्दी है"),
        ("hint", "हिन दी"),
        ("thai", "ประเทศไทยสวยงาม"),
        ("chinese", "我住在北京大学附近"),
        ("turned", "京北學"),
        ("japanese", "東京ｶﾞｲﾄﾞ"),
        ("korean", "대한민국의 수도"),
        ("french", "la cafe\u{301}ine, l’eau"),
        ("emoji", "a👩\u{200d}👩\u{200d}👧b"),
    ];
    let lines = documents.map(|(id, text)| format!("{id}\tu\t\t{text}\n"));
    file(&folder, "docs.tsv", lines.concat());
    let queries = [
        ("greek", "Ἀθῆναι"),
        ("arabic", "الع\u{64e}ربية"),
        ("persian", "میخواهم"),
        ("hindi", "हिन्दी"),
        ("thai", "ไทย"),
        ("chinese", "北京"),
        ("japanese", "ガイド"),
        ("korean", "민국"),
        ("french", "caféine"),
        ("emoji", "b"),
    ];
    file(&folder, "topics.tsv", queries.map(|(id, text)| format!("{id}\t{text}\n")).concat());
    let plain = RetrieveOptions { stem: false, stop_words: false, ..options(&folder) };
    retrieve(&plain).unwrap();
    let run = Run::read(&plain.out).unwrap();
    for (id, text) in queries {
        let hits = run.get(id).unwrap_or_default();
        assert_eq!(hits.iter().map(|hit| hit.doc.as_str()).collect::<Vec<_>>(), [id], "{text}");
    }
}

#[test]
fn a_language_has_its_own_words() {
    let folder = folder();
    file(&folder, "docs.tsv", "D1\tu\t\tdie Häuser\nD2\tu\t\tdie Katze\n");
    file(&folder, "topics.tsv", "q1\tHaus\nq2\tdie\n");
    let english = options(&folder);
    let run = |o: &RetrieveOptions| {
        retrieve(o).unwrap();
        std::fs::read_to_string(&o.out).unwrap()
    };
    assert!(run(&english).lines().all(|line| line.starts_with("q2")));
    let german = RetrieveOptions { language: "german".parse().unwrap(), ..english };
    let text = run(&german);
    assert!(text.starts_with("q1 Q0 D1 1 ") && text.lines().count() == 1, "{text}");
    assert!(text.ends_with(" bm25-k0.9-b0.4-snowball-stop-german-title+body\n"), "{text}");
    let tamil = RetrieveOptions { language: "tamil".parse().unwrap(), stem: false, ..german };
    assert!(run(&tamil).ends_with(" bm25-k0.9-b0.4-tamil-title+body\n"), "Tamil has no list of stop words");
}

#[test]
fn damaged_collections_are_refused() {
    let folder = folder();
    file(&folder, "topics.tsv", "q1\tcat\n");
    let refused = |documents: &str, change: fn(&mut RetrieveOptions), code: i32, word: &str| {
        file(&folder, "docs.tsv", documents);
        let mut o = options(&folder);
        change(&mut o);
        let error = retrieve(&o).unwrap_err();
        assert!(error.exit_code() == code && error.to_string().contains(word), "{error}");
    };
    refused("", |_| (), 3, "is empty");
    refused("D1 u t\n", |_| (), 3, "docs.tsv: its format cannot be told");
    refused("D1\tu\tt\tb\nD1\tu\tt\tb\n", |_| (), 3, "'D1' occurs twice");
    refused(DOCUMENTS, |o| o.only = Some(o.topics.clone()), 3, "none of the listed");
    refused(DOCUMENTS, |o| o.documents = vec![Source::documents("none")], 3, "none");
    refused(DOCUMENTS, |o| o.fields.clear(), 2, "no document field");
    refused(DOCUMENTS, |o| o.b = 1.5, 2, "b from 0 to 1");
    refused(DOCUMENTS, |o| o.depth = 0, 2, "depth");
}

/// BM25 without stemming on NFCorpus' test titles is known as nDCG@5 .351, the 25 topics without any hit
/// counted as 0.
#[test]
fn nfcorpus_bm25() {
    let Some(data) = shared("nfcorpus") else { return };
    let folder = folder();
    let o = RetrieveOptions {
        documents: vec![Source::documents(data.join("docs_union_dev_test.tsv"))],
        topics: data.join("test.titles.queries"),
        clicks: false,
        stem: false,
        ..options(&folder)
    };
    retrieve(&o).unwrap();
    let (qrels, run) = (Qrels::read(&data.join("test.2-1-0.qrel")).unwrap(), Run::read(&o.out).unwrap());
    let found = evaluate(
        &qrels,
        &run,
        &["ndcg_cut_5".parse().unwrap()],
        &Options { complete: true, ..Options::default() },
    )
    .unwrap()
    .means;
    println!("NFCorpus: {found:?}");
    assert!((found[0] - 0.351).abs() < 0.01, "{found:?}");
}

/// BM25 on Vaswani without stemming is known as nDCG@5 .424, MRR .668, recall@100 .490.
#[test]
fn vaswani_bm25() {
    let Some(data) = shared("vaswani") else { return };
    let folder = folder();
    let o = RetrieveOptions {
        documents: vec![Source::documents(data.join("doc-text.trec"))],
        topics: data.join("query-text.trec"),
        clicks: false,
        stem: false,
        ..options(&folder)
    };
    retrieve(&o).unwrap();
    let (qrels, run) = (Qrels::read(&data.join("qrels")).unwrap(), Run::read(&o.out).unwrap());
    let measures = ["ndcg_cut_5", "recip_rank", "recall_100"].map(|name| name.parse().unwrap());
    let found = evaluate(&qrels, &run, &measures, &Options::default()).unwrap().means;
    println!("Vaswani: {found:?}");
    assert!((found[0] - 0.424).abs() < 0.01, "{found:?}");
    assert!((found[1] - 0.668).abs() < 0.02, "{found:?}");
    assert!((found[2] - 0.490).abs() < 0.02, "{found:?}");
    let first = std::fs::read(&o.out).unwrap();
    retrieve(&o).unwrap();
    assert!(first == std::fs::read(&o.out).unwrap(), "the same run again, byte for byte");
}

/// The files of a tar archive: name and content.
fn untar(bytes: &[u8]) -> Vec<(String, String)> {
    let (mut files, mut at) = (Vec::new(), 0);
    while at + 512 <= bytes.len() && bytes[at] != 0 {
        let field = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&bytes[at..][range]).trim_matches(['\0', ' ']).to_owned()
        };
        let size = usize::from_str_radix(&field(124..136), 8).unwrap();
        let content = String::from_utf8_lossy(&bytes[at + 512..at + 512 + size]).into_owned();
        files.push((field(0..100), content));
        at += 512 + size.next_multiple_of(512);
    }
    files
}

/// The topics of SMART's `query.text`: `.I` id, `.W` words, perhaps `.A` authors, then other sections.
fn smart_topics(text: &str) -> String {
    let mut topics = String::new();
    for topic in text.split("\n.I ").map(|topic| topic.trim_start_matches(".I ")) {
        let id = topic.lines().next().unwrap().trim();
        let section =
            |name: &str| topic.split_once(name).map_or("", |(_, rest)| rest.split("\n.").next().unwrap());
        let query = [section("\n.W\n"), section("\n.A\n")].join(" ");
        topics += &format!("{id}\t{}\n", query.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    topics
}

/// Anserini's BM25 on CACM has MAP .3123 and P30 .1942 (Lucene's Porter stemmer, which is not Porter2).
#[test]
fn cacm_bm25() {
    let (Some(data), Some(topics)) = (shared("fixtures/anserini_cacm"), shared("cacm/query.text")) else {
        return;
    };
    let folder = folder();
    let mut tar = Vec::new();
    let packed = std::fs::File::open(data.join("cacm.tar.gz")).unwrap();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut tar).unwrap();
    let mut documents = String::new();
    for (name, html) in untar(&tar) {
        let Some(id) = name.strip_suffix(".html") else { continue };
        let id = id.rsplit('/').next().unwrap();
        let text =
            html.replace("<html>", " ").replace("</html>", " ").replace("<pre>", " ").replace("</pre>", " ");
        documents += &format!("{id}\t\t\t{}\n", text.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    file(&folder, "docs.tsv", documents);
    file(&folder, "topics.tsv", smart_topics(&std::fs::read_to_string(topics).unwrap()));
    let o = options(&folder);
    retrieve(&o).unwrap();
    let qrels = Qrels::read(&data.join("qrels.cacm.txt")).unwrap();
    let run = Run::read(&o.out).unwrap();
    let found = evaluate(&qrels, &run, &[Measure::Map, Measure::P(30)], &Options::default()).unwrap().means;
    println!("CACM: {found:?}");
    assert!((found[0] - 0.3123).abs() < 0.004 && (found[1] - 0.1942).abs() < 0.002, "{found:?}");
}

/// The scores of one index do not depend on how it is cut into segments: one document or many.
#[test]
fn a_retriever_is_usable_in_memory() {
    let folder = folder();
    let analysis = Analysis { language: Language::ENGLISH, stem: false, stop_words: false };
    let mut indexer = Indexer::new(folder.path(), analysis).unwrap();
    (0..500).for_each(|i| {
        indexer.add(format!("d{i:03}"), &format!("common word{} word{}", i % 5, i % 7)).unwrap()
    });
    let retriever = indexer.finish(0.9, 0.4).unwrap();
    assert_eq!((retriever.documents(), retriever.average_length()), (500, 3.0));
    let hits = retriever.search("word1", 1000).unwrap();
    assert_eq!(hits.len(), 100 + 72 - 15);
    assert_eq!(hits[0].doc, "d491", "both words, the highest id");
    assert!(retriever.search("absent", 10).unwrap().is_empty());
}
