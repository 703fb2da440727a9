//! Readers and writers: topics, qrels, runs.

use std::io::Write;

use ctune_dist::Error;
use ctune_dist::ir::run::Hit;
use ctune_dist::ir::topics::{Topic, TopicField, read_topics, read_topics_fields};
use proptest::prelude::*;

use super::*;

fn topic(id: &str, text: &str) -> Topic {
    Topic { id: id.into(), text: text.into() }
}

/// The error names the file, the line and the word, and is a data error.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, place: &str, word: &str) {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(place) && text.contains(word) && error.exit_code() == 3, "{text}");
}

#[test]
fn tsv_topics() {
    let folder = folder();
    let path = file(&folder, "t.tsv", "\u{feff}7\tfirst  query\r\n\n8\tsecond\tpart\n");
    assert_eq!(read_topics(&path).unwrap(), [topic("7", "first query"), topic("8", "second part")]);
    refused(read_topics(&file(&folder, "a", "1\tone\n2 two\n")), "a:2", "no tab");
    refused(read_topics(&file(&folder, "a", "1\tone\n\t two\n")), "a:2", "empty");
    refused(read_topics(&file(&folder, "a", "1\tone\n2\ttwo\n1\tthree\n")), "a:3", "twice");
    refused(read_topics(&file(&folder, "a", "\n")), "a", "no topic");
    refused(read_topics(&file(&folder, "a", b"1\tone\n2\t\xff\n")), "a:2", "UTF-8");
    refused(read_topics(&folder.path().join("none")), "none", "cannot be read");
}

#[test]
fn sgml_topics_without_closing_tags() {
    let folder = folder();
    let text = "\n<top>\n\n<num> Number: 301 \n<title> R&D drug \n prices <low> \n\n<desc> Description: \nIdentify\n\
                organizations\n\n<narr> Narrative: \nA b.\n\n</top>\n\n<top>\n<num> Number: 302\n<title>Topic: 5 < 6</title>\n\
                <desc>d</desc><narr>n</narr>\n</top>\n";
    let path = file(&folder, "t", text);
    assert_eq!(read_topics(&path).unwrap(), [topic("301", "R&D drug prices"), topic("302", "5 < 6")]);
    let descriptions = read_topics_fields(&path, &[TopicField::Description]).unwrap();
    assert_eq!(descriptions[0], topic("301", "Identify organizations"));
    assert_eq!(read_topics_fields(&path, &[TopicField::Narrative]).unwrap()[0], topic("301", "A b."));
    refused(read_topics(&file(&folder, "a", "<top>\n<title> x\n</top>\n")), "a:1", "<num>");
    refused(read_topics(&file(&folder, "a", "<top>\n<num> 1\n</top>\n")), "a:1", "title");
}

#[test]
fn xml_topics() {
    let folder = folder();
    let text = "<?xml version=\"1.0\"?>\n<topics task=\"t\">\n<!-- <topic number=\"9\"> -->\n<topic number=\"1\">\n<query>a &amp;lt; b\n c</query>\
                <question>why?</question><narrative>n</narrative>\n</topic>\n<topic number='2'><query>d</query><question>e</question></topic></topics>";
    let path = file(&folder, "t.xml", text);
    assert_eq!(read_topics(&path).unwrap(), [topic("1", "a &lt; b c"), topic("2", "d")]);
    assert_eq!(read_topics_fields(&path, &[TopicField::Description]).unwrap()[1].text, "e");
    refused(read_topics_fields(&path, &[TopicField::Narrative]), "t.xml:8", "topic '2'");
}

