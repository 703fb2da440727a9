//! The tasks of attention, one head of one sequence each: their sizes, and where their rows are.

use super::super::checks::part;
use super::super::device::Cpu;
use super::super::dropout::attention_factors;
use super::super::machine::Operand;
use crate::engine::DeviceBatch;
use crate::engine::op::{Dropout, Heads};
use crate::{Error, Result};

/// Most queries of a block.
pub const QUERIES: usize = 96;

/// What both directions need to know about a pack.
#[derive(Clone, Copy)]
pub struct Layout<'a> {
    heads: Heads,
    drop: Dropout,
    /// [S + 1]
    cu_seqlens: &'a [u32],
    /// [S]
    samples: &'a [u32],
    epoch: u32,
}

impl<'a> Layout<'a> {
    pub fn of<R: Operand>(batch: &'a DeviceBatch<Cpu<R>>, heads: Heads, drop: Dropout) -> Result<Self> {
        let cu_seqlens = part("cu_seqlens", &batch.cu_seqlens, 0, batch.sequences + 1)?;
        let ascends = cu_seqlens.windows(2).all(|ends| ends[0] <= ends[1]);
        if !ascends || cu_seqlens[batch.sequences] as usize != batch.tokens {
            return Err(Error::device(format!(
                "attention: cu_seqlens does not ascend to the pack's {} tokens",
                batch.tokens
            )));
        }
        let samples = part("samples", &batch.samples, 0, batch.sequences)?;
        Ok(Self { heads, drop, cu_seqlens, samples, epoch: batch.epoch })
    }

    /// How many there are.
    pub fn tasks(&self) -> usize {
        self.samples.len() * self.heads.heads
    }
}

/// Sizes of one task.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Tokens of the sequence.
    pub s: usize,
    /// s, up to the next 16.
    pub keys: usize,
    /// D.
    pub d: usize,
    /// D, up to the next 16.
    pub wide: usize,
    /// Queries of a block.
    pub block: usize,
}

impl Sizes {
    fn new(s: usize, d: usize) -> Self {
        let blocks = s.div_ceil(QUERIES).max(1);
        let block = s.div_ceil(blocks).next_multiple_of(8);
        Self { s, keys: s.next_multiple_of(16), d, wide: d.next_multiple_of(16), block }
    }

    /// Words that `forward` takes with cells of one value (with cells of two it takes fewer, and one more
    /// matrix).
    pub fn forward_scratch(self) -> usize {
        self.keys * self.wide * 2 + self.block * (3 * self.keys + 2 * self.wide)
    }

    pub fn backward_scratch(self) -> usize {
        self.keys * self.wide * 6 + self.block * (6 * self.keys + 7 * self.wide)
    }
}

/// Which head of which sequence, and where its rows are.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    layout: Layout<'a>,
    pub sizes: Sizes,
    /// First row of the sequence.
    row: usize,
    sample: u32,
    head: usize,
}

impl<'a> Task<'a> {
    pub fn new(layout: Layout<'a>, index: usize) -> Self {
        let (sequence, head) = (index / layout.heads.heads, index % layout.heads.heads);
        let row = layout.cu_seqlens[sequence] as usize;
        let s = layout.cu_seqlens[sequence + 1] as usize - row;
        let sizes = Sizes::new(s, layout.heads.size);
        Self { layout, sizes, row, sample: layout.samples[sequence], head }
    }

    /// H
    fn hidden(&self) -> usize {
        self.layout.heads.hidden()
    }

    pub fn scale(&self) -> f32 {
        1.0 / (self.sizes.d as f32).sqrt()
    }

    /// Where row `i`'s part of this head starts: in q (0), k (1) or v (2) of qkv [T, 3H].
    #[inline(always)]
    pub fn at(&self, i: usize, which: usize) -> usize {
        (self.row + i) * 3 * self.hidden() + which * self.hidden() + self.head * self.sizes.d
    }

    /// Where row `i`'s part of this head starts in [T, H].
    #[inline(always)]
    pub fn at_hidden(&self, i: usize) -> usize {
        (self.row + i) * self.hidden() + self.head * self.sizes.d
    }

    /// Where row `i`'s entry of this head is in [T, A].
    #[inline(always)]
    pub fn at_heads(&self, i: usize) -> usize {
        (self.row + i) * self.layout.heads.heads + self.head
    }

    #[inline(always)]
    pub fn drops(&self) -> bool {
        self.layout.drop.threshold > 0
    }

    /// The dropout factors of all keys for the queries from `first`, [queries, keys].
    #[inline(always)]
    pub fn draw(&self, first: usize, out: &mut [f32]) {
        let Self { layout, sizes, sample, head, .. } = self;
        let (head, first, blocks) = (*head as u32, first as u32, (sizes.keys / 8) as u32);
        attention_factors(&layout.drop, *sample, layout.epoch, head, first, blocks, out);
    }
}
