//! Row operations: LayerNorm alone and fused with the residual, GELU, gather and scatter, column sums. Grids
//! and partial sums are described at the top of kernels/{residual_layernorm,gelu,gather, column_sum}.cu.

use super::super::launch::{Arg, Extra, Gpu, Grid, Launches};
use super::dropout_args;
use crate::engine::op::{
    GatherRows, Gelu, GeluBackward, Norm, NormAt, NormBackward, ResidualNorm, ResidualNormBackward,
    ScatterAddRows,
};
use crate::engine::{Floats, Reals, Rows, Words};
use crate::{Error, Result};

/// Threads of a block of the row kernels: four rows of one warp, or one row above `NARROW`.
const ROW_BLOCK: u32 = 128;
/// The widest row of one warp.
const NARROW: usize = 1024;
/// Threads of a block of the other kernels here.
const BLOCK: u32 = 256;
/// Rows in one partial sum of columns, alone and after GELU.
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
    op: &'static str,
    /// Rows of a block.
    rows: u32,
    /// Blocks of the column-summing kernels that fit a multiprocessor's registers.
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

    /// As many blocks as `capacity` rows need.
    fn grid(&self, capacity: usize) -> Grid {
        ((capacity as u32).div_ceil(self.rows), 1, 1)
    }

    /// Starts the kernel on as many blocks as `capacity` rows need.
    pub fn launch<G: Gpu>(&self, gpu: &G, capacity: usize, args: &[Arg]) -> Result<()> {
        gpu.launch(self.op, self.grid(capacity), ROW_BLOCK, args)
    }

    /// Blocks of a kernel that sums columns: what the card holds at once, so that there are as few partial
    /// sums as possible.
    pub fn blocks<G: Gpu>(&self, gpu: &G, capacity: usize) -> u32 {
        let resident = gpu.card().multiprocessors.max(1) as u32 * self.resident;
        (capacity as u32).div_ceil(self.rows).min(resident)
    }

    /// Starts the kernel on `blocks` blocks that share the rows.
    pub fn launch_shared<G: Gpu>(&self, gpu: &G, blocks: u32, args: &[Arg]) -> Result<()> {
        gpu.launch(self.op, (blocks, 1, 1), ROW_BLOCK, args)
    }
}

fn check_width(what: &str, width: usize) -> Result<()> {
    if width.is_multiple_of(GRAIN) {
        return Ok(());
    }
    Err(Error::device(format!("{what} of {width} values: on a GPU widths must be multiples of {GRAIN}")))
}

/// The kernel's number for a count.
fn which(rows: Rows) -> Arg {
    Arg::U32(match rows {
        Rows::Tokens(_) => 0,
        Rows::Sequences(_) => 1,
        Rows::Masked(_) => 2,
    })
}

/// Values of one 16-byte vector.
pub(super) const fn vector<G: Gpu>() -> usize {
    16 / size_of::<G::Real>()
}

/// Partial sums of columns that a kernel has written, [blocks, offsets, width] f32.
pub(super) struct Partials {
    pub at: Arg,
    pub blocks: u32,
    pub width: usize,
}

impl Partials {
    /// Adds them to grads[offset..offset + width], for at most three offsets.
    pub fn add<G: Gpu>(&self, gpu: &G, offsets: &[usize], grads: &Floats<G>) -> Result<()> {
        let Self { at, blocks, width } = *self;
        let mut to = [Arg::Ptr(0); 3];
        for (to, &offset) in to.iter_mut().zip(offsets) {
            *to = G::gradient("gradient", grads, offset, width)?;
        }
        // the partial sums, written and read, and the gradient, read and written
        let values = (blocks as usize * offsets.len() * width) as f64;
        gpu.needs(Extra { bytes: 4.0 * (2.0 * values + 2.0 * (offsets.len() * width) as f64), flops: 0.0 });
        let grid = ((width as u32).div_ceil(32), offsets.len() as u32, 1);
        let [a, b, c] = to;
        gpu.launch("add_partials", grid, BLOCK, &[at, Arg::U32(blocks), Arg::U32(width as u32), a, b, c])
    }
}

/// Gamma and beta.
pub(super) fn affine<G: Gpu>(weights: &Reals<G>, at: NormAt) -> Result<[Arg; 2]> {
    let part = |what: &str, at: usize, n: usize| G::span(what, weights, at..at + n);
    Ok([part("gamma", at.gamma, at.hidden)?, part("beta", at.beta, at.hidden)?])
}