#[test]
fn json_topics_and_several_fields() {
    let folder = folder();
    let path = file(
        &folder,
        "t.jsonl",
        "{\"_id\": 7, \"text\": \"a  query\", \"metadata\": {\"query\": 1}}\n\n{\"qid\": \"8\", \"title\": \"t\", \"description\": \"d\"}\n",
    );
    assert_eq!(read_topics(&path).unwrap(), [topic("7", "a query"), topic("8", "t")]);
    refused(
        read_topics_fields(&path, &[TopicField::Title, TopicField::Description]),
        "t.jsonl:1",
        "topic '7'",
    );
    refused(read_topics(&file(&folder, "a", "{\"_id\": 1, \"text\": \"q\"}\n{\"_id\": 2\n")), "a:2", "JSON");
    refused(read_topics(&file(&folder, "a", "{\"text\": \"q\"}\n")), "a:1", "without id");
    let sgml = "<top>\n<num> Number: 1\n<title> a\n<desc> Description:\nb\n<narr> Narrative:\nc\n</top>\n";
    let fields = [TopicField::Title, TopicField::Description, TopicField::Narrative];
    assert_eq!(read_topics_fields(&file(&folder, "s", sgml), &fields).unwrap(), [topic("1", "a b c")]);
    let packed = file(&folder, "t.zst", zstd::encode_all(&b"1\tq\n"[..], 1).unwrap());
    assert_eq!(read_topics(&packed).unwrap(), [topic("1", "q")]);
    refused(read_topics_fields(&packed, &[TopicField::Narrative]), "t.zst:1", "narrative");
    assert_eq!(read_topics_fields(&packed, &[]).unwrap_err().exit_code(), 2);
}

#[test]
fn real_topic_files() {
    let Some(root) = shared("topics_qrels") else { return };
    let files = [
        ("robust04/topics.robust04.txt", 250, "301", "International Organized Crime"),
        ("robust04/topics.beir-v1.0.0-robust04.test.tsv.gz", 249, "303", ""),
        ("gov2/topics.terabyte04.701-750.txt", 50, "701", ""),
        ("gov2/topics.terabyte05.751-800.txt", 50, "751", "Scrabble Players"),
        ("gov2/topics.terabyte06.801-850.txt", 50, "801", ""),
        ("trec_covid/topics.covid-round5.xml", 50, "1", "coronavirus origin"),
        ("trec_covid/topics.covid-round5-udel.xml", 50, "1", "coronavirus origin origin COVID-19"),
        ("trec_dl_doc/topics.dl19-doc.txt", 43, "156493", "do goldfish grow"),
        ("trec_dl_doc/topics.dl20.txt", 200, "1030303", "who is aziz hashim"),
        ("trec_dl_doc/topics.msmarco-doc.dev.txt", 5193, "174249", ""),
        (
            "../vaswani/query-text.trec",
            93,
            "1",
            "MEASUREMENT OF DIELECTRIC CONSTANT OF LIQUIDS BY THE USE OF MICROWAVE TECHNIQUES",
        ),
    ];
    for (name, count, id, text) in files {
        let topics = read_topics(&root.join(name)).unwrap();
        let first = topics.iter().find(|topic| topic.id == id).unwrap();
        assert_eq!(topics.len(), count, "{name}");
        assert!(text.is_empty() || first.text == text, "{name}: {first:?}");
    }
    let robust = root.join("robust04/topics.robust04.txt");
    assert_eq!(read_topics_fields(&robust, &[TopicField::Description]).unwrap().len(), 250);
    assert_eq!(read_topics_fields(&robust, &[TopicField::Narrative]).unwrap().len(), 250);
}

#[test]
fn qrels_of_every_shape() {
    let qrels = qrels_of("# comment\n1 0 a 1\r\n\n1  4.5   b\t-1\r\n2 Q0 a 3\n");
    assert_eq!(
        (qrels.label("1", "a"), qrels.label("1", "b"), qrels.label("2", "a")),
        (Some(1), Some(-1), Some(3))
    );
    assert_eq!((qrels.label("1", "z"), qrels.get("9"), qrels.judgements()), (None, None, 3));
    let beir = qrels_of("query-id\tcorpus-id\tscore\nq1\td1\t2\n");
    assert_eq!(beir.label("q1", "d1"), Some(2));
}

#[test]
fn damaged_qrels_are_refused() {
    let folder = folder();
    let read = |text: &str| Qrels::read(&file(&folder, "q", text));
    refused(read("1 0 a 1\n1 0 a 0\n"), "q:2", "judged twice");
    refused(read("1 0 a 1\n1 0 b\n"), "q:2", "3 columns");
    refused(read("1 0 a\n1 0 b 1\n"), "q:1", "3 columns");
    refused(read("1 0 a 1 x\n"), "q:1", "5 columns");
    refused(read("1 0 a yes\n"), "q:1", "not an integer");
    refused(read("query-id\tcorpus-id\tscore\n1\t0\ta\t1\n"), "q:2", "4 columns");
    refused(read(""), "q", "no judgement");
    refused(Qrels::read(&folder.path().join("none")), "none", "cannot be read");
}

