//! What the launchers in `ops` ask of a device: addresses, scratch, and kernels and products on its compute
//! stream. Two devices implement it: `Cuda`, which launches, and `Dry` (engine/dry.rs), which counts. So what
//! is counted is what is launched.

use std::ffi::c_void;
use std::ops::Range;

use cudarc::driver::result as driver;

pub use super::arg::Arg;
use super::buffer::CudaBuf;
use super::device::{Stream, check};
use super::engine::Cuda;
use super::gemm::{Operands, Product};
use super::upload::download_now;
use crate::engine::{Card, Compute, Device, Elem, Floats, Operation, PackCounts, Real, Reals, Rows};
use crate::{Error, Result};

/// Threads of a block, at most.
const MOST_THREADS: u32 = 1024;

/// A launch's blocks along x, y and z.
pub type Grid = (u32, u32, u32);

/// The count rounded up to what a recorded step is launched for.
fn rounded_rows(rows: Rows) -> usize {
    rows.count().next_multiple_of(match rows {
        Rows::Tokens(_) => 256,
        Rows::Sequences(_) => 64,
        Rows::Masked(_) => 128,
    })
}

/// One launch of a kernel.
pub struct Launch<'a> {
    /// The kernel's whole name.
    pub name: &'a str,
    pub grid: Grid,
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared: u32,
    pub args: &'a [Arg],
}

/// What a kernel needs beyond its operation's minimum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extra {
    /// Extra bytes that it moves.
    pub bytes: f64,
    /// Floating-point operations that it repeats.
    pub flops: f64,
}

/// A device whose operations are launches of the kernels in kernels/.
pub trait Gpu: Device {
    /// The address of `buf[range]`.
    ///
    /// # Errors
    /// `Error::Device` when the range does not fit: the caller's mistake, reported here before the device
    /// trips over it.
    fn span<T: Elem>(what: &str, buf: &Self::Buf<T>, range: Range<usize>) -> Result<Arg>;
    /// Elements of a buffer.
    fn elements<T: Elem>(buf: &Self::Buf<T>) -> usize;
    fn card(&self) -> &Card;
    /// Counts of the largest pack to come; zeros if they are unknown.
    fn most(&self) -> PackCounts;
    /// The address of this pack's `PackCounts`: a kernel's first argument.
    fn counts(&self) -> Arg;
    /// Puts a launch on the compute stream. A grid without blocks does nothing.
    fn enqueue(&self, launch: Launch<'_>) -> Result<()>;
    /// Puts a matrix product on the compute stream.
    fn product(&self, product: Product, operands: Operands) -> Result<()>;
    /// Address of at least `floats` f32 for the operation under way, aligned to 16 bytes; the next operation
    /// may overwrite them.
    fn scratch(&self, floats: usize) -> Result<u64>;
    /// The address of `words` on the device, uploaded when they are new and kept.
    fn table(&self, words: Vec<u32>) -> Result<u64>;
    /// Debug mode: fails unless the word at `address`, a count that a kernel has written, is `expected`.
    fn expect_count(&self, what: &str, address: u64, expected: usize) -> Result<()>;
    /// Queues an operation that is part of another.
    fn part<O: Launches<Self> + Operation<Self>>(&self, mut op: O) -> Result<()> {
        op.launches(self)
    }
    /// Notes what this operation's launches need beyond its minimum.
    fn needs(&self, extra: Extra) {
        let _ = extra;
    }

    /// Launches `<op>_<f32|bf16>` with blocks of `block` threads and no dynamic shared memory.
    fn launch(&self, op: &str, grid: Grid, block: u32, args: &[Arg]) -> Result<()> {
        self.launch_sharing(op, grid, (block, 0), args)
    }

    /// Launches `<op>_<f32|bf16>` with blocks of `block` threads and `shared` bytes of dynamic shared memory.
    fn launch_sharing(&self, op: &str, grid: Grid, (block, shared): (u32, u32), args: &[Arg]) -> Result<()> {
        self.enqueue(Launch { name: &format!("{op}_{}", Self::Real::NAME), grid, block, shared, args })
    }

    /// Rows that a launch covers: the count, rounded up so that few shapes occur and a recorded step can be
    /// replayed for the next pack, never more than buffers hold. It is the capacity argument of kernels.
    fn capacity(&self, rows: Rows) -> usize {
        let most = match rows {
            Rows::Tokens(_) => self.most().tokens,
            Rows::Sequences(_) => self.most().sequences,
            Rows::Masked(_) => self.most().masked,
        };
        rounded_rows(rows).min(most as usize).max(rows.count())
    }

    /// The first `rows` rows of activations of `width`.
    fn rows(what: &str, buf: &Reals<Self>, rows: usize, width: usize) -> Result<Arg> {
        Self::span(what, buf, 0..rows * width)
    }

    /// `len` gradients at `at`.
    fn gradient(what: &str, grads: &Floats<Self>, at: usize, len: usize) -> Result<Arg> {
        Self::span(what, grads, at..at + len)
    }
}

/// An operation as launches: implemented in `ops`, for every `Gpu`.
pub trait Launches<G: Gpu> {
    /// Queues the operation.
    fn launches(&mut self, gpu: &G) -> Result<()>;
}

impl<R: Real, O: Launches<Self>> Compute<O> for Cuda<R> {
    fn compute(&self, op: &mut O) -> Result<()> {
        op.launches(self)
    }
}

impl<R: Real> Gpu for Cuda<R> {
    fn span<T: Elem>(what: &str, buf: &CudaBuf<T>, range: Range<usize>) -> Result<Arg> {
        Ok(Arg::Ptr(buf.span(what, range)?.0))
    }

