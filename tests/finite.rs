//! Weights that are not finite: a step that is too large leaves them although its gradient was finite. Nothing
//! is saved of them, no checkpoint is marked whole, and no run ends as done.

use std::fs;
use std::process::Output;

use super::program::Place;
use super::ranking::ready;
use super::survive::support::train;

/// A rate far beyond f32: the first update, whose gradient is finite, makes infinities.
const BLOWN: [&str; 8] = [
    "--set",
    "train.lr=1e300",
    "--set",
    "train.weight_decay=0",
    "--set",
    "train.warmup=0",
    "--set",
    "train.schedule=constant",
];

/// One update, the last.
const ONE: [&str; 4] = ["--device", "cpu", "--set", "train.steps=1"];

/// The run must end with code 3, say why once, and leave nothing that looks whole.
fn assert_nothing_kept(place: &Place, out: &Output, dir: &str) {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(3), "{text}");
    let said: Vec<&str> = text.lines().filter(|line| line.contains("ctune-dist: ")).collect();
    assert_eq!(said.len(), 1, "{text}");
    assert!(said[0].contains("weights are not finite") && said[0].contains("train.lr"), "{}", said[0]);
    for name in ["DONE", "model"] {
        assert!(!place.path(dir).join(name).exists(), "{dir}/{name}");
    }
    let checkpoints = fs::read_dir(place.path(dir).join("checkpoints")).into_iter().flatten();
    let whole = checkpoints.filter(|entry| entry.as_ref().unwrap().path().join("DONE").exists()).count();
    assert_eq!(whole, 0, "{dir}: checkpoints are marked whole");
}

#[test]
fn a_run_whose_last_update_blows_up_is_not_done() {
    let place = Place::with_shards();
    for (out, more) in [
        ("plain", &[][..]),
        ("saving", &["--set", "checkpoint.every_steps=1"]),
        ("timed", &["--set", "checkpoint.every_minutes=1000"]),
        ("narrow", &["--set", "train.precision=bf16", "--set", "checkpoint.every_steps=1"]),
        ("lamb", &["--set", "train.optimizer=lamb"]),
        ("frozen", &["--set", "train.freeze=[\"embeddings\", \"layer.0\"]"]),
    ] {
        let args = [&ONE[..], &BLOWN, more].concat();
        assert_nothing_kept(&place, &train(&place, 1, out, &args), out);
    }
}

#[test]
fn all_ranks_end_alike() {
    let place = Place::with_shards();
    for (out, sharding) in [("none", "train.sharding=none"), ("optimizer", "train.sharding=optimizer")] {
        let more = ["--set", sharding, "--set", "checkpoint.every_steps=1"];
        let args = [&ONE[..], &BLOWN, &more].concat();
        assert_nothing_kept(&place, &train(&place, 2, out, &args), out);
    }
}

/// Later steps cannot mend it: their gradients are not finite, and there is nothing to go back to.
#[test]
fn steps_after_it_save_nothing_either() {
    let place = Place::with_shards();
    let more = ["--device", "cpu", "--set", "train.steps=8", "--set", "checkpoint.every_steps=1"];
    let out = train(&place, 1, "run", &[&BLOWN[..], &more].concat());
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(3), "{text}");
    assert!(text.contains("there is no checkpoint to go back to"), "{text}");
    assert!(text.contains("no checkpoint is made of them"), "{text}");
    for name in ["DONE", "model", "checkpoints/step-0000001"] {
        assert!(!place.path("run").join(name).exists(), "{name}");
    }
}

#[test]
fn a_fine_tuning_that_blows_up_keeps_no_fold_and_no_task() {
    let place = ready();
    let pack = ["--set", "train.pack_tokens=1024"];
    let fine = ["fine", "--config", "plan.toml", "--out", "fine", "--set", "model.path=model/model"];
    let out = place.run(&[&fine[..], &pack, &ONE, &BLOWN].concat());
    assert_nothing_kept(&place, &out, "fine");
    assert_nothing_kept(&place, &out, "fine/fold-1");

    let arm = "[[experiment.arms]]\nname = \"plain\"\nmodel = \"model/model\"\nstart = \"new-head\"\n";
    place.write("study.toml", &(fs::read_to_string(place.path("plan.toml")).unwrap() + arm));
    let study = ["experiment", "--config", "study.toml", "--out", "study"];
    let out = place.run(&[&study[..], &pack, &ONE, &BLOWN].concat());
    assert_nothing_kept(&place, &out, "study");
    assert!(!place.path("study/tasks/plain/all/fold-1/task.json").exists());
    assert!(!place.path("study/results.json").exists());
}
