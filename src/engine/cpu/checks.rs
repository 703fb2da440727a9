//! Views of buffers, measured before they are used: whatever a caller gets wrong (a buffer too
//! short, an id outside its table) is an error that names it, not a panic.

use super::norm::{Affine, Keys};
use super::{Buffer, Cpu, Operand, attention, heads, widen};
use crate::engine::{DeviceBatch, Dropout, Elem, HeadAt, Heads, NormAt, Real};
use crate::{Error, Result};
use std::borrow::Cow;
use std::ops::Range;

fn too_short(what: &str, have: usize, range: &Range<usize>) -> Error {
    Error::device(format!(
        "{what}: the buffer holds {have} elements, elements {}..{} are asked for",
        range.start, range.end
    ))
}

/// `buffer[at..at + len]`, or an error that names it.
pub fn part<'a, T: Elem>(what: &str, buffer: &'a Buffer<T>, at: usize, len: usize) -> Result<&'a [T]> {
    let range = at..at + len;
    buffer.get(range.clone()).ok_or_else(|| too_short(what, buffer.len(), &range))
}

/// As `part`, to write.
pub fn part_mut<'a, T: Elem>(
    what: &str,
    buffer: &'a mut Buffer<T>,
    at: usize,
    len: usize,
) -> Result<&'a mut [T]> {
    let (range, have) = (at..at + len, buffer.len());
    buffer.get_mut(range.clone()).ok_or_else(|| too_short(what, have, &range))
}

/// `part` of the parameters as f32.
pub fn parameters<'a, R: Real>(
    what: &str,
    weights: &'a Buffer<R>,
    at: usize,
    len: usize,
) -> Result<Cow<'a, [f32]>> {
    Ok(widen::parameters(part(what, weights, at, len)?))
}

pub fn affine<R: Real>(weights: &Buffer<R>, at: NormAt) -> Result<Affine<'_>> {
    Ok(Affine {
        gamma: parameters("gamma", weights, at.gamma, at.hidden)?,
        beta: parameters("beta", weights, at.beta, at.hidden)?,
        eps: at.eps,
    })
}

pub fn head<R: Real>(weights: &Buffer<R>, at: HeadAt, k: usize) -> Result<heads::Head<'_>> {
    Ok(heads::Head {
        pool_bias: parameters("pooler bias", weights, at.pool_bias, at.hidden)?,
        w: parameters("head weight", weights, at.w, k * at.hidden)?,
        b: parameters("head bias", weights, at.b, k)?,
    })
}

pub fn add_head(grads: &mut Buffer<f32>, at: HeadAt, from: &heads::HeadGrads) -> Result<()> {
    for (offset, from) in [(at.pool_bias, &from.pool_bias), (at.w, &from.w), (at.b, &from.b)] {
        for (sum, &d) in part_mut("head gradient", grads, offset, from.len())?.iter_mut().zip(from) {
            *sum += d;
        }
    }
    Ok(())
}

pub fn keys<R: Operand>(batch: &DeviceBatch<Cpu<R>>) -> Result<Keys<'_>> {
    Ok(Keys {
        samples: part("row_sample", &batch.row_sample, 0, batch.tokens)?,
        positions: part("positions", &batch.positions, 0, batch.tokens)?,
        epoch: batch.epoch,
    })
}

pub fn layout<R: Operand>(
    batch: &DeviceBatch<Cpu<R>>,
    heads: Heads,
    drop: Dropout,
) -> Result<attention::Layout<'_>> {
    let cu_seqlens = part("cu_seqlens", &batch.cu_seqlens, 0, batch.sequences + 1)?;
    let ascends = cu_seqlens.windows(2).all(|ends| ends[0] <= ends[1]);
    if !ascends || cu_seqlens[batch.sequences] as usize != batch.tokens {
        return Err(Error::device(format!(
            "attention: cu_seqlens does not ascend to the pack's {} tokens",
            batch.tokens
        )));
    }
    let samples = part("samples", &batch.samples, 0, batch.sequences)?;
    Ok(attention::Layout { heads, drop, cu_seqlens, samples, epoch: batch.epoch })
}

/// Refuses ends that do not ascend from somewhere to `n`.
pub fn check_ends(what: &str, ends: &[u32], n: usize) -> Result<()> {
    if ends.windows(2).all(|pair| pair[0] < pair[1]) && ends.last().is_some_and(|&last| last as usize == n) {
        return Ok(());
    }
    Err(Error::device(format!("{what} does not ascend to the pack's {n}")))
}

/// First sequence of each document, and the end.
pub fn cu_documents<R: Operand>(batch: &DeviceBatch<Cpu<R>>) -> Result<&[u32]> {
    let ends = part("cu_documents", &batch.cu_documents, 0, batch.documents + 1)?;
    check_ends("cu_documents", ends, batch.sequences)?;
    Ok(ends)
}

/// Refuses values of `ids` that are no row of a table of `rows` rows.
pub fn check_below(what: &str, ids: &[u32], rows: usize) -> Result<()> {
    match ids.iter().max() {
        Some(&largest) if largest as usize >= rows => {
            Err(Error::device(format!("{what} {largest} is outside its table of {rows} rows")))
        }
        _ => Ok(()),
    }
}
