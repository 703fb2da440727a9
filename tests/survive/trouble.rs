//! Ranks that die or hang, gradients that are not finite, disks that are full: the job ends soon, says why in
//! one line, and what was saved stays valid.

use std::fs;
use std::process::Command;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use ctune_dist::ranks::{Beat, Verdict, Watchdog};

use super::support::{Job, model, train};
use crate::program::{Place, assert_done, assert_refused};
use crate::start::{self, BINARY, PATIENCE};

const PLAN: [&str; 4] = ["--set", "train.steps=4000", "--set", "checkpoint.every_steps=500"];

/// The job must end by itself and say `words`, on the terminal and in rank 0's log.
fn assert_ends(place: &Place, mut job: Job, out: &str, words: &[&str]) {
    assert_ne!(job.wait(), Some(0));
    let log = fs::read_to_string(place.path(out).join("logs/rank-000.log")).unwrap();
    for word in words {
        assert!(job.stderr().contains(word), "{word:?} is not said: {}", job.stderr());
        assert!(log.contains(word), "{word:?} is not in the log: {log}");
    }
}

#[test]
fn a_rank_that_is_killed_ends_the_job_with_its_name() {
    let place = Place::with_shards();
    let mut job = Job::start(&place, 2, "run", &PLAN);
    job.wait_for_step(5);
    job.signal_rank(1, "KILL");
    assert_ends(&place, job, "run", &["rank 1 on ", "died at step "]);
}

#[test]
fn a_rank_that_hangs_ends_the_job_with_its_name() {
    let place = Place::with_shards();
    for rank in [1, 0] {
        let out = format!("run{rank}");
        let plan = [&PLAN[..], &["--set", "run.hang_limit_s=2"]].concat();
        let mut job = Job::start(&place, 2, &out, &plan);
        job.wait_for_step(5);
        job.signal_rank(rank, "STOP");
        if rank == 1 {
            assert_ends(&place, job, &out, &["no progress for ", "the others wait for rank 1 on "]);
        } else {
            assert_ne!(job.wait(), Some(0));
            assert!(job.stderr().contains("rank 0 has been silent for "), "{}", job.stderr());
        }
    }
}

/// Two ranks of one job; one is started as `other` says instead of as the plain program.
fn two(place: &Place, other: (usize, &str), out: &str) -> std::process::Output {
    let args = format!("coarse --config plan.toml --out {out} {}", PLAN.join(" "));
    let plain = format!("exec {BINARY} {args}");
    let odd = other.1.replace("PROGRAM", &format!("{BINARY} {args}"));
    let mut ranks = [&plain, &plain];
    ranks[other.0] = &odd;
    let mut command = start::mpirun();
    command.args(["-n", "1", "bash", "-c", ranks[0], ":", "-n", "1", "bash", "-c", ranks[1]]);
    command.current_dir(place.path("."));
    start::limited(&command).output().expect("timeout is needed (coreutils)")
}

#[test]
fn a_rank_that_errs_alone_ends_the_job_with_its_reason() {
    let place = Place::with_shards();
    // another folder, whose shards have lost a byte
    fs::create_dir_all(place.path("other/shards")).unwrap();
    for entry in fs::read_dir(place.path("shards")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, place.path("other/shards").join(path.file_name().unwrap())).unwrap();
    }
    fs::copy(place.path("plan.toml"), place.path("other/plan.toml")).unwrap();
    let clicks = place.path("other/shards/clicks.bin");
    let bytes = fs::read(&clicks).unwrap();
    fs::write(&clicks, &bytes[..bytes.len() - 1]).unwrap();
    let done = two(&place, (1, "cd other && exec PROGRAM"), "run");
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{text}");
    assert!(text.contains("rank 1: ") && text.contains("clicks.bin"), "{text}");
}