impl<G: Gpu> Launches<G> for ResidualNorm<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (t, h, bias) = (self.batch.tokens, self.norm.hidden, self.bias);
        let kernel = RowKernel::new(RESIDUAL_NORM, h)?;
        let [gamma, beta] = affine::<G>(self.weights, self.norm)?;
        let mut args = vec![
            gpu.counts(),
            G::span("row_sample", &self.batch.row_sample, 0..t)?,
            G::span("positions", &self.batch.positions, 0..t)?,
            G::rows("residual", self.residual, t, h)?,
            G::span("residual_norm bias", self.weights, bias..bias + h)?,
            gamma,
            beta,
            G::rows("residual_norm y", self.y, t, h)?,
            G::span("residual_norm row_stats", self.row_stats, 0..2 * t)?,
            G::rows("residual_norm out", self.out, t, h)?,
            Arg::U32(h as u32),
            Arg::F32(self.norm.eps),
        ];
        args.extend(dropout_args(self.drop));
        kernel.launch(gpu, gpu.capacity(self.batch.rows()), &args)
    }
}

/// Scratch: partial sums [blocks, 3, H].
impl<G: Gpu> Launches<G> for ResidualNormBackward<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (t, h, norm) = (self.batch.tokens, self.norm.hidden, self.norm);
        let kernel = RowKernel::new(RESIDUAL_NORM_BACKWARD, h)?;
        let capacity = gpu.capacity(self.batch.rows());
        let blocks = kernel.blocks(gpu, capacity);
        let partials = Arg::Ptr(gpu.scratch(blocks as usize * 3 * h)?);
        let mut args = vec![
            gpu.counts(),
            G::span("row_sample", &self.batch.row_sample, 0..t)?,
            G::span("positions", &self.batch.positions, 0..t)?,
            G::rows("residual_norm y", self.y, t, h)?,
            G::span("residual_norm row_stats", self.row_stats, 0..2 * t)?,
            affine::<G>(self.weights, norm)?[0],
            G::rows("residual_norm dout", self.dout, t, h)?,
            G::rows("dresidual", self.dresidual, capacity, h)?,
            G::rows("residual_norm dy", self.dy, capacity, h)?,
            partials,
            Arg::U32(capacity as u32),
            Arg::U32(h as u32),
        ];
        args.extend(dropout_args(self.drop));
        kernel.launch_shared(gpu, blocks, &args)?;
        let sums = Partials { at: partials, blocks, width: h };
        sums.add(gpu, &[norm.gamma, norm.beta, self.bias], self.grads)
    }
}

impl<G: Gpu> Launches<G> for Norm<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (n, h, rows) = (self.rows.count(), self.at.hidden, self.rows);
        let kernel = RowKernel::new(NORM, h)?;
        let [gamma, beta] = affine::<G>(self.weights, self.at)?;
        let args = [
            gpu.counts(),
            which(rows),
            G::rows("norm x", self.x, n, h)?,
            gamma,
            beta,
            G::span("norm row_stats", self.row_stats, 0..2 * n)?,
            G::rows("norm out", self.out, n, h)?,
            Arg::U32(h as u32),
            Arg::F32(self.at.eps),
        ];
        kernel.launch(gpu, gpu.capacity(rows), &args)
    }
}

/// Scratch: partial sums [blocks, 2, H].
impl<G: Gpu> Launches<G> for NormBackward<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (n, h, rows, at) = (self.rows.count(), self.at.hidden, self.rows, self.at);
        let kernel = RowKernel::new(NORM_BACKWARD, h)?;
        let capacity = gpu.capacity(rows);
        let blocks = kernel.blocks(gpu, capacity);
        let partials = Arg::Ptr(gpu.scratch(blocks as usize * 2 * h)?);
        let args = [
            gpu.counts(),
            which(rows),
            G::rows("norm x", self.x, n, h)?,
            G::span("norm row_stats", self.row_stats, 0..2 * n)?,
            affine::<G>(self.weights, at)?[0],
            G::rows("norm d", self.d, capacity, h)?,
            partials,
            Arg::U32(capacity as u32),
            Arg::U32(h as u32),
        ];
        kernel.launch_shared(gpu, blocks, &args)?;
        Partials { at: partials, blocks, width: h }.add(gpu, &[at.gamma, at.beta], self.grads)
    }
}

