//! Fine-tuning's losses, negatives and passages, and re-ranking, through the program and its library.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::sync::Arc;

use ctune_dist::config::{Config, Fine, NegativesFrom, TrainPassages};
use ctune_dist::data::batch::Batch;
use ctune_dist::data::collection::{Collection, CollectionInputs};
use ctune_dist::data::groups::{GroupInputs, GroupOptions, GroupSource};
use ctune_dist::data::source::SampleSource;
use ctune_dist::engine::op::Aggregate;
use ctune_dist::ir::qrels::Qrels;
use ctune_dist::ir::run::{Hit, Run};
use ctune_dist::probe::tally::Probe;
use ctune_dist::report::Results;
use ctune_dist::text::Tokenizer;

use super::program::{Place, assert_done, assert_refused};

/// Shards, a first stage and a model with a ranking head in `fine/fold-1/model`.
pub fn ready() -> Place {
    let place = Place::with_shards();
    let retrieve = [
        "retrieve",
        "--documents",
        "documents.tsv",
        "--topics",
        "topics.tsv",
        "--out",
        "bm25.run",
        "--depth",
        "30",
    ];
    assert_done(&place.run(&retrieve));
    assert_done(&place.run(&[
        "pretrain",
        "--config",
        "plan.toml",
        "--set",
        "train.steps=2",
        "--out",
        "model",
    ]));
    place
}

pub fn fine(place: &Place, out: &str, more: &[&str]) -> std::process::Output {
    let mut args = vec!["fine", "--config", "plan.toml", "--out", out, "--set", "model.path=model/model"];
    args.extend(["--set", "train.steps=3", "--set", "train.pack_tokens=1024"]);
    for set in more {
        args.extend(["--set", set]);
    }
    place.run(&args)
}

#[test]
fn every_loss_trains_and_passages_too() {
    let place = ready();
    for loss in ["lce", "pairwise-softmax", "hinge", "pointwise", "listnet", "margin-mse"] {
        let set = format!("fine.loss={loss}");
        assert_done(&fine(&place, loss, &[&set, "fine.teacher=bm25.run"]));
        let losses: Vec<f64> = place
            .metrics(&format!("{loss}/fold-1"))
            .iter()
            .map(|m| m["rank_loss"].as_f64().unwrap())
            .collect();
        assert_eq!(losses.len(), 3, "{loss}");
        assert!(losses.iter().all(|l| l.is_finite() && *l > 0.0), "{loss}: {losses:?}");
    }
    let passages =
        ["fine.aggregate=max-p", "fine.passage_words=4", "fine.passage_stride=2", "fine.passages=3"];
    assert_done(&fine(&place, "maxp", &passages));
    let together = [&passages[..], &["fine.train_passages=all"]].concat();
    assert_done(&fine(&place, "together", &together));
    let loss = |run: &str| place.metrics(&format!("{run}/fold-1"))[0]["rank_loss"].as_f64().unwrap();
    assert!(loss("together") != loss("maxp"), "all passages give the loss of one");
    let tight = [&together[..], &["train.pack_tokens=64"]].concat();
    let advice = ["1 + 2 documents with all of their passages", "train.pack_tokens", "fine.train_passages"];
    assert_refused(&fine(&place, "tight", &tight), 2, &advice);
    assert_done(&fine(&place, "sweep", &["fine.seeds=3"]));
    let sweep = fs::read_to_string(place.path("sweep/seeds.txt")).unwrap();
    let columns: Vec<f64> =
        sweep.lines().next().unwrap().split('\t').skip(2).map(|x| x.trim().parse().unwrap()).collect();
    let single = |dir: &str| -> f64 {
        let text = fs::read_to_string(place.path(dir).join("results.txt")).unwrap();
        text.lines().next().unwrap().split('\t').nth(2).unwrap().trim().parse().unwrap()
    };
    let means = ["sweep", "sweep/repeat-2", "sweep/repeat-3"].map(single);
    assert!((columns[0] - means.iter().sum::<f64>() / 3.0).abs() < 1e-4, "{sweep} {means:?}");
    assert!(columns[1] > 0.0, "three seeds give the same: {means:?}");
    assert_refused(&fine(&place, "x", &["fine.loss=margin-mse"]), 2, &["fine.teacher"]);
    assert_refused(&fine(&place, "x", &["fine.aggregate=sum-p"]), 2, &["fine.passage_words"]);
    assert_refused(
        &fine(&place, "x", &["fine.passage_words=10", "fine.passage_stride=11"]),
        2,
        &["fine.passage_stride"],
    );
}

