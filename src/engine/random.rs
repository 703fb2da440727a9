//! Every random decision of a sample, as pure functions of (seed, purpose, sample, position,
//! epoch). Philox4x32-10 (Salmon et al., SC 2011) is counter-based: the same numbers come out on
//! any device, in any order, on any number of ranks, which is what makes a run independent of
//! world size and packing.

/// Philox4x32-10. `key` = (seed, purpose), `counter` = (sample, position, epoch, lane).
#[inline(always)]
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    const M0: u32 = 0xD251_1F53;
    const M1: u32 = 0xCD9E_8D57;
    const W0: u32 = 0x9E37_79B9;
    const W1: u32 = 0xBB67_AE85;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p0 = u64::from(M0) * u64::from(c0);
        let p1 = u64::from(M1) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    [c0, c1, c2, c3]
}

/// What a random number is for: the second word of the Philox key.
pub mod purpose {
    /// Which tokens are masked, and by what.
    pub const MASK: u32 = 1;
    /// The epoch's order.
    pub const ORDER: u32 = 2;
    /// Which negative a sample draws.
    pub const NEGATIVE: u32 = 3;
    /// Initial weights; the counter is (element, 0, 0, tensor).
    pub const INIT: u32 = 4;
    /// Folds and subsets of topics.
    pub const FOLDS: u32 = 5;
    /// Which passage of a document a ranking group takes.
    pub const PASSAGE: u32 = 6;
    /// Which queries are held out of training.
    pub const HELD_OUT: u32 = 6;
    /// Dropout sites: `DROPOUT + site`.
    pub const DROPOUT: u32 = 0x100;
}

/// One dropout site. Element (row, column) of a [T, H] site is decided by 16 bits of
/// philox((seed, DROPOUT + site), (row_sample, position, epoch, column / 8)): word (column % 8) / 2,
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
        [self.seed, purpose::DROPOUT + self.site]
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
        philox([self.seed, purpose::MASK], [sample, decider, epoch, 0])[0] < self.threshold
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
        let words = philox([self.seed, purpose::MASK], [sample, position, epoch, 0]);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0, 0], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 2], [u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }
}
