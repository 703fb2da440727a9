//! Checkpoints that are damaged or cannot be written, and disks that are full.

use std::fs;
use std::path::{Path, PathBuf};

use super::support::{losses, model, train};
use crate::program::{Place, assert_done, assert_refused};

const PLAN: [&str; 6] =
    ["--set", "train.steps=12", "--set", "checkpoint.every_steps=4", "--set", "checkpoint.keep=9"];

/// Bytes of all files below a folder.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { size(&path) } else { fs::metadata(path).unwrap().len() }).sum()
}

/// A run, with all its checkpoints, whose last 4 steps must be run again.
fn unfinished(place: &Place, out: &str) -> PathBuf {
    assert_done(&train(place, 1, out, &PLAN));
    fs::remove_file(place.path(out).join("DONE")).unwrap();
    place.path(out).join("checkpoints")
}

#[test]
fn what_is_damaged_is_passed_over_and_named() {
    let place = Place::with_shards();
    let root = unfinished(&place, "run");
    let whole = (model(&place, "run"), losses(&place, "run"));
    let flip = |path: PathBuf| {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let cut = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    };
    let last = root.join("step-0000012");
    let optimiser = "state/optimiser-000-of-001.safetensors";
    type Harm<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let harms: [Harm; 5] = [
        ("has no DONE", Box::new(|| fs::remove_file(last.join("DONE")).unwrap())),
        ("optimiser-000-of-001.safetensors: damaged", Box::new(|| flip(last.join(optimiser)))),
        ("model.safetensors: damaged", Box::new(|| cut(last.join("model/model.safetensors")))),
        ("state.json", Box::new(|| fs::remove_file(last.join("state/state.json")).unwrap())),
        ("files-000.json: damaged", Box::new(|| flip(last.join("state/files-000.json")))),
    ];
    for (said, harm) in &harms {
        harm();
        let out = train(&place, 1, "run", &PLAN);
        assert_done(&out);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(text.contains("skipped: ") && text.contains(said), "{said}: {text}");
        assert!(text.contains("resumed from run/checkpoints/step-0000008"), "{text}");
        assert!(whole == (model(&place, "run"), losses(&place, "run")), "{said}: other weights");
        fs::remove_file(place.path("run/DONE")).unwrap();
    }
    // a checkpoint that is asked for by name is not replaced by another
    flip(last.join(optimiser));
    let named = [&PLAN[..], &["--resume", "run/checkpoints/step-0000012"]].concat();
    assert_refused(&train(&place, 1, "run", &named), 3, &["step-0000012", "damaged"]);
}

#[test]
fn every_tensor_that_is_missing_or_unexpected_is_named() {
    let place = Place::with_shards();
    let root = unfinished(&place, "run");
    let dir = root.join("step-0000012");
    let path = dir.join("model/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let gone = ["cls.seq_relationship.bias", "bert.pooler.dense.weight"];
    let kept = file.tensors().into_iter().map(|(name, tensor)| {
        if name == gone[0] { ("cls.other.bias".to_owned(), tensor) } else { (name, tensor) }
    });
    let kept: Vec<_> = kept.filter(|(name, _)| name != gone[1]).collect();
    fs::write(&path, safetensors::serialize(kept, None).unwrap()).unwrap();
    sign(&dir, "model/model.safetensors");
    let out = train(&place, 1, "run", &PLAN);
    assert_refused(&out, 3, &[gone[0], gone[1], "unexpected: cls.other.bias"]);
}

/// Makes the checksums agree with a file that a test has changed.
fn sign(dir: &Path, name: &str) {
    let fact = |name: &str| {
        let bytes = fs::read(dir.join(name)).unwrap();
        serde_json::json!({"bytes": bytes.len(), "crc32": crc32fast::hash(&bytes)})
    };
    for (list, name) in [("state/files-000.json", name), ("DONE", "state/files-000.json")] {
        let path = dir.join(list);
        let mut files: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        files[name] = fact(name);
        fs::write(path, files.to_string()).unwrap();
    }
}

#[test]
fn a_checkpoint_is_as_large_as_what_it_keeps() {
    let place = Place::with_shards();
    // larger than the test's usual model, or names and checksums would weigh more than weights
    let plan = [&PLAN[..], &["--set", "model.hidden=256", "--set", "train.steps=1"]].concat();
    assert_done(&train(&place, 1, "run", &plan));
    let dir = place.path("run/checkpoints/step-0000001");
    let weights = fs::metadata(dir.join("model/model.safetensors")).unwrap().len();
    let text = size(&dir.join("model")) - weights; // tokenizer, config.json
    let ratio = (size(&dir) - text) as f64 / (3 * weights) as f64;
    assert!((ratio - 1.0).abs() < 0.01, "weights and two moments are 3 x {weights} bytes; ratio {ratio}");
}

#[test]
fn the_last_ones_and_the_best_are_kept() {
    let place = Place::with_shards();
    let plan = ["--set", "train.steps=14", "--set", "checkpoint.every_steps=2", "--set", "checkpoint.keep=2"];
    assert_done(&train(&place, 1, "run", &plan));
    let mut names: Vec<String> = fs::read_dir(place.path("run/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    // the value is the mean training loss since the checkpoint before: find the best by hand
    let losses = losses(&place, "run");
    let mean = |step: usize| (losses[step - 1] + losses[step - 2]) / 2.0;
    let best = (1..=7).map(|k| 2 * k).min_by(|a, b| mean(*a).total_cmp(&mean(*b))).unwrap();
    let mut expected = vec![12, 14, best];
    expected.sort_unstable();
    expected.dedup();
    let expected: Vec<String> = expected.iter().map(|step| format!("step-{step:07}")).collect();
    assert_eq!(names, expected);
}
