//! Training in bf16 on the CPU (`train.precision = "bf16"`), as users start it: losses close to f32's, the
//! same on any number of ranks as far as bf16 permits, and resumed to the bit.

use std::fs;

use ctune_dist::doctor::difference;
use ctune_dist::engine::cases::{Keep, Sizes, outcomes};
use ctune_dist::engine::cpu::Cpu;
use half::bf16;

use crate::program::{Place, assert_done};
use crate::survive::support::{Job, finished, losses, model, train};

const BF16: [&str; 6] = ["--device", "cpu", "--set", "train.precision=bf16", "--set", "train.dropout=0.1"];

/// Every operation beside the f32 engine's. A bf16 keeps 8 bits of every intermediate.
#[test]
fn operations_are_near_those_in_f32() {
    for engine in [Cpu::<bf16>::default(), Cpu::default().widening()] {
        for sizes in Sizes::small() {
            let expected = outcomes(&Cpu::new(), &sizes, Keep::default()).unwrap();
            let got = outcomes(&engine, &sizes, Keep::default()).unwrap();
            assert_eq!(expected.len(), got.len());
            for (expected, got) in expected.iter().zip(&got) {
                let error = difference(expected, got);
                println!("{:<24} {:<44} D {:<3} {error:.1e}", got.op, got.name, sizes.head_size());
                assert!(error < 2e-2, "{} {} D {}: {error:.1e}", got.op, got.name, sizes.head_size());
            }
        }
    }
}

/// Largest relative distance of two runs' losses, over their steps.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / a.abs()).fold(0.0, f64::max)
}

fn run(place: &Place, ranks: usize, out: &str, more: &[&str]) -> Vec<f64> {
    assert_done(&train(place, ranks, out, more));
    losses(place, out)
}

#[test]
fn losses_are_near_f32_and_the_same_on_any_number_of_ranks() {
    let place = Place::with_shards();
    let wide = run(&place, 1, "f32", &["--device", "cpu", "--set", "train.dropout=0.1"]);
    let alone = run(&place, 1, "bf16", &BF16);
    assert!(alone[alone.len() - 1] < alone[0], "nothing was learnt: {alone:?}");
    let off = apart(&wide, &alone);
    println!("bf16 beside f32: {off:.1e}");
    assert!(off < 2e-2, "bf16 beside f32: {off:.1e}");
    assert!(off > 1e-6, "the run was made in f32");
    for level in ["gelu-norm", "layer"] {
        let set = format!("train.recompute={level}");
        run(&place, 1, level, &[&BF16[..], &["--set", &set]].concat());
        assert!(model(&place, level) == model(&place, "bf16"), "{level}: other bits");
    }
    for ranks in [2, 4] {
        let name = format!("ranks-{ranks}");
        let off = apart(&alone, &run(&place, ranks, &name, &BF16));
        println!("{ranks} ranks in bf16: {off:.1e}");
        // Gradients are summed in another order, so that some weights round to their other neighbour.
        assert!(off < 2e-3, "{ranks} ranks: {off:.1e}");
        let sharded = [&BF16[..], &["--set", "train.sharding=optimizer"]].concat();
        run(&place, ranks, "sharded", &sharded);
        assert!(model(&place, &name) == model(&place, "sharded"), "{ranks} ranks: sharding gives other bits");
        fs::remove_dir_all(place.path("sharded")).unwrap();
    }
}

#[test]
fn a_killed_run_is_resumed_to_the_bit() {
    let place = Place::with_shards();
    for sharding in ["none", "optimizer"] {
        let set = format!("train.sharding={sharding}");
        let more = ["--set", &set, "--set", "train.steps=60", "--set", "checkpoint.every_steps=4"];
        let plan = [&BF16[..], &more].concat();
        let [whole, broken, moved] = ["whole", "broken", "moved"].map(|name| format!("{name}-{sharding}"));
        assert_done(&train(&place, 2, &whole, &plan));
        for (out, ranks) in [(&broken, 2), (&moved, 1)] {
            let mut job = Job::start(&place, 2, out, &plan);
            job.wait_for_step(20);
            assert!(!finished(&place, out));
            job.kill();
            assert_done(&train(&place, ranks, out, &plan));
        }
        assert!(model(&place, &whole) == model(&place, &broken), "{sharding}: other bits");
        assert_eq!(losses(&place, &whole), losses(&place, &broken));
        let off = apart(&losses(&place, &whole), &losses(&place, &moved));
        println!("{sharding}, from 2 ranks to 1: {off:.1e}");
        assert!(off < 1e-2, "{sharding}, from 2 ranks to 1: {off:.1e}");
    }
}

/// Fine-tuning with frozen parts and with adapters, and ranking with the result.
#[test]
fn fine_and_rerank() {
    let place = Place::with_shards();
    let set = "train.precision=bf16";
    let go = |args: &[&str]| assert_done(&place.run(args));
    go(&["retrieve", "--documents", "documents.tsv", "--topics", "topics.tsv", "--out", "bm25.run"]);
    go(&["coarse", "--config", "plan.toml", "--set", set, "--out", "coarse"]);
    let fine =
        ["fine", "--config", "plan.toml", "--set", "model.path=coarse/model", "--set", "train.steps=3"];
    let adapters = "fine.lora={ rank = 8, alpha = 8, targets = [\"query\", \"value\"] }";
    for (name, more) in [
        ("plain", "train.freeze=[]"),
        ("frozen", "train.freeze=[\"embeddings\", \"layer.0\"]"),
        ("adapted", adapters),
    ] {
        let wide = format!("{name}-f32");
        go(&[&fine[..], &["--set", more, "--out", &wide]].concat());
        go(&[&fine[..], &["--set", more, "--set", set, "--out", name]].concat());
        let [a, b] = [&wide[..], name].map(|out| losses(&place, &format!("{out}/fold-1")));
        let off = apart(&a, &b);
        println!("{name}: {off:.1e}");
        assert!(off < 2e-2, "{name}: {off:.1e}");
    }
    let scores = |name: &str, more: &[&str]| {
        let rerank = ["rerank", "--config", "plan.toml", "--model", "plain/fold-1/model", "--run-out", name];
        go(&[&rerank[..], more].concat());
        let text = fs::read_to_string(place.path(name)).unwrap();
        let line = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            (format!("{} {}", fields[0], fields[2]), fields[4].parse::<f64>().unwrap())
        };
        text.lines().map(line).collect::<std::collections::BTreeMap<_, _>>()
    };
    let (wide, narrow) = (scores("f32.run", &[]), scores("bf16.run", &["--set", set]));
    assert!(wide.keys().eq(narrow.keys()));
    for (pair, score) in &wide {
        assert!((score - narrow[pair]).abs() < 3e-2, "{pair}: f32 {score}, bf16 {}", narrow[pair]);
    }
}
