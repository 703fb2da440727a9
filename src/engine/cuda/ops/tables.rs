//! The embedding layer: kernels/embedding.cu, and the gradients of its three tables by
//! kernels/embedding_tables.cu.

use super::super::launch::Arg;
use super::super::{Cuda, CudaBuf, Real};
use super::dropout_args;
use super::rows::{RowKernel, Widths};
use crate::Result;
use crate::engine::{DeviceBatch, Dropout, EmbedAt, Rows};

const EMBED: Widths = ["embed_256", "embed_512", "embed_768", "embed_1024", "embed_4096"];
const EMBED_BACKWARD: Widths = [
    "embed_backward_256",
    "embed_backward_512",
    "embed_backward_768",
    "embed_backward_1024",
    "embed_backward_4096",
];

/// Sorted rows of one block of `embed_words`.
const CHUNK: usize = 32;
/// Blocks of `embed_buckets`, at least, and ids of one, at most.
const BUCKETS: usize = 128;
const MOST_IDS: usize = 1024;
/// Threads of their blocks.
const SORT_BLOCK: u32 = 512;
const BLOCK: u32 = 256;
/// Blocks of `embed_places` along the positions, at most; each strides over them.
const PLACES: usize = 512;

#[allow(clippy::too_many_arguments)]
impl<R: Real> Cuda<R> {
    pub(in super::super) fn embed(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &CudaBuf<R>,
        at: EmbedAt,
        drop: Dropout,
        sum: &mut CudaBuf<R>,
        row_stats: &mut CudaBuf<f32>,
        out: &mut CudaBuf<R>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, at.norm.hidden);
        let kernel = RowKernel::new(EMBED, h)?;
        let [gamma, beta] = Self::affine(weights, at.norm)?;
        let mut args = vec![
            self.counts(),
            batch.ids.at(0),
            batch.positions.at(0),
            batch.segments.at(0),
            batch.row_sample.at(0),
            Arg::Ptr(weights.span("word table", at.word..at.word + at.vocab * h)?.0),
            Arg::Ptr(weights.span("position table", at.position..at.position + h)?.0),
            Arg::Ptr(weights.span("segment table", at.segment..at.segment + 2 * h)?.0),
            gamma,
            beta,
            Self::rows_arg("embed sum", sum, t, h)?,
            Arg::Ptr(row_stats.span("embed row_stats", 0..2 * t)?.0),
            Self::rows_arg("embed out", out, t, h)?,
            Arg::U32(h as u32),
            Arg::F32(at.norm.eps),
        ];
        args.extend(dropout_args(drop));
        self.launch_rows(&kernel, self.capacity(Rows::Tokens(t)), &args)
    }

    /// Scratch: partial sums [blocks, 2, H], then that of the tables.
    pub(in super::super) fn embed_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &CudaBuf<R>,
        at: EmbedAt,
        drop: Dropout,
        sum: &CudaBuf<R>,
        row_stats: &CudaBuf<f32>,
        dout: &mut CudaBuf<R>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, at.norm.hidden);
        let kernel = RowKernel::new(EMBED_BACKWARD, h)?;
        let blocks = self.blocks(&kernel, self.capacity(Rows::Tokens(t)));
        let partials = self.scratch(blocks as usize * 2 * h)?;
        let mut args = vec![
            self.counts(),
            batch.positions.at(0),
            batch.row_sample.at(0),
            Self::rows_arg("embed sum", sum, t, h)?,
            Arg::Ptr(row_stats.span("embed row_stats", 0..2 * t)?.0),
            Self::affine(weights, at.norm)?[0],
            Self::rows_arg("embed dout", dout, t, h)?,
            Arg::Ptr(partials),
            Arg::U32(h as u32),
        ];
        args.extend(dropout_args(drop));
        self.launch_shared_rows(&kernel, blocks, &args)?;
        self.add_partials(partials, blocks, h, &[at.norm.gamma, at.norm.beta], grads)?;
        self.word_gradient(batch, at, dout, grads)?;
        self.place_gradients(batch, at, dout, grads)
    }

    /// Scratch: rows by id twice, [T] pairs; runs that continue over a block's ends [T / 32, 2, H].
    fn word_gradient(
        &self,
        batch: &DeviceBatch<Self>,
        at: EmbedAt,
        d: &CudaBuf<R>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let h = at.norm.hidden;
        let capacity = self.capacity(Rows::Tokens(batch.tokens));
        let chunks = capacity.div_ceil(CHUNK);
        let pairs = 2 * capacity.next_multiple_of(2); // floats; the next part starts at 16 bytes
        let runs = self.scratch(2 * pairs + chunks * 2 * h)?;
        let (entries, sorted) = (Arg::Ptr(runs), Arg::Ptr(runs + 4 * pairs as u64));
        let runs = Arg::Ptr(runs + 8 * pairs as u64);
        let table = Arg::Ptr(grads.span("word gradient", at.word..at.word + at.vocab * h)?.0);
        let buckets = BUCKETS.max(at.vocab.div_ceil(MOST_IDS)) as u32;
        let args = [self.counts(), batch.ids.at(0), entries, sorted, Arg::U32(at.vocab as u32)];
        self.launch("embed_buckets", (buckets, 1, 1), SORT_BLOCK, 0, &args)?;
        let (grid, hidden) = ((chunks as u32, 1, 1), Arg::U32(h as u32));
        let args = [self.counts(), sorted, d.at(0), runs, table, hidden];
        self.launch("embed_words", grid, BLOCK, 0, &args)?;
        self.launch("embed_joins", grid, BLOCK, 0, &[self.counts(), sorted, runs, table, hidden])
    }

    /// Scratch: the segments' partial sums [512, 2, H].
    fn place_gradients(
        &self,
        batch: &DeviceBatch<Self>,
        at: EmbedAt,
        d: &CudaBuf<R>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let h = at.norm.hidden;
        let blocks = self.capacity(Rows::Tokens(batch.tokens)).min(PLACES) as u32;
        let partials = self.scratch(blocks as usize * 2 * h)?;
        let args = [
            self.counts(),
            batch.cu_seqlens.at(0),
            batch.segments.at(0),
            d.at(0),
            Arg::Ptr(grads.span("position gradient", at.position..at.position + h)?.0),
            Arg::Ptr(partials),
            Arg::U32(h as u32),
        ];
        let grid = (blocks, h.div_ceil(32 * Self::VECTOR) as u32, 1);
        self.launch("embed_places", grid, BLOCK, 0, &args)?;
        self.add_partials(partials, blocks, h, &[at.segment, at.segment + h], grads)
    }
}
