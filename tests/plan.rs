//! `plan`'s arithmetic against numbers computed by hand, and its memory against what is allocated.

use std::process::Command;

use ctune_dist::config::Config;
use ctune_dist::engine::cpu::Cpu;
use ctune_dist::model::Objective;
use ctune_dist::model::Shape;
use ctune_dist::model::activations::{Activations, Capacity, LayerActivations, Recompute, device_batch};
use ctune_dist::model::bert::Options;
use ctune_dist::model::layout::{HeadSet, Layout};
use ctune_dist::model::memory::{self, Field, Sizes};
use ctune_dist::plan::{PlanOptions, Report, report};

fn elements(fields: &[Field], of: &[&str]) -> usize {
    let named = |name: &str| fields.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("{name}"));
    of.iter().map(|name| named(name).elements).sum()
}

/// Every buffer of a small model, by the names of the list, with everything kept and with parts computed
/// again.
#[test]
fn memory_is_what_the_engine_allocates() {
    for recompute in [Recompute::None, Recompute::GeluNorm, Recompute::Layer] {
        check_memory(recompute);
    }
}

fn check_memory(recompute: Recompute) {
    let shape =
        Shape { vocab: 211, hidden: 24, layers: 3, heads: 2, intermediate: 56, positions: 32, segments: 2 };
    let capacity = Capacity::of_pack(100, 0.15, false);
    let heads = HeadSet::PRETRAINING;
    let layout = Layout::new(&shape, heads).unwrap();
    let sizes = Sizes { layout: &layout, capacity, recompute, state: layout.len };
    let listed = memory::activations(sizes);

    let cpu = Cpu::new();
    let options = Options {
        objective: Objective::Pretraining { mlm: 1.0, qdpp: 1.0 },
        heads,
        capacity,
        train: true,
        dropout: 0.0,
        seed: 0,
        rule: None,
        continues: Vec::new(),
    };
    let a = Activations::new(&cpu, &layout, &options, recompute).unwrap();
    let layers = |size: &dyn Fn(&LayerActivations<Cpu>) -> usize| a.layers.iter().map(size).sum::<usize>();
    let back = a.backward.as_ref().unwrap();
    let h = &a.heads;
    let allocated = [
        ("embeddings: sum", a.embed_sum.len()),
        ("embeddings: row statistics", a.embed_stats.len()),
        ("layer inputs", a.x.iter().map(|x| x.len()).sum()),
        ("layers: q, k, v", layers(&|l| l.qkv.len())),
        ("layers: log-sum-exp", layers(&|l| l.lse.len())),
        ("layers: attention's result", layers(&|l| l.context.len())),
        ("layers: sums before LayerNorm", layers(&|l| l.sum1.len() + l.sum2.len())),
        ("layers: row statistics", layers(&|l| l.stats1.len() + l.stats2.len())),
        ("layers: attention's LayerNorm", a.ffns.iter().map(|f| f.normed1.len()).sum()),
        ("layers: before GELU", layers(&|l| l.pre.len())),
        ("layers: after GELU", a.ffns.iter().map(|f| f.act.len()).sum()),
        (
            "MLM: gathered rows, transform, LayerNorm",
            h.masked.len() + h.transform_pre.len() + h.transform_act.len() + h.transformed.len(),
        ),
        ("MLM: row statistics", h.transform_stats.len()),
        ("MLM: logits", h.logits.len()),
        ("[CLS] rows and pooler", h.cls.len() + h.pooled.len()),
        (
            "scores and QDPP logits",
            h.pair_logits.len() + h.scores.len() + h.dscores.len() + h.documents.len() + h.ddocuments.len(),
        ),
        ("gradients: hidden rows", back.dx.len() + back.dnormed.len() + back.dy.len() + back.dcontext.len()),
        ("gradients: after GELU", back.dact.len()),
        ("gradients: q, k, v", back.dqkv.len()),
        ("gradients: heads", back.dmasked.len() + back.dtransformed.len() + back.dcls.len()),
        ("adapters and their gradients", back.ddown.len()),
    ];
    for (name, len) in allocated {
        assert_eq!(elements(&listed, &[name]), len, "{name} with {recompute:?}");
    }
    assert_eq!(listed.len(), allocated.len());

    let b = device_batch(&cpu, capacity).unwrap();
    let tokens = b.ids.len() + b.positions.len() + b.segments.len() + b.row_sample.len();
    let sequences =
        b.cu_seqlens.len() + b.samples.len() + b.cu_documents.len() + b.cu_groups.len() + b.targets.len();
    let sequences = sequences + b.pair_labels.len() + b.pair_weights.len();
    let masked = b.masked_rows.len() + b.masked_labels.len();
    let pack = memory::pack(sizes);
    assert_eq!(elements(&pack, &["pack: ids, positions, segments, samples"]), tokens);
    assert_eq!(elements(&pack, &["pack: sequences"]), sequences);
    assert_eq!(elements(&pack, &["pack: masked rows and labels"]), masked);
}

