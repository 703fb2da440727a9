//! The largest pack that a model has room for.

use crate::engine::PackCounts;

/// The largest pack that a model will see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// T
    pub tokens: usize,
    /// S
    pub sequences: usize,
    /// M
    pub masked: usize,
}

impl Capacity {
    /// Room for packs of `tokens` tokens of which a share of `mask_rate` is masked. The number of masked
    /// tokens is binomial; it never gets ten standard deviations above its mean (twenty when words are masked
    /// whole, because choices then come in clumps).
    pub fn of_pack(tokens: usize, mask_rate: f32, whole_word: bool) -> Self {
        let mean = tokens as f32 * mask_rate;
        let spread = if whole_word { 20.0 } else { 10.0 } * mean.sqrt();
        let masked = if mask_rate > 0.0 { (mean + spread) as usize + 32 } else { 0 };
        // The shortest sequence is [CLS] a [SEP].
        Self { tokens, sequences: tokens.div_ceil(3), masked: masked.min(tokens) }
    }

    /// The same as the counts of the largest pack.
    pub fn counts(&self) -> PackCounts {
        PackCounts {
            tokens: self.tokens as u32,
            sequences: self.sequences as u32,
            masked: self.masked as u32,
            groups: self.sequences as u32,
            ..PackCounts::default()
        }
    }
}
