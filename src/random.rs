//! Every random decision, as a pure function of (seed, purpose, sample, position, epoch).
//! Philox4x32-10 (Salmon et al., SC 2011) is counter-based: the same numbers come out on any device,
//! in any order, on any number of ranks. That makes a run independent of world size and packing.

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

/// What a random number is for. Each purpose has its own stream: its number is the second word of the Philox
/// key. Numbers are part of a run's definition: change one and old runs cannot be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Which tokens are masked, and by what.
    Mask,
    /// The epoch's order.
    Order,
    /// Which negative a sample draws.
    Negative,
    /// Initial weights; the counter is (element, 0, 0, tensor).
    Init,
    /// Folds and subsets of topics.
    Folds,
    /// Which queries are held out of training.
    HeldOut,
    /// Which passage of a document a ranking group takes.
    Passage,
    /// Signs of the permutation test.
    Permute,
    /// Topics of a bootstrap sample.
    Resample,
    /// Elements that a dropout site drops; each site has a stream of its own.
    Dropout(u32),
    /// A synthetic document's title.
    SyntheticTitle,
    /// A synthetic document's text.
    SyntheticBody,
    /// A synthetic query and its clicks.
    SyntheticQuery,
    /// Which synthetic queries have more than one click.
    SyntheticExtra,
}

impl Purpose {
    /// The second word of the Philox key. The kernels have `Mask` and `Dropout` as constants
    /// (`common.cuh`).
    #[inline(always)]
    pub const fn number(self) -> u32 {
        match self {
            Self::Mask => 1,
            Self::Order => 2,
            Self::Negative => 3,
            Self::Init => 4,
            Self::Folds => 5,
            Self::HeldOut => 6,
            Self::Passage => 7,
            Self::Permute => 0x51,
            Self::Resample => 0x52,
            Self::Dropout(site) => 0x100 + site,
            Self::SyntheticTitle => 0x5359_0001,
            Self::SyntheticBody => 0x5359_0002,
            Self::SyntheticQuery => 0x5359_0003,
            Self::SyntheticExtra => 0x5359_0004,
        }
    }

    /// The Philox key of this purpose.
    #[inline(always)]
    pub const fn key(self, seed: u32) -> [u32; 2] {
        [seed, self.number()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

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

    /// The purpose after `purpose`. A new purpose does not compile until it has its place here.
    fn next(purpose: Purpose) -> Option<Purpose> {
        Some(match purpose {
            Purpose::Mask => Purpose::Order,
            Purpose::Order => Purpose::Negative,
            Purpose::Negative => Purpose::Init,
            Purpose::Init => Purpose::Folds,
            Purpose::Folds => Purpose::HeldOut,
            Purpose::HeldOut => Purpose::Passage,
            Purpose::Passage => Purpose::Permute,
            Purpose::Permute => Purpose::Resample,
            Purpose::Resample => Purpose::SyntheticTitle,
            Purpose::SyntheticTitle => Purpose::SyntheticBody,
            Purpose::SyntheticBody => Purpose::SyntheticQuery,
            Purpose::SyntheticQuery => Purpose::SyntheticExtra,
            Purpose::SyntheticExtra => Purpose::Dropout(0),
            // More sites than a model of a thousand layers has.
            Purpose::Dropout(site) if site < 0x1_0000 => Purpose::Dropout(site + 1),
            Purpose::Dropout(_) => return None,
        })
    }

    #[test]
    fn purposes_differ() {
        let mut seen = BTreeSet::new();
        let mut purpose = Some(Purpose::Mask);
        while let Some(one) = purpose {
            assert!(seen.insert(one.number()), "{one:?} has the number of another purpose");
            purpose = next(one);
        }
        assert_eq!(seen.len(), 13 + 0x1_0001);
    }
}
