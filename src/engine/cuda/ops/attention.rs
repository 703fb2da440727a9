//! Attention: which kernels a head size and type get, and the shapes they are launched with
//! (kernels/attention.cuh says how a block finds its work).

use super::super::launch::Arg;
use super::super::{Cuda, CudaBuf, Real};
use super::dropout_args;
use crate::engine::{DeviceBatch, Dropout, Heads, Rows};
use crate::{Error, Result};

/// Threads of every attention block.
const BLOCK: u32 = 128;
/// Rows of the tiles that the tensor-core kernels walk over.
const TILE_ROWS: u32 = 64;
/// Rows of a tile of the plain kernels, and floats between rows of their score tiles.
const PLAIN_ROWS: u32 = 32;
const PLAIN_PITCH: u32 = 36;

/// One kernel: its name, the rows of its blocks and their dynamic shared memory in bytes.
struct Kernel {
    name: &'static str,
    rows: u32,
    shared: u32,
}

/// The kernels of one head size.
struct Kernels {
    forward: Kernel,
    dq: Kernel,
    dkv: Kernel,
    /// Takes the head size as an argument.
    plain: bool,
}

impl Kernels {
    /// # Errors
    /// `Error::Device` for a head size that no kernel takes.
    fn new<R: Real>(size: usize) -> Result<Self> {
        match (size_of::<R>(), size) {
            (2, 32) => Ok(Self::tensor(
                32,
                ["attention_d32", "attention_dq_d32", "attention_dkv_d32"],
                [64, 128, 64],
            )),
            (2, 64) => Ok(Self::tensor(
                64,
                ["attention_d64", "attention_dq_d64", "attention_dkv_d64"],
                [128, 128, 64],
            )),
            (_, 8..=128) if size.is_multiple_of(8) => Ok(Self::plain(size as u32)),
            _ => Err(Error::device(format!(
                "attention on a GPU takes heads of 8, 16, ... 128 values, not {size}: choose hidden / heads \
                 accordingly or run on the CPU"
            ))),
        }
    }

    /// Two stages of two tiles of 64 rows; backward, the block's own rows overlap the second stage.
    fn tensor(d: u32, names: [&'static str; 3], rows: [u32; 3]) -> Self {
        let two_stages = 4 * 64 * d * 2;
        let backward = |rows: u32| (2 * 64 + 2 * rows) * d * 2;
        let [forward, dq, dkv] = names;
        Self {
            forward: Kernel { name: forward, rows: rows[0], shared: two_stages },
            dq: Kernel { name: dq, rows: rows[1], shared: backward(rows[1]) },
            // and (log-sum-exp, dot product) of two tiles of 64 rows
            dkv: Kernel { name: dkv, rows: rows[2], shared: backward(rows[2]) + 2 * 64 * 8 },
            plain: false,
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
            dq: kernel("attention_plain_dq", 4, 1),
            dkv: kernel("attention_plain_dkv", 4, 2),
            plain: true,
        }
    }

    /// A, and D for the kernels that take it.
    fn sizes(&self, heads: Heads) -> Vec<Arg> {
        let mut sizes = vec![Arg::U32(heads.heads as u32)];
        if self.plain {
            sizes.push(Arg::U32(heads.size as u32));
        }
        sizes
    }
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

    /// dq first: it leaves what the second kernel needs of every row in scratch, f32 [A, pitch, 2].
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
        let pack = [self.counts(), batch.cu_seqlens.at(0), batch.samples.at(0)];
        let qkv = Arg::Ptr(qkv.span("qkv", 0..rows * 3 * hidden)?.0);
        let dout = Arg::Ptr(dout.span("attention dout", 0..rows * hidden)?.0);
        let lse = Arg::Ptr(lse.span("log-sum-exp", 0..rows * heads.heads)?.0);
        let out = Arg::Ptr(out.span("attention out", 0..rows * hidden)?.0);
        let pitch =
            if kernels.plain { rows } else { self.tiles(TILE_ROWS, batch) as usize * TILE_ROWS as usize };
        let row_values = Arg::Ptr(self.scratch(2 * heads.heads * pitch)?);
        let to = Arg::Ptr(dqkv.span("dqkv", 0..rows * 3 * hidden)?.0);
        let mut last = kernels.sizes(heads);
        if !kernels.plain {
            last.push(Arg::U32(pitch as u32));
        }
        last.push(Arg::U32(rows as u32));
        last.extend(dropout_args(drop));
        let args = |own: &[Arg]| [&pack, own, &last].concat();
        self.launch_tiles(&kernels.dq, batch, heads, &args(&[qkv, lse, out, dout, row_values, to]))?;
        self.launch_tiles(&kernels.dkv, batch, heads, &args(&[qkv, dout, row_values, to]))?;
        match bias {
            Some(at) => self.column_sum(dqkv, Rows::Tokens(batch.tokens), 3 * hidden, at, grads),
            None => Ok(()),
        }
    }
}
