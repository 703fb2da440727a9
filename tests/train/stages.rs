//! What `coarse` and `pretrain` check before their first step.

use crate::program::{Place, assert_done, assert_refused};
use crate::start;

/// `coarse` of two steps with what else is set; its standard output.
fn coarse(place: &Place, out: &str, more: &[&str]) -> String {
    let mut args = vec!["coarse", "--config", "plan.toml", "--out", out, "--set", "train.steps=2"];
    for set in more {
        args.extend(["--set", set]);
    }
    let done = place.run(&args);
    assert_done(&done);
    String::from_utf8(done.stdout).unwrap()
}

fn fact(place: &Place, out: &str, key: &str) -> serde_json::Value {
    let text = std::fs::read(place.path(out).join("run.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()[key].take()
}

#[test]
fn queries_that_are_cut_are_counted_and_kept() {
    let place = Place::with_shards();
    let said = |text: &str| text.lines().filter(|line| line.contains("they are cut")).count();
    let whole = coarse(&place, "whole", &[]);
    assert_eq!(said(&whole), 0, "{whole}");
    let none = fact(&place, "whole", "queries_cut");
    let queries = none["queries"].as_u64().unwrap();
    assert!(none["cut"] == 0 && queries > 0, "{none}");
    // 13 tokens less three special ones less eight of the document leave a query two
    let cut = coarse(&place, "cut", &["data.max_tokens=13"]);
    let line = format!("{queries} of {queries} queries (100.00 %) are longer than 2 tokens");
    assert!(cut.contains(&line) && said(&cut) == 1, "{cut}");
    let kept = fact(&place, "cut", "queries_cut");
    assert_eq!(kept, serde_json::json!({ "cut": queries, "queries": queries, "kept_tokens": 2 }));
    let halves = coarse(&place, "halves", &["data.max_tokens=13", "data.truncate=longest-first"]);
    assert_eq!(fact(&place, "halves", "queries_cut")["kept_tokens"], 5, "{halves}");
    // documents by themselves have no queries
    let args = ["pretrain", "--config", "plan.toml", "--out", "alone", "--set", "train.steps=1"];
    assert_done(&place.run(&args));
    assert!(fact(&place, "alone", "queries_cut").is_null());
}

#[test]
fn shards_are_verified_once_a_node_for_all_of_its_ranks() {
    let place = Place::with_shards();
    let ranks = |out: &str| {
        start::ranks(3)
            .args(["coarse", "--config", "plan.toml", "--out", out])
            .args(["--set", "train.steps=1"])
            .current_dir(place.path("."))
            .env("RUST_LOG", "ctune_dist=info")
            .output()
            .unwrap()
    };
    let verified = |out: &std::process::Output| {
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        text.lines().filter(|line| line.contains("files verified")).count()
    };
    let done = ranks("three");
    assert_done(&done);
    assert_eq!(verified(&done), 1, "{}", String::from_utf8_lossy(&done.stderr));
    // the verdict of the rank that looked is every rank's
    let damaged = place.path("shards/clicks.bin");
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[17] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let refused = place.mpirun(3, &["coarse", "--config", "plan.toml", "--out", "no"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{text}");
    assert!(text.contains("clicks.bin"), "{text}");
    let alone = place.run(&["coarse", "--config", "plan.toml", "--out", "no"]);
    assert_refused(&alone, 3, &["clicks.bin"]);
}