/// MaxP of a document is the best score that its passages get as separate documents.
#[test]
fn passages_score_as_documents_of_their_own() {
    let place = ready();
    assert_done(&fine(&place, "fine", &[]));
    let (words, stride) = (4, 3);
    let (mut apart, mut parts) = (String::new(), BTreeMap::<String, Vec<String>>::new());
    for line in fs::read_to_string(place.path("documents.tsv")).unwrap().lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        let text = format!("{} {}", columns[2], columns[3]);
        let all: Vec<&str> = text.split_whitespace().collect();
        let starts = (0..).map(|i| i * stride).take_while(|s| *s == 0 || s + words < all.len() + stride);
        for (i, start) in starts.enumerate() {
            let passage = all[start..(start + words).min(all.len())].join(" ");
            let id = format!("{}_{i}", columns[0]);
            apart.push_str(&format!("{id}\t\t\t{passage}\n"));
            parts.entry(columns[0].into()).or_default().push(id);
        }
    }
    place.write("apart.tsv", &apart);
    let run = Run::read(&place.path("bm25.run")).unwrap();
    let mut lines = String::new();
    for topic in run.topics() {
        let ids = run.get(topic).unwrap().iter().take(30).flat_map(|hit| &parts[hit.doc.as_str()]);
        ids.enumerate()
            .for_each(|(i, id)| lines.push_str(&format!("{topic} Q0 {id} {} {} x\n", i + 1, 999 - i)));
    }
    place.write("apart.run", &lines);
    let rerank = |out: &str, more: &[&str]| {
        let mut args =
            vec!["rerank", "--config", "plan.toml", "--model", "fine/fold-1/model", "--run-out", out];
        more.iter().for_each(|set| args.extend(["--set", set]));
        assert_done(&place.run(&args));
        Run::read(&place.path(out)).unwrap()
    };
    let whole = rerank(
        "maxp.run",
        &["fine.aggregate=max-p", "fine.passage_words=4", "fine.passage_stride=3", "fine.passages=99"],
    );
    let single = rerank("single.run", &["data.documents=apart.tsv", "data.run=apart.run", "fine.depth=1000"]);
    for topic in whole.topics() {
        let scores: HashMap<&str, f64> =
            single.get(topic).unwrap().iter().map(|hit| (hit.doc.as_str(), hit.score)).collect();
        for hit in whole.get(topic).unwrap() {
            let best = parts[hit.doc.as_str()].iter().map(|id| scores[id.as_str()]).fold(f64::MIN, f64::max);
            assert!((hit.score - best).abs() < 1e-5, "{topic} {}: {} not {best}", hit.doc, hit.score);
        }
    }
}

/// Unusable topics are counted and named, by reason, on the terminal and in run.json.
#[test]
fn topics_that_teach_nothing_are_named() {
    let place = ready();
    let append = |name: &str, text: &str| {
        let old = fs::read_to_string(place.path(name)).unwrap();
        place.write(name, &(old + text));
    };
    append("topics.tsv", "T6\teditor tool\nT7\timage tool\nT8\tnever asked\n");
    append("bm25.run", "T6 Q0 D0 1 2 x\nT6 Q0 D6 2 1 x\nT7 Q0 D0 1 2 x\nT7 Q0 D1 2 1 x\n");
    append("qrels.txt", "T6 0 D0 1\nT6 0 D6 1\nT7 0 D2 1\n");
    let out = fine(&place, "fine", &[]);
    assert_done(&out);
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    for line in [
        "6 usable topics",
        "1 topics left out, no relevant document among the first 30: T7",
        "1 topics left out, nothing but relevant documents among the first 30: T6",
        "1 topics left out, not in the run: T8",
    ] {
        assert!(told.contains(line), "{line:?} in {told}");
    }
    let about: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(place.path("fine/run.json")).unwrap()).unwrap();
    assert_eq!(about["topics"]["usable"].as_array().unwrap().len(), 6);
    assert_eq!(about["topics"]["without_relevant"], serde_json::json!(["T7"]));
    assert_eq!(about["topics"]["without_others"], serde_json::json!(["T6"]));
    assert_eq!(about["topics"]["not_in_run"], serde_json::json!(["T8"]));
    assert_eq!(about["command"], "fine");
    // CEDR's folder of folds splits the topics as well.
    let line = |t: &&str| format!("{t} Q0 D0 1 1 x\n");
    for (i, [test, valid, train]) in [["T0", "T1", "T2"], ["T2", "T0", "T1"]].iter().enumerate() {
        fs::create_dir_all(place.path("cedr")).unwrap();
        for (part, topic) in [("test.run", test), ("valid.run", valid), ("train.pairs", train)] {
            place.write(&format!("cedr/f{}.{part}", i + 1), &line(topic));
        }
    }
    assert_done(&fine(&place, "cedr-fine", &["data.folds=cedr"]));
    let tested = Run::read(&place.path("cedr-fine/run.txt")).unwrap();
    assert_eq!(tested.topics().collect::<Vec<_>>(), ["T0", "T2"]);
    // The joined run holds each usable topic once, from the fold that tested it.
    let joined = Run::read(&place.path("fine/run.txt")).unwrap();
    assert_eq!(joined.topics().collect::<Vec<_>>(), ["T0", "T1", "T2", "T3", "T4", "T5"]);
    let folds = (1..=3).map(|i| Run::read(&place.path(&format!("fine/fold-{i}/run.txt"))).unwrap());
    for run in folds {
        for topic in run.topics() {
            assert_eq!(run.get(topic), joined.get(topic));
        }
    }
}

