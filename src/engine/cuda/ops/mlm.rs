//! The MLM loss: launches of kernels/mlm_loss.cu.

use super::super::launch::{Arg, Extra, Gpu, Launches};
use super::heads::sums;
use super::rows::Partials;
use crate::Result;
use crate::engine::op::MlmLoss;

/// Threads of a block of `mlm_loss`, and of all other kernels here.
const ROW_BLOCK: u32 = 512;
const BLOCK: u32 = 256;
/// Columns of a block of `mlm_bias_partials`, and rows.
const PARTIAL_COLUMNS: u32 = 512;
const PARTIAL_ROWS: u32 = 256;

/// Scratch: results [M, 2], then the bias's partial sums [M / 256, V].
impl<G: Gpu> Launches<G> for MlmLoss<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (rows, vocab, bias, scale) = (self.rows, self.vocab, self.bias, self.scale);
        let capacity = gpu.capacity(rows);
        let train = scale.weight != 0.0;
        let chunks = if train { (capacity as u32).div_ceil(PARTIAL_ROWS) } else { 0 };
        let results = Arg::Ptr(gpu.scratch(2 * capacity + chunks as usize * vocab)?);
        let partials = results.after(8 * capacity);
        let logits = G::rows("mlm logits", self.logits, capacity, vocab)?;
        let labels = G::span("mlm labels", self.labels, 0..rows.count())?;
        let weights = G::span("mlm bias", self.weights, bias..bias + vocab)?;
        let (width, weight) = (Arg::U32(vocab as u32), Arg::F32(scale.weight));
        let args = [gpu.counts(), labels, weights, logits, results, width, weight];
        gpu.launch("mlm_loss", (capacity as u32, 1, 1), ROW_BLOCK, &args)?;
        if train {
            let grid = ((vocab as u32).div_ceil(PARTIAL_COLUMNS), chunks, 1);
            gpu.needs(Extra { bytes: (rows.count() * vocab * size_of::<G::Real>()) as f64, flops: 0.0 });
            gpu.launch("mlm_bias_partials", grid, BLOCK, &[gpu.counts(), logits, partials, width])?;
            Partials { at: partials, blocks: chunks, width: vocab }.add(gpu, &[bias], self.grads)?;
        }
        gpu.launch("mlm_stats", (1, 1, 1), BLOCK, &[gpu.counts(), results, sums::<G>(self.sums)?])
    }
}
