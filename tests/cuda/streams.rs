//! The host and the three streams of a training step: the order in which they run changes no bit, the host
//! never leaves the device without work, and leaving out any wait is noticed.

use std::fs;

use super::program::{F32, PLAN, apart, coarse, start};
use crate::program::{Place, assert_done};

#[test]
fn graphs_and_the_order_of_streams_change_no_bit() {
    let place = Place::with_shards();
    let run = |out: &str, more: &[&str], streams: &str| {
        let more = [&F32[..], more].concat();
        coarse(&place, 2, out, &more, &[("SOFTGPU_STREAMS", streams)]);
        fs::read(place.path(out).join("model/model.safetensors")).unwrap()
    };
    let eager = run("eager", &[], "eager");
    for (i, streams) in ["lazy", "late:1", "late:2", "late:3", "random:1", "random:2"].iter().enumerate() {
        assert!(run(&format!("order-{i}"), &[], streams) == eager, "{streams} gives other bits");
    }
    assert!(run("no-graph", &["--set", "run.graph=false"], "lazy") == eager, "graphs give other bits");
}

/// The host's waits in a run of `steps` steps on one rank, and how many of them left the device without work.
/// Nothing but the steps differs from run to run.
fn waits(place: &Place, ranks: usize, steps: usize) -> Vec<[i64; 2]> {
    let (out, file) = (format!("run-{ranks}-{steps}"), place.path(&format!("waits-{ranks}-{steps}")));
    // what an earlier try left: a finished run would not be repeated
    let _ = (fs::remove_dir_all(place.path(&out)), fs::remove_file(&file));
    let steps = format!("train.steps={steps}");
    let more = ["--set", steps.as_str(), "--set", "checkpoint.every_minutes=0", "--out", out.as_str()];
    let env = [("SOFTGPU_STREAMS", "lazy"), ("SOFTGPU_WAITS", file.to_str().unwrap())];
    assert_done(&start(place, ranks, &[&PLAN[..], &more, &F32].concat(), &env));
    let text = fs::read_to_string(file).unwrap();
    let line = |line: &str| {
        let (all, idle) = line.split_once(' ').unwrap();
        [all.parse().unwrap(), idle.parse().unwrap()]
    };
    text.lines().map(line).collect()
}

/// Each further step costs the host one wait per pack for its place in pinned memory, and one for the losses
/// of the step before. The device has work after each of them.
#[test]
fn the_host_never_leaves_the_device_without_work() {
    const MORE: i64 = 5;
    const TRIES: usize = 8;
    let place = Place::with_shards();
    // whether every rank's further steps waited no more than they must, and never with the device idle
    let busy = |ranks: usize, packs: i64| -> bool {
        let (few, many) = (waits(&place, ranks, 6), waits(&place, ranks, 6 + MORE as usize));
        assert_eq!((few.len(), many.len()), (ranks, ranks));
        few.iter().zip(&many).all(|(few, many)| {
            let [all, idle] = [many[0] - few[0], many[1] - few[1]];
            println!("{ranks} rank(s): {few:?} waits in 6 steps; in {MORE} more {all}, {idle} of them idle");
            idle == 0 && all <= MORE * (packs + 1)
        })
    };
    for (ranks, packs) in [(1, 4), (2, 2)] {
        // on a busy machine a rank may wait for the other, and its device with it, now and then; a step that
        // leaves its device without work does so every time
        let once = (0..TRIES).any(|_| busy(ranks, packs));
        assert!(once, "{ranks} rank(s): a step waits too often, or leaves the device without work");
    }
}

/// Streams as the software device numbers them; 0 is the host.
const STREAMS: [&str; 4] = ["host", "compute", "copy", "communication"];

/// Every wait of the third of four steps: who waits, for whom, what it orders, and its number among the run's
/// waits of that kind. The stream that is waited for runs as late as it can. All of a step's waits are there
/// but one that orders nothing: the host's for the norm, which it waited for with the losses.
const WAITS: [(usize, usize, &str, std::ops::Range<usize>); 6] = [
    (3, 1, "gradients of the heads, two layers and the embeddings, and the norm, before their sums", 10..15),
    (1, 3, "the sums of gradients before the norm; the norm before the update", 4..6),
    (1, 2, "a pack before it is dealt out", 7..10),
    (2, 1, "a block of the device before the next pack is copied over it", 5..8),
    (0, 2, "a block of the host before the next pack is gathered in it", 5..8),
    (0, 1, "losses, and the norm that arrives with them, before they are read", 4..5),
];

/// Two ranks with three packs a step each, so that a step's waits for blocks matter. Compute and communication
/// come first: a sum that starts before its gradients are there must never pass.
#[test]
fn a_forgotten_wait_shows() {
    let place = Place::with_shards();
    let plan = ["train.packs_per_step=6", "train.pack_tokens=64", "run.graph=false"]; // small packs are quick
    let more = [&F32[..], &plan.map(|set| ["--set", set]).concat()].concat();
    let right = coarse(&place, 2, "right", &more, &[("SOFTGPU_STREAMS", "lazy")]);
    let mut missed = Vec::new();
    for (from, of, what, numbers) in WAITS {
        for number in numbers {
            let wait = format!("{from}<{of}:{number}");
            let late = format!("late:{of}");
            let folder = format!("wrong-{wait}").replace('<', "-"); // a finished run would not be repeated
            let args = [&PLAN[..], &["--out", &folder], &more].concat();
            let env = [("SOFTGPU_STREAMS", late.as_str()), ("SOFTGPU_DROP_WAIT", wait.as_str())];
            let out = start(&place, 2, &args, &env);
            println!("{} for {} ({what}), {number}: {}", STREAMS[from], STREAMS[of], out.status);
            if out.status.success() && apart(&right, &place.metrics(&folder)) < 1e-4 {
                missed.push(format!("{} for {} ({what}), {number}", STREAMS[from], STREAMS[of]));
            }
        }
    }
    assert!(missed.is_empty(), "nobody noticed the lack of: {missed:#?}");
}
