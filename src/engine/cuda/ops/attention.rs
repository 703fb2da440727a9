//! Attention: which kernels a head size and type get, and the shapes they are launched with
//! (kernels/attention.cuh says how a block finds its work).

use super::super::launch::{Arg, Extra, Gpu, Launches};
use super::dropout_args;
use super::rows::{Partials, column_sum};
use crate::engine::op::{Attention, AttentionBackward, Heads};
use crate::engine::{DeviceBatch, Real, Rows};
use crate::{Error, Result};

/// Threads of a block, except in the backward on tensor cores.
const BLOCK: u32 = 128;
/// Rows of the tiles that the tensor-core kernels walk over.
const TILE_ROWS: u32 = 64;
/// Rows of a tile of the plain kernels, and floats between rows of their score tiles.
const PLAIN_ROWS: u32 = 32;
const PLAIN_PITCH: u32 = 36;

/// Values of the backward's sums of dq over tiles of 2 D keys (kernels/attention_backward.cu).
pub fn dq_sums(tokens: usize, heads: Heads) -> usize {
    let rows = TILE_ROWS as usize;
    heads.heads * heads.size * rows * (tokens / rows + tokens / (2 * heads.size) + 1)
}

/// Scratch of the backward on tensor cores, f32: (log-sum-exp, dot product) of every row [A, pitch, 2], dq of
/// the keys so far, column sums of each sequence [S, 3H].
fn parts(tokens: usize, sequences: usize, heads: Heads) -> [usize; 3] {
    let hidden = heads.heads * heads.size;
    let slots = tokens / TILE_ROWS as usize + sequences;
    [2 * heads.heads * slots * TILE_ROWS as usize, dq_sums(tokens, heads), sequences * 3 * hidden]
}

/// Scratch has room for at least this many sequences: packs of fewer ask for the same scratch.
fn sequences_at_least(tokens: usize) -> usize {
    tokens / TILE_ROWS as usize
}

/// One kernel: its name, the rows of its blocks and their dynamic shared memory in bytes.
struct Kernel {
    name: &'static str,
    rows: u32,
    shared: u32,
}

/// The kernels of one head size.
struct Kernels {
    forward: Kernel,
    backward: Backward,
}

enum Backward {
    /// One kernel on tensor cores, a block for each sequence and head.
    Fused { name: &'static str, threads: u32, shared: u32 },
    /// Plain arithmetic, first dq, then dk and dv. All plain kernels take the head size as an argument.
    Plain { dq: Kernel, dkv: Kernel },
}

impl Kernels {
    /// # Errors
    /// `Error::Device` for a head size that no kernel takes.
    fn new<R: Real>(size: usize) -> Result<Self> {
        match (size_of::<R>(), size) {
            (2, 32) => Ok(Self::tensor(32, ["attention_d32", "attention_backward_d32"], 64)),
            (2, 64) => Ok(Self::tensor(64, ["attention_d64", "attention_backward_d64"], 128)),
            (_, 8..=128) if size.is_multiple_of(8) => Ok(Self::plain(size as u32)),
            _ => Err(Error::device(format!(
                "attention on a GPU takes heads of 8, 16, ... 128 values, not {size}: choose hidden / heads \
                 accordingly or run on the CPU"
            ))),
        }
    }

