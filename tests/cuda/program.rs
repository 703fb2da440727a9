//! The program on the software device, as users start it: one, two and four ranks give the CPU's losses, and
//! one line says what is missing.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use crate::program::{Place, assert_done, assert_refused};
use crate::softgpu;
use crate::start::{self as programs, BINARY, NO_GPU};

pub type Lines = Vec<BTreeMap<String, serde_json::Value>>;

/// The program under `ranks` ranks (0: without mpirun), on the software device.
pub fn command(place: &Place, ranks: usize, args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = match ranks {
        0 => softgpu::command(BINARY),
        n => {
            let mut command = softgpu::command("mpirun");
            command.args(["--oversubscribe", "-n", &n.to_string(), BINARY]);
            command
        }
    };
    command
        .args(args)
        .current_dir(place.path(""))
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("XDG_CACHE_HOME", softgpu::library_path().join("cache"))
        .env("SOFTGPU_STRICT", "1")
        .envs(env.iter().copied());
    command
}

/// Its outcome.
pub fn start(place: &Place, ranks: usize, args: &[&str], env: &[(&str, &str)]) -> Output {
    command(place, ranks, args, env).output().expect("mpirun is needed (launch/test.sh installs it)")
}

pub const PLAN: [&str; 7] =
    ["coarse", "--config", "plan.toml", "--set", "train.steps=4", "--set", "train.dropout=0.1"];

pub fn coarse(place: &Place, ranks: usize, out: &str, more: &[&str], env: &[(&str, &str)]) -> Lines {
    let args = [&PLAN[..], &["--out", out], more].concat();
    let done = start(place, ranks, &args, env);
    assert_done(&done);
    let metrics = place.metrics(out);
    assert_eq!(metrics.len(), 4, "{out}");
    metrics
}

/// Largest relative difference of a loss or a gradient's norm.
pub fn apart(a: &Lines, b: &Lines) -> f64 {
    let mut worst = 0.0f64;
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a["tokens"], b["tokens"]);
        for key in ["loss", "mlm_loss", "qdpp_loss", "grad_norm"] {
            let (a, b) = (a[key].as_f64().unwrap_or(f64::NAN), b[key].as_f64().unwrap_or(f64::NAN));
            let off = (a - b).abs() / a.abs();
            worst = worst.max(if off.is_nan() { f64::INFINITY } else { off });
        }
    }
    worst
}

pub const F32: [&str; 4] = ["--device", "cuda", "--set", "train.precision=f32"];

#[test]
fn any_number_of_gpus_computes_what_the_cpu_computes() {
    let place = Place::with_shards();
    let cpu = coarse(&place, 0, "cpu", &["--device", "cpu"], &[]);
    for ranks in [0, 1, 2, 4] {
        let name = format!("f32-{ranks}");
        let off = apart(&cpu, &coarse(&place, ranks, &name, &F32, &[]));
        println!("{ranks} GPUs, f32: {off:.1e}");
        assert!(off < 1e-4, "{ranks} ranks in f32: {off:.1e}");
    }
    for (ranks, reduce) in [(1, "f32"), (2, "f32"), (2, "bf16")] {
        let set = format!("train.reduce={reduce}");
        let name = format!("bf16-{ranks}-{reduce}");
        let off = apart(&cpu, &coarse(&place, ranks, &name, &["--device", "cuda", "--set", &set], &[]));
        println!("{ranks} GPUs, bf16, sums in {reduce}: {off:.1e}");
        assert!(off < 2e-2, "{ranks} ranks in bf16, sums in {reduce}: {off:.1e}");
    }
}

