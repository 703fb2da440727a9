//! The epoch's order of samples without memory: a keyed permutation that is computed at a point
//! instead of being stored. Twenty million samples would otherwise need a shuffled list on every
//! rank, and a resumed run would have to rebuild it; here a cursor is one integer.

use crate::random::{Purpose, philox};

/// Four rounds make a Feistel network pseudo-random when its round function is (Luby & Rackoff
/// 1988); two more keep small domains, whose halves are a few bits wide, well mixed.
const ROUNDS: u32 = 6;

/// A permutation of `0..n`: a Feistel network over the smallest power of two that holds `n`,
/// walked along its cycle until it lands inside `0..n` (Black & Rogaway 2002). At most two walks
/// on average.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    n: u32,
    seed: u32,
    epoch: u32,
    /// Width of the upper half before the first round; the lower half has `low` bits.
    high: u32,
    low: u32,
}

impl Permutation {
    /// The order of `n` samples in `epoch`.
    pub fn new(n: u32, seed: u32, epoch: u32) -> Self {
        let bits = (u32::BITS - n.saturating_sub(1).leading_zeros()).max(2);
        Self { n, seed, epoch, high: bits / 2, low: bits - bits / 2 }
    }

    /// How many samples are permuted.
    pub fn len(&self) -> u32 {
        self.n
    }

    /// Whether there is nothing to permute.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The sample at `position` of the order; `position < n`.
    pub fn at(&self, position: u32) -> u32 {
        debug_assert!(position < self.n);
        let mut x = self.forward(position);
        while x >= self.n {
            x = self.forward(x);
        }
        x
    }

    /// The position of `sample` in the order; `sample < n`. Inverse of [`Permutation::at`].
    pub fn position(&self, sample: u32) -> u32 {
        debug_assert!(sample < self.n);
        let mut x = self.backward(sample);
        while x >= self.n {
            x = self.backward(x);
        }
        x
    }

    #[inline(always)]
    fn round(&self, round: u32, half: u32, bits: u32) -> u32 {
        philox(Purpose::Order.key(self.seed), [half, round, self.epoch, 0])[0] & ((1 << bits) - 1)
    }

    fn forward(&self, x: u32) -> u32 {
        let (mut high, mut low) = (x >> self.low, x & ((1 << self.low) - 1));
        // The halves' widths change places every round; an even number of rounds restores them.
        let (mut high_bits, mut low_bits) = (self.high, self.low);
        for round in 0..ROUNDS {
            (high, low) = (low, high ^ self.round(round, low, high_bits));
            (high_bits, low_bits) = (low_bits, high_bits);
        }
        high << low_bits | low
    }

    fn backward(&self, x: u32) -> u32 {
        let (mut high, mut low) = (x >> self.low, x & ((1 << self.low) - 1));
        let (mut high_bits, mut low_bits) = (self.high, self.low);
        for round in (0..ROUNDS).rev() {
            (high_bits, low_bits) = (low_bits, high_bits);
            (high, low) = (low ^ self.round(round, high, high_bits), high);
        }
        high << low_bits | low
    }
}

/// A number in `0..n` from 32 random bits (Lemire's multiply-shift; its bias is below n / 2^32).
#[inline(always)]
pub(crate) fn below(random: u32, n: u32) -> u32 {
    ((u64::from(random) * u64::from(n)) >> 32) as u32
}
