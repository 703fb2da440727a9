//! Negatives from a run of the log's own queries, and pairs weighted by their clicks: the lists beside the
//! shards, the draws from them, and the program from `retrieve --clicks` to the losses.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use ctune_dist::corpus::{HardNegatives, Shards};
use ctune_dist::data::held_out;
use ctune_dist::data::{
    Batch, ClickLog, ClickOptions, ClickSource, Grades, Negatives, PairUse, SampleSource, Truncate,
};
use ctune_dist::text::Special;

use super::program::{Place, assert_done, assert_refused};

fn options(hard: Option<Arc<HardNegatives>>, grades: Grades) -> ClickOptions {
    ClickOptions {
        seed: 1,
        max_tokens: 32,
        max_query_tokens: None,
        truncate: Truncate::Document,
        negatives: if hard.is_some() { Negatives::RunFile } else { Negatives::RandomDocument },
        negatives_per_positive: 2,
        hard,
        grades,
        pairs: PairUse::Labelled,
    }
}

fn one(source: &ClickSource, sample: u32, epoch: u32) -> Batch {
    let mut batch = Batch { epoch, ..Batch::default() };
    source.push(sample, epoch, &mut batch).unwrap();
    batch
}

fn index(shards: &Shards) -> (BTreeMap<String, u32>, BTreeMap<String, u32>) {
    let names = |n: u32, id: &dyn Fn(u32) -> String| (0..n).map(|i| (id(i), i)).collect();
    (
        names(shards.queries(), &|i| shards.query_id(i).to_owned()),
        names(shards.documents(), &|i| shards.document_id(i).to_owned()),
    )
}

/// Query 0 clicked D0, query 1 D1, ...; `rows` are (query, document, score).
fn run_of(path: &Path, rows: &[(&str, &str, f64)]) {
    let line = |(q, d, s): &(&str, &str, f64)| format!("{q} Q0 {d} 1 {s} tag\n");
    fs::write(path, rows.iter().map(line).collect::<String>()).unwrap();
}

const ROWS: [(&str, &str, f64); 11] = [
    ("3", "D9", 1.0),
    ("3", "D3", 5.0), // clicked
    ("3", "D8", 4.0),
    ("3", "gone", 3.0), // not in the shards, yet a rank of the run
    ("3", "D7", 2.0),
    ("nobody", "D1", 1.0),
    ("0", "D5", 2.0),
    ("0", "D6", 2.0), // ties stay in the order of the file
    ("0", "D4", 3.0),
    ("1", "D1", 1.0), // nothing is left of this one
    ("1", "gone", 0.5),
];

