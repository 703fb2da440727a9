//! Runs that are killed, stopped and resumed, and checkpoints that are damaged: at the end the weights are
//! those of an undisturbed run.

mod damage;
mod drill;
pub mod support;
mod trouble;

use std::fs;

use support::{Job, finished, losses, model, train};

use crate::program::{Place, assert_done, assert_refused};

/// A plan with more steps than a test lets pass before it interferes, saved every few.
const PLAN: [&str; 6] =
    ["--set", "train.steps=40", "--set", "checkpoint.every_steps=4", "--set", "train.dropout=0.1"];

#[test]
fn a_killed_run_goes_on_and_ends_with_the_same_bits() {
    let place = Place::with_shards();
    assert_done(&train(&place, 1, "whole", &PLAN));
    for (n, step) in [(1, 3), (2, 17)] {
        let mut job = Job::start(&place, 1, "broken", &PLAN);
        job.wait_for_step(step);
        job.kill();
        assert!(!finished(&place, "broken"), "kill {n} came too late");
    }
    // a line that the kill cut in two
    let metrics = place.path("broken").join("metrics.jsonl");
    fs::write(&metrics, fs::read_to_string(&metrics).unwrap() + "{\"step\": 2").unwrap();
    let out = train(&place, 1, "broken", &PLAN);
    assert_done(&out);
    assert!(String::from_utf8_lossy(&out.stdout).contains("resumed from"));
    assert!(model(&place, "whole") == model(&place, "broken"), "other bits");
    assert_eq!(losses(&place, "whole"), losses(&place, "broken"));
}

#[test]
fn another_number_of_ranks_goes_on_with_the_same_losses() {
    let place = Place::with_shards();
    assert_done(&train(&place, 1, "whole", &PLAN));
    for (ranks, step) in [(1, 6), (2, 14), (4, 22)] {
        let mut job = Job::start(&place, ranks, "moved", &PLAN);
        job.wait_for_step(step);
        job.signal("USR1");
        assert_eq!(job.wait(), Some(75), "{ranks} ranks");
    }
    assert_done(&train(&place, 1, "moved", &PLAN));
    let (whole, moved) = (losses(&place, "whole"), losses(&place, "moved"));
    assert_eq!(whole.len(), moved.len());
    for (step, (a, b)) in whole.iter().zip(&moved).enumerate() {
        assert!((a - b).abs() < 1e-5 * a.abs(), "step {}: {a} and {b}", step + 1);
    }
}

#[test]
fn shares_of_the_optimiser_are_taken_up_by_any_number_of_ranks() {
    let place = Place::with_shards();
    let plan = [&PLAN[..], &["--set", "train.sharding=optimizer"]].concat();
    assert_done(&train(&place, 2, "whole", &plan));
    for (ranks, step) in [(2, 9), (2, 18)] {
        let mut job = Job::start(&place, ranks, "same", &plan);
        job.wait_for_step(step);
        job.kill();
    }
    assert_done(&train(&place, 2, "same", &plan));
    assert!(model(&place, "whole") == model(&place, "same"), "other bits");
    let state = place.path("whole/checkpoints/step-0000040/state");
    assert!(state.join("optimiser-001-of-002.safetensors").exists(), "the state was not shared");

    for (ranks, step) in [(4, 9), (1, 18)] {
        let mut job = Job::start(&place, ranks, "moved", &plan);
        job.wait_for_step(step);
        job.signal("USR1");
        assert_eq!(job.wait(), Some(75), "{ranks} ranks");
    }
    assert_done(&train(&place, 2, "moved", &plan));
    for (a, b) in losses(&place, "whole").iter().zip(&losses(&place, "moved")) {
        assert!((a - b).abs() < 1e-5 * a.abs(), "{a} and {b}");
    }
}

#[test]
fn signals_save_and_exit_with_75() {
    let place = Place::with_shards();
    assert_done(&train(&place, 1, "whole", &PLAN));
    let plan = [&PLAN[..], &["--set", "checkpoint.every_steps=0"]].concat(); // nothing but the signal saves
    for signal in ["TERM", "INT", "USR1"] {
        let mut job = Job::start(&place, 1, signal, &plan);
        job.wait_for_step(2);
        job.signal(signal);
        assert_eq!(job.wait(), Some(75), "{signal}");
        let text = job.stderr();
        assert!(text.contains(&format!("SIG{signal}")) && text.lines().count() == 1, "{text}");
        assert_done(&train(&place, 1, signal, &plan));
        assert!(model(&place, "whole") == model(&place, signal), "{signal}: other bits");
    }
    // one of two ranks is asked; both save and end
    let mut job = Job::start(&place, 2, "one", &PLAN);
    job.wait_for_step(2);
    job.signal_rank(1, "TERM");
    assert_eq!(job.wait(), Some(75));
    assert_done(&train(&place, 2, "one", &PLAN));
}

