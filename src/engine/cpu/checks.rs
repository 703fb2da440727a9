//! Views of buffers, checked before they are used: a caller's mistake (a buffer too short, an id outside its
//! table) is an error that names it, not a panic.

use super::buffer::Buffer;
use super::widen;
use crate::engine::{Elem, Real};
use crate::{Error, Result};
use std::borrow::Cow;
use std::ops::Range;

fn too_short(what: &str, have: usize, range: &Range<usize>) -> Error {
    Error::device(format!(
        "{what}: the buffer holds {have} elements, but elements {}..{} were asked for",
        range.start, range.end
    ))
}

/// `buffer[at..at + len]`, or an error that names it.
pub fn part<'a, T: Elem>(what: &str, buffer: &'a Buffer<T>, at: usize, len: usize) -> Result<&'a [T]> {
    let range = at..at + len;
    buffer.get(range.clone()).ok_or_else(|| too_short(what, buffer.len(), &range))
}

/// As `part`, for writing.
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

/// Refuses ends that do not ascend to `n`.
pub fn check_ends(what: &str, ends: &[u32], n: usize) -> Result<()> {
    if ends.windows(2).all(|pair| pair[0] < pair[1]) && ends.last().is_some_and(|&last| last as usize == n) {
        return Ok(());
    }
    Err(Error::device(format!("{what} does not ascend to the pack's {n}")))
}

/// Refuses `ids` outside a table of `rows` rows.
pub fn check_below(what: &str, ids: &[u32], rows: usize) -> Result<()> {
    match ids.iter().max() {
        Some(&largest) if largest as usize >= rows => {
            Err(Error::device(format!("{what} {largest} is outside its table of {rows} rows")))
        }
        _ => Ok(()),
    }
}
