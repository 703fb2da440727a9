//! `plan`'s arithmetic against numbers computed by hand, and its memory against what is allocated.

use ctune_dist::config::{Config, Sharding, Train};
use ctune_dist::engine::cpu::{Buffer, Cpu};
use ctune_dist::engine::cuda::CudaBuf;
use ctune_dist::engine::dry::Dry;
use ctune_dist::engine::{Device, Elem, stats};
use ctune_dist::model::activations::{Activations, Capacity, LayerActivations, Recompute, device_batch};
use ctune_dist::model::bert::Options;
use ctune_dist::model::layout::{HeadSet, Layout};
use ctune_dist::model::{Objective, Shape};
use ctune_dist::plan::{PlanOptions, Report, report};
use ctune_dist::train::counted::Setup;
use ctune_dist::train::optimiser::owned;

use crate::start;

fn options(capacity: Capacity) -> Options {
    Options {
        objective: Objective::Pretraining { mlm: 1.0, qdpp: 1.0 },
        heads: HeadSet::PRETRAINING,
        capacity,
        train: true,
        dropout: 0.0,
        seed: 0,
        rule: None,
        continues: Vec::new(),
    }
}

/// Bytes that a device sets aside for `len` elements.
fn size<T: Elem>(buffer: &Buffer<T>) -> usize {
    CudaBuf::<T>::size(buffer.len())
}

/// Every buffer that the CPU engine allocates for a small model, with everything kept and with parts computed
/// again, is counted, and nothing else is.
#[test]
fn memory_is_what_the_engine_allocates() {
    for recompute in [Recompute::None, Recompute::GeluNorm, Recompute::Layer] {
        check_memory(recompute);
    }
}

fn check_memory(recompute: Recompute) {
    let shape = Shape {
        vocab: 211,
        hidden: 24,
        layers: 3,
        heads: 2,
        intermediate: 56,
        positions: 32,
        segments: 2,
        norm_eps: Shape::NORM_EPS,
    };
    let capacity = Capacity::of_pack(100, 0.15, false);
    let layout = &Layout::new(&shape, HeadSet::PRETRAINING).unwrap();
    let (options, train) = (options(capacity), &Train { recompute, ..Train::default() });
    let dry = Dry::<f32>::operations_only();
    let before = dry.bytes();
    let counts_of_packs = dry.for_packs(&capacity.counts()).unwrap().bytes() - before;
    let run = Setup { layout, options: options.clone(), train, rank: 0, ranks: 1 };
    let counted = run.count_full(&Dry::<f32>::operations_only()).unwrap().bytes;

    let cpu = Cpu::new();
    let a = Activations::new(&cpu, layout, &options, recompute).unwrap();
    let layer = |l: &LayerActivations<Cpu>| {
        let kept = [&l.qkv, &l.lse, &l.context, &l.sum1, &l.stats1, &l.pre, &l.sum2, &l.stats2];
        kept.into_iter().chain(&l.down).map(size).sum::<usize>()
    };
    let (h, d) = (&a.heads, a.backward.as_ref().unwrap());
    let embedded = [&a.embed_sum, &a.embed_stats];
    let heads = [
        &h.masked,
        &h.transform_pre,
        &h.transform_act,
        &h.transform_stats,
        &h.transformed,
        &h.logits,
        &h.cls,
        &h.pooled,
        &h.pair_logits,
        &h.scores,
        &h.dscores,
        &h.documents,
        &h.ddocuments,
    ];
    let gradients = [
        &d.dx,
        &d.dnormed,
        &d.dy,
        &d.dcontext,
        &d.dact,
        &d.dqkv,
        &d.dmasked,
        &d.dtransformed,
        &d.dcls,
        &d.ddown,
    ];
    let of_model: usize = [&embedded[..], &heads, &gradients].concat().into_iter().map(size).sum();
    let of_layers = a.x.iter().map(size).sum::<usize>()
        + a.layers.iter().map(layer).sum::<usize>()
        + a.ffns.iter().map(|f| size(&f.normed1) + size(&f.act)).sum::<usize>();
    // the word-piece flags, the step's sums, and the optimiser's squared norm
    let small = [shape.vocab, stats::SLOTS, 1].map(CudaBuf::<f32>::size).iter().sum::<usize>();
    let all = of_model + of_layers + pack_bytes(&cpu, capacity) + small + counts_of_packs;
    assert_eq!(counted.activations, all, "{recompute:?}");
    let arena = CudaBuf::<f32>::size(layout.len);
    assert_eq!((counted.weights, counted.gradients, counted.master), (arena, arena, 0));
    let owned = owned(layout, 0, 1, Sharding::None).iter().map(ExactSizeIterator::len).sum();
    assert_eq!(counted.moments, 2 * CudaBuf::<f32>::size(owned));
}