impl<G: Gpu> Launches<G> for Gelu<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (rows, width) = (self.rows, self.width);
        check_width("GELU", width)?;
        let pre = G::rows("gelu pre", self.pre, rows.count(), width)?;
        let act = G::rows("gelu act", self.act, rows.count(), width)?;
        // one thread a vector
        let blocks = (gpu.capacity(rows) * width / vector::<G>()).div_ceil(BLOCK as usize) as u32;
        let args = [gpu.counts(), which(rows), pre, act, Arg::U32(width as u32)];
        gpu.launch("gelu", (blocks, 1, 1), BLOCK, &args)
    }
}

/// Scratch: partial sums [T / 128, N].
impl<G: Gpu> Launches<G> for GeluBackward<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (rows, width) = (self.rows, self.width);
        check_width("GELU", width)?;
        let capacity = gpu.capacity(rows);
        let pre = G::rows("gelu pre", self.pre, rows.count(), width)?;
        let dact = G::rows("gelu dact", self.dact, capacity, width)?;
        let chunks = (capacity as u32).div_ceil(GELU_CHUNK);
        let partials = if self.bias.is_some() { gpu.scratch(chunks as usize * width)? } else { 0 };
        let partials = Arg::Ptr(partials);
        let grid = (width.div_ceil(32 * vector::<G>()) as u32, chunks, 1);
        let sizes = [Arg::U32(capacity as u32), Arg::U32(width as u32)];
        let args = [gpu.counts(), which(rows), pre, dact, partials, sizes[0], sizes[1]];
        gpu.launch("gelu_backward", grid, BLOCK, &args)?;
        match self.bias {
            Some(at) => Partials { at: partials, blocks: chunks, width }.add(gpu, &[at], self.grads),
            None => Ok(()),
        }
    }
}

impl<G: Gpu> Launches<G> for GatherRows<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (rows, hidden) = (self.rows, self.hidden);
        check_width("gathered rows", hidden)?;
        let out = G::rows("gather out", self.out, rows.count(), hidden)?;
        picked_rows("gather_rows", gpu, (G::span("gather x", self.x, 0..0)?, out), self.picked, rows, hidden)
    }
}

impl<G: Gpu> Launches<G> for ScatterAddRows<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (rows, hidden) = (self.rows, self.hidden);
        check_width("scattered rows", hidden)?;
        let src = G::rows("scatter src", self.src, rows.count(), hidden)?;
        let x = G::span("scatter x", self.x, 0..0)?;
        picked_rows("scatter_add_rows", gpu, (src, x), self.picked, rows, hidden)
    }
}

fn picked_rows<G: Gpu>(
    op: &'static str,
    gpu: &G,
    (from, to): (Arg, Arg),
    picked: &Words<G>,
    rows: Rows,
    hidden: usize,
) -> Result<()> {
    let picked = G::span("row numbers", picked, 0..rows.count())?;
    let grid = ((gpu.capacity(rows) as u32).div_ceil(ROW_BLOCK / 32), 1, 1);
    let args = [gpu.counts(), which(rows), from, picked, to, Arg::U32(hidden as u32)];
    gpu.launch(op, grid, ROW_BLOCK, &args)
}

/// grads[at..at + width] += column sums of x [rows, width]. Scratch: partial sums [T / 256, N].
pub(super) fn column_sum<G: Gpu>(
    gpu: &G,
    x: &Reals<G>,
    rows: Rows,
    (at, width): (usize, usize),
    grads: &Floats<G>,
) -> Result<()> {
    check_width("column sums", width)?;
    let chunks = (gpu.capacity(rows) as u32).div_ceil(COLUMN_CHUNK);
    let partials = Arg::Ptr(gpu.scratch(chunks as usize * width)?);
    let grid = (width.div_ceil(32 * vector::<G>()) as u32, chunks, 1);
    let x = G::rows("column_sum x", x, rows.count(), width)?;
    gpu.needs(Extra { bytes: (rows.count() * width * size_of::<G::Real>()) as f64, flops: 0.0 });
    let args = [gpu.counts(), which(rows), x, partials, Arg::U32(width as u32)];
    gpu.launch("column_partials", grid, BLOCK, &args)?;
    Partials { at: partials, blocks: chunks, width }.add(gpu, &[at], grads)
}