#[test]
fn a_second_interrupt_ends_at_once() {
    let place = Place::with_shards();
    // steps so long that the first signal cannot have been acted on
    let mut job =
        Job::start(&place, 1, "run", &[&PLAN[..], &["--set", "train.packs_per_step=4000"]].concat());
    job.wait_for_file("config.toml");
    std::thread::sleep(std::time::Duration::from_millis(500));
    job.signal("INT");
    std::thread::sleep(std::time::Duration::from_millis(100));
    job.signal("INT");
    // a run that went on to the end of its step would have been preempted: 75
    assert_eq!(job.wait(), Some(130));
}

#[test]
fn a_directory_is_never_overwritten() {
    let place = Place::with_shards();
    assert_done(&train(&place, 1, "run", &PLAN));
    let weights = fs::metadata(place.path("run/model/model.safetensors")).unwrap().modified().unwrap();
    let again = train(&place, 1, "run", &PLAN);
    assert_done(&again);
    assert!(String::from_utf8_lossy(&again.stdout).contains("finished"), "a finished run was repeated");

    let changed = |more: &[&str]| train(&place, 1, "run", &[&PLAN[..], more].concat());
    let out = changed(&["--set", "train.lr=0.5", "--set", "seed=8"]);
    assert_refused(&out, 2, &["run", "train.lr: was 0.002, is 0.5", "seed: was 7, is 8", "another --out"]);
    let out = changed(&["--set", "train.lr=0.5", "--resume-with-changes"]);
    assert_refused(&out, 2, &["train.lr: was 0.002, is 0.5"]);
    assert_refused(
        &changed(&["--set", "train.steps=44"]),
        2,
        &["train.steps: was 40, is 44", "--resume-with-changes"],
    );
    assert_refused(&changed(&["--resume", "never"]), 2, &["holds a run"]);
    assert_refused(&train(&place, 1, "shards", &PLAN), 2, &["shards", "no run"]);
    assert_eq!(fs::metadata(place.path("run/model/model.safetensors")).unwrap().modified().unwrap(), weights);

    // a safe change is accepted: four steps more
    assert_done(&changed(&["--set", "train.steps=44", "--resume-with-changes"]));
    assert_eq!(losses(&place, "run").len(), 44);

    // other data under the same name
    fs::remove_dir_all(place.path("shards")).unwrap();
    let text = fs::read_to_string(place.path("clicks.tsv")).unwrap();
    place.write("clicks.tsv", &text.lines().skip(3).map(|line| format!("{line}\n")).collect::<String>());
    place.prepare();
    let out = train(&place, 1, "run", &[&PLAN[..], &["--set", "train.steps=44"]].concat());
    assert_refused(&out, 2, &["fingerprint of data.shards: was "]);
}

#[test]
fn a_run_starts_from_a_checkpoint_that_is_named() {
    let place = Place::with_shards();
    let plan = [&PLAN[..], &["--set", "checkpoint.keep=20"]].concat();
    assert_done(&train(&place, 1, "whole", &plan));
    let from = |path: &str, out| train(&place, 1, out, &[&plan[..], &["--resume", path]].concat());
    assert_done(&from("whole/checkpoints/step-0000008", "branch"));
    assert!(model(&place, "whole") == model(&place, "branch"));
    assert_eq!(losses(&place, "branch"), losses(&place, "whole")[8..]);
    // back within the run itself: what came after is set aside, not lost
    assert_done(&from("whole/checkpoints/step-0000012", "whole"));
    assert!(place.path("whole/checkpoints/superseded-0000036").exists());
    assert_eq!(losses(&place, "whole").len(), 40);
    assert!(model(&place, "whole") == model(&place, "branch"));
    assert_refused(&from("nowhere", "other"), 3, &["nowhere"]);
}

#[test]
fn folds_that_are_finished_are_kept() {
    let place = Place::with_shards();
    let retrieve =
        ["retrieve", "--documents", "documents.tsv", "--topics", "topics.tsv", "--out", "bm25.run"];
    assert_done(&place.run(&retrieve));
    assert_done(&train(&place, 1, "coarse", &PLAN));
    let args = |out: &'static str| {
        [
            "fine",
            "--config",
            "plan.toml",
            "--set",
            "model.path=coarse/model",
            "--out",
            out,
            "--set",
            "train.steps=60",
        ]
    };
    assert_done(&place.run(&args("whole")));
    let mut job = Job::start_command(&place, 1, &args("broken"), "broken/fold-2/metrics.jsonl");
    job.wait_for_step(3);
    job.signal("TERM");
    assert_eq!(job.wait(), Some(75));
    let first = place.path("broken/fold-1/run.txt");
    let made = fs::metadata(&first).unwrap().modified().unwrap();
    assert_done(&place.run(&args("broken")));
    assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), made, "a finished fold was repeated");
    let read = |run: &str| fs::read_to_string(place.path(run).join("run.txt")).unwrap();
    assert_eq!(read("whole"), read("broken"));
    let lines = fs::read_to_string(place.path("broken/fold-2/metrics.jsonl")).unwrap().lines().count();
    assert_eq!(lines, 60, "steps of the try that was cut off are still there");
}
