//! Dropout factors, sixteen Philox blocks (128 elements) at a time so that the rounds become
//! vector code. Nothing is stored between forward and backward: the factors are pure functions of
//! (seed, site, sample, position, epoch), and drawing them again is cheaper than reading them.

use crate::engine::{Dropout, random};

/// Philox blocks at a time.
const BATCH: usize = 16;
/// Elements that one block decides.
const HALVES: usize = 8;

type Words = [[u32; BATCH]; 4];

/// The factors (0 or `scale`) of sixteen counters, eight elements each.
#[inline(always)]
fn factors(drop: &Dropout, counter: Words) -> [f32; BATCH * HALVES] {
    let key = drop.key();
    let mut words = [[0u32; 4]; BATCH];
    for l in 0..BATCH {
        words[l] = random::philox(key, [counter[0][l], counter[1][l], counter[2][l], counter[3][l]]);
    }
    let mut out = [0.0; BATCH * HALVES];
    let flat: &[u32; BATCH * 4] = bytemuck::cast_ref(&words);
    for (pair, &word) in out.as_chunks_mut::<2>().0.iter_mut().zip(flat) {
        pair[0] = if word & 0xFFFF < drop.threshold { 0.0 } else { drop.scale };
        pair[1] = if word >> 16 < drop.threshold { 0.0 } else { drop.scale };
    }
    out
}

/// The factors of row (sample, position) of a [T, H] site, H = `out.len()`.
#[inline(always)]
pub fn row_factors(drop: &Dropout, sample: u32, position: u32, epoch: u32, out: &mut [f32]) {
    for (batch, out) in out.chunks_mut(BATCH * HALVES).enumerate() {
        let mut column = [0; BATCH];
        for (l, c) in column.iter_mut().enumerate() {
            *c = (batch * BATCH + l) as u32;
        }
        let f = factors(drop, [[sample; BATCH], [position; BATCH], [epoch; BATCH], column]);
        out.copy_from_slice(&f[..out.len()]);
    }
}

/// The factors of attention's elements (queries from `first_query`, all keys) of one head:
/// `out` is [queries, 8 * blocks].
#[inline(always)]
pub fn attention_factors(
    drop: &Dropout,
    sample: u32,
    epoch: u32,
    head: u32,
    first_query: u32,
    blocks: u32,
    out: &mut [f32],
) {
    let (mut query, mut block) = (first_query, 0);
    for out in out.chunks_mut(BATCH * HALVES) {
        let mut element = [0; BATCH];
        for e in &mut element {
            *e = query | block << 16;
            block += 1;
            let wraps = block == blocks;
            query += u32::from(wraps);
            block = if wraps { 0 } else { block };
        }
        let f = factors(drop, [[sample; BATCH], element, [epoch; BATCH], [head; BATCH]]);
        out.copy_from_slice(&f[..out.len()]);
    }
}