/// Hard negatives with graded clicks, and fine-tuning on all passages of documents, as on the CPU.
#[test]
fn graded_pairs_and_passages_are_the_cpus() {
    let place = Place::with_text();
    let text = std::fs::read_to_string(place.path("clicks.tsv")).unwrap();
    let twice: String = text.lines().step_by(3).map(|line| format!("{line}\n")).collect();
    place.write("clicks.tsv", &format!("{text}{twice}"));
    place.plan();
    place.prepare();
    for (name, value) in [("--clicks", "clicks.tsv"), ("--topics", "topics.tsv")] {
        let out = if name == "--clicks" { "hard.run" } else { "bm25.run" };
        assert_done(&place.run(&["retrieve", "--documents", "documents.tsv", name, value, "--out", out]));
    }
    let sets = ["negatives=run-file", "negatives_run=hard.run", "grades=click-count"];
    let sets: Vec<String> = sets.iter().map(|set| format!("objective.{set}")).collect();
    let graded: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let cpu = coarse(&place, 0, "cpu", &[&["--device", "cpu"], &graded[..]].concat(), &[]);
    let gpu = coarse(&place, 2, "gpu", &[&F32[..], &graded[..]].concat(), &[]);
    let off = apart(&cpu, &gpu);
    assert!(off < 1e-4, "graded pairs: {off:.1e}");

    let fine = |out: &str, device: &[&str]| {
        let mut args = vec!["fine", "--config", "plan.toml", "--out", out, "--set", "model.path=cpu/model"];
        for set in
            ["train.steps=3", "train.pack_tokens=1024", "fine.train_passages=all", "fine.aggregate=max-p"]
                .iter()
                .chain(&["fine.passage_words=4", "fine.passage_stride=2", "fine.passages=3"])
        {
            args.extend(["--set", set]);
        }
        assert_done(&start(&place, 0, &[&args[..], device].concat(), &[]));
        let lines = place.metrics(&format!("{out}/fold-2"));
        lines.iter().map(|line| line["rank_loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    for (cpu, gpu) in fine("fine-cpu", &["--device", "cpu"]).iter().zip(fine("fine-gpu", &F32)) {
        assert!((cpu - gpu).abs() < 1e-4 * cpu, "all passages: {cpu} and {gpu}");
    }
}

#[test]
fn fine_and_rerank_on_a_gpu() {
    let place = Place::with_shards();
    let cpu = |args: &[&str]| assert_done(&place.run(args));
    cpu(&["retrieve", "--documents", "documents.tsv", "--topics", "topics.tsv", "--out", "bm25.run"]);
    cpu(&["coarse", "--config", "plan.toml", "--device", "cpu", "--out", "coarse"]);
    let fine = [
        "fine",
        "--config",
        "plan.toml",
        "--set",
        "model.path=coarse/model",
        "--set",
        "train.steps=3",
        "--set",
        "train.dropout=0.1",
        "--out",
    ];
    cpu(&[&fine[..], &["fine-cpu", "--device", "cpu"]].concat());
    assert_done(&start(&place, 2, &[&fine[..], &["fine-gpu"], &F32].concat(), &[]));
    let losses = |run: &str| {
        let metrics = place.metrics(&format!("{run}/fold-1"));
        metrics.iter().map(|m| m["loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    for (c, g) in losses("fine-cpu").iter().zip(losses("fine-gpu")) {
        assert!((c - g).abs() < 1e-4 * c.abs().max(1.0), "CPU {c}, GPU {g}");
    }
    let rerank = ["rerank", "--config", "plan.toml", "--model", "fine-cpu/fold-1/model", "--run-out"];
    cpu(&[&rerank[..], &["cpu.run", "--device", "cpu"]].concat());
    assert_done(&start(&place, 2, &[&rerank[..], &["gpu.run"], &F32].concat(), &[]));
    let scores = |name: &str| {
        let text = std::fs::read_to_string(place.path(name)).unwrap();
        let line = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            (format!("{} {}", fields[0], fields[2]), fields[4].parse::<f64>().unwrap())
        };
        text.lines().map(line).collect::<BTreeMap<_, _>>()
    };
    let (cpu, gpu) = (scores("cpu.run"), scores("gpu.run"));
    assert!(cpu.keys().eq(gpu.keys()));
    for (pair, score) in &cpu {
        assert!((score - gpu[pair]).abs() < 1e-4, "{pair}: CPU {score}, GPU {}", gpu[pair]);
    }
}

#[test]
fn no_gpu_is_exit_code_4_and_auto_is_the_cpu() {
    let place = Place::with_shards();
    let args = |device: &'static str| [&PLAN[..], &["--out", "run", "--device", device]].concat();
    assert_refused(&place.run(&args("cuda")), 4, &NO_GPU);
    let out = place.run(&args("auto"));
    assert_done(&out);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("computing on the CPU: no ") && text.contains(NO_GPU[2]), "{text}");
    let none = start(&place, 0, &args("cuda"), &[("SOFTGPU_DEVICES", "0")]);
    assert_refused(&none, 4, &["GPU", "cpu"]);
    let old = start(&place, 0, &args("cuda"), &[("SOFTGPU_CAPABILITY", "75")]);
    assert_refused(&old, 4, &["7.5", "8.0"]);
}

#[test]
fn more_ranks_than_gpus_is_refused_with_both_numbers() {
    let place = Place::with_shards();
    let out = start(&place, 3, &[&PLAN[..], &["--device", "cuda"]].concat(), &[("SOFTGPU_DEVICES", "2")]);
    assert_eq!(out.status.code(), Some(4));
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(text.contains("3 ranks") && text.contains("2"), "{text}");
}

#[test]
fn debug_mode_checks_against_the_reference() {
    let place = Place::with_shards();
    let args = [&PLAN[..], &["--out", "debug", "--set", "run.check=2"], &F32].concat();
    let out = start(&place, 0, &args, &[]);
    assert_done(&out);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(text.lines().filter(|line| line.starts_with("check at step")).count(), 2, "{text}");
}

#[test]
fn doctor_finds_nothing_wrong() {
    let place = Place::with_shards();
    let out = start(&place, 1, &["doctor", "--device", "cuda"], &[]);
    assert_done(&out);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    for word in ["driver: CUDA 12.8", "attention_backward", "a whole step", "verdict: everything"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    // a row for every operation and precision: name, error, ms, GB/s, share, TFLOP/s, share, worst result
    let rows: Vec<&str> = text.lines().filter(|line| line.contains("(H = ")).collect();
    assert_eq!(rows.len(), 2 * 45, "{text}");
    for row in rows {
        let numbers = row.get(32..).unwrap().split_whitespace().take(6).map(|n| n.parse::<f64>().unwrap());
        let numbers: Vec<f64> = numbers.collect();
        assert!(numbers.iter().all(|n| n.is_finite() && *n >= 0.0) && numbers[1] > 0.0, "{row}");
    }
    assert!(!text.contains("<- wrong"), "{text}");
    let none = programs::program().args(["doctor", "--device", "cuda"]).output().unwrap();
    assert_refused(&none, 4, &NO_GPU);
}