/// Bytes of a pack's arrays.
fn pack_bytes(cpu: &Cpu, capacity: Capacity) -> usize {
    let b = device_batch(cpu, capacity).unwrap();
    let tokens = [&b.ids, &b.positions, &b.segments, &b.row_sample];
    let sequences = [&b.cu_seqlens, &b.samples, &b.pair_labels, &b.cu_documents, &b.cu_groups];
    let masked = [&b.masked_rows, &b.masked_labels];
    let words: usize = [&tokens[..], &sequences, &masked].concat().into_iter().map(size).sum();
    words + size(&b.pair_weights) + size(&b.targets)
}

#[test]
fn parameters_are_shared_by_ranks_where_the_optimiser_is() {
    let shape = Shape {
        vocab: 64,
        hidden: 16,
        layers: 1,
        heads: 2,
        intermediate: 32,
        positions: 16,
        segments: 2,
        norm_eps: Shape::NORM_EPS,
    };
    let layout = &Layout::new(&shape, HeadSet::PRETRAINING).unwrap();
    let bytes = |sharding: Sharding| {
        let (options, train) =
            (options(Capacity::of_pack(32, 0.0, false)), &Train { sharding, ..Train::default() });
        let run = Setup { layout, options, train, rank: 0, ranks: 2 };
        run.count_full(&Dry::<half::bf16>::operations_only()).unwrap().bytes
    };
    let (whole, shared) = (bytes(Sharding::None), bytes(Sharding::Optimizer));
    let (narrow, wide) = (CudaBuf::<half::bf16>::size, CudaBuf::<f32>::size);
    for counted in [whole, shared] {
        assert_eq!((counted.weights, counted.gradients), (narrow(layout.len), wide(layout.len)));
    }
    let elements = |sharding| owned(layout, 0, 2, sharding).iter().map(ExactSizeIterator::len).sum::<usize>();
    let (all, own) = (elements(Sharding::None), elements(Sharding::Optimizer));
    assert!((2 * own).abs_diff(all) < all / 10, "{own} of {all}");
    assert_eq!((whole.master, whole.moments), (wide(all), 2 * wide(all)));
    assert_eq!((shared.master, shared.moments), (wide(own), 2 * wide(own)));
}

fn bert_base(gpus: usize, models: &[&str]) -> Report {
    sharded(gpus, models, "none")
}

fn sharded(gpus: usize, models: &[&str], sharding: &str) -> Report {
    let sharding = format!("train.sharding={sharding}");
    let set =
        ["model.path=bert-base-uncased", "train.pack_tokens=16384", "train.packs_per_step=8", &sharding];
    let config = Config::load(None, "coarse", &set.map(str::to_owned)).unwrap();
    let options = PlanOptions {
        gpus,
        models: models.iter().map(|&m| m.to_owned()).collect(),
        price: Some(2.0),
        network: 25.0,
        samples: Some(1_000_000),
        mean_tokens: None,
        json: false,
    };
    report(&config, &options).unwrap()
}

