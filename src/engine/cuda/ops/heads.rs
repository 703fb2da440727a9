//! The heads on the [CLS] rows: launches of kernels/qdpp_loss.cu and, for scores, of kernels/rank_loss.cu.

use super::super::launch::{Arg, Gpu, Launches};
use super::dropout_args;
use crate::engine::op::{HeadAt, QdppHead, ScoreHead, ScoreHeadBackward};
use crate::engine::{Elem, Floats, Rows, stats};
use crate::{Error, Result};

/// Threads of a block.
const BLOCK: u32 = 256;
/// Columns of a block of the heads' gradients.
const HEAD_COLUMNS: u32 = 64;

/// The pointers of a head of `outputs` scores in an arena: pooler bias, weight, bias.
fn head<G: Gpu, T: Elem>(arena: &G::Buf<T>, at: HeadAt, outputs: usize) -> Result<[Arg; 3]> {
    if !at.hidden.is_multiple_of(8) {
        return Err(Error::device(format!(
            "heads on a GPU take a width that is a multiple of 8, not {}",
            at.hidden
        )));
    }
    let part = |what: &str, at: usize, len: usize| G::span(what, arena, at..at + len);
    Ok([
        part("pooler bias", at.pool_bias, at.hidden)?,
        part("head weight", at.w, outputs * at.hidden)?,
        part("head bias", at.b, outputs)?,
    ])
}

/// The step's statistics.
pub(super) fn sums<G: Gpu>(sums: &Floats<G>) -> Result<Arg> {
    G::span("statistics", sums, 0..stats::SLOTS)
}

/// Scratch: results [S, 4].
impl<G: Gpu> Launches<G> for QdppHead<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (rows, at) = (self.rows, self.at);
        let capacity = gpu.capacity(rows);
        let train = self.scale.weight != 0.0;
        let [pool_bias, w, b] = head::<G, _>(self.weights, at, 2)?;
        let results = Arg::Ptr(gpu.scratch(4 * capacity)?);
        let labels = G::span("qdpp labels", self.labels, 0..rows.count())?;
        let factors = G::span("qdpp factors", self.factors, 0..rows.count())?;
        let pre = G::rows("qdpp pre", self.pre, capacity, at.hidden)?;
        let logits = G::span("qdpp logits", self.logits, 0..2 * capacity)?;
        let (width, weight) = (Arg::U32(at.hidden as u32), Arg::F32(self.scale.weight));
        let args = [gpu.counts(), labels, factors, pool_bias, w, b, pre, logits, results, width, weight];
        gpu.launch("qdpp_logits", (capacity as u32, 1, 1), BLOCK, &args)?;
        let [dpool_bias, dw, db] = if train { head::<G, _>(self.grads, at, 2)? } else { [Arg::Ptr(0); 3] };
        let blocks = if train { (at.hidden as u32).div_ceil(HEAD_COLUMNS) } else { 1 };
        let (sums, rows) = (sums::<G>(self.sums)?, Arg::U32(capacity as u32));
        let args = [gpu.counts(), pool_bias, w, results, pre, dpool_bias, dw, db, sums, width, rows, weight];
        gpu.launch("qdpp_gradients", (blocks, 1, 1), BLOCK, &args)
    }
}

impl<G: Gpu> Launches<G> for ScoreHead<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (s, at) = (self.batch.sequences, self.at);
        let capacity = gpu.capacity(Rows::Sequences(s));
        let [pool_bias, w, b] = head::<G, _>(self.weights, at, 1)?;
        let pre = G::rows("score pre", self.pre, capacity, at.hidden)?;
        let scores = G::span("scores", self.scores, 0..s)?;
        let samples = G::span("samples", &self.batch.samples, 0..s)?;
        let width = Arg::U32(at.hidden as u32);
        let mut args = vec![gpu.counts(), samples, pool_bias, w, b, pre, scores, width];
        args.extend(dropout_args(self.drop));
        gpu.launch("score_head", (capacity as u32, 1, 1), BLOCK, &args)
    }
}

impl<G: Gpu> Launches<G> for ScoreHeadBackward<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (s, at) = (self.batch.sequences, self.at);
        let capacity = gpu.capacity(Rows::Sequences(s));
        let [_, w, _] = head::<G, _>(self.weights, at, 1)?;
        let [dpool_bias, dw, db] = head::<G, _>(self.grads, at, 1)?;
        let dscores = G::span("dscores", self.dscores, 0..s)?;
        let pooled = G::rows("pooled", self.pooled, capacity, at.hidden)?;
        let (width, rows) = (Arg::U32(at.hidden as u32), Arg::U32(capacity as u32));
        let samples = G::span("samples", &self.batch.samples, 0..s)?;
        let mut args = vec![gpu.counts(), samples, w, dscores, pooled, dpool_bias, dw, db, width, rows];
        args.extend(dropout_args(self.drop));
        let blocks = (at.hidden as u32).div_ceil(HEAD_COLUMNS);
        gpu.launch("score_head_backward", (blocks, 1, 1), BLOCK, &args)
    }
}