/// The best weights by the named measure of the validation fold are kept, and training stops when it
/// has not grown for `patience` validations; the QDPP head ranks before any step.
#[test]
fn early_stopping_keeps_the_best_by_the_named_measure() {
    let place = ready();
    let coarse = ["coarse", "--config", "plan.toml", "--set", "model.path=model/model", "--out", "coarse"];
    assert_done(&place.run(&coarse));
    // A learning rate close to 0: no validation is better than the first.
    let still = ["train.steps=40", "train.lr=1e-12", "fine.validate_every=2", "fine.measure=recip_rank"];
    let stop = [&still[..], &["fine.patience=3", "model.path=coarse/model", "fine.start=qdpp-head"]].concat();
    assert_done(&fine(&place, "stopped", &stop));
    for fold in 1..=3 {
        // the first validation is the best; three more are not better
        assert_eq!(place.metrics(&format!("stopped/fold-{fold}")).len(), 8, "fold {fold}");
    }
    let results = fs::read_to_string(place.path("stopped/results.txt")).unwrap();
    assert!(results.contains("recip_rank"), "{results}");
    // So it ranks as the QDPP head alone does.
    let zero = ["rerank", "--config", "plan.toml", "--model", "coarse/model", "--run-out", "zero.run"];
    assert_done(&place.run(&zero));
    let (fine_run, zero_run) =
        (Run::read(&place.path("stopped/run.txt")).unwrap(), Run::read(&place.path("zero.run")).unwrap());
    for topic in fine_run.topics() {
        for (a, b) in fine_run.get(topic).unwrap().iter().zip(zero_run.get(topic).unwrap()) {
            assert!((a.score - b.score).abs() < 1e-4, "{topic} {}: {} and {}", a.doc, a.score, b.score);
        }
    }
    // A new head starts elsewhere, and without early stopping all steps are made.
    let new = [&still[..3], &["train.steps=6", "fine.start=new-head", "model.path=coarse/model"]].concat();
    assert_done(&fine(&place, "new", &new));
    assert_eq!(place.metrics("new/fold-1").len(), 6);
    assert!(Run::read(&place.path("new/run.txt")).unwrap() != fine_run);
    assert_refused(&fine(&place, "x", &["fine.measure=ndcg_at_five"]), 2, &["ndcg_at_five"]);
}