#[test]
fn parameters_are_shared_by_ranks_where_the_optimiser_is() {
    let shape =
        Shape { vocab: 64, hidden: 16, layers: 1, heads: 2, intermediate: 32, positions: 16, segments: 2 };
    let capacity = Capacity::of_pack(32, 0.0, false);
    let layout = Layout::new(&shape, HeadSet::PRETRAINING).unwrap();
    let sizes = Sizes { layout: &layout, capacity, recompute: Recompute::None, state: 251 };
    let bytes: usize = memory::parameters(sizes, true).iter().map(|f| f.bytes(2)).sum();
    // weights 2, gradients 4, and of this rank's part master 4 and moments 8
    assert_eq!(bytes, layout.len * 6 + 251 * 12);
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
    assert!((r.flops_per_token / 1e6 - 587.9).abs() < 0.06);
    let p = &r.predictions[0];
    // a step's useful FLOPs over its time and the peak of eight cards
    let tokens = r.pack.tokens as f64 * 8.0;
    assert!((p.mfu - tokens * r.flops_per_token / (p.step_ms * 1e-3 * 8.0 * 312e12)).abs() < 1e-9);
    assert!((p.tokens_per_s - tokens / p.step_ms * 1e3).abs() < 1e-6);
    // a ring of eight sends 7/4 of the gradients' bytes; NVLink gives 0.8 of 300 GB/s
    let bytes = 4.0 * r.parameters as f64 * 1.75;
    assert!((p.links[0].1 / (bytes / 240e9 * 1e3) - 1.0).abs() < 1e-3, "{:?}", p.links);
    // an epoch of a million samples of 512 tokens
    assert!((p.epoch_hours - 512e6 / p.tokens_per_s / 3600.0).abs() < 1e-9);
    assert!((p.epoch_cost.unwrap() - 16.0 * p.epoch_hours).abs() < 1e-9);
    // the parts of the step are the step
    assert!((p.costs.iter().map(|c| c.1).sum::<f64>() - 100.0).abs() < 0.5, "{:?}", p.costs);
    // no kernel is below the time its bytes and FLOPs need at the data sheet's best
    for k in &p.kernels {
        let calls = k.kernel.calls as f64;
        let least = 1e3 * calls * (k.kernel.moves / 2039e9).max(k.kernel.flops / 312e12);
        assert!(k.ms >= least, "{} {} {least}", k.kernel.name, k.ms);
        assert!(k.kernel.must <= k.kernel.moves, "{}", k.kernel.name);
    }
}

/// The aim for BERT-base at 512 tokens, packs of 16,384 and dropout 0.1: half of an A100's peak, 0.4 of an
/// H100's. A prediction: it holds the program to its launches and bytes, not a card to them.
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
        Command::new(env!("CARGO_BIN_EXE_ctune-dist"))
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
    let unknown = Command::new(env!("CARGO_BIN_EXE_ctune-dist"))
        .args(["plan", "--set", "model.path=models/nowhere"])
        .output()
        .unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}
