//! Dropout factors, sixteen Philox blocks (128 elements) at a time so that the rounds become
//! vector code. Nothing is stored between forward and backward: the factors are pure functions of
//! (seed, site, sample, position, epoch), and drawing them again is cheaper than reading them.

use crate::engine::op::Dropout;

/// Philox blocks at a time.
const BATCH: usize = 16;
/// Elements that one block decides.
const HALVES: usize = 8;
const LOW: u64 = 0xFFFF_FFFF;
// The halves of a word are read where they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// Four words of sixteen counters, each in the low half of a 64-bit lane: there the widening
/// product is one instruction, and what the upper halves hold does not matter to it.
type Words = [[u64; BATCH]; 4];

/// `random::philox` of sixteen counters; the upper halves of the result are garbage.
#[inline(always)]
fn philox(key: [u32; 2], counter: Words) -> Words {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        for l in 0..BATCH {
            let p0 = (c0[l] & LOW) * 0xD251_1F53;
            let p1 = (c2[l] & LOW) * 0xCD9E_8D57;
            c0[l] = (p1 >> 32) ^ c1[l] ^ u64::from(k0);
            c2[l] = (p0 >> 32) ^ c3[l] ^ u64::from(k1);
            (c1[l], c3[l]) = (p1, p0);
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// The factors (0 or `scale`) of sixteen counters, eight elements each.
#[inline(always)]
fn factors(drop: &Dropout, counter: Words) -> [f32; BATCH * HALVES] {
    let [c0, c1, c2, c3] = philox(drop.key(), counter);
    let mut words = [[0u64; 2]; BATCH];
    for l in 0..BATCH {
        words[l] = [(c0[l] & LOW) | (c1[l] << 32), (c2[l] & LOW) | (c3[l] << 32)];
    }
    let mut out = [0.0; BATCH * HALVES];
    let halves: &[u16; BATCH * HALVES] = bytemuck::cast_ref(&words);
    for (out, &bits) in out.iter_mut().zip(halves) {
        *out = if u32::from(bits) < drop.threshold { 0.0 } else { drop.scale };
    }
    out
}

/// The factors of row (sample, position) of a [T, H] site, H = `out.len()`.
#[inline(always)]
pub fn row_factors(drop: &Dropout, sample: u32, position: u32, epoch: u32, out: &mut [f32]) {
    for (batch, out) in out.chunks_mut(BATCH * HALVES).enumerate() {
        let mut column = [0; BATCH];
        for (l, c) in column.iter_mut().enumerate() {
            *c = (batch * BATCH + l) as u64;
        }
        let f =
            factors(drop, [[sample.into(); BATCH], [position.into(); BATCH], [epoch.into(); BATCH], column]);
        out.copy_from_slice(&f[..out.len()]);
    }
}

/// The factors of attention's elements (queries from `first_query`, all keys) of one head:
/// `out` is [queries, 8 * blocks], blocks at least 2.
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
    // index / blocks by multiplication: exact, because index * blocks stays far below 2^32.
    let (first_query, blocks) = (u64::from(first_query), u64::from(blocks));
    let reciprocal = (1u64 << 32).div_ceil(blocks);
    for (batch, out) in out.chunks_mut(BATCH * HALVES).enumerate() {
        let mut element = [0; BATCH];
        for (l, element) in element.iter_mut().enumerate() {
            let index = (batch * BATCH + l) as u64;
            let query = ((index & LOW) * (reciprocal & LOW)) >> 32;
            let block = index - (query & LOW) * (blocks & LOW);
            *element = (first_query + query) | (block << 16);
        }
        let f = factors(drop, [[sample.into(); BATCH], element, [epoch.into(); BATCH], [head.into(); BATCH]]);
        out.copy_from_slice(&f[..out.len()]);
    }
}
