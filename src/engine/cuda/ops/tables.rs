//! The embedding layer: kernels/embedding.cu, and the gradients of its three tables by
//! kernels/embedding_tables.cu.

use super::super::launch::{Arg, Extra, Gpu, Launches};
use super::dropout_args;
use super::rows::{Partials, RowKernel, Widths, affine, vector};
use crate::Result;
use crate::engine::op::{Embed, EmbedAt, EmbedBackward};
use crate::engine::{DeviceBatch, Floats, Reals};

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
/// The fewest blocks of `embed_buckets`, and the most ids of one.
const BUCKETS: usize = 128;
const MOST_IDS: usize = 1024;
/// Threads of their blocks.
const SORT_BLOCK: u32 = 512;
const BLOCK: u32 = 256;
/// Blocks of `embed_places` along the positions, at most; each strides over them.
const PLACES: usize = 512;

impl<G: Gpu> Launches<G> for Embed<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (batch, at) = (self.batch, self.at);
        let (t, h) = (batch.tokens, at.norm.hidden);
        let kernel = RowKernel::new(EMBED, h)?;
        let [gamma, beta] = affine::<G>(self.weights, at.norm)?;
        let mut args = vec![
            gpu.counts(),
            G::span("ids", &batch.ids, 0..t)?,
            G::span("positions", &batch.positions, 0..t)?,
            G::span("segments", &batch.segments, 0..t)?,
            G::span("row_sample", &batch.row_sample, 0..t)?,
            G::span("word table", self.weights, at.word..at.word + at.vocab * h)?,
            G::span("position table", self.weights, at.position..at.position + at.positions * h)?,
            G::span("segment table", self.weights, at.segment..at.segment + at.segments * h)?,
            Arg::U32(if at.segments == 1 { 0 } else { h as u32 }),
            gamma,
            beta,
            G::rows("embed sum", self.sum, t, h)?,
            G::span("embed row_stats", self.row_stats, 0..2 * t)?,
            G::rows("embed out", self.out, t, h)?,
            Arg::U32(h as u32),
            Arg::F32(at.norm.eps),
        ];
        args.extend(dropout_args(self.drop));
        kernel.launch(gpu, gpu.capacity(batch.rows()), &args)
    }
}

/// Scratch: partial sums [blocks, 2, H], then the tables' scratch.
impl<G: Gpu> Launches<G> for EmbedBackward<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (batch, at) = (self.batch, self.at);
        let (t, h) = (batch.tokens, at.norm.hidden);
        let kernel = RowKernel::new(EMBED_BACKWARD, h)?;
        let blocks = kernel.blocks(gpu, gpu.capacity(batch.rows()));
        let partials = Arg::Ptr(gpu.scratch(blocks as usize * 2 * h)?);
        let mut args = vec![
            gpu.counts(),
            G::span("positions", &batch.positions, 0..t)?,
            G::span("row_sample", &batch.row_sample, 0..t)?,
            G::rows("embed sum", self.sum, t, h)?,
            G::span("embed row_stats", self.row_stats, 0..2 * t)?,
            affine::<G>(self.weights, at.norm)?[0],
            G::rows("embed dout", self.dout, t, h)?,
            partials,
            Arg::U32(h as u32),
        ];
        args.extend(dropout_args(self.drop));
        kernel.launch_shared(gpu, blocks, &args)?;
        let sums = Partials { at: partials, blocks, width: h };
        sums.add(gpu, &[at.norm.gamma, at.norm.beta], self.grads)?;
        // the gradient is written in place, read twice by the tables' kernels, and the positions' rows are
        // added to
        let row = (batch.tokens * h * size_of::<G::Real>()) as f64;
        gpu.needs(Extra { bytes: 3.0 * row, flops: 0.0 });
        word_gradient(gpu, batch, at, self.dout, self.grads)?;
        place_gradients(gpu, batch, at, self.dout, self.grads)
    }
}

/// Scratch: rows by id twice, [T] pairs; runs that cross a block's ends [T / 32, 2, H].
fn word_gradient<G: Gpu>(
    gpu: &G,
    batch: &DeviceBatch<G>,
    at: EmbedAt,
    d: &Reals<G>,
    grads: &Floats<G>,
) -> Result<()> {
    let h = at.norm.hidden;
    let capacity = gpu.capacity(batch.rows());
    let chunks = capacity.div_ceil(CHUNK);
    let pairs = 2 * capacity.next_multiple_of(2); // floats; the next part starts at 16 bytes
    let entries = Arg::Ptr(gpu.scratch(2 * pairs + chunks * 2 * h)?);
    let (sorted, runs) = (entries.after(4 * pairs), entries.after(8 * pairs));
    let table = G::gradient("word gradient", grads, at.word, at.vocab * h)?;
    let buckets = BUCKETS.max(at.vocab.div_ceil(MOST_IDS)) as u32;
    let ids = G::span("ids", &batch.ids, 0..batch.tokens)?;
    let args = [gpu.counts(), ids, entries, sorted, Arg::U32(at.vocab as u32)];
    gpu.launch("embed_buckets", (buckets, 1, 1), SORT_BLOCK, &args)?;
    let (grid, hidden, d) = ((chunks as u32, 1, 1), Arg::U32(h as u32), G::span("d", d, 0..0)?);
    gpu.launch("embed_words", grid, BLOCK, &[gpu.counts(), sorted, d, runs, table, hidden])?;
    gpu.launch("embed_joins", grid, BLOCK, &[gpu.counts(), sorted, runs, table, hidden])
}

/// Scratch: the segments' partial sums [512, 2, H].
fn place_gradients<G: Gpu>(
    gpu: &G,
    batch: &DeviceBatch<G>,
    at: EmbedAt,
    d: &Reals<G>,
    grads: &Floats<G>,
) -> Result<()> {
    let h = at.norm.hidden;
    let blocks = gpu.capacity(batch.rows()).min(PLACES) as u32;
    let partials = Arg::Ptr(gpu.scratch(blocks as usize * 2 * h)?);
    let args = [
        gpu.counts(),
        G::span("cu_seqlens", &batch.cu_seqlens, 0..batch.sequences + 1)?,
        G::span("segments", &batch.segments, 0..batch.tokens)?,
        G::span("d", d, 0..0)?,
        G::gradient("position gradient", grads, at.position, at.positions * h)?,
        partials,
        Arg::U32(h as u32),
    ];
    let grid = (blocks, h.div_ceil(32 * vector::<G>()) as u32, 1);
    gpu.launch("embed_places", grid, BLOCK, &args)?;
    let sums = Partials { at: partials, blocks, width: h };
    match at.segments {
        // both segments' sums belong to the one row: twice as many blocks of it
        1 => Partials { blocks: 2 * blocks, ..sums }.add(gpu, &[at.segment], grads),
        _ => sums.add(gpu, &[at.segment, at.segment + h], grads),
    }
}