#[test]
fn a_rank_that_panics_ends_the_job_with_its_reason() {
    let place = Place::with_shards();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/survive/broken_clock.cpp");
    let mut build = Command::new("g++");
    build.args(["-shared", "-fPIC", "-o", "clock.so", source]).current_dir(place.path("."));
    assert!(build.status().expect("g++ is needed").success());
    let done = two(&place, (0, "LD_PRELOAD=$PWD/clock.so exec PROGRAM"), "run");
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(4), "{text}");
    assert!(text.contains("rank 0") && text.contains("Invalid argument"), "{text}");
}

/// If the disk is too full for output, training completes and says so once, at its end.
#[test]
fn a_rank_whose_terminal_is_full_finishes() {
    let place = Place::with_shards();
    let done = two(&place, (0, "exec PROGRAM >/dev/full"), "run");
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(3), "{text}");
    assert!(text.contains("standard output") && text.contains("No space left on device"), "{text}");
    assert!(place.path("run/DONE").exists() && place.path("run/model/model.safetensors").exists());
}

#[test]
fn a_watchdog_names_the_rank_that_does_not_come() {
    let beats: Vec<Arc<Beat>> = (0..3).map(|_| Arc::default()).collect();
    let (sender, verdicts) = channel::<(usize, Verdict)>();
    let on_end = |rank: usize| {
        let sender = sender.clone();
        Box::new(move |verdict| sender.send((rank, verdict)).unwrap()) as Box<dyn Fn(Verdict) + Send>
    };
    let limit = Duration::from_secs(2);
    let (lead, address) = Watchdog::lead(3, limit, beats[0].clone(), on_end(0)).unwrap();
    let follow =
        |rank: usize| Watchdog::follow(rank, &address, limit, beats[rank].clone(), on_end(rank)).unwrap();
    let followers = [follow(1).expect("rank 0 is reached"), follow(2).expect("rank 0 is reached")];
    let armed: Vec<_> = beats.iter().map(|beat| beat.armed()).collect();
    // all continue: nobody is blamed
    for step in 1..=30 {
        beats.iter().for_each(|beat| beat.step(step));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(verdicts.try_recv().is_err());
    // ranks 0 and 1 enter a collective, rank 2 does not; they wait until the verdicts are there
    let said = Arc::new(Barrier::new(3));
    let inside = |beat: Arc<Beat>| {
        let said = said.clone();
        std::thread::spawn(move || {
            beat.collective(|| said.wait());
        })
    };
    let waiting = [inside(beats[0].clone()), inside(beats[1].clone())];
    for _ in 0..3 {
        let (rank, verdict) = verdicts.recv_timeout(PATIENCE).unwrap();
        assert!(
            verdict.text.contains("the others wait for rank 2 on ") && !verdict.text.contains("rank 1 on ")
        );
        assert_eq!(verdict.speak, rank == 0);
    }
    drop(armed);
    said.wait();
    waiting.into_iter().for_each(|thread| thread.join().unwrap());
    drop((lead, followers));
    // a process that is not of this job is not let in
    let (lead, mut address) = Watchdog::lead(2, limit, Arc::default(), on_end(0)).unwrap();
    let text = serde_json::to_string(&address).unwrap();
    let mut fields: serde_json::Value = serde_json::from_str(&text).unwrap();
    fields["token"] = 1.into();
    address = serde_json::from_value(fields).unwrap();
    assert!(Watchdog::follow(1, &address, limit, Arc::default(), on_end(1)).unwrap().is_none());
    drop(lead);
    assert!(verdicts.try_recv().is_err());
}

#[test]
fn gradients_that_stay_non_finite_go_back_once_and_then_end_the_run() {
    let place = Place::with_shards();
    let wild = [
        "--set",
        "train.lr=1e30",
        "--set",
        "train.weight_decay=0",
        "--set",
        "train.clip_norm=0",
        "--set",
        "train.steps=30",
    ];
    assert_refused_after_warnings(
        &train(&place, 1, "alone", &wild),
        &["there is no checkpoint to go back to"],
    );
    let saved = [&wild[..], &["--set", "checkpoint.every_steps=1"]].concat();
    for (ranks, out) in [(1, "one"), (2, "two")] {
        let done = train(&place, ranks, out, &saved);
        assert_refused_after_warnings(&done, &["going back to", "did not help", "train.lr"]);
        assert!(String::from_utf8_lossy(&done.stdout).contains("were not finite: back to"));
        // nothing was saved from weights whose gradients are not finite
        assert!(!place.path(out).join("checkpoints/step-0000004").exists());
    }
}

fn assert_refused_after_warnings(out: &std::process::Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(3), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not said: {text}");
    }
}

