//! MLM masking: which tokens are chosen and what becomes of them, from the rule's pure functions
//! alone, so that the count agrees with the one that the host made of the same batch.

use super::checks::{part, part_mut};
use super::device::Cpu;
use super::machine::Operand;
use crate::engine::op;
use crate::{Error, Result};

/// A piece that continues a word shares its first piece's decision with `whole_word`; a special token or
/// the start of a sequence ends every word.
///
/// # Errors
/// `Error::Device` when the number of chosen tokens is not the expected one.
pub(super) fn mask_tokens<R: Operand>(_: &Cpu<R>, op: &mut op::MaskTokens<'_, Cpu<R>>) -> Result<()> {
    let (rule, batch) = (op.rule, &mut *op.batch);
    let (tokens, masked, epoch) = (batch.tokens, batch.masked, batch.epoch);
    let ids = part_mut("ids", &mut batch.ids, 0, tokens)?;
    let positions = part("positions", &batch.positions, 0, tokens)?;
    let segments = part("segments", &batch.segments, 0, tokens)?;
    let samples = part("row_sample", &batch.row_sample, 0, tokens)?;
    let rows = part_mut("masked_rows", &mut batch.masked_rows, 0, masked)?;
    let labels = part_mut("masked_labels", &mut batch.masked_labels, 0, masked)?;
    let (mut count, mut chosen) = (0, false);
    let mut starts_word = true;
    for (row, id) in ids.iter_mut().enumerate() {
        let (sample, position) = (samples[row], positions[row]);
        let goes_on = rule.whole_word && op.continues.get(*id as usize).is_some_and(|&c| c == 1);
        if !goes_on || starts_word || position == 0 {
            chosen = rule.chooses(sample, position, epoch);
        }
        starts_word = *id == rule.cls || *id == rule.sep;
        if chosen && rule.allows(*id, segments[row]) {
            if let (Some(at), Some(label)) = (rows.get_mut(count), labels.get_mut(count)) {
                *at = row as u32;
                *label = *id;
                *id = rule.replaces(*id, sample, position, epoch);
            }
            count += 1;
        }
    }
    if count == masked {
        return Ok(());
    }
    Err(Error::device(format!(
        "mask_tokens chose {count} tokens where the host counted {masked}: the batch was counted with another \
         rule, epoch or vocabulary"
    )))
}
