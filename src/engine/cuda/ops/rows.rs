//! Row operations: LayerNorm alone and fused with the residual, GELU, gather and scatter, column
//! sums. Grids and partial sums are as the heads of kernels/{residual_layernorm,gelu,gather,
//! column_sum}.cu describe them.

use super::super::launch::Arg;
use super::super::{Cuda, CudaBuf, Real};
use super::dropout_args;
use crate::engine::{DeviceBatch, Dropout, NormAt, Rows};
use crate::{Error, Result};

/// Threads of a block of the row kernels: four rows of one warp, or one row above `NARROW`.
const ROW_BLOCK: u32 = 128;
/// The widest row of one warp.
const NARROW: usize = 1024;
/// Threads of a block of the other kernels here.
const BLOCK: u32 = 256;
/// Rows whose column sum is one partial sum, alone and behind GELU.
const COLUMN_CHUNK: u32 = 256;
const GELU_CHUNK: u32 = 128;
/// Widths of tensors on a GPU are multiples of this: rows start at 16 bytes in bf16.
const GRAIN: usize = 8;

/// A row kernel's five instantiations, for rows of up to 256, 512, 768, 1024 and 4096 values.
pub(super) type Widths = [&'static str; 5];

const RESIDUAL_NORM: Widths = [
    "residual_norm_256",
    "residual_norm_512",
    "residual_norm_768",
    "residual_norm_1024",
    "residual_norm_4096",
];
const RESIDUAL_NORM_BACKWARD: Widths = [
    "residual_norm_backward_256",
    "residual_norm_backward_512",
    "residual_norm_backward_768",
    "residual_norm_backward_1024",
    "residual_norm_backward_4096",
];
const NORM: Widths = ["norm_256", "norm_512", "norm_768", "norm_1024", "norm_4096"];
const NORM_BACKWARD: Widths = [
    "norm_backward_256",
    "norm_backward_512",
    "norm_backward_768",
    "norm_backward_1024",
    "norm_backward_4096",
];

/// A row operation at one width.
pub(super) struct RowKernel {
    pub op: &'static str,
    /// Rows of a block.
    rows: u32,
    /// Blocks that a multiprocessor's registers hold of the kernels that sum columns.
    resident: u32,
}

impl RowKernel {
    /// # Errors
    /// `Error::Device` for a width that no kernel takes.
    pub fn new(widths: Widths, hidden: usize) -> Result<Self> {
        check_width("rows", hidden)?;
        let class = match hidden {
            0..=256 => 0,
            257..=512 => 1,
            513..=768 => 2,
            769..=NARROW => 3,
            1025..=4096 => 4,
            _ => {
                return Err(Error::device(format!(
                    "hidden = {hidden}: rows on a GPU have at most 4096 values; run on the CPU"
                )));
            }
        };
        let rows = if hidden <= NARROW { ROW_BLOCK / 32 } else { 1 };
        Ok(Self { op: widths[class], rows, resident: if class < 3 { 3 } else { 2 } })
    }

    /// One block for each of its rows.
    pub fn grid(&self, capacity: usize) -> (u32, u32, u32) {
        ((capacity as u32).div_ceil(self.rows), 1, 1)
    }
}

fn check_width(what: &str, width: usize) -> Result<()> {
    if width.is_multiple_of(GRAIN) {
        return Ok(());
    }
    Err(Error::device(format!("{what} of {width} values: on a GPU widths are multiples of {GRAIN}")))
}

/// The kernel's number for a count.
fn which(rows: Rows) -> Arg {
    Arg::U32(match rows {
        Rows::Tokens(_) => 0,
        Rows::Sequences(_) => 1,
        Rows::Masked(_) => 2,
    })
}

#[allow(clippy::too_many_arguments)]
impl<R: Real> Cuda<R> {
    /// Values of one 16-byte vector.
    pub(super) const VECTOR: usize = 16 / size_of::<R>();

    /// Starts a row kernel on a block for each of its rows.
    pub(super) fn launch_rows(&self, kernel: &RowKernel, capacity: usize, args: &[Arg]) -> Result<()> {
        self.launch(kernel.op, kernel.grid(capacity), ROW_BLOCK, 0, args)
    }

    /// Blocks of a kernel that sums columns: what the card holds at once, so that there are as few
    /// partial sums as can be.
    pub(super) fn blocks(&self, kernel: &RowKernel, capacity: usize) -> u32 {
        let resident = self.device().card.multiprocessors.max(1) as u32 * kernel.resident;
        (capacity as u32).div_ceil(kernel.rows).min(resident)
    }

    /// Starts a row kernel on `blocks` blocks that share the rows.
    pub(super) fn launch_shared_rows(&self, kernel: &RowKernel, blocks: u32, args: &[Arg]) -> Result<()> {
        self.launch(kernel.op, (blocks, 1, 1), ROW_BLOCK, 0, args)
    }

    /// Adds partial sums [blocks, offsets, width] to grads[offset..offset + width], at most three.
    pub(super) fn add_partials(
        &self,
        partials: u64,
        blocks: u32,
        width: usize,
        offsets: &[usize],
        grads: &CudaBuf<f32>,
    ) -> Result<()> {
        let mut to = [Arg::Ptr(0); 3];
        for (to, &at) in to.iter_mut().zip(offsets) {
            *to = Arg::Ptr(grads.span("gradient", at..at + width)?.0);
        }
        let grid = ((width as u32).div_ceil(32), offsets.len() as u32, 1);
        let [a, b, c] = to;
        let args = [Arg::Ptr(partials), Arg::U32(blocks), Arg::U32(width as u32), a, b, c];
        self.launch("add_partials", grid, BLOCK, 0, &args)
    }

    /// Gamma and beta.
    pub(super) fn affine(weights: &CudaBuf<R>, at: NormAt) -> Result<[Arg; 2]> {
        let part = |what: &str, at: usize, n: usize| weights.span(what, at..at + n).map(|s| Arg::Ptr(s.0));
        Ok([part("gamma", at.gamma, at.hidden)?, part("beta", at.beta, at.hidden)?])
    }

    /// The first `capacity` rows of a buffer.
    pub(super) fn rows_arg(what: &str, buf: &CudaBuf<R>, capacity: usize, width: usize) -> Result<Arg> {
        Ok(Arg::Ptr(buf.span(what, 0..capacity * width)?.0))
    }

    pub(in super::super) fn residual_norm(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &CudaBuf<R>,
        bias: usize,
        norm: NormAt,
        drop: Dropout,
        residual: &CudaBuf<R>,
        y: &mut CudaBuf<R>,
        row_stats: &mut CudaBuf<f32>,
        out: &mut CudaBuf<R>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, norm.hidden);
        let kernel = RowKernel::new(RESIDUAL_NORM, h)?;
        let [gamma, beta] = Self::affine(weights, norm)?;
        let mut args = vec![
            self.counts(),
            batch.row_sample.at(0),
            batch.positions.at(0),
            Self::rows_arg("residual", residual, t, h)?,
            Arg::Ptr(weights.span("residual_norm bias", bias..bias + h)?.0),
            gamma,
            beta,
            Self::rows_arg("residual_norm y", y, t, h)?,
            Arg::Ptr(row_stats.span("residual_norm row_stats", 0..2 * t)?.0),
            Self::rows_arg("residual_norm out", out, t, h)?,
            Arg::U32(h as u32),
            Arg::F32(norm.eps),
        ];
        args.extend(dropout_args(drop));
        self.launch_rows(&kernel, self.capacity(Rows::Tokens(t)), &args)
    }

    /// Scratch: partial sums [blocks, 3, H].
    pub(in super::super) fn residual_norm_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &CudaBuf<R>,
        bias: usize,
        norm: NormAt,
        drop: Dropout,
        y: &CudaBuf<R>,
        row_stats: &CudaBuf<f32>,
        dout: &CudaBuf<R>,
        dresidual: &mut CudaBuf<R>,
        dy: &mut CudaBuf<R>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, norm.hidden);
        let kernel = RowKernel::new(RESIDUAL_NORM_BACKWARD, h)?;
        let capacity = self.capacity(Rows::Tokens(t));
        let blocks = self.blocks(&kernel, capacity);
        let partials = self.scratch(blocks as usize * 3 * h)?;
        let mut args = vec![
            self.counts(),
            batch.row_sample.at(0),
            batch.positions.at(0),
            Self::rows_arg("residual_norm y", y, t, h)?,
            Arg::Ptr(row_stats.span("residual_norm row_stats", 0..2 * t)?.0),
            Self::affine(weights, norm)?[0],
            Self::rows_arg("residual_norm dout", dout, t, h)?,
            Self::rows_arg("dresidual", dresidual, capacity, h)?,
            Self::rows_arg("residual_norm dy", dy, capacity, h)?,
            Arg::Ptr(partials),
            Arg::U32(capacity as u32),
            Arg::U32(h as u32),
        ];
        args.extend(dropout_args(drop));
        self.launch_shared_rows(&kernel, blocks, &args)?;
        self.add_partials(partials, blocks, h, &[norm.gamma, norm.beta, bias], grads)
    }

    pub(in super::super) fn norm(
        &self,
        x: &CudaBuf<R>,
        weights: &CudaBuf<R>,
        at: NormAt,
        rows: Rows,
        row_stats: &mut CudaBuf<f32>,
        out: &mut CudaBuf<R>,
    ) -> Result<()> {
        let (n, h) = (rows.count(), at.hidden);
        let kernel = RowKernel::new(NORM, h)?;
        let [gamma, beta] = Self::affine(weights, at)?;
        let args = [
            self.counts(),
            which(rows),
            Self::rows_arg("norm x", x, n, h)?,
            gamma,
            beta,
            Arg::Ptr(row_stats.span("norm row_stats", 0..2 * n)?.0),
            Self::rows_arg("norm out", out, n, h)?,
            Arg::U32(h as u32),
            Arg::F32(at.eps),
        ];
        self.launch_rows(&kernel, self.capacity(rows), &args)
    }

    /// Scratch: partial sums [blocks, 2, H].
    pub(in super::super) fn norm_backward(
        &self,
        x: &CudaBuf<R>,
        weights: &CudaBuf<R>,
        at: NormAt,
        rows: Rows,
        row_stats: &CudaBuf<f32>,
        d: &mut CudaBuf<R>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let (n, h) = (rows.count(), at.hidden);
        let kernel = RowKernel::new(NORM_BACKWARD, h)?;
        let capacity = self.capacity(rows);
        let blocks = self.blocks(&kernel, capacity);
        let partials = self.scratch(blocks as usize * 2 * h)?;
        let args = [
            self.counts(),
            which(rows),
            Self::rows_arg("norm x", x, n, h)?,
            Arg::Ptr(row_stats.span("norm row_stats", 0..2 * n)?.0),
            Self::affine(weights, at)?[0],
            Self::rows_arg("norm d", d, capacity, h)?,
            Arg::Ptr(partials),
            Arg::U32(capacity as u32),
            Arg::U32(h as u32),
        ];
        self.launch_shared_rows(&kernel, blocks, &args)?;
        self.add_partials(partials, blocks, h, &[at.gamma, at.beta], grads)
    }

    pub(in super::super) fn gelu(
        &self,
        pre: &CudaBuf<R>,
        rows: Rows,
        width: usize,
        act: &mut CudaBuf<R>,
    ) -> Result<()> {
        check_width("GELU", width)?;
        let pre = Self::rows_arg("gelu pre", pre, rows.count(), width)?;
        let act = Self::rows_arg("gelu act", act, rows.count(), width)?;
        let grid = self.vector_grid(self.capacity(rows) * width);
        self.launch("gelu", grid, BLOCK, 0, &[self.counts(), which(rows), pre, act, Arg::U32(width as u32)])
    }

    /// Scratch: partial sums [T / 128, N].
    pub(in super::super) fn gelu_backward(
        &self,
        pre: &CudaBuf<R>,
        dact: &mut CudaBuf<R>,
        rows: Rows,
        width: usize,
        bias: Option<usize>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        check_width("GELU", width)?;
        let capacity = self.capacity(rows);
        let pre = Self::rows_arg("gelu pre", pre, rows.count(), width)?;
        let dact = Self::rows_arg("gelu dact", dact, capacity, width)?;
        let chunks = (capacity as u32).div_ceil(GELU_CHUNK);
        let partials = if bias.is_some() { self.scratch(chunks as usize * width)? } else { 0 };
        let grid = (width.div_ceil(32 * Self::VECTOR) as u32, chunks, 1);
        let sizes = [Arg::U32(capacity as u32), Arg::U32(width as u32)];
        let args = [self.counts(), which(rows), pre, dact, Arg::Ptr(partials), sizes[0], sizes[1]];
        self.launch("gelu_backward", grid, BLOCK, 0, &args)?;
        match bias {
            Some(at) => self.add_partials(partials, chunks, width, &[at], grads),
            None => Ok(()),
        }
    }

    /// One thread a vector.
    fn vector_grid(&self, values: usize) -> (u32, u32, u32) {
        ((values / Self::VECTOR).div_ceil(BLOCK as usize) as u32, 1, 1)
    }

    pub(in super::super) fn gather_rows(
        &self,
        x: &CudaBuf<R>,
        rows: &CudaBuf<u32>,
        n: Rows,
        hidden: usize,
        out: &mut CudaBuf<R>,
    ) -> Result<()> {
        check_width("gathered rows", hidden)?;
        let out = Self::rows_arg("gather out", out, n.count(), hidden)?;
        self.picked_rows("gather_rows", x.at(0), rows, n, hidden, out)
    }

    pub(in super::super) fn scatter_add_rows(
        &self,
        src: &CudaBuf<R>,
        rows: &CudaBuf<u32>,
        n: Rows,
        hidden: usize,
        x: &mut CudaBuf<R>,
    ) -> Result<()> {
        check_width("scattered rows", hidden)?;
        let src = Self::rows_arg("scatter src", src, n.count(), hidden)?;
        self.picked_rows("scatter_add_rows", src, rows, n, hidden, x.at(0))
    }

    fn picked_rows(
        &self,
        op: &'static str,
        from: Arg,
        index: &CudaBuf<u32>,
        n: Rows,
        hidden: usize,
        to: Arg,
    ) -> Result<()> {
        let index = Arg::Ptr(index.span("row numbers", 0..n.count())?.0);
        let grid = ((self.capacity(n) as u32).div_ceil(ROW_BLOCK / 32), 1, 1);
        let args = [self.counts(), which(n), from, index, to, Arg::U32(hidden as u32)];
        self.launch(op, grid, ROW_BLOCK, 0, &args)
    }

    /// grads[at..at + width] += column sums of x [rows, width]. Scratch: partial sums [T / 256, N].
    pub(in super::super) fn column_sum(
        &self,
        x: &CudaBuf<R>,
        rows: Rows,
        width: usize,
        at: usize,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        check_width("column sums", width)?;
        let chunks = (self.capacity(rows) as u32).div_ceil(COLUMN_CHUNK);
        let partials = self.scratch(chunks as usize * width)?;
        let grid = (width.div_ceil(32 * Self::VECTOR) as u32, chunks, 1);
        let x = Self::rows_arg("column_sum x", x, rows.count(), width)?;
        let args = [self.counts(), which(rows), x, Arg::Ptr(partials), Arg::U32(width as u32)];
        self.launch("column_partials", grid, BLOCK, 0, &args)?;
        self.add_partials(partials, chunks, width, &[at], grads)
    }
}
