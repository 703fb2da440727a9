//! What backward computes again no longer takes memory, and changes no bit.

use ctune_dist::engine::cpu::Cpu;
use ctune_dist::model::activations::Activations;
use ctune_dist::model::{Mode, Recompute, Tuning};

use crate::golden;
use crate::model::tuned_model;

const LEVELS: [Recompute; 3] = [Recompute::None, Recompute::GeluNorm, Recompute::Layer];

fn tuning(recompute: Recompute) -> Tuning {
    Tuning { recompute, ..Tuning::default() }
}

#[test]
fn gradients_are_the_same_bits() {
    let golden = golden::load();
    let gradients = LEVELS.map(|level| {
        let mut model = tuned_model(&golden, &tuning(level));
        model.options.dropout = 0.1;
        let (rows, labels) = (&golden.masked_rows, &golden.masked_labels);
        for _ in 0..2 {
            model.forward_masked(&golden.pretraining_batch, rows, labels, Mode::Train).unwrap();
            model.backward(&golden.pretraining_batch, &mut |_, _, _| Ok(())).unwrap();
        }
        model.grads.to_vec()
    });
    assert!(gradients[0].iter().any(|&g| g != 0.0));
    assert!(gradients[0] == gradients[1], "gelu-norm");
    assert!(gradients[0] == gradients[2], "layer");
}

/// Elements that all layers keep together.
fn kept(level: Recompute) -> usize {
    let golden = golden::load();
    let model = tuned_model(&golden, &tuning(level));
    let acts = Activations::new(&Cpu::new(), &model.layout, &model.options, level).unwrap();
    let layers = acts.layers.iter().map(|a| {
        a.qkv.len() + a.context.len() + a.sum1.len() + a.pre.len() + a.sum2.len() // T x H and T x I
            + a.lse.len() + a.stats1.len() + a.stats2.len()
    });
    let ffns = acts.ffns.iter().map(|f| f.normed1.len() + f.act.len());
    layers.chain(ffns).sum()
}

#[test]
fn memory_falls() {
    let [none, gelu_norm, layer] = LEVELS.map(kept);
    // two layers: one of two FFN buffers goes, or one of two layers
    assert!(gelu_norm < none * 9 / 10, "{gelu_norm} of {none}");
    assert_eq!(layer, none / 2);
}
