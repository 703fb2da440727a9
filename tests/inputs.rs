//! Inputs that changed, do not fit together or would be overwritten: none may pass silently.

use std::fs;
use std::process::{Output, Stdio};

use ctune_dist::ir::run::Run;

use super::program::{Place, assert_done, assert_refused};
use super::ranking::{fine, ready};
use super::start::{self, BINARY};

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn experiment(place: &Place, more: &[&str]) -> Output {
    let arm = "[[experiment.arms]]\nname = \"plain\"\nmodel = \"model/model\"\nstart = \"new-head\"\n";
    place.write("study.toml", &(fs::read_to_string(place.path("plan.toml")).unwrap() + arm));
    let set = |text: &&str| ["--set".to_owned(), (*text).to_owned()];
    let mut args: Vec<String> =
        ["experiment", "--config", "study.toml", "--out", "study"].map(Into::into).into();
    args.extend(["train.steps=3", "train.pack_tokens=1024"].iter().chain(more).flat_map(set));
    place.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A study keeps a task only if everything that the task read is unchanged.
#[test]
fn a_study_trains_anew_what_its_inputs_changed() {
    let place = ready();
    assert_done(&experiment(&place, &[]));
    let task = place.path("study/tasks/plain/all/fold-1/run.txt");
    let made = || fs::metadata(&task).unwrap().modified().unwrap();
    let first = made();
    assert_done(&experiment(&place, &[]));
    assert_eq!(made(), first, "nothing changed, and the task was repeated");
    for name in ["qrels.txt", "documents.tsv"] {
        let before = made();
        let text = fs::read_to_string(place.path(name)).unwrap();
        // as long as before: the size alone would not reveal it
        place.write(
            name,
            &if name == "qrels.txt" {
                text.replacen("D0 1", "D0 0", 1)
            } else {
                text.replace("tool", "aids")
            },
        );
        assert_done(&experiment(&place, &[]));
        assert!(made() > before, "{name} changed, and the task was kept");
    }
    for (set, words) in [
        ("experiment.measures=[\"nope\"]", &["experiment.measures", "nope"]),
        ("experiment.measures=[]", &["experiment.measures", "empty"]),
        ("experiment.measures=[\"official\"]", &["experiment.measures", "official"]),
        ("fine.patience=2", &["fine.patience", "fine.validate_every"]),
    ] {
        assert_refused(&experiment(&place, &[set]), 2, words);
    }
}

#[test]
fn arms_have_names_of_their_own_and_curves_that_are_there() {
    let place = ready();
    let arm = |name: &str, more: &str| {
        let text = fs::read_to_string(place.path("plan.toml")).unwrap();
        let arm = format!(
            "[[experiment.arms]]\nname = \"{name}\"\nmodel = \"model/model\"\nstart = \"new-head\"\n{more}\n"
        );
        place.write("arms.toml", &(text + &arm));
        place.run(&["experiment", "--config", "arms.toml", "--out", "arms", "--set", "train.steps=1"])
    };
    assert_refused(&arm("first stage", ""), 2, &["first stage"]);
    assert_refused(&arm("x, zero-shot", ""), 2, &["x, zero-shot"]);
    assert_refused(&arm("--", ""), 2, &["--"]);
    assert_refused(&arm("x", "metrics = \"nowhere.jsonl\""), 2, &["nowhere.jsonl"]);
    assert_done(&arm("粗調", ""));
    assert!(place.path("arms/粗調-all.run").exists());
}

/// Killed while it wrote (a limit on file sizes does it at a known place), re-ranking continues; with other
/// documents of the same size it starts over.
#[test]
fn reranking_goes_on_with_what_it_read_and_nothing_else() {
    let place = ready();
    assert_done(&fine(&place, "fine", &[]));
    let args = "rerank --config plan.toml --model fine/fold-1/model --run-out out.run";
    let rerank = |before: &str| {
        start::shell(&format!("{before} exec {BINARY} {args}")).current_dir(place.path(".")).output().unwrap()
    };
    assert_done(&rerank(""));
    let whole = fs::read(place.path("out.run")).unwrap();
    fs::remove_file(place.path("out.run")).unwrap();
    let cut = || {
        assert!(!rerank("ulimit -f 4;").status.success());
        assert_eq!(fs::metadata(place.path("out.run.part")).unwrap().len(), 4096);
    };
    cut();
    let on = rerank("");
    assert_done(&on);
    assert!(said(&on).contains("topics are scored already in out.run.part"), "{}", said(&on));
    assert_eq!(fs::read(place.path("out.run")).unwrap(), whole);

    cut();
    let text = fs::read_to_string(place.path("documents.tsv")).unwrap();
    place.write("documents.tsv", &text.replace("tool", "aids"));
    let anew = rerank("");
    assert_done(&anew);
    assert!(!said(&anew).contains("scored already"), "{}", said(&anew));
    let run = Run::read(&place.path("out.run")).unwrap();
    assert_eq!(run.topics().len(), 6);
}

#[test]
fn what_is_read_is_not_written_over() {
    let place = ready();
    let [topics, run] = ["topics.tsv", "bm25.run"].map(|name| fs::read(place.path(name)).unwrap());
    let retrieve = |out: &str| {
        place.run(&["retrieve", "--documents", "documents.tsv", "--topics", "topics.tsv", "--out", out])
    };
    assert_refused(&retrieve("./topics.tsv"), 2, &["topics.tsv", "is an input"]);
    assert_refused(&retrieve("documents.tsv"), 2, &["documents.tsv", "is an input"]);
    assert_refused(&retrieve("shards"), 2, &["shards", "folder"]);
    let model = ["rerank", "--config", "plan.toml", "--model", "model/model", "--run-out"];
    assert_refused(&place.run(&[&model[..], &["bm25.run"]].concat()), 2, &["bm25.run", "is an input"]);
    place.write("mine.svg", &String::from_utf8(run.clone()).unwrap());
    let plot = ["evaluate", "qrels.txt", "mine.svg", "--baseline", "bm25.run", "--plot", "mine.svg"];
    assert_refused(&place.run(&plot), 2, &["mine.svg", "is an input"]);
    assert_refused(&place.run(&["evaluate", "qrels.txt", "-", "--baseline", "-"]), 2, &["standard input"]);
    assert_eq!(fs::read(place.path("topics.tsv")).unwrap(), topics);
    assert_eq!(fs::read(place.path("bm25.run")).unwrap(), run);
    assert_eq!(fs::read(place.path("mine.svg")).unwrap(), run);
}

/// A head that no training touched gives numbers that look like scores.
#[test]
fn an_untrained_qdpp_head_does_not_rank() {
    let place = ready();
    let rerank = ["rerank", "--config", "plan.toml", "--model", "model/model", "--run-out", "out.run"];
    assert_refused(&place.run(&rerank), 2, &["model/model", "never trained"]);
    assert_refused(&fine(&place, "x", &["fine.start=qdpp-head"]), 2, &["model/model", "never trained"]);
    // QDPP trains it, and MLM afterwards leaves it trained
    let coarse = |from: &str, out: &str, set: &str| {
        let path = format!("model.path={from}/model");
        let args = ["coarse", "--config", "plan.toml", "--out", out, "--set", &path, "--set", set];
        assert_done(&place.run(&[&args[..], &["--set", "train.steps=2"]].concat()));
    };
    coarse("model", "mlm", "objective.qdpp=0");
    coarse("model", "both", "objective.qdpp=1");
    coarse("both", "behind", "objective.qdpp=0");
    let start = |model: &str| {
        let path = format!("model.path={model}/model");
        fine(&place, &format!("from-{model}"), &["fine.start=qdpp-head", &path])
    };
    assert_refused(&start("mlm"), 2, &["mlm/model", "never trained"]);
    assert_done(&start("both"));
    assert_done(&start("behind"));
}

#[test]
fn fold_files_and_topics_that_do_not_match_are_said() {
    let place = ready();
    let folds = |text: &str| place.write("folds.json", text);
    let tune = |out: &str, more: &[&str]| fine(&place, out, &[&["data.folds=folds.json"], more].concat());
    folds(r#"{"s1": {"train_qids": ["T0", "T1", "Q9"], "predict": {"dev": [], "test": ["T2"]}}}"#);
    let out = tune("some", &[]);
    assert_done(&out);
    assert!(said(&out).contains("1 topics of the folds are not in the topics file: Q9"), "{}", said(&out));
    assert!(said(&out).contains("tested by no fold: T0 T1 T3 T4 T5"), "{}", said(&out));
    assert_refused(&tune("x", &["fine.validate_every=1"]), 3, &["folds.json: fold 1", "validation topic"]);
    folds(
        r#"{"s1": {"train_qids": ["T0"], "predict": {"dev": ["T1"], "test": ["T2", "T3"]}},
            "s2": {"train_qids": ["T1"], "predict": {"dev": ["T0"], "test": ["T3"]}}}"#,
    );
    assert_refused(&tune("x", &[]), 3, &["folds.json: fold 2", "T3"]);

    let run = fs::read_to_string(place.path("bm25.run")).unwrap();
    place.write("more.run", &(run + "T77 Q0 D1 1 2 x\n"));
    let out = fine(&place, "more", &["data.run=more.run"]);
    assert_done(&out);
    assert!(said(&out).contains("1 topics left out, not in the topics file: T77"), "{}", said(&out));
    place.write("teacher.run", "T0 Q0 D0 1 inf x\n");
    assert_refused(
        &fine(&place, "x", &["fine.loss=margin-mse", "fine.teacher=teacher.run"]),
        3,
        &["teacher.run", "'D0'", "inf"],
    );
    let documents = fs::read_to_string(place.path("documents.tsv")).unwrap();
    place.write("twice.tsv", &(documents.clone() + documents.lines().next().unwrap() + "\n"));
    assert_refused(&fine(&place, "x", &["data.documents=twice.tsv"]), 3, &["'D0'", "twice.tsv"]);
    place.write("torn.tsv", &(documents + "D900\ttorn\n"));
    let out = fine(&place, "torn", &["data.documents=torn.tsv"]);
    assert_done(&out);
    let warned = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(warned.contains("1 of 73 rows") && warned.contains("torn.tsv, line 73"), "{warned}");
}

/// If nobody reads the output, there is no panic and the work is done. If the disk is full, there is one line
/// and the work is done too.
#[test]
fn a_terminal_that_is_gone_ends_no_work() {
    let place = ready();
    let start = |out: &str, stdout: Stdio| {
        let set = ["train.steps=2", "train.pack_tokens=1024", "model.path=model/model"];
        start::program()
            .args(["fine", "--config", "plan.toml", "--out", out])
            .args(set.iter().flat_map(|set| ["--set", *set]))
            .current_dir(place.path("."))
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut gone = start("gone", Stdio::piped());
    drop(gone.stdout.take());
    assert_done(&gone.wait_with_output().unwrap());
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let out = start("full", full.into()).wait_with_output().unwrap();
    assert_refused(&out, 3, &["standard output"]);
    for run in ["gone", "full"] {
        assert!(place.path(run).join("DONE").exists(), "{run}");
    }
}