    /// Shared memory holds two stages of two tiles of 64 rows. Backward has a warp for 8 columns. Its shared
    /// memory also holds k, v and dS of 16 keys a warp, (log-sum-exp, dot product) of two tiles of 64 rows,
    /// and column sums.
    fn tensor(d: u32, [forward, name]: [&'static str; 2], rows: u32) -> Self {
        let two_stages = 4 * 64 * d * 2;
        let warps = d / 8;
        let keys = 16 * warps;
        let shared = two_stages + keys * (2 * d + 64) * 2 + 2 * 64 * 8 + (2 * warps + 4) * d * 4;
        Self {
            forward: Kernel { name: forward, rows, shared: two_stages },
            backward: Backward::Fused { name, threads: 32 * warps, shared },
        }
    }

    fn plain(d: u32) -> Self {
        let kernel = |name, rows: u32, scores: u32| Kernel {
            name,
            rows: PLAIN_ROWS,
            shared: PLAIN_ROWS * (rows * (d + 4) + scores * PLAIN_PITCH) * 4,
        };
        Self {
            forward: kernel("attention_plain", 3, 1),
            backward: Backward::Plain {
                dq: kernel("attention_plain_dq", 4, 1),
                dkv: kernel("attention_plain_dkv", 4, 2),
            },
        }
    }

    /// A, and D for the kernels that take it.
    fn sizes(&self, heads: Heads) -> Vec<Arg> {
        let mut sizes = vec![Arg::U32(heads.heads as u32)];
        if matches!(self.backward, Backward::Plain { .. }) {
            sizes.push(Arg::U32(heads.size as u32));
        }
        sizes
    }
}

impl Kernel {
    /// Starts the kernel with a block for every slot of the work list (room for every tile of any pack of
    /// this capacity) and every head.
    fn launch<G: Gpu>(&self, gpu: &G, batch: &DeviceBatch<G>, heads: Heads, args: &[Arg]) -> Result<()> {
        let tokens = gpu.capacity(batch.rows()) as u32;
        let sequences = gpu.capacity(Rows::Sequences(batch.sequences)) as u32;
        let grid = (tokens / self.rows + sequences, heads.heads as u32, 1);
        gpu.launch_sharing(self.name, grid, (BLOCK, self.shared), args)
    }
}

/// The first arguments of every kernel here: counts, starts of sequences, their samples.
fn pack_args<G: Gpu>(gpu: &G, batch: &DeviceBatch<G>) -> Result<[Arg; 3]> {
    Ok([
        gpu.counts(),
        G::span("cu_seqlens", &batch.cu_seqlens, 0..batch.sequences + 1)?,
        G::span("samples", &batch.samples, 0..batch.sequences)?,
    ])
}

impl<G: Gpu> Launches<G> for Attention<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (batch, heads) = (self.batch, self.heads);
        let kernels = Kernels::new::<G::Real>(heads.size)?;
        let rows = gpu.capacity(batch.rows());
        let own = [
            G::rows("qkv", self.qkv, rows, 3 * heads.hidden())?,
            G::span("log-sum-exp", self.lse, 0..rows * heads.heads)?,
            G::rows("attention out", self.out, rows, heads.hidden())?,
        ];
        let args = [&pack_args(gpu, batch)?[..], &own, &kernels.sizes(heads), &dropout_args(self.drop)];
        kernels.forward.launch(gpu, batch, heads, &args.concat())
    }
}

/// What a backward reads and writes, as arguments.
struct Gradient {
    qkv: Arg,
    lse: Arg,
    out: Arg,
    dout: Arg,
    dqkv: Arg,
}

impl<G: Gpu> Launches<G> for AttentionBackward<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let heads = self.heads;
        let kernels = Kernels::new::<G::Real>(heads.size)?;
        let (rows, hidden) = (gpu.capacity(self.batch.rows()), heads.hidden());
        let at = Gradient {
            qkv: G::rows("qkv", self.qkv, rows, 3 * hidden)?,
            lse: G::span("log-sum-exp", self.lse, 0..rows * heads.heads)?,
            out: G::rows("attention out", self.out, rows, hidden)?,
            dout: G::rows("attention dout", self.dout, rows, hidden)?,
            dqkv: G::rows("dqkv", self.dqkv, rows, 3 * hidden)?,
        };
        match &kernels.backward {
            Backward::Fused { name, threads, shared } => self.fused(gpu, name, (*threads, *shared), &at),
            Backward::Plain { dq, dkv } => {
                self.plain(gpu, [dq, dkv], &kernels.sizes(heads), &at)?;
                match self.bias {
                    Some(to) => column_sum(gpu, self.dqkv, self.batch.rows(), (to, 3 * hidden), self.grads),
                    None => Ok(()),
                }
            }
        }
    }
}

