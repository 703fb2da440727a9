//! Dropout: which elements of which site are dropped, and the factor by which the others grow.

use crate::random::Purpose;

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

    /// Lane instructions of an element: a Philox4x32-10 block (10 rounds of 2 wide products, 2 three-way xors
    /// and 2 key additions) serves 8 elements; cutting out 16 bits, comparing and scaling. 0 without dropout.
    pub(super) fn lanes(&self) -> f64 {
        if self.threshold == 0 { 0.0 } else { 60.0 / 8.0 + 3.0 }
    }

    /// The Philox key of this site.
    #[inline(always)]
    pub fn key(&self) -> [u32; 2] {
        Purpose::Dropout(self.site).key(self.seed)
    }
}
