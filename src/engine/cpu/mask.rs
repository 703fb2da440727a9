//! MLM masking: which tokens are chosen and what becomes of them, from the rule's pure functions
//! alone, so that the count agrees with the one that the host made of the same batch.

use crate::engine::MaskRule;
use crate::{Error, Result};

/// A pack's token fields, each [T].
pub struct Tokens<'a> {
    pub ids: &'a mut [u32],
    pub positions: &'a [u32],
    pub segments: &'a [u32],
    pub samples: &'a [u32],
    pub epoch: u32,
}

/// Masks `tokens` in place; fills `rows` and `labels`, which have room for exactly the expected
/// number of tokens. A piece that continues a word shares its first piece's decision with
/// `whole_word`; a special token or the start of a sequence ends every word.
///
/// # Errors
/// `Error::Device` when the number of chosen tokens is not the expected one.
pub fn mask(
    tokens: Tokens<'_>,
    rule: &MaskRule,
    continues: &[u32],
    rows: &mut [u32],
    labels: &mut [u32],
) -> Result<()> {
    let epoch = tokens.epoch;
    let (mut count, mut chosen) = (0, false);
    let mut starts_word = true;
    for (row, id) in tokens.ids.iter_mut().enumerate() {
        let (sample, position) = (tokens.samples[row], tokens.positions[row]);
        let goes_on = rule.whole_word && continues.get(*id as usize).is_some_and(|&c| c == 1);
        if !goes_on || starts_word || position == 0 {
            chosen = rule.chooses(sample, position, epoch);
        }
        starts_word = *id == rule.cls || *id == rule.sep;
        if chosen && rule.allows(*id, tokens.segments[row]) {
            if let (Some(at), Some(label)) = (rows.get_mut(count), labels.get_mut(count)) {
                *at = row as u32;
                *label = *id;
                *id = rule.replaces(*id, sample, position, epoch);
            }
            count += 1;
        }
    }
    if count == rows.len() {
        return Ok(());
    }
    Err(Error::device(format!(
        "mask_tokens chose {count} tokens where the host counted {}: the batch was counted with another rule, epoch or vocabulary",
        rows.len()
    )))
}
