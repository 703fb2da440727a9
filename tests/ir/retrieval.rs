//! The first stage, and `evaluate` end to end.

use std::io::Read;

use ctune_dist::corpus::Source;
use ctune_dist::corpus::documents::Field;
use ctune_dist::ir::bm25::{Analysis, Indexer, RetrieveOptions, retrieve};
use ctune_dist::ir::evaluate::{EvaluateOptions, render};
use ctune_dist::ir::topics::Field as TopicField;

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
    refused("D1 u t\n", |_| (), 3, "docs.tsv: cannot tell its format");
    refused("D1\tu\tt\tb\nD1\tu\tt\tb\n", |_| (), 3, "'D1' is there twice");
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
    let mut indexer = Indexer::new(folder.path(), Analysis { stem: false, stop_words: false }).unwrap();
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

const QRELS: &str = "1 0 a 1\n1 0 b 0\n2 0 a 1\n3 0 c 1\n";

fn evaluated(change: impl FnOnce(&mut EvaluateOptions, &tempfile::TempDir)) -> String {
    let folder = folder();
    let qrels = file(&folder, "qrels", QRELS);
    let run = file(&folder, "run", "1 Q0 a 1 2 mine\n1 Q0 b 2 1 mine\n2 Q0 b 1 2 mine\n2 Q0 a 2 1 mine\n");
    let mut o = EvaluateOptions { qrels, run, ..EvaluateOptions::default() };
    change(&mut o, &folder);
    render(&o).unwrap()
}

#[test]
fn the_layout_is_trec_evals() {
    let text = evaluated(|o, _| o.measures = vec!["num_ret".into(), "map".into()]);
    assert_eq!(text, "num_ret               \tall\t4\nmap                   \tall\t0.7500\n");
    let text = evaluated(|o, _| {
        o.measures = vec!["map".into(), "gm_map".into(), "num_q".into()];
        (o.per_topic, o.complete) = (true, true);
    });
    assert_eq!(
        text,
        "map                   \t1\t1.0000\nmap                   \t2\t0.5000\nmap                   \t3\t0.0000\n\
         map                   \tall\t0.5000\ngm_map                \tall\t0.0171\nnum_q                 \tall\t3\n"
    );
    assert_eq!(evaluated(|_, _| ()).lines().next(), Some("runid                 \tall\tmine"));
}

/// What trec_eval prints by default for NIST's files, byte for byte.
#[test]
fn the_default_output_is_trec_evals() {
    let Some(data) = shared("fixtures/trec_eval/test") else { return };
    let o = EvaluateOptions {
        qrels: data.join("qrels.test"),
        run: data.join("results.test"),
        ..EvaluateOptions::default()
    };
    assert_eq!(render(&o).unwrap(), std::fs::read_to_string(data.join("out.test")).unwrap());
}

#[test]
fn a_baseline_is_compared_topic_by_topic() {
    let text = evaluated(|o, folder| {
        o.measures = vec!["map".into(), "num_q".into(), "recip_rank".into()];
        let run = "1 Q0 b 1 2 t\n1 Q0 a 2 1 t\n2 Q0 b 1 2 t\n2 Q0 a 2 1 t\n";
        o.baseline = Some(file(folder, "baseline", run));
    });
    let rows = text.lines().filter(|line| line.ends_with("1/1/0")).collect::<Vec<_>>();
    assert_eq!(rows.len(), 2, "{text}");
    // Differences .5 and 0: t = 1, p = .5 with one degree of freedom; Holm doubles it.
    assert!(
        rows[0].starts_with("map                   \t0.7500\t0.5000\t+0.2500\t0.5000\t1.0000\t"),
        "{text}"
    );
}
