//! Masking: the two launches of kernels/mask_tokens.cu.

use super::super::launch::{Arg, Gpu, Launches};
use crate::Result;
use crate::engine::op::MaskTokens;

/// Threads of a block, one row each.
const BLOCK: u32 = 256;
/// Words of one bit a row that a block writes.
const WORDS: usize = BLOCK as usize / 32;

/// Scratch: the number of chosen tokens [4, of which the first is used], one bit a row [T / 32].
///
/// The host counted `batch.masked` with the same function. Whether the device agrees is only checked under
/// `run.check`, because that takes a wait; the lists never outgrow their buffers.
impl<G: Gpu> Launches<G> for MaskTokens<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (batch, rule) = (&*self.batch, self.rule);
        let t = batch.tokens;
        let blocks = gpu.capacity(batch.rows()).div_ceil(BLOCK as usize);
        let found = Arg::Ptr(gpu.scratch(4 + blocks * WORDS)?);
        let chosen = found.after(16);
        let room = G::elements(&batch.masked_rows).min(G::elements(&batch.masked_labels));
        let ids = G::span("ids", &batch.ids, 0..t)?;
        let positions = G::span("positions", &batch.positions, 0..t)?;
        let samples = G::span("row_sample", &batch.row_sample, 0..t)?;
        let grid = (blocks as u32, 1, 1);
        let continues = G::elements(self.continues);
        let choose = [
            gpu.counts(),
            ids,
            positions,
            G::span("segments", &batch.segments, 0..t)?,
            samples,
            G::span("continues", self.continues, 0..continues)?,
            chosen,
            Arg::U32(rule.seed),
            Arg::U32(rule.threshold),
            Arg::U32(rule.segments),
            Arg::U32(u32::from(rule.whole_word)),
            Arg::U32(continues as u32),
            Arg::U32(rule.cls),
            Arg::U32(rule.sep),
        ];
        gpu.launch("mask_choose", grid, BLOCK, &choose)?;
        let compact = [
            gpu.counts(),
            chosen,
            ids,
            positions,
            samples,
            G::span("masked_rows", &batch.masked_rows, 0..room)?,
            G::span("masked_labels", &batch.masked_labels, 0..room)?,
            found,
            Arg::U32(room as u32),
            Arg::U32(rule.seed),
            Arg::U32(rule.vocab),
            Arg::U32(rule.mask),
        ];
        gpu.launch("mask_compact", grid, BLOCK, &compact)?;
        if !gpu.watch().is_set() {
            return Ok(());
        }
        gpu.expect_count("mask_tokens", found.pointer(), batch.masked)
    }
}
