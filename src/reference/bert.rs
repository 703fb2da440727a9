//! The encoder as the BERT paper draws it, one sequence at a time.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::{layer_norm_slow, softmax};

use super::dropout::DropoutMasks;
use crate::data::batch::Batch;
use crate::model::shape::Shape;
use crate::{Error, Result};

/// The parameters by Hugging Face name, all of the same type.
pub(super) struct Weights {
    pub vars: BTreeMap<String, Var>,
    pub dtype: DType,
    /// Added to the variance by every LayerNorm.
    pub norm_eps: f32,
}

impl Weights {
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        let var = self.vars.get(name);
        var.map(Var::as_tensor).ok_or_else(|| Error::data(format!("reference model: no tensor `{name}`")))
    }

    /// x [n, K] -> x Wᵀ + b, [n, N].
    pub fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let product = x.matmul(&self.get(&format!("{name}.weight"))?.t()?)?;
        Ok(product.broadcast_add(self.get(&format!("{name}.bias"))?)?)
    }

    /// LayerNorm of x [n, H]: (x - mean) / sqrt(var + eps) * gamma + beta.
    pub fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (gamma, beta) = (self.get(&format!("{name}.weight"))?, self.get(&format!("{name}.bias"))?);
        Ok(layer_norm_slow(x, gamma, beta, self.norm_eps)?)
    }
}

/// x Φ(x), by the error function. `Tensor::gelu_erf` is not used: its backward rounds 1/sqrt(2π) to six
/// digits, while `erf`'s has the full constant.
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    let erf = (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?;
    Ok(((erf + 1.0)? * (x * 0.5)?)?)
}

/// The last hidden states of one sequence of n tokens, [n, H].
pub(super) fn encode(
    shape: &Shape,
    w: &Weights,
    batch: &Batch,
    sequence: usize,
    masks: &DropoutMasks,
) -> Result<Tensor> {
    let mut hidden = embed(shape, w, batch, sequence, masks)?;
    for layer in 0..shape.layers {
        let at = |part: &str| format!("bert.encoder.layer.{layer}.{part}");
        let site = 1 + 3 * layer as u32;
        let context = attend(shape, w, &hidden, &at("attention.self"), sequence, masks, site)?;
        let projected = w.linear(&context, &at("attention.output.dense"))?;
        let attended = (hidden + masks.rows(&projected, sequence, site + 1)?)?;
        let attended = w.norm(&attended, &at("attention.output.LayerNorm"))?;

        let wide = gelu(&w.linear(&attended, &at("intermediate.dense"))?)?;
        let narrow = w.linear(&wide, &at("output.dense"))?;
        let sum = (attended + masks.rows(&narrow, sequence, site + 2)?)?;
        hidden = w.norm(&sum, &at("output.LayerNorm"))?;
    }
    Ok(hidden)
}

/// dropout(LayerNorm(word + position + segment)), [n, H].
fn embed(shape: &Shape, w: &Weights, batch: &Batch, sequence: usize, masks: &DropoutMasks) -> Result<Tensor> {
    let rows = batch.cu_seqlens[sequence] as usize..batch.cu_seqlens[sequence + 1] as usize;
    let look_up = |table: &str, of: &[u32]| -> Result<Tensor> {
        let ids = Tensor::from_slice(&of[rows.clone()], rows.len(), &Device::Cpu)?;
        Ok(w.get(&format!("bert.embeddings.{table}.weight"))?.index_select(&ids, 0)?)
    };
    let word = look_up("word_embeddings", &batch.ids)?;
    let position = look_up("position_embeddings", &batch.positions)?;
    // a table of one row serves both texts of a pair
    let read: Vec<u32> = batch.segments.iter().map(|&s| s.min(shape.segments as u32 - 1)).collect();
    let segment = look_up("token_type_embeddings", &read)?;
    let sum = ((word + position)? + segment)?;
    masks.rows(&w.norm(&sum, "bert.embeddings.LayerNorm")?, sequence, 0)
}

/// dropout(softmax(q kᵀ / sqrt(D))) v, head by head, [n, H].
fn attend(
    shape: &Shape,
    w: &Weights,
    hidden: &Tensor,
    name: &str,
    sequence: usize,
    masks: &DropoutMasks,
    site: u32,
) -> Result<Tensor> {
    let n = hidden.dim(0)?;
    let by_head = |part: &str| -> Result<Tensor> {
        let all = w.linear(hidden, &format!("{name}.{part}"))?;
        Ok(all.reshape((n, shape.heads, shape.head_size()))?.transpose(0, 1)?.contiguous()?)
    };
    let (query, key, value) = (by_head("query")?, by_head("key")?, by_head("value")?); // [A, n, D]
    let keys = key.transpose(1, 2)?.contiguous()?;
    let scaled = (query.matmul(&keys)? / (shape.head_size() as f64).sqrt())?; // [A, n, n]
    let weights = masks.attention(&softmax(&scaled, D::Minus1)?, sequence, site)?;
    let context = weights.matmul(&value)?; // [A, n, D]
    Ok(context.transpose(0, 1)?.contiguous()?.reshape((n, shape.hidden))?)
}