impl<G: Gpu> AttentionBackward<'_, G> {
    /// Scratch: `parts`, for the largest pack.
    fn fused(&self, gpu: &G, name: &str, block: (u32, u32), at: &Gradient) -> Result<()> {
        let (batch, heads) = (self.batch, self.heads);
        let sequences = gpu.capacity(Rows::Sequences(batch.sequences));
        let capacity = gpu.capacity(batch.rows());
        let most = capacity.max(gpu.most().tokens as usize);
        let [rows, sums, partials] = parts(most, sequences.max(sequences_at_least(most)), heads);
        let scratch = Arg::Ptr(gpu.scratch(rows + sums + partials)?);
        let pitch = rows / (2 * heads.heads);
        let partials = if self.bias.is_some() { scratch.after(4 * (rows + sums)) } else { Arg::Ptr(0) };
        let own = [
            at.qkv,
            at.lse,
            at.out,
            at.dout,
            scratch,
            scratch.after(4 * rows),
            at.dqkv,
            partials,
            Arg::U32(heads.heads as u32),
            Arg::U32(pitch as u32),
            Arg::U32(capacity as u32),
        ];
        let args = [&pack_args(gpu, batch)?[..], &own, &dropout_args(self.drop)].concat();
        let grid = (sequences as u32, heads.heads as u32, 1);
        gpu.needs(self.fused_extra());
        gpu.launch_sharing(name, grid, block, &args)?;
        match self.bias {
            Some(to) => Partials { at: partials, blocks: sequences as u32, width: 3 * heads.hidden() }.add(
                gpu,
                &[to],
                self.grads,
            ),
            None => Ok(()),
        }
    }

    /// Rows of out and dout are read once more for their dot products, which are written and read, and the
    /// scores are computed again. A tile of keys has two rows for each column of a head: all but the last
    /// store dq in f32 and load it again.
    fn fused_extra(&self) -> Extra {
        let (batch, heads) = (self.batch, self.heads);
        let (t, h) = (batch.tokens as f64, heads.hidden() as f64);
        let attended = batch.attended as f64;
        let tiles = (attended / t.max(1.0) / (2 * heads.size) as f64).ceil().max(1.0);
        let lse = 4.0 * t * heads.heads as f64;
        let waiting = 2.0 * 4.0 * t * h * (tiles - 1.0);
        Extra { bytes: t * h * size_of::<G::Real>() as f64 + 4.0 * lse + waiting, flops: 2.0 * attended * h }
    }

    /// dq first: it leaves in scratch what the second kernel needs of every row, f32 [A, capacity, 2]. Both
    /// recompute the scores and their gradients: seven products instead of four.
    fn plain(&self, gpu: &G, [dq, dkv]: [&Kernel; 2], sizes: &[Arg], at: &Gradient) -> Result<()> {
        let (batch, heads) = (self.batch, self.heads);
        let capacity = gpu.capacity(batch.rows());
        let pack = pack_args(gpu, batch)?;
        let rows = Arg::Ptr(gpu.scratch(2 * heads.heads * capacity)?);
        let last = [sizes, &[Arg::U32(capacity as u32)], &dropout_args(self.drop)].concat();
        let args = |own: &[Arg]| [&pack, own, &last].concat();
        let again = 3.0 * 2.0 * batch.attended as f64 * heads.hidden() as f64;
        let qkv = (batch.tokens * 3 * heads.hidden() * size_of::<G::Real>()) as f64;
        gpu.needs(Extra { bytes: qkv, flops: again });
        dq.launch(gpu, batch, heads, &args(&[at.qkv, at.lse, at.out, at.dout, rows, at.dqkv]))?;
        dkv.launch(gpu, batch, heads, &args(&[at.qkv, at.dout, rows, at.dqkv]))
    }
}
