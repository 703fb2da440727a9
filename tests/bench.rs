//! `bench` on a tiny model: every number is there and plausible, on one rank and on two.

use std::process::Output;

use serde_json::Value;

use crate::start;

const SIZES: [&str; 10] = [
    "--set",
    "model.layers=2",
    "--set",
    "model.hidden=32",
    "--set",
    "model.heads=2",
    "--set",
    "data.max_tokens=32",
    "--set",
    "train.pack_tokens=256",
];

fn bench(ranks: usize, more: &[&str]) -> Output {
    let mut command = if ranks > 1 { start::mpirun() } else { start::program() };
    if ranks > 1 {
        let n = ranks.to_string();
        command.args(["-n", n.as_str(), "--bind-to", "none", start::BINARY]);
        command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    }
    command.arg("bench").args(SIZES).args(["--seconds", "0.02"]).args(more).output().unwrap()
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn positive(value: &Value, key: &str) -> f64 {
    let number = value[key].as_f64().unwrap_or_else(|| panic!("{key} of {value}"));
    assert!(number > 0.0 && number.is_finite(), "{key} = {number}");
    number
}

#[test]
fn every_number_is_there() {
    let r = report(&bench(1, &["--json"]));
    let peak = positive(&r["peaks"], "flops");
    positive(&r["peaks"], "bandwidth");
    let operations = r["operations"].as_array().unwrap();
    assert_eq!(operations.len(), 45, "a case of every operation");
    for op in operations {
        positive(op, "ms");
        positive(op, "bytes");
        // no upper bound: this model lives in caches, which are many times faster than the memory whose
        // bandwidth is measured
        positive(op, "share_of_light");
        assert!(op["calls"].as_u64().unwrap() >= 3);
    }
    let step = &r["step"];
    let mfu = positive(step, "mfu");
    let per_token = positive(step, "flops_per_token");
    let tokens = positive(step, "tokens_per_s");
    assert!((mfu - tokens * per_token / peak).abs() < 1e-9 * mfu);
    assert!((tokens - 256.0 / positive(step, "step_ms") * 1e3).abs() < 1e-6 * tokens, "packs are full");
    positive(&r, "loader_tokens_per_s");
    assert!(r["all_reduce"].is_null());
}

#[test]
fn ranks_measure_the_sum_of_gradients() {
    let r = report(&bench(2, &["--json"]));
    assert_eq!(r["ranks"], 2);
    let bytes = positive(&r["all_reduce"], "bytes");
    let ms = positive(&r["all_reduce"], "ms");
    // on two ranks a ring sends every byte once
    let bus = positive(&r["all_reduce"], "bus_bytes_per_s");
    assert!((bus * ms / 1e3 / bytes - 1.0).abs() < 1e-9);
}

#[test]
fn the_table_names_what_was_measured() {
    let output = bench(1, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["machine", "peaks", "attention_backward", "adamw", "MFU", "loader", "all-reduce  none"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    for seconds in ["0", "nan", "inf", "1e300"] {
        assert_eq!(bench(1, &["--seconds", seconds]).status.code(), Some(2), "{seconds}");
    }
}
