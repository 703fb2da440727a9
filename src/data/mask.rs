//! How many tokens masking will choose, counted on the host. The MLM loss divides by the masked
//! tokens of the whole step; every rank counts them all here from the same pure function that the
//! device applies, so no rank asks another and the host never waits for the device.

use super::batch::Batch;
use crate::engine::random::{MaskRule, purpose};

/// Positions decided at once: two AVX-512 or four AVX2 registers of 32-bit words.
const LANES: usize = 16;

/// M of a batch: tokens that `rule` chooses. `continues` [V] is 1 for a piece that continues a
/// word; only whole-word masking reads it (an id beyond its end starts a word).
pub fn count_masked(rule: &MaskRule, batch: &Batch, continues: &[u32]) -> usize {
    let count = || {
        batch
            .cu_seqlens
            .windows(2)
            .map(|ends| {
                let rows = ends[0] as usize..ends[1] as usize;
                // One sequence has one sample id, and positions from 0.
                let sample = batch.row_sample.get(rows.start).copied().unwrap_or(0);
                let (ids, segments) = (&batch.ids[rows.clone()], &batch.segments[rows]);
                if rule.whole_word {
                    count_words(rule, ids, segments, sample, batch.epoch, continues)
                } else {
                    count_tokens(rule, ids, segments, sample, batch.epoch)
                }
            })
            .sum()
    };
    pulp::Arch::new().dispatch(count)
}

#[inline(always)]
fn count_tokens(rule: &MaskRule, ids: &[u32], segments: &[u32], sample: u32, epoch: u32) -> usize {
    let mut count = 0;
    for start in (0..ids.len()).step_by(LANES) {
        let words = first_words(rule.seed, sample, start as u32, epoch);
        let end = ids.len().min(start + LANES);
        let rows = ids[start..end].iter().zip(&segments[start..end]);
        let chosen = rows
            .zip(words)
            .map(|((&id, &segment), word)| u32::from((word < rule.threshold) & rule.allows(id, segment)));
        count += chosen.sum::<u32>() as usize;
    }
    count
}

/// A piece that continues a word shares the decision of the word's first piece, the nearest
/// piece before it that does not continue one; a special token ends every word.
#[inline(always)]
fn count_words(
    rule: &MaskRule,
    ids: &[u32],
    segments: &[u32],
    sample: u32,
    epoch: u32,
    continues: &[u32],
) -> usize {
    let special = |id: u32| id == rule.cls || id == rule.sep;
    let mut count = 0;
    let mut chosen = false;
    for start in (0..ids.len()).step_by(LANES) {
        let words = first_words(rule.seed, sample, start as u32, epoch);
        for (at, word) in (start..ids.len().min(start + LANES)).zip(words) {
            let goes_on = continues.get(ids[at] as usize).is_some_and(|&c| c == 1);
            if !goes_on || at == 0 || special(ids[at - 1]) {
                chosen = word < rule.threshold;
            }
            count += usize::from(chosen & rule.allows(ids[at], segments[at]));
        }
    }
    count
}

/// Word 0 of `philox((seed, MASK), (sample, position, epoch, 0))` for `LANES` positions from
/// `first`, laid out so that the compiler makes vector code of it (`engine::random::philox` is the
/// readable form; a test holds them equal).
#[inline(always)]
fn first_words(seed: u32, sample: u32, first: u32, epoch: u32) -> [u32; LANES] {
    const M0: u64 = 0xD251_1F53;
    const M1: u64 = 0xCD9E_8D57;
    let (mut k0, mut k1) = (seed, purpose::MASK);
    let mut c0 = [sample; LANES];
    let mut c1: [u32; LANES] = std::array::from_fn(|lane| first.wrapping_add(lane as u32));
    let mut c2 = [epoch; LANES];
    let mut c3 = [0u32; LANES];
    for _ in 0..10 {
        for lane in 0..LANES {
            let p0 = M0 * u64::from(c0[lane]);
            let p1 = M1 * u64::from(c2[lane]);
            c0[lane] = (p1 >> 32) as u32 ^ c1[lane] ^ k0;
            c1[lane] = p1 as u32;
            c2[lane] = (p0 >> 32) as u32 ^ c3[lane] ^ k1;
            c3[lane] = p0 as u32;
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    c0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::random::philox;

    #[test]
    fn lanes_equal_scalar_philox() {
        for (seed, sample, first, epoch) in [(1, 0, 0, 0), (7, u32::MAX, 16, 3), (u32::MAX, 5, 4080, 9)] {
            let words = first_words(seed, sample, first, epoch);
            for (lane, word) in words.into_iter().enumerate() {
                let counter = [sample, first + lane as u32, epoch, 0];
                assert_eq!(word, philox([seed, purpose::MASK], counter)[0]);
            }
        }
    }
}
