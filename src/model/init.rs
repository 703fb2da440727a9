//! Initial weights as BERT's: matrices N(0, 0.02), biases 0, LayerNorm weights 1. Every element is a
//! pure function of (seed, tensor name, element), so that a model made from scratch is the same on
//! every rank and a fresh head is the same whatever else the model holds.

use super::layout::Param;
use crate::random::{Purpose, philox};

/// BERT's `initializer_range`.
pub const STD: f32 = 0.02;

/// The initial values of one tensor, in its own order.
pub fn initial(param: &Param, seed: u32) -> Vec<f32> {
    if param.name.ends_with("bias") {
        return vec![0.0; param.len()];
    }
    if param.name.contains("LayerNorm") {
        return vec![1.0; param.len()];
    }
    if let Some(block) = &param.block {
        return block.initial(param, seed);
    }
    let tensor = crc32fast::hash(param.name.as_bytes());
    (0..param.len())
        .map(|i| {
            let words = philox(Purpose::Init.key(seed), [(i / 2) as u32, 0, 0, tensor]);
            let pair = normals(words[0], words[1]);
            STD * pair[i % 2]
        })
        .collect()
}

/// Two standard normal numbers from two uniform words (Box & Muller 1958).
fn normals(a: u32, b: u32) -> [f32; 2] {
    // (0, 1]: the logarithm stays finite
    let u = (f64::from(a) + 1.0) / 4_294_967_296.0;
    let v = f64::from(b) / 4_294_967_296.0;
    let radius = (-2.0 * u.ln()).sqrt();
    let angle = std::f64::consts::TAU * v;
    [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_normal_and_reproducible() {
        let param = Param {
            name: "bert.pooler.dense.weight".into(),
            shape: vec![300, 300],
            offset: 0,
            decay: true,
            head: false,
            depth: 0,
            trained: true,
            block: None,
        };
        let values = initial(&param, 7);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 3.0 * STD / 300.0, "{mean}");
        assert!((var.sqrt() / STD - 1.0).abs() < 0.01, "{}", var.sqrt());
        assert_eq!(values, initial(&param, 7));
        assert_ne!(values, initial(&param, 8));
    }
}