/// A cross-encoder of two labels scores as one of one label whose weights are the difference, whatever
/// the packs and the ranks; three labels are refused.
#[test]
fn rerankers_have_one_or_two_labels() {
    let place = ready();
    assert_done(&fine(&place, "fine", &[]));
    let copy = |name: &str, labels: usize| {
        let (from, to) = (place.path("fine/fold-1/model"), place.path(name));
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(&from).unwrap().map(|entry| entry.unwrap()) {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        let file = to.join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
        for name in ["classifier.weight", "classifier.bias"] {
            let one = &tensors[name];
            let other = one.affine(0.0, 0.25).unwrap();
            let sum = (one + &other).unwrap();
            let rows: Vec<_> = [&other, &sum, &other].into_iter().take(labels).collect();
            let stacked = candle_core::Tensor::cat(&rows, 0).unwrap();
            tensors.insert(name.into(), stacked);
        }
        candle_core::safetensors::save(&tensors, &file).unwrap();
    };
    copy("two", 2);
    copy("three", 3);
    let args = |model: &'static str, out: &'static str, pack: &'static str| {
        ["rerank", "--config", "plan.toml", "--model", model, "--run-out", out, "--set", pack]
    };
    assert_done(&place.run(&args("fine/fold-1/model", "one.run", "train.pack_tokens=256")));
    assert_done(&place.mpirun(2, &args("two", "two.run", "train.pack_tokens=64")));
    let (one, two) = (Run::read(&place.path("one.run")).unwrap(), Run::read(&place.path("two.run")).unwrap());
    assert_eq!(two.tag(), Some("ctune-dist-logits"), "the file says what its scores are");
    for topic in one.topics() {
        let scores: HashMap<&str, f64> =
            two.get(topic).unwrap().iter().map(|hit| (hit.doc.as_str(), hit.score)).collect();
        for hit in one.get(topic).unwrap() {
            let other = scores[hit.doc.as_str()];
            assert!((hit.score - other).abs() < 1e-5, "{topic} {}: {} and {other}", hit.doc, hit.score);
        }
    }
    let out = place.run(&args("three", "three.run", "train.pack_tokens=256"));
    assert_refused(&out, 3, &["classifier", "1 or 2 labels"]);
}

/// What is cut is counted and reported.
#[test]
fn reranking_counts_what_it_cuts() {
    let place = ready();
    assert_done(&fine(&place, "fine", &[]));
    let rerank = |tokens: &str| {
        place.run(&[
            "rerank",
            "--config",
            "plan.toml",
            "--model",
            "fine/fold-1/model",
            "--run-out",
            "out.run",
            "--set",
            tokens,
        ])
    };
    let said = |out: &std::process::Output| String::from_utf8_lossy(&out.stdout).into_owned();
    let pairs: usize = {
        let run = Run::read(&place.path("bm25.run")).unwrap();
        run.topics().map(|topic| run.get(topic).unwrap().len().min(30)).sum()
    };
    let whole = rerank("data.max_tokens=32");
    assert_done(&whole);
    assert!(said(&whole).contains(&format!("{pairs} passages scored (logits), 0 cut")), "{}", said(&whole));
    // One document grows beyond 32 tokens; it is cut beside each topic that has it.
    let documents = fs::read_to_string(place.path("documents.tsv")).unwrap();
    place.write("documents.tsv", &documents.replacen('\n', &format!("{}\n", " editor text".repeat(20)), 1));
    let run = Run::read(&place.path("bm25.run")).unwrap();
    let has = |topic: &&str| run.get(topic).unwrap().iter().take(30).any(|hit| hit.doc == "D0");
    let cut = run.topics().filter(has).count();
    assert!(cut > 0, "no topic has the long document");
    let long = rerank("data.max_tokens=32");
    assert_done(&long);
    assert!(said(&long).contains(&format!("(logits), {cut} cut")), "{}", said(&long));
}

#[test]
fn folds_of_other_topics_and_runs_without_documents_are_refused() {
    let place = ready();
    let folds = r#"{"s1": {"train_qids": ["301"], "predict": {"dev": ["302"], "test": ["303"]}}}"#;
    place.write("folds.json", folds);
    let out = fine(&place, "x", &["data.folds=folds.json"]);
    assert_refused(&out, 3, &["folds.json", "belongs to other topics"]);
    place.write("other.run", "T0 Q0 D0 1 2 x\nT0 Q0 Z9 2 1 x\n");
    assert_refused(&fine(&place, "x", &["data.run=other.run"]), 3, &["document Z9", "documents.tsv"]);
    place.write("foreign.run", "Q1 Q0 D0 1 2 x\n");
    assert_refused(&fine(&place, "x", &["data.run=foreign.run"]), 3, &["share no topic"]);
    place.write("empty.txt", "");
    assert_refused(&fine(&place, "x", &["data.qrels=empty.txt"]), 3, &["empty.txt", "no judgement"]);
    place.write("nan.run", "T0 Q0 D0 1 nan x\n");
    assert_refused(&fine(&place, "x", &["data.run=nan.run"]), 3, &["nan.run:1", "not a number"]);
    place.write("twice.run", "T0 Q0 D0 1 2 x\nT0 Q0 D0 2 1 x\n");
    assert_refused(
        &fine(&place, "x", &["data.run=twice.run"]),
        3,
        &["twice.run:2", "'D0' is in topic 'T0' twice"],
    );
}

