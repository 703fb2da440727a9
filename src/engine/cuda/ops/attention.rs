//! Attention: which kernels a head size and type get, and the shapes they are launched with
//! (kernels/attention.cuh says how a block finds its work).

use super::super::launch::Arg;
use super::super::{Cuda, CudaBuf, Real};
use super::dropout_args;
use crate::engine::{DeviceBatch, Dropout, Heads, Rows};
use crate::{Error, Result};

/// Threads of a block, but of the backward on tensor cores.
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

/// Sequences that scratch has room for, at least: packs of fewer ask for the same scratch.
fn sequences_at_least(tokens: usize) -> usize {
    tokens / TILE_ROWS as usize
}

/// Floats that a model in bf16 whose packs have `tokens` tokens allocates for the backward of attention, 0 where
/// the scratch that every model has is enough.
pub fn attention_scratch(tokens: usize, heads: Heads) -> usize {
    let floats: usize = parts(tokens, sequences_at_least(tokens), heads).iter().sum();
    let fused = matches!(heads.size, 32 | 64) && floats > super::SCRATCH_GRAIN;
    if fused { floats.next_multiple_of(super::SCRATCH_GRAIN) } else { 0 }
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

    /// Two stages of two tiles of 64 rows. Backward, a warp for 8 columns, and besides the stages k, v and dS of
    /// 16 keys a warp, (log-sum-exp, dot product) of two tiles of 64 rows, and column sums.
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

/// Device addresses of a backward, and the dropout it redraws.
struct Gradient {
    qkv: Arg,
    lse: Arg,
    out: Arg,
    dout: Arg,
    dqkv: Arg,
    drop: Dropout,
}

#[allow(clippy::too_many_arguments)]
impl<R: Real> Cuda<R> {
    /// Slots of the work list at `rows` rows a tile: room for every tile of any pack of this capacity.
    fn tiles(&self, rows: u32, batch: &DeviceBatch<Self>) -> u32 {
        let tokens = self.capacity(Rows::Tokens(batch.tokens)) as u32;
        let sequences = self.capacity(Rows::Sequences(batch.sequences)) as u32;
        tokens / rows + sequences
    }

    /// Starts `kernel` with a block for every slot and head.
    fn launch_tiles(
        &self,
        kernel: &Kernel,
        batch: &DeviceBatch<Self>,
        heads: Heads,
        args: &[Arg],
    ) -> Result<()> {
        let grid = (self.tiles(kernel.rows, batch), heads.heads as u32, 1);
        self.launch(kernel.name, grid, BLOCK, kernel.shared, args)
    }

    pub(in super::super) fn attention(
        &self,
        batch: &DeviceBatch<Self>,
        heads: Heads,
        drop: Dropout,
        qkv: &CudaBuf<R>,
        lse: &mut CudaBuf<f32>,
        out: &mut CudaBuf<R>,
    ) -> Result<()> {
        let kernels = Kernels::new::<R>(heads.size)?;
        let rows = self.capacity(Rows::Tokens(batch.tokens));
        let hidden = heads.heads * heads.size;
        let mut args = vec![
            self.counts(),
            batch.cu_seqlens.at(0),
            batch.samples.at(0),
            Arg::Ptr(qkv.span("qkv", 0..rows * 3 * hidden)?.0),
            Arg::Ptr(lse.span("log-sum-exp", 0..rows * heads.heads)?.0),
            Arg::Ptr(out.span("attention out", 0..rows * hidden)?.0),
        ];
        args.extend(kernels.sizes(heads));
        args.extend(dropout_args(drop));
        self.launch_tiles(&kernels.forward, batch, heads, &args)
    }

    pub(in super::super) fn attention_backward(
        &self,
        batch: &DeviceBatch<Self>,
        heads: Heads,
        drop: Dropout,
        qkv: &CudaBuf<R>,
        lse: &CudaBuf<f32>,
        out: &CudaBuf<R>,
        dout: &CudaBuf<R>,
        dqkv: &mut CudaBuf<R>,
        bias: Option<usize>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let kernels = Kernels::new::<R>(heads.size)?;
        let rows = self.capacity(Rows::Tokens(batch.tokens));
        let hidden = heads.heads * heads.size;
        let at = Gradient {
            qkv: Arg::Ptr(qkv.span("qkv", 0..rows * 3 * hidden)?.0),
            lse: Arg::Ptr(lse.span("log-sum-exp", 0..rows * heads.heads)?.0),
            out: Arg::Ptr(out.span("attention out", 0..rows * hidden)?.0),
            dout: Arg::Ptr(dout.span("attention dout", 0..rows * hidden)?.0),
            dqkv: Arg::Ptr(dqkv.span("dqkv", 0..rows * 3 * hidden)?.0),
            drop,
        };
        match &kernels.backward {
            Backward::Fused { name, threads, shared } => {
                self.fused_backward((name, *threads, *shared), batch, heads, &at, bias, grads)
            }
            Backward::Plain { dq, dkv } => {
                self.plain_backward([dq, dkv], &kernels.sizes(heads), batch, heads, &at)?;
                match bias {
                    Some(to) => self.column_sum(dqkv, Rows::Tokens(batch.tokens), 3 * hidden, to, grads),
                    None => Ok(()),
                }
            }
        }
    }

    /// Scratch: `parts`, for the largest pack.
    fn fused_backward(
        &self,
        (name, threads, shared): (&'static str, u32, u32),
        batch: &DeviceBatch<Self>,
        heads: Heads,
        at: &Gradient,
        bias: Option<usize>,
        grads: &CudaBuf<f32>,
    ) -> Result<()> {
        let sequences = self.capacity(Rows::Sequences(batch.sequences));
        let hidden = heads.heads * heads.size;
        let capacity = self.capacity(Rows::Tokens(batch.tokens));
        let most = capacity.max(self.inner.most.tokens as usize);
        let [rows, sums, partials] = parts(most, sequences.max(sequences_at_least(most)), heads);
        let scratch = self.scratch(rows + sums + partials)?;
        let pitch = rows / (2 * heads.heads);
        let behind = |floats: usize| scratch + 4 * floats as u64;
        let partials = if bias.is_some() { behind(rows + sums) } else { 0 };
        let mut args = vec![
            self.counts(),
            batch.cu_seqlens.at(0),
            batch.samples.at(0),
            at.qkv,
            at.lse,
            at.out,
            at.dout,
            Arg::Ptr(scratch),
            Arg::Ptr(behind(rows)),
            at.dqkv,
            Arg::Ptr(partials),
            Arg::U32(heads.heads as u32),
            Arg::U32(pitch as u32),
            Arg::U32(capacity as u32),
        ];
        args.extend(dropout_args(at.drop));
        self.launch(name, (sequences as u32, heads.heads as u32, 1), threads, shared, &args)?;
        match bias {
            Some(to) => self.add_partials(partials, sequences as u32, 3 * hidden, &[to], grads),
            None => Ok(()),
        }
    }

    /// dq first: it leaves what the second kernel needs of every row in scratch, f32 [A, capacity, 2].
    fn plain_backward(
        &self,
        [dq, dkv]: [&Kernel; 2],
        sizes: &[Arg],
        batch: &DeviceBatch<Self>,
        heads: Heads,
        at: &Gradient,
    ) -> Result<()> {
        let capacity = self.capacity(Rows::Tokens(batch.tokens));
        let pack = [self.counts(), batch.cu_seqlens.at(0), batch.samples.at(0)];
        let rows = Arg::Ptr(self.scratch(2 * heads.heads * capacity)?);
        let last = [sizes, &[Arg::U32(capacity as u32)], &dropout_args(at.drop)].concat();
        let args = |own: &[Arg]| [&pack, own, &last].concat();
        self.launch_tiles(dq, batch, heads, &args(&[at.qkv, at.lse, at.out, at.dout, rows, at.dqkv]))?;
        self.launch_tiles(dkv, batch, heads, &args(&[at.qkv, at.dout, rows, at.dqkv]))
    }
}