#[test]
fn a_full_disk_is_one_line_and_leaves_the_checkpoint_before() {
    let place = Place::with_shards();
    let plan = ["--set", "train.steps=200", "--set", "checkpoint.every_steps=20"];
    assert_done(&train(&place, 1, "whole", &plan));
    let mut job = Job::start(&place, 1, "run", &plan);
    job.wait_for_step(5);
    job.signal("TERM");
    assert_eq!(job.wait(), Some(75));
    // A limit on the size of a file stands for a disk without room: it needs no right to mount, and the
    // write fails in the same place. With SIGXFSZ ignored it is an error and not a signal.
    let command = format!(
        "trap '' XFSZ; ulimit -f 150; exec {BINARY} coarse --config plan.toml --out run {}",
        plan.join(" ")
    );
    let out = start::shell(&command).current_dir(place.path(".")).output().unwrap();
    assert_refused(&out, 3, &["checkpoints/.step-", "cannot be written"]);
    let names: Vec<_> = fs::read_dir(place.path("run/checkpoints")).unwrap().collect();
    assert!(!names.is_empty() && !place.path("run/DONE").exists());
    assert!(
        fs::read_dir(place.path("run/checkpoints"))
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_str().unwrap().ends_with(".partial") })
    );
    assert_done(&train(&place, 1, "run", &plan));
    assert!(model(&place, "whole") == model(&place, "run"), "other bits");
}

/// What rank 0 alone cannot write ends rank 1 as well.
#[test]
fn a_checkpoint_that_cannot_be_written_ends_all_ranks() {
    let place = Place::with_shards();
    let plan = [&PLAN[..], &["--set", "checkpoint.every_steps=5", "--resume-with-changes"]].concat();
    let mut job = Job::start(&place, 2, "run", &PLAN);
    job.wait_for_step(2);
    job.signal_rank(1, "TERM");
    assert_eq!(job.wait(), Some(75));
    // a file where the folder of checkpoints was
    fs::rename(place.path("run/checkpoints"), place.path("aside")).unwrap();
    place.write("run/checkpoints", "");
    let mut job = Job::start(&place, 2, "run", &plan);
    assert_eq!(job.wait(), Some(3), "{}", job.stderr());
    assert!(job.stderr().contains("run/checkpoints"), "{}", job.stderr());
    fs::remove_file(place.path("run/checkpoints")).unwrap();
    fs::rename(place.path("aside"), place.path("run/checkpoints")).unwrap();
    let few = ["--set", "train.steps=20", "--set", "checkpoint.every_steps=5", "--resume-with-changes"];
    assert_done(&train(&place, 2, "run", &few));
}

#[test]
fn a_directory_that_cannot_be_written_and_a_shard_that_is_gone_are_one_line() {
    let place = Place::with_shards();
    let plan = ["--set", "train.steps=200", "--set", "checkpoint.every_steps=20"];
    assert_refused(&train(&place, 1, "plan.toml/run", &plan), 3, &["plan.toml/run"]);
    let mut job = Job::start(&place, 1, "run", &plan);
    job.wait_for_step(5);
    job.signal("TERM");
    assert_eq!(job.wait(), Some(75));
    let shard = place.path("shards/clicks.bin");
    let bytes = fs::read(&shard).unwrap();
    fs::remove_file(&shard).unwrap();
    assert_refused(&train(&place, 1, "run", &plan), 3, &["clicks.bin"]);
    fs::write(&shard, bytes).unwrap();
    assert_done(&train(&place, 1, "run", &plan));
}