/// The plan of a folder that is ready, with its paths made whole and some keys set.
pub fn plan(place: &Place, set: &[&str]) -> Config {
    let set: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
    let mut config = Config::load(Some(&place.path("plan.toml")), "fine", &set).unwrap();
    for path in [&mut config.data.documents, &mut config.data.topics, &mut config.data.run] {
        *path = path.take().map(|name| place.path(name.to_str().unwrap()));
    }
    config
}

#[test]
fn negatives_come_from_where_they_are_asked_for() {
    let place = ready();
    let config = plan(&place, &[]);
    let tokenizer = Tokenizer::load(&place.path("shards")).unwrap();
    // Topic T0's relevant documents are D0, D6, ..; judge D1 and D2 as not relevant.
    place.write(
        "some.txt",
        &(fs::read_to_string(place.path("qrels.txt")).unwrap() + "T0 0 D1 0\nT0 0 D2 0\n"),
    );
    let qrels = Qrels::read(&place.path("some.txt")).unwrap();
    let hard = HashMap::from([("T0".to_owned(), vec!["D70".to_owned(), "D0".to_owned()])]);
    let (sources, fine) = (config.documents().unwrap(), Fine { depth: 72, ..config.fine.clone() });
    let inputs = CollectionInputs { data: &config.data, sources: &sources, fine: &fine, warns: true };
    let collection = Arc::new(Collection::read(inputs, &tokenizer, &hard).unwrap());
    let candidates = &collection.topics["T0"].documents;
    let judged = candidates.iter().filter(|d| ["D1", "D2"].contains(&d.as_str())).count();
    let source = |from, hard: Option<&HashMap<_, _>>, teacher: Option<&Run>| {
        let options = GroupOptions {
            seed: 1,
            negatives: 99,
            positives_per_topic: 1,
            from,
            aggregate: Aggregate::FirstP,
            passages: TrainPassages::One,
        };
        let inputs = GroupInputs { qrels: &qrels, hard, teacher };
        GroupSource::new(collection.clone(), inputs, &["T0".into(), "T1".into()], options)
    };
    let first_group = |source: &GroupSource| {
        let mut batch = Batch::default();
        source.push(0, 0, &mut batch).unwrap();
        batch
    };
    let relevant = candidates.iter().filter(|d| qrels.label("T0", d) == Some(1)).count();
    let all = first_group(&source(NegativesFrom::All, None, None).unwrap());
    assert_eq!(all.sequences(), 1 + candidates.len() - relevant);
    assert_eq!(all.targets[0], 1.0);
    assert!(all.targets[1..].iter().all(|&t| t == 0.0));
    let unjudged = first_group(&source(NegativesFrom::Unjudged, None, None).unwrap());
    assert_eq!(unjudged.sequences(), 1 + candidates.len() - relevant - judged);
    // T1 has no judged negative, so it is named; T0 has one if the run holds D1 or D2.
    match source(NegativesFrom::Judged, None, None) {
        Ok(source) => {
            assert_eq!(first_group(&source).sequences(), 1 + judged);
            assert_eq!(source.left_out, ["T1"]);
        }
        Err(error) => assert!(judged == 0 && error.to_string().contains("negatives_from"), "{error}"),
    }
    // Hard negatives: D70 alone, since D0 is relevant; T1 is not in that run.
    let source_of_hard = source(NegativesFrom::All, Some(&hard), None).unwrap();
    assert_eq!(first_group(&source_of_hard).sequences(), 2);
    assert_eq!(source_of_hard.left_out, ["T1"]);
    // A teacher's scores are the targets, and a missing one is named.
    let mut teacher = Run::default();
    let hits = candidates.iter().enumerate().map(|(i, d)| Hit { doc: d.into(), score: 50.0 - i as f64 });
    teacher.insert("T0", hits.collect()).unwrap();
    let error = source(NegativesFrom::All, None, Some(&teacher)).err().unwrap().to_string();
    assert!(error.contains("fine.teacher: topic T1"), "{error}");
}