#[test]
fn bert_base_by_hand() {
    let r = bert_base(8, &["a100"]);
    // 30,522 + 512 + 2 rows of 768 and a LayerNorm; 12 layers of 7,087,872; pooler 590,592; MLM head
    // 590,592 + 1,536 + 30,522; QDPP 1,538
    let by_hand = (30_522 + 512 + 2) * 768 + 1536 + 12 * 7_087_872 + 590_592 + 622_650 + 1538;
    assert_eq!(r.parameters, by_hand);
    // 0.995 of 16,384 tokens: 31 sequences of 512 and one of 430; the published formula, and the pooler's product
    let (h, i, t): (f64, f64, f64) = (768.0, 3072.0, 16_302.0);
    let attended = (31.0 * 512f64.powi(2) + 430f64.powi(2)) / t;
    let (layers, head) = (12.0 * (8.0 * h * h + 4.0 * h * i), 2.0 * h * h + 2.0 * h * 30_522.0);
    let by_hand = 3.0 * (layers + 48.0 * attended * h + 2445.0 / t * head + 2.0 * h * h * 32.0 / t);
    assert!((r.flops_per_token / by_hand - 1.0).abs() < 1e-9, "{} {by_hand}", r.flops_per_token);
    let p = &r.predictions[0];
    // a step's useful FLOPs over its time and the peak of eight cards
    let tokens = r.pack.tokens * 8.0;
    assert!((p.mfu - tokens * r.flops_per_token / (p.step_ms * 1e-3 * 8.0 * 312e12)).abs() < 1e-9);
    assert!((p.tokens_per_s - tokens / p.step_ms * 1e3).abs() < 1e-6);
    // a ring of eight sends 7/4 of the gradients' bytes; NVLink gives 0.8 of 300 GB/s
    let bytes = 4.0 * r.parameters as f64 * 1.75;
    assert!((p.links[0].1 / (bytes / 240e9 * 1e3) - 1.0).abs() < 1e-3, "{:?}", p.links);
    // an epoch of a million samples of 512 tokens
    assert!((p.epoch_hours - 512e6 / p.tokens_per_s / 3600.0).abs() < 1e-9);
    assert!((p.epoch_cost.unwrap() - 16.0 * p.epoch_hours).abs() < 1e-9);
    // the parts add up to the step
    assert!((p.costs.iter().map(|c| c.1).sum::<f64>() - 100.0).abs() < 0.5, "{:?}", p.costs);
    // no operation is below the time its bytes and FLOPs need at the data sheet's best
    for timed in &p.operations {
        let (name, tally) = (timed.operation.name, timed.operation.tally);
        let least = 1e3 * (tally.bytes / 2039e9).max(tally.flops / 312e12);
        assert!(timed.ms >= least, "{name} {} {least}", timed.ms);
        assert!(tally.least_bytes <= tally.bytes, "{name}");
    }
}

/// The aim for BERT-base at 512 tokens, packs of 16,384 and dropout 0.1: half of an A100's peak, 0.4 of an
/// H100's. It is a prediction: it tests the program's launches and bytes, not a card.
#[test]
fn bert_base_is_predicted_to_reach_its_targets() {
    // on eight cards with a pack each, the update is a larger part of the step, and ranks share it
    let alone = bert_base(1, &["a100", "h100"]).predictions;
    let eight = sharded(8, &["a100", "h100"], "optimizer").predictions;
    for p in alone.into_iter().chain(eight) {
        let target = if p.gpu.name == "a100" { 0.5 } else { 0.4 };
        assert!(p.mfu >= target, "{}: {:.3}", p.gpu.name, p.mfu);
    }
}

#[test]
fn the_largest_pack_that_fits_is_found() {
    let r = bert_base(1, &["a100", "l4"]);
    let [large, small] = [&r.predictions[0], &r.predictions[1]];
    assert!(large.fits && small.fits);
    assert!(small.largest_pack_tokens < large.largest_pack_tokens / 2, "{}", small.largest_pack_tokens);
    assert_eq!(small.largest_pack_tokens % 1024, 0);
    // activations of BERT-base take about 0.36 MB a token, and 1.1 + 2.0 GB are there without any
    let tokens = (22.5 * 1024f64.powi(3) - 3.05e9) / 0.33e6;
    assert!((small.largest_pack_tokens as f64 / tokens - 1.0).abs() < 0.15, "{}", small.largest_pack_tokens);
    assert!(large.links.is_empty() && large.exposed_ms == 0.0);
}

#[test]
fn the_command_says_that_nothing_was_measured() {
    let run = |more: &[&str]| {
        start::program()
            .args(["plan", "--set", "model.path=bert-base-uncased", "--gpus", "4"])
            .args(more)
            .output()
            .unwrap()
    };
    let table = run(&["--price", "1.5"]);
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(text.starts_with("PREDICTION, NOT MEASURED"), "{text}");
    assert!(text.contains("4 x a100") && text.contains("4 x h100"), "{text}");
    let json = run(&["--json", "--gpu", "B200"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(value["note"].as_str().unwrap().contains("Nothing here was measured"));
    assert_eq!(value["predictions"][0]["gpu"]["name"], "b200");
    let refused = run(&["--gpu", "voodoo"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("voodoo"));
    for (flag, number) in [
        ("--price", "nan"),
        ("--network", "0"),
        ("--mean-tokens", "inf"),
        ("--mean-tokens", "0"),
        ("--samples", "0"),
    ] {
        let refused = run(&[flag, number]);
        assert_eq!(refused.status.code(), Some(2), "{flag} {number}");
        assert!(String::from_utf8(refused.stderr).unwrap().contains(flag));
    }
    let unknown = start::program().args(["plan", "--set", "model.path=models/nowhere"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}