    fn elements<T: Elem>(buf: &CudaBuf<T>) -> usize {
        buf.len()
    }

    fn card(&self) -> &Card {
        &self.device().card
    }

    fn most(&self) -> PackCounts {
        self.inner.most
    }

    fn counts(&self) -> Arg {
        self.inner.counts.at(0)
    }

    fn enqueue(&self, launch: Launch<'_>) -> Result<()> {
        self.flush()?;
        self.enqueue_on(&self.device().compute, launch)
    }

    fn product(&self, product: Product, operands: Operands) -> Result<()> {
        self.flush()?;
        self.inner.shared.gemm.borrow_mut().run(product, operands)
    }

    /// The operations of a model run one after another on one stream, so all share one buffer. Earlier,
    /// smaller buffers are kept: recorded segments hold their addresses.
    fn scratch(&self, floats: usize) -> Result<u64> {
        let mut all = self.inner.scratch.borrow_mut();
        if all.last().is_none_or(|last| last.len() < floats) {
            all.push(CudaBuf::zeros(self.device(), scratch_floats(floats))?);
        }
        Ok(match all.last() {
            Some(last) => last.span("scratch", 0..floats)?.0,
            None => 0, // nothing was asked for
        })
    }

    fn table(&self, words: Vec<u32>) -> Result<u64> {
        self.inner.tables.get(self.device(), words)
    }

    fn expect_count(&self, what: &str, address: u64, expected: usize) -> Result<()> {
        let found: Vec<u32> = download_now(self.device(), address, 1)?;
        if found[0] as usize == expected {
            return Ok(());
        }
        Err(Error::device(format!(
            "{what} chose {} tokens where the host counted {expected}: the batch was counted with another rule, \
             epoch or vocabulary",
            found[0]
        )))
    }
}

/// Scratch grows by at least this many floats: growing allocates, which waits for the device.
const SCRATCH_GRAIN: usize = 1 << 20;

/// Floats of the scratch that is allocated when `floats` are asked for.
pub fn scratch_floats(floats: usize) -> usize {
    floats.next_multiple_of(SCRATCH_GRAIN)
}

impl<R: Real> Cuda<R> {
    /// Puts a launch on `stream`.
    pub(super) fn enqueue_on(&self, stream: &Stream, launch: Launch<'_>) -> Result<()> {
        let Launch { name, grid, block, shared, args } = launch;
        if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 {
            return Ok(());
        }
        let card = self.card();
        if block == 0 || block > MOST_THREADS || shared as usize > card.shared {
            return Err(Error::device(format!(
                "{name}: blocks of {block} threads with {shared} bytes of shared memory do not fit {}",
                card.name
            )));
        }
        let function = self.inner.shared.module.function(name, shared)?;
        function.signature.check(args)?;
        let mut places: Vec<*mut c_void> = args.iter().map(Arg::address).collect();
        // SAFETY: the function lives as long as its module; the arguments are as many and of the kinds that
        // its parameter list asks for; they are copied before the call returns.
        let answer = unsafe {
            driver::launch_kernel(function.raw, grid, (block, 1, 1), shared, stream.raw(), &mut places)
        };
        check(name, answer)
    }
}