#[test]
fn query_words_are_predicted_with_and_without_the_document() {
    let place = ready();
    assert_done(&place.run(&[
        "coarse",
        "--config",
        "plan.toml",
        "--set",
        "model.path=model/model",
        "--out",
        "coarse",
    ]));
    assert_done(&fine(&place, "fine", &[]));
    let probe = |out: &'static str, pairs: &'static str| {
        let mut args = vec!["probe", "--config", "plan.toml", "--out", out, "--pairs", pairs];
        args.extend(["--model", "pre=model/model", "--model", "coarse=coarse/model"]);
        args
    };
    let with_fine = [&probe("probe", "30")[..], &["--model", "fine=fine/fold-1/model"]].concat();
    assert_refused(&place.run(&with_fine), 2, &["no MLM head", "--heads-from"]);
    let whole = [&with_fine[..], &["--heads-from", "coarse/model"]].concat();
    let out = place.run(&whole);
    assert_done(&out);
    let table = String::from_utf8_lossy(&out.stdout).into_owned();
    for word in ["acc@1 rare words", "with document", "that of coarse/model was used"] {
        assert!(table.contains(word), "{table}");
    }
    let page = fs::read_to_string(place.path("probe/probe.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 4, "a plot a measure");
    for word in ["<h2>perplexity</h2>", "coarse, with document", "3-4 words"] {
        assert!(page.contains(word), "{word}");
    }
    let found = |out: &str| -> Probe {
        serde_json::from_str(&fs::read_to_string(place.path(out).join("probe.json")).unwrap()).unwrap()
    };
    let one = found("probe");
    assert_eq!((one.pairs, one.models.len()), (30, 3));
    for model in &one.models {
        let all = &model.groups[0];
        // three query words each, of at least a piece
        assert!(all.with_document.pieces >= 90 && all.group == "all");
        let parts = |names: [&str; 2]| -> usize {
            let group = |name: &str| model.groups.iter().find(|g| g.group == name);
            names.iter().filter_map(|name| group(name)).map(|g| g.query_alone.pieces).sum()
        };
        assert_eq!(parts(["rare words", "common words"]), all.query_alone.pieces);
        for scores in [all.query_alone, all.with_document] {
            assert!(scores.accuracy_1 <= scores.accuracy_5 && scores.mrr >= scores.accuracy_1);
            assert!(scores.perplexity > 1.0 && scores.perplexity < 1e4);
        }
    }
    // QDPP and MLM on pairs teach more about queries than two steps of MLM on documents.
    let perplexity = |i: usize| one.models[i].groups[0].with_document.perplexity;
    assert!(perplexity(1) < perplexity(0), "{} {}", perplexity(1), perplexity(0));
    assert_done(&place.mpirun(2, &[&["probe", "--out", "two"], &whole[1..3], &whole[5..]].concat()));
    assert_eq!(found("two"), one, "two ranks find otherwise than one");
    // topics, judgements and candidates instead of shards
    let topics = fs::read_to_string(place.path("plan.toml")).unwrap().replace("shards = \"shards\"", "");
    place.write("plan.toml", &topics);
    assert_done(&place.run(&probe("topics", "12")));
    assert_eq!(found("topics").pairs, 12);
}

#[test]
fn a_study_over_seeds_has_deviations() {
    let place = ready();
    let plan = fs::read_to_string(place.path("plan.toml")).unwrap();
    let arm = "[[experiment.arms]]\nname = \"fine only\"\nmodel = \"model/model\"\nstart = \"new-head\"\n";
    place.write("study.toml", &(plan + arm));
    let study =
        ["experiment", "--config", "study.toml", "--out", "study", "--set", "train.steps=3", "--seeds", "2"];
    let out = place.run(&study);
    assert_done(&out);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains(" ± ") && text.contains("over 2 seeds"), "{text}");
    let results: Results =
        serde_json::from_str(&fs::read_to_string(place.path("study/results.json")).unwrap()).unwrap();
    let cell = results.table_cell("fine only").unwrap();
    let repeats: Vec<f64> = cell.repeats.iter().map(|means| means["recip_rank"]).collect();
    assert_eq!(repeats.len(), 2);
    assert!((cell.means["recip_rank"] - (repeats[0] + repeats[1]) / 2.0).abs() < 1e-12);
    let wanted = (repeats[0] - repeats[1]).abs() / 2f64.sqrt();
    assert!((cell.deviation("recip_rank").unwrap() - wanted).abs() < 1e-12);
    assert!(place.path("study/fine-only-all-repeat-2.run").exists());
}
