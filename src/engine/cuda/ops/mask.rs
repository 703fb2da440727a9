//! Masking: the two launches of kernels/mask_tokens.cu.

use super::super::launch::Arg;
use super::super::upload::download_now;
use super::super::{Cuda, CudaBuf, Real};
use crate::engine::{DeviceBatch, MaskRule, Rows};
use crate::{Error, Result};

/// Threads of a block, one row each.
const BLOCK: u32 = 256;
/// Words of one bit a row that a block writes.
const WORDS: usize = BLOCK as usize / 32;

impl<R: Real> Cuda<R> {
    /// Scratch: the number of chosen tokens [4, the first], one bit a row [T / 32].
    ///
    /// The host counted `batch.masked` with the same function. That the device agrees is looked at
    /// where results are (`run.check`), for it takes a wait; the lists never grow over their room.
    pub(in super::super) fn mask_tokens(
        &self,
        batch: &mut DeviceBatch<Self>,
        rule: &MaskRule,
        continues: &CudaBuf<u32>,
    ) -> Result<()> {
        let blocks = self.capacity(Rows::Tokens(batch.tokens)).div_ceil(BLOCK as usize);
        let found = self.scratch(4 + blocks * WORDS)?;
        let chosen = Arg::Ptr(found + 16);
        let room = batch.masked_rows.len().min(batch.masked_labels.len()) as u32;
        let (ids, positions, samples) = (batch.ids.at(0), batch.positions.at(0), batch.row_sample.at(0));
        let grid = (blocks as u32, 1, 1);
        self.launch(
            "mask_choose",
            grid,
            BLOCK,
            0,
            &[
                self.counts(),
                ids,
                positions,
                batch.segments.at(0),
                samples,
                continues.at(0),
                chosen,
                Arg::U32(rule.seed),
                Arg::U32(rule.threshold),
                Arg::U32(rule.segments),
                Arg::U32(u32::from(rule.whole_word)),
                Arg::U32(continues.len() as u32),
                Arg::U32(rule.cls),
                Arg::U32(rule.sep),
            ],
        )?;
        self.launch(
            "mask_compact",
            grid,
            BLOCK,
            0,
            &[
                self.counts(),
                chosen,
                ids,
                positions,
                samples,
                batch.masked_rows.at(0),
                batch.masked_labels.at(0),
                Arg::Ptr(found),
                Arg::U32(room),
                Arg::U32(rule.seed),
                Arg::U32(rule.vocab),
                Arg::U32(rule.mask),
            ],
        )?;
        if self.inner.trap.is_set() { self.check_masked(found, batch.masked) } else { Ok(()) }
    }

    /// # Errors
    /// `Error::Device` when the device chose another number of tokens than the host.
    fn check_masked(&self, found: u64, expected: usize) -> Result<()> {
        let found: Vec<u32> = download_now(self.device(), found, 1)?;
        if found[0] as usize == expected {
            return Ok(());
        }
        Err(Error::device(format!(
            "mask_tokens chose {} tokens where the host counted {expected}: the batch was counted with another \
             rule, epoch or vocabulary",
            found[0]
        )))
    }
}
