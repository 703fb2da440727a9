//! Starting a kernel: its name, its arguments, the compute stream.

use std::ffi::c_void;

use cudarc::driver::result as driver;

use super::device::{Stream, check};
use super::{Cuda, Real};
use crate::engine::Rows;
use crate::{Error, Result};

/// Threads of a block, at most.
const MOST_THREADS: u32 = 1024;

/// The count rounded up to what a recorded step is launched for.
pub fn rounded_rows(rows: Rows) -> usize {
    rows.count().next_multiple_of(match rows {
        Rows::Tokens(_) => 256,
        Rows::Sequences(_) => 64,
        Rows::Masked(_) => 128,
    })
}

/// A kernel's argument, in the order of its parameters.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    /// A device address.
    Ptr(u64),
    U32(u32),
    F32(f32),
    U64(u64),
}

impl Arg {
    fn address(&self) -> *mut c_void {
        let place: *const c_void = match self {
            Self::Ptr(v) | Self::U64(v) => std::ptr::from_ref(v).cast(),
            Self::U32(v) => std::ptr::from_ref(v).cast(),
            Self::F32(v) => std::ptr::from_ref(v).cast(),
        };
        place.cast_mut()
    }
}

impl<R: Real> Cuda<R> {
    /// Launches `<op>_<f32|bf16>` on the compute stream with blocks of `block` threads. A grid
    /// without blocks does nothing.
    pub(super) fn launch(
        &self,
        op: &'static str,
        grid: (u32, u32, u32),
        block: u32,
        shared_bytes: u32,
        args: &[Arg],
    ) -> Result<()> {
        self.flush()?;
        self.launch_on(&self.device().compute, &format!("{op}_{}", R::NAME), grid, block, shared_bytes, args)
    }

    /// The same for the kernel of this very name and on a stream of choice.
    pub(super) fn launch_on(
        &self,
        stream: &Stream,
        name: &str,
        grid: (u32, u32, u32),
        block: u32,
        shared_bytes: u32,
        args: &[Arg],
    ) -> Result<()> {
        if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 {
            return Ok(());
        }
        let card = &self.device().card;
        if block == 0 || block > MOST_THREADS || shared_bytes as usize > card.shared {
            return Err(Error::device(format!(
                "{name}: blocks of {block} threads with {shared_bytes} bytes of shared memory do not fit {}",
                card.name
            )));
        }
        let function = self.inner.shared.module.function(name, shared_bytes)?;
        let mut places: Vec<*mut c_void> = args.iter().map(Arg::address).collect();
        // SAFETY: the function lives as long as its module; the launcher passes what the kernel's
        // parameter list asks for; the arguments are copied before the call returns.
        let answer = unsafe {
            driver::launch_kernel(function, grid, (block, 1, 1), shared_bytes, stream.raw(), &mut places)
        };
        check(name, answer)
    }

    /// Rows that a launch covers: the count, rounded up so that few shapes occur and a recorded step
    /// can be replayed for the next pack, never more than buffers hold. Without `expect` the count
    /// itself. It is the capacity argument of kernels.
    pub(super) fn capacity(&self, rows: Rows) -> usize {
        let most = match rows {
            Rows::Tokens(_) => self.inner.most.tokens,
            Rows::Sequences(_) => self.inner.most.sequences,
            Rows::Masked(_) => self.inner.most.masked,
        };
        rounded_rows(rows).min(most as usize).max(rows.count())
    }

    /// The address of this pack's `PackCounts`: a kernel's first argument.
    pub(super) fn counts(&self) -> Arg {
        self.inner.counts.at(0)
    }
}