#[test]
fn real_qrels_files() {
    let Some(root) = shared("topics_qrels") else { return };
    let files = [
        ("robust04/qrels.robust2004.txt", 249, 311_410),
        ("trec_covid/qrels.covid-complete.txt", 50, 69_318),
        ("trec_dl_doc/qrels.dl19-doc.txt", 43, 16_258),
        ("trec_dl_doc/qrels.dl20-doc.txt", 45, 9_098),
        ("trec_dl_doc/qrels.msmarco-doc.dev.txt", 5_193, 5_193),
    ];
    for (name, topics, judgements) in files {
        let qrels = Qrels::read(&root.join(name)).unwrap();
        assert_eq!((qrels.topics().len(), qrels.judgements()), (topics, judgements), "{name}");
    }
    let covid = Qrels::read(&root.join("trec_covid/qrels.covid-complete.txt")).unwrap();
    let negative =
        covid.topics().flat_map(|topic| covid.get(topic).unwrap().values()).filter(|&&label| label < 0);
    assert_eq!(negative.count(), 2);
}

#[test]
fn damaged_runs_are_refused() {
    let folder = folder();
    let read = |text: &str| Run::read(&file(&folder, "r", text));
    refused(read("1 Q0 a 1 5 t\n2 Q0 a 1 5 t\n1 Q0 a 2 4 t\n"), "r:3", "'a' is in topic '1' twice");
    refused(read("1 Q0 a 1 5 t\n1 Q0 b 2 nan t\n"), "r:2", "score 'nan'");
    refused(read("1 Q0 a 1 high t\n"), "r:1", "score 'high'");
    refused(read("\n1 Q0 a 1 5\n"), "r:2", "5 columns");
    refused(read("1 Q0 a 1 5 t\n1 a 2\n"), "r:2", "3 columns");
    refused(read("1\ta\tfirst\n"), "r:1", "rank 'first'");
    refused(read(""), "r", "it is empty");
    refused(Run::read(&file(&folder, "r", b"1 Q0 \xff 1 5 t\n")), "r:1", "UTF-8");
    refused(Run::read(&folder.path().join("none")), "none", "cannot be read");
}

#[test]
fn runs_of_every_shape() {
    let run =
        run_of("# comment\r\n1 Q0 a 7 -1e-3 tag more words\r\n\n1\tQ0\tb\t1\t2\ttag\n0 Q0 a x inf last");
    assert_eq!(run.get("1").unwrap()[0], Hit { doc: "b".into(), score: 2.0 });
    assert_eq!((run.topics().collect::<Vec<_>>(), run.tag()), (vec!["0", "1"], Some("last")));
    let marco = run_of("1\ta\t2\n1\tb\t1\n");
    assert_eq!(marco.get("1").unwrap()[0].doc, "b");
    let folder = folder();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"1 Q0 a 1 5 t\n").unwrap();
    let path = file(&folder, "r.gz", gzip.finish().unwrap());
    assert_eq!(Run::read(&path).unwrap().get("1").unwrap()[0].doc, "a");
}

/// A file large enough to be cut into pieces for several threads gives the same as its lines one by one.
#[test]
fn lines_of_a_topic_may_stand_anywhere() {
    let lines =
        (0..5000).map(|i| format!("t{} Q0 d{i} 1 {} tag\n", i % 7, i * 37 % 5000)).collect::<Vec<_>>();
    let run = run_of(&lines.concat());
    assert_eq!(run.topics().map(|topic| run.get(topic).unwrap().len()).sum::<usize>(), 5000);
    let mut scores = run.get("t3").unwrap().iter().map(|hit| hit.score);
    assert!(scores.by_ref().is_sorted_by(|a, b| a > b));
    assert!(run.get("t3").unwrap().iter().all(|hit| hit.doc[1..].parse::<usize>().unwrap() % 7 == 3));
}

