//! Masking: which tokens MLM predicts, and what replaces them.

use super::{Cost, FULL, Operation};
use crate::engine::{Device, DeviceBatch, Words};
use crate::random::{Purpose, philox};

/// How tokens are chosen for MLM and what becomes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MaskRule {
    pub seed: u32,
    /// rate * 2^32: a token is chosen when word 0 of its Philox block is below it.
    pub threshold: u32,
    /// Bit 0: segment 0 (the query) may be masked; bit 1: segment 1 (the document).
    pub segments: u32,
    /// The first piece of a word decides for all its pieces.
    pub whole_word: bool,
    pub vocab: u32,
    pub cls: u32,
    pub sep: u32,
    pub mask: u32,
}

impl MaskRule {
    /// Whether the token at `position` is chosen. `decider` is the position whose number decides: `position`
    /// itself, or the first piece of its word with `whole_word`. The caller leaves out `[CLS]`, `[SEP]` and
    /// segments outside the rule (`allows`).
    #[inline(always)]
    pub fn chooses(&self, sample: u32, decider: u32, epoch: u32) -> bool {
        philox(Purpose::Mask.key(self.seed), [sample, decider, epoch, 0])[0] < self.threshold
    }

    /// Whether a token of this id and segment may be masked at all.
    #[inline(always)]
    pub fn allows(&self, id: u32, segment: u32) -> bool {
        id != self.cls && id != self.sep && (self.segments >> segment) & 1 == 1
    }

    /// What a chosen token becomes (Devlin et al. 2019): `[MASK]` at 80 %, a token drawn uniformly
    /// from the vocabulary at 10 %, itself at 10 %.
    #[inline(always)]
    pub fn replaces(&self, id: u32, sample: u32, position: u32, epoch: u32) -> u32 {
        let words = philox(Purpose::Mask.key(self.seed), [sample, position, epoch, 0]);
        // 0.8 * 2^32 and 0.9 * 2^32
        if words[1] < 3_435_973_837 {
            self.mask
        } else if words[1] < 3_865_470_566 {
            ((u64::from(words[2]) * u64::from(self.vocab)) >> 32) as u32
        } else {
            id
        }
    }
}

/// Applies `rule` to `batch.ids` in place; writes `masked_rows` and `masked_labels` (ascending rows).
/// `batch.masked` was computed on the host by the same function and must agree.
pub struct MaskTokens<'a, D: Device> {
    pub batch: &'a mut DeviceBatch<D>,
    pub rule: &'a MaskRule,
    /// 1 for a WordPiece that continues a word (used by whole-word masking), [V].
    pub continues: &'a Words<D>,
}

impl<D: Device> Operation<D> for MaskTokens<'_, D> {
    fn name(&self) -> &'static str {
        "mask_tokens"
    }

    fn cost(&self) -> Cost {
        // ids, positions, segments and samples are read; of a masked token, id, row and label are written
        let (t, m) = (self.batch.tokens as f64, self.batch.masked as f64);
        Cost::rows(FULL * (4.0 * t + 3.0 * m), 60.0 * t)
    }
}
