//! What survives on GPUs: runs that are killed, preempted or continued from a checkpoint end with the bits of
//! an undisturbed one. Gradients that are not finite are skipped, counted and left behind as on the CPU.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::program::{F32, Lines, command, start};
use crate::program::{Place, assert_done};
use crate::start::PATIENCE;

const PLAN: [&str; 11] = [
    "coarse",
    "--config",
    "plan.toml",
    "--set",
    "train.steps=8",
    "--set",
    "train.dropout=0.1",
    "--set",
    "checkpoint.every_steps=2",
    "--set",
    "checkpoint.keep=20",
];
const BF16: [&str; 4] = ["--device", "cuda", "--set", "train.precision=bf16"];
const SHARDED: [&str; 2] = ["--set", "train.sharding=optimizer"];

/// Weights, moments and f32 weights at the end of a run.
fn bits(place: &Place, run: &str) -> Vec<Vec<u8>> {
    let state = place.path(run).join("checkpoints/step-0000008/state");
    let mut files: Vec<PathBuf> = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    assert!(!files.is_empty());
    files.push(place.path(run).join("model/model.safetensors"));
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn losses(lines: &Lines) -> Vec<(u64, f64)> {
    lines.iter().map(|line| (line["step"].as_u64().unwrap(), line["loss"].as_f64().unwrap())).collect()
}

#[test]
fn a_run_from_a_checkpoint_has_the_bits_of_the_whole() {
    let place = Place::with_shards();
    let cases: [(&str, usize, &[&str], &[&str]); 4] = [
        ("f32-1", 1, &F32, &[]),
        ("f32-2", 2, &F32, &SHARDED),
        ("bf16-1", 1, &BF16, &[]),
        ("bf16-2", 2, &BF16, &SHARDED),
    ];
    for (name, ranks, precision, more) in cases {
        let run = |out: &str, resume: &[&str]| {
            let args = [&PLAN[..], precision, more, &["--out", out], resume].concat();
            assert_done(&start(&place, ranks, &args, &[]));
            place.metrics(out)
        };
        let whole = run(name, &[]);
        let from = format!("{name}/checkpoints/step-0000004");
        let again = format!("{name}-again");
        let rest = run(&again, &["--resume", &from]);
        assert_eq!(losses(&whole)[4..], losses(&rest), "{name}: other losses");
        assert!(bits(&place, name) == bits(&place, &again), "{name}: other bits");
    }
    // at another number of ranks; the f32 weights of bf16 differ only in their last digits (5e-8 in the
    // losses)
    for (name, ranks, precision) in [("f32-1", 2, &F32), ("bf16-1", 2, &BF16), ("bf16-2", 1, &BF16)] {
        let (from, out) = (format!("{name}/checkpoints/step-0000004"), format!("{name}-to-{ranks}"));
        let more = ["--out", out.as_str(), "--resume", from.as_str(), "--resume-with-changes"];
        assert_done(&start(&place, ranks, &[&PLAN[..], precision, &more].concat(), &[]));
        let mut worst = 0.0f64;
        for ((step, a), (same, b)) in
            losses(&place.metrics(name))[4..].iter().zip(losses(&place.metrics(&out)))
        {
            assert_eq!(*step, same);
            worst = worst.max((a - b).abs() / a);
        }
        println!("{name} taken up by {ranks} rank(s): losses apart {worst:.1e}");
        assert!(worst < 1e-5, "{name} on {ranks} ranks: {worst:.1e}");
    }
}

/// Starts a run, waits for a step and sends a signal; the exit code.
fn interrupted(place: &Place, ranks: usize, args: &[&str], out: &str, signal: &str) -> Option<i32> {
    let mut job =
        command(place, ranks, args, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let metrics = place.path(out).join("metrics.jsonl");
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 3 {
        assert!(job.try_wait().unwrap().is_none(), "{out} ended before its third step");
        assert!(begun.elapsed() < PATIENCE, "{out} makes no step");
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = std::process::Command::new("kill").args([format!("-{signal}"), job.id().to_string()]).status();
    assert!(sent.unwrap().success());
    job.wait().unwrap().code()
}

#[test]
fn killed_and_preempted_runs_end_with_the_bits_of_the_whole() {
    let place = Place::with_shards();
    for (name, ranks, precision, signal, code) in
        [("killed", 0, &BF16, "KILL", None), ("preempted", 2, &F32, "USR1", Some(75))]
    {
        let args =
            |out| [&PLAN[..], precision, &["--out", out, "--set", "checkpoint.every_steps=3"]].concat();
        let (whole, broken) = (format!("{name}-whole"), format!("{name}-broken"));
        assert_done(&start(&place, ranks, &args(&whole), &[]));
        assert_eq!(interrupted(&place, ranks, &args(&broken), &broken, signal), code);
        assert!(!place.path(&broken).join("DONE").exists(), "{name}: the signal came too late");
        assert_done(&start(&place, ranks, &args(&broken), &[]));
        assert!(bits(&place, &whole) == bits(&place, &broken), "{name}: other bits");
        let (whole, broken) = (place.metrics(&whole), place.metrics(&broken));
        assert_eq!(losses(&whole), losses(&broken), "{name}: a step is lost, twice there, or another");
    }
}

/// The numbers of a step are read late, yet all that follows from gradients that are not finite happens after
/// the same steps as on a CPU, which reads at once.
#[test]
fn gradients_that_stay_non_finite_are_met_at_the_same_steps_as_on_the_cpu() {
    let place = Place::with_shards();
    let wild = ["train.lr=1e30", "train.weight_decay=0", "train.clip_norm=0", "checkpoint.every_steps=1"];
    let wild: Vec<&str> = wild.iter().flat_map(|set| ["--set", *set]).collect();
    let said = |out: &str, ranks: usize, device: &[&str]| {
        let done = start(&place, ranks, &[&PLAN[..], &wild, device, &["--out", out]].concat(), &[]);
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(3), "{text}");
        assert!(text.contains("did not help"), "{text}");
        // without the time and the names of directories
        let event = |line: &str| {
            Some(line[line.find("update ").or(line.find("step "))?..].split("; going").next()?.to_owned())
        };
        let events: Vec<String> = text.lines().filter(|l| l.contains("finite")).filter_map(event).collect();
        (events, losses(&finite(place.metrics(out))))
    };
    let cpu = said("cpu", 1, &["--device", "cpu"]);
    assert!(cpu.0.len() > 5, "{cpu:?}");
    for ranks in [1, 2] {
        let gpu = said(&format!("gpu-{ranks}"), ranks, &F32);
        assert_eq!(cpu.0, gpu.0, "{ranks} rank(s)");
        assert_eq!(cpu.1.len(), gpu.1.len());
    }
}

fn finite(mut lines: Lines) -> Lines {
    lines.retain(|line| line["loss"].is_number());
    lines
}