#[test]
fn a_run_becomes_lists_once() {
    let place = Place::with_shards();
    let shards = Shards::open(&place.path("shards")).unwrap();
    let (queries, documents) = index(&shards);
    let run = place.path("hard.run");
    run_of(&run, &ROWS);
    let listed = |hard: &HardNegatives, query: &str| -> Vec<String> {
        let id = |&d: &u32| shards.document_id(d).to_owned();
        hard.of(queries[query]).iter().map(id).collect()
    };
    let hard = HardNegatives::open(&shards, &run, [1, 4]).unwrap();
    assert_eq!(
        listed(&hard, "3"),
        ["D8", "D7"],
        "by score, without the click and the unknown one, ranks 1 to 4"
    );
    assert_eq!(listed(&hard, "0"), ["D4", "D5", "D6"]);
    assert!(listed(&hard, "1").is_empty() && listed(&hard, "2").is_empty());
    assert!(hard.of(u32::MAX).is_empty());
    let counts = hard.counts();
    let found = [counts.rows, counts.foreign, counts.missing, counts.clicked, counts.kept, counts.queries];
    assert_eq!(found, [11, 1, 2, 2, 5, 2]);
    let deep = HardNegatives::open(&shards, &run, [2, 100]).unwrap();
    assert_eq!(listed(&deep, "3"), ["D8", "D7", "D9"], "rank 1 was the click");
    assert_eq!(listed(&deep, "0"), ["D5", "D6"]);

    // MS MARCO's form, packed; ranks are what counts.
    let marco = place.path("marco.gz");
    let mut packed = flate2::write::GzEncoder::new(fs::File::create(&marco).unwrap(), Default::default());
    packed.write_all(b"3\tD7\t3\n3\tD9\t2\r\n3\tD8\t1\n").unwrap();
    packed.finish().unwrap();
    let hard_of_marco = HardNegatives::open(&shards, &marco, [1, 2]).unwrap();
    assert_eq!(listed(&hard_of_marco, "3"), ["D8", "D9"]);

    // The lists are made once and reused until the run, the ranks or the files change.
    let folders = || {
        let names = fs::read_dir(place.path("shards")).unwrap().map(|e| e.unwrap().file_name());
        let names = names.filter(|n| n.to_string_lossy().starts_with("negatives-"));
        names.collect::<HashSet<_>>()
    };
    assert_eq!(folders().len(), 3);
    let lists = |n: &std::ffi::OsString| place.path("shards").join(n).join("lists.bin");
    let times = || {
        folders().iter().map(|n| fs::metadata(lists(n)).unwrap().modified().unwrap()).collect::<HashSet<_>>()
    };
    let before = times();
    let again = HardNegatives::open(&shards, &run, [1, 4]).unwrap();
    assert_eq!((times(), again.fingerprint()), (before, hard.fingerprint()));
    for name in folders() {
        let mut bytes = fs::read(lists(&name)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(lists(&name), bytes).unwrap();
    }
    let mended = HardNegatives::open(&shards, &run, [1, 4]).unwrap();
    assert_eq!(
        (listed(&mended, "3"), mended.fingerprint()),
        (vec!["D8".into(), "D7".into()], again.fingerprint())
    );
    run_of(&run, &ROWS[6..9]);
    let other = HardNegatives::open(&shards, &run, [1, 4]).unwrap();
    assert!(listed(&other, "3").is_empty() && other.fingerprint() != again.fingerprint());
    assert_eq!(documents.len(), 72);
}

#[test]
fn runs_that_cannot_be_used_say_why() {
    let place = Place::with_shards();
    let shards = Shards::open(&place.path("shards")).unwrap();
    let refused = |text: &str, words: &[&str]| {
        place.write("bad.run", text);
        let error = HardNegatives::open(&shards, &place.path("bad.run"), [1, 9]).unwrap_err().to_string();
        for word in words.iter().chain(&["bad.run"]) {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    };
    refused("3 Q0 D1 1 2 t\n0 Q0 D1 1 2 t\n3 Q0 D2 2 1 t\n", &["topic 3", "sort"]);
    refused("3 Q0 D1 1 2 t\n\n3 Q0 D2 2\n", &["line 3", "six columns"]);
    refused("3 Q0 D1 1 nan t\n", &["line 1"]);
    refused("x Q0 D1 1 2 t\n", &["none of its 1 rows", "retrieve --clicks"]);
    refused("", &["none of its 0 rows"]);
    let names = fs::read_dir(place.path("shards")).unwrap().map(|e| e.unwrap().file_name());
    assert!(names.into_iter().all(|n| !n.to_string_lossy().contains("negatives")), "something was left");
}

#[test]
fn draws_come_from_the_lists_and_fall_back() {
    let place = Place::with_shards();
    let shards = Arc::new(Shards::open(&place.path("shards")).unwrap());
    let (queries, documents) = index(&shards);
    let run = place.path("hard.run");
    run_of(&run, &ROWS);
    let hard = Arc::new(HardNegatives::open(&shards, &run, [1, 4]).unwrap());
    let source = ClickSource::new(shards.clone(), options(Some(hard.clone()), Grades::None)).unwrap();
    assert_eq!(source.without_hard(), 70, "72 clicks, two queries with lists");
    let text = |d: u32| shards.document(d).to_vec();
    let tokens = |batch: &Batch| {
        let second = batch.segments.iter().position(|&s| s == 1).unwrap();
        batch.ids[second..batch.ids.len() - 1].to_vec()
    };
    let wanted = |query: &str, names: &[&str]| {
        let click = (0..shards.clicks()).find(|&c| shards.click(c).0 == queries[query]).unwrap();
        let mut seen = HashSet::new();
        for epoch in 0..40 {
            for sample in [3 * click + 1, 3 * click + 2] {
                let batch = one(&source, sample, epoch);
                assert_eq!(batch, one(&source, sample, epoch), "a pure function");
                assert_eq!((batch.pair_labels[0], batch.tokens()), (1, source.length(sample, epoch)));
                seen.insert(tokens(&batch));
            }
        }
        let due: HashSet<Vec<u32>> = names.iter().map(|name| text(documents[*name])).collect();
        assert_eq!(seen, due, "query {query}");
    };
    wanted("3", &["D8", "D7"]);
    wanted("0", &["D4", "D5", "D6"]);
    // A query without a list draws from all documents but its click.
    let click = (0..shards.clicks()).find(|&c| shards.click(c).0 == queries["1"]).unwrap();
    let drawn: HashSet<Vec<u32>> = (0..40).map(|epoch| tokens(&one(&source, 3 * click + 1, epoch))).collect();
    assert!(drawn.len() > 15 && !drawn.contains(&text(documents["D1"])));
}

/// Ten queries, one click each, that happened i + 1 times.
struct Counted;

impl ClickLog for Counted {
    fn queries(&self) -> u32 {
        10
    }
    fn documents(&self) -> u32 {
        12
    }
    fn clicks(&self) -> u32 {
        10
    }
    fn click(&self, click: u32) -> (u32, u32) {
        (click, click)
    }
    fn times(&self, click: u32) -> u32 {
        click + 1
    }
    fn clicked(&self, query: u32) -> &[u32] {
        &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11][query as usize..][..1]
    }
    fn query_len(&self, query: u32) -> usize {
        1 + query as usize % 3
    }
    fn document_len(&self, document: u32) -> usize {
        2 + document as usize
    }
    fn extend_query(&self, query: u32, out: &mut Vec<u32>, at_most: usize) {
        out.extend(std::iter::repeat_n(10 + query, self.query_len(query).min(at_most)));
    }
    fn extend_document(&self, document: u32, out: &mut Vec<u32>, at_most: usize) {
        out.extend(std::iter::repeat_n(50 + document, self.document_len(document).min(at_most)));
    }
    fn special(&self) -> Special {
        Special { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 }
    }
}

#[test]
fn weights_grow_with_the_logarithm_of_clicks_and_have_mean_one() {
    let log: Arc<dyn ClickLog> = Arc::new(Counted);
    let graded = ClickSource::new(log.clone(), options(None, Grades::ClickCount)).unwrap();
    let weight = |sample: u32| f64::from(one(&graded, sample, 0).pair_weights[0]);
    let all: Vec<f64> = (0..30).map(weight).collect();
    assert!((all.iter().sum::<f64>() / 30.0 - 1.0).abs() < 1e-6);
    for click in 0..10 {
        let due = f64::from(click + 2).ln() / 2f64.ln() * all[0];
        for j in 0..3 {
            assert!((all[3 * click as usize + j] - due).abs() < 1e-6, "click {click}, pair {j}");
        }
    }
    let plain = ClickSource::new(log.clone(), options(None, Grades::None)).unwrap();
    assert!(one(&plain, 5, 0).pair_weights.is_empty());
    assert_eq!(one(&plain, 5, 0).ids, one(&graded, 5, 0).ids);
    // A side of a divided log knows its clicks' times and has a mean of its own.
    for side in held_out::divide(&log, 4).unwrap() {
        let of: Vec<u32> = (0..side.clicks()).map(|c| side.times(c)).collect();
        assert_eq!(of, (0..side.clicks()).map(|c| side.click(c).0 + 1).collect::<Vec<_>>());
        let graded = ClickSource::new(Arc::new(side), options(None, Grades::ClickCount)).unwrap();
        let n = graded.samples();
        let sum: f64 = (0..n).map(|s| f64::from(one(&graded, s, 0).pair_weights[0])).sum();
        assert!((sum / f64::from(n) - 1.0).abs() < 1e-6);
    }
}

/// Repeated rows and a column of counts end in the shards; damaged ones are counted.
#[test]
fn clicks_that_happened_several_times_are_counted() {
    let place = Place::with_text();
    let text = fs::read_to_string(place.path("clicks.tsv")).unwrap();
    let again: String = text.lines().take(3).map(|line| format!("{line}\n")).collect();
    place.write("repeated.tsv", &format!("{text}{again}{}\n", text.lines().next().unwrap()));
    let prepare = |out: &str, more: &[&str]| {
        let common = ["prepare", "--documents", "documents.tsv", "--out", out, "--vocab", "200"];
        let done = place.run(&[&common[..], more].concat());
        assert_done(&done);
        let shards = Shards::open(&place.path(out)).unwrap();
        shards.verify().unwrap();
        assert_eq!(shards.clicks(), 72);
        let times = (0..72).map(|c| (shards.query_id(shards.click(c).0).to_owned(), shards.click_times(c)));
        (times.collect::<BTreeMap<String, u32>>(), String::from_utf8_lossy(&done.stdout).into_owned())
    };
    let (once, _) = prepare("once", &["--clicks", "clicks.tsv"]);
    assert!(once.values().all(|&n| n == 1) && !place.path("once/click_times.bin").exists());
    let (times, _) = prepare("repeated", &["--clicks", "repeated.tsv"]);
    assert_eq!([times["0"], times["1"], times["2"], times["3"]], [3, 2, 2, 1]);

    let counted = text.lines().enumerate().map(|(i, line)| {
        let columns: Vec<&str> = line.split('\t').collect();
        let count = if i == 5 { "some".into() } else { (1 + i % 4).to_string() };
        format!("{}\t{}\t{}\t{count}\n", columns[0], columns[1], columns[2])
    });
    // The damaged row's pair also occurs in an undamaged row.
    let whole = text.lines().nth(5).unwrap().split('\t').take(3).collect::<Vec<_>>().join("\t");
    place.write("counted.tsv", &format!("{}{whole}\t9\n", counted.collect::<String>()));
    place.write(
        "counted.toml",
        "[[source]]\nrole = \"clicks\"\npath = \"counted.tsv\"\nformat = \"tsv\"\n\
         columns = { query_id = \"1\", query = \"2\", document_id = \"3\", count = \"4\" }\n\
         [[source]]\nrole = \"documents\"\npath = \"documents.tsv\"\n",
    );
    let done = place.run(&["prepare", "--config", "counted.toml", "--out", "counted", "--vocab", "200"]);
    assert_done(&done);
    let shards = Shards::open(&place.path("counted")).unwrap();
    for click in 0..72 {
        let query: u32 = shards.query_id(shards.click(click).0).parse().unwrap();
        assert_eq!(shards.click_times(click), if query == 5 { 9 } else { 1 + query % 4 }, "query {query}");
    }
    assert_eq!(shards.manifest().dropped["click rows that are damaged"], 1);
    // A file of other numbers is refused.
    let file = place.path("counted/click_times.bin");
    let mut bytes = fs::read(&file).unwrap();
    bytes[70] ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = Shards::open(&place.path("counted")).unwrap().verify().unwrap_err().to_string();
    assert!(error.contains("click_times.bin"), "{error}");
}

#[test]
fn coarse_learns_from_hard_negatives_and_counts_on_any_number_of_ranks() {
    let place = Place::with_text();
    let text = fs::read_to_string(place.path("clicks.tsv")).unwrap();
    let twice: String = text.lines().step_by(3).map(|line| format!("{line}\n")).collect();
    place.write("clicks.tsv", &format!("{text}{twice}"));
    place.plan();
    place.prepare();
    let retrieve =
        ["retrieve", "--documents", "documents.tsv", "--clicks", "clicks.tsv", "--out", "hard.run"];
    assert_done(&place.run(&[&retrieve[..], &["--depth", "10"]].concat()));
    let topics = |line: &str| line.split(' ').next().unwrap().to_owned();
    let run = fs::read_to_string(place.path("hard.run")).unwrap();
    assert_eq!(run.lines().map(topics).collect::<HashSet<_>>().len(), 72, "every query once");

    let sets = ["objective.negatives=run-file", "objective.negatives_run=hard.run", "train.dropout=0.1"];
    let graded = [&sets[..], &["objective.grades=click-count", "objective.negatives_depth=[1,5]"]].concat();
    let args = |out: &'static str, sets: &[&'static str]| {
        let mut args = vec!["coarse", "--config", "plan.toml", "--out", out];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        args
    };
    let done = place.run(&args("alone", &graded));
    assert_done(&done);
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(told.contains("hard negatives, ranks 1 to 5") && told.contains("clicks ("), "{told}");
    let about: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(place.path("alone/run.json")).unwrap()).unwrap();
    assert_eq!(about["hard_negatives"]["clicks"], 72);
    assert!(about["hard_negatives"]["run"]["clicked"].as_u64().unwrap() > 0, "{about}");
    assert_done(&place.mpirun(2, &args("two", &graded)));
    assert_done(&place.run(&args("plain", &sets)));
    let loss = |run: &str, key: &str| -> Vec<f64> {
        place.metrics(run).iter().map(|line| line[key].as_f64().unwrap()).collect()
    };
    for key in ["mlm_loss", "qdpp_loss", "grad_norm"] {
        for (one, two) in loss("alone", key).iter().zip(loss("two", key)) {
            assert!((one - two).abs() < 1e-5 * one, "{key}: {one} and {two} on two ranks");
        }
    }
    assert!(loss("alone", "qdpp_loss") != loss("plain", "qdpp_loss"), "grades change nothing");

    // Another run is other data.
    let fewer: String = run.lines().filter(|l| !l.starts_with("7 ")).map(|l| format!("{l}\n")).collect();
    place.write("hard.run", &fewer);
    assert_refused(&place.run(&args("alone", &graded)), 2, &["fingerprint of data.shards: was "]);
    assert_refused(&place.run(&args("x", &sets[..1])), 2, &["objective.negatives_run", "retrieve --clicks"]);
    let bad = [sets[0], sets[1], "objective.negatives_depth=[5,1]"];
    assert_refused(&place.run(&args("x", &bad)), 2, &["objective.negatives_depth = [5, 1]"]);
}