fn hits(scores: &[f64]) -> Vec<Hit> {
    scores.iter().enumerate().map(|(i, &score)| Hit { doc: format!("d{i}").into(), score }).collect()
}

/// d0 above d1 by less than f32 holds: written as a tie, d1 would come first.
#[test]
fn scores_are_kept_apart_in_f32() {
    let mut run = Run::default();
    run.insert("1", hits(&[1.0 + 1e-12, 1.0, 1.0, 1.0 - 1e-12])).unwrap();
    let scores =
        run.get("1").unwrap().iter().map(|hit| (hit.doc.as_str(), hit.score as f32)).collect::<Vec<_>>();
    let below = 1.0_f32.next_down();
    assert_eq!(scores, [("d0", 1.0), ("d2", below), ("d1", below), ("d3", below.next_down())]);
}

#[test]
fn a_run_in_memory_refuses_what_a_file_could_not_hold() {
    let mut run = Run::default();
    refused(run.insert("1", hits(&[f64::NAN])), "topic '1'", "NaN");
    refused(run.insert("1", hits(&[1e300])), "topic '1'", "score");
    refused(run.insert("1 2", hits(&[1.0])), "topic '1 2'", "space");
    let twice = vec![Hit { doc: "a".into(), score: 1.0 }, Hit { doc: "a".into(), score: 2.0 }];
    refused(run.insert("1", twice), "topic '1'", "twice");
    run.insert("1", hits(&[1.0])).unwrap();
    refused(run.insert("1", hits(&[1.0])), "topic '1'", "twice");
    let mut other = Run::default();
    other.insert("2", hits(&[1.0])).unwrap();
    other.merge(run.clone()).unwrap();
    assert_eq!(other.topics().len(), 2);
    refused(other.merge(run.clone()), "topic '1'", "two of the runs");
    let folder = folder();
    assert_eq!(run.write(&folder.path().join("r"), "two words").unwrap_err().exit_code(), 2);
    refused(run.write(&folder.path().join("none/r"), "t"), "none", "written");
}

#[test]
fn a_written_run_has_six_columns() {
    let folder = folder();
    let path = folder.path().join("r");
    let mut run = Run::default();
    run.insert("1", hits(&[0.1, 3.0])).unwrap();
    run.write(&path, "tag").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "1 Q0 d1 1 3 tag\n1 Q0 d0 2 0.1 tag\n");
}

/// Scores crowded into a few f32 values, including ties.
fn crowded() -> impl Strategy<Value = Vec<f64>> {
    let near = (0..40_i32, -2..3_i32)
        .prop_map(|(steps, power)| 10_f64.powi(power) * (1.0 + f64::from(steps) * 1e-9));
    prop::collection::vec(prop_oneof![near, -1e3..1e3_f64, Just(0.0), Just(-0.0), Just(1e-45)], 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// What is written is read in the order of the f64 scores, ties by document id descending.
    #[test]
    fn order_survives_writing(scores in crowded()) {
        let mut expected = hits(&scores);
        expected.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap().then_with(|| b.doc.cmp(&a.doc)));
        let mut run = Run::default();
        run.insert("1", hits(&scores)).unwrap();
        let folder = folder();
        let path = folder.path().join("r");
        run.write(&path, "t").unwrap();
        let read = Run::read(&path).unwrap();
        let order = |hits: &[Hit]| hits.iter().map(|hit| hit.doc.clone()).collect::<Vec<_>>();
        prop_assert_eq!(order(read.get("1").unwrap()), order(&expected));
        prop_assert_eq!(order(run.get("1").unwrap()), order(&expected));
        for (hit, wanted) in read.get("1").unwrap().iter().zip(&expected) {
            prop_assert!((hit.score - wanted.score).abs() <= 1e-5 * wanted.score.abs() + 1e-40);
        }
    }

    /// Any bytes give a run or an error, never a panic.
    #[test]
    fn readers_survive_any_bytes(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), Just(b'\t'), Just(b'<'), Just(b'1'), any::<u8>()], 0..120)) {
        let folder = folder();
        let path = file(&folder, "any", bytes);
        let _ = (Run::read(&path), Qrels::read(&path), read_topics(&path));
    }
}
