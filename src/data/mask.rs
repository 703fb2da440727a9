//! How many tokens masking will choose, counted on the host. The MLM loss divides by the masked
//! tokens of the whole step; every rank counts them all here from the same pure function that the
//! device applies, so no rank asks another and the host never waits for the device.

use super::batch::Batch;
use crate::config::{MaskIn, Objective};
use crate::engine::op::MaskRule;
use crate::random::{Purpose, philox};
use crate::text::Special;

/// Positions whose numbers are drawn in one go: enough for vector code, small enough for the stack.
const BLOCK: usize = 256;

/// The masking rule of `[objective]` for a model with `vocab` tokens; `None` when MLM has no weight.
pub fn mask_rule(objective: &Objective, seed: u32, vocab: usize, special: Special) -> Option<MaskRule> {
    (objective.mlm > 0.0 && objective.mask_rate > 0.0).then(|| MaskRule {
        seed,
        threshold: (f64::from(objective.mask_rate) * 4_294_967_296.0) as u32,
        segments: match objective.mask_in {
            MaskIn::Query => 1,
            MaskIn::Document => 2,
            MaskIn::Both => 3,
        },
        whole_word: objective.whole_word,
        vocab: vocab as u32,
        cls: special.cls,
        sep: special.sep,
        mask: special.mask,
    })
}

/// M of a batch: tokens that `rule` chooses. `continues` [V] is 1 for a piece that continues a
/// word; only whole-word masking reads it (an id beyond its end starts a word).
pub fn count_masked(rule: &MaskRule, batch: &Batch, continues: &[u32]) -> usize {
    pulp::Arch::new().dispatch(Count { rule, batch, continues })
}

/// The count as code that is compiled once for each width of vectors. Everything it calls is force-inlined
/// and uses no closures: code that is not inlined is compiled for the narrowest.
struct Count<'a> {
    rule: &'a MaskRule,
    batch: &'a Batch,
    continues: &'a [u32],
}

impl pulp::WithSimd for Count<'_> {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> usize {
        count_sequences(self.rule, self.batch, self.continues)
    }
}

#[inline(always)]
fn count_sequences(rule: &MaskRule, batch: &Batch, continues: &[u32]) -> usize {
    let mut count = 0;
    for ends in batch.cu_seqlens.windows(2) {
        let rows = ends[0] as usize..ends[1] as usize;
        // One sequence has one sample id, and positions from 0.
        let sample = batch.row_sample.get(rows.start).copied().unwrap_or(0);
        let (ids, segments) = (&batch.ids[rows.clone()], &batch.segments[rows]);
        count += if rule.whole_word {
            count_words(rule, ids, segments, sample, batch.epoch, continues)
        } else {
            count_tokens(rule, ids, segments, sample, batch.epoch)
        };
    }
    count
}

#[inline(always)]
fn count_tokens(rule: &MaskRule, ids: &[u32], segments: &[u32], sample: u32, epoch: u32) -> usize {
    let mut words = [0; BLOCK];
    let mut count = 0;
    for start in (0..ids.len()).step_by(BLOCK) {
        let end = ids.len().min(start + BLOCK);
        let words = &mut words[..end - start];
        first_words(rule, sample, start as u32, epoch, words);
        for ((&id, &segment), word) in ids[start..end].iter().zip(&segments[start..end]).zip(&*words) {
            count += usize::from((*word < rule.threshold) & rule.allows(id, segment));
        }
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
    let mut words = [0; BLOCK];
    let (mut count, mut chosen) = (0, false);
    for start in (0..ids.len()).step_by(BLOCK) {
        let end = ids.len().min(start + BLOCK);
        let words = &mut words[..end - start];
        first_words(rule, sample, start as u32, epoch, words);
        for (at, &word) in (start..end).zip(&*words) {
            let goes_on = continues.get(ids[at] as usize).is_some_and(|&c| c == 1);
            if !goes_on || at == 0 || special(ids[at - 1]) {
                chosen = word < rule.threshold;
            }
            count += usize::from(chosen & rule.allows(ids[at], segments[at]));
        }
    }
    count
}

/// Word 0 of `philox((seed, MASK), (sample, position, epoch, 0))` for the positions from `first`. A loop over
/// single positions, which the compiler turns into vector code.
#[inline(always)]
fn first_words(rule: &MaskRule, sample: u32, first: u32, epoch: u32, words: &mut [u32]) {
    for (at, word) in words.iter_mut().enumerate() {
        let counter = [sample, first.wrapping_add(at as u32), epoch, 0];
        *word = philox(Purpose::Mask.key(rule.seed), counter)[0];
    }
}
