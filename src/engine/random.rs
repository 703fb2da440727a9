//! Dropout and masking: rules that every device applies alike, since each decision is a pure function
//! of (seed, purpose, sample, position, epoch).

use crate::random::{Purpose, philox};

/// One dropout site. Element (row, column) of a [T, H] site is decided by 16 bits of
/// philox((seed, 0x100 + site), (row_sample, position, epoch, column / 8)): word (column % 8) / 2,
/// low half for an even column, high half for an odd one. Attention's element (query i, key j,
/// head a) by philox(key, (sample, i | (j / 8) << 16, epoch, a)), halves by j % 8 in the same way.
/// An element is dropped when its 16 bits are below `threshold`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// rate * 65536, rounded; 0 is no dropout (evaluation).
    pub threshold: u32,
    /// 65536 / (65536 - threshold): the factor of what is kept.
    pub scale: f32,
    pub seed: u32,
    pub site: u32,
}

impl Dropout {
    /// No dropout.
    pub const OFF: Self = Self { threshold: 0, scale: 1.0, seed: 0, site: 0 };

    /// `rate` in [0, 1).
    pub fn new(rate: f32, seed: u32, site: u32) -> Self {
        let threshold = (rate * 65536.0).round() as u32;
        Self { threshold, scale: 65536.0 / (65536 - threshold) as f32, seed, site }
    }

    /// The Philox key of this site.
    #[inline(always)]
    pub fn key(&self) -> [u32; 2] {
        Purpose::Dropout(self.site).key(self.seed)
    }
}

/// How tokens are chosen for MLM and what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskRule {
    pub seed: u32,
    /// rate * 2^32: a token is chosen when word 0 of its Philox block is below.
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
    /// Whether the token at `position` is chosen. `decider` is the position whose number decides:
    /// `position` itself, or the first piece of its word with `whole_word`. `[CLS]`, `[SEP]` and
    /// segments outside the rule are the caller's to leave out (`allows`).
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
