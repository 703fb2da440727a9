//! One launcher for each operation of `Backend`, with the name and the parameters of the trait's
//! method: grid, block and arguments of its kernels. Launches cover `Cuda::capacity` rows; kernels
//! read the true count from `Cuda::counts`.

mod attention;
mod forget;
mod losses;
mod mask;
mod optimiser;
mod rows;
mod tables;

pub use attention::{attention_scratch, dq_sums};
pub use optimiser::Tables;

use super::launch::Arg;
use super::{Cuda, CudaBuf, Real};
use crate::Result;
use crate::engine::Dropout;

/// Floats that scratch grows by, at least: growing is an allocation, which waits for the device.
const SCRATCH_GRAIN: usize = 1 << 20;

/// Bytes of scratch that a model's first operations allocate; large vocabularies take some more, and
/// `attention_scratch` is in addition.
pub(super) fn scratch_bytes() -> usize {
    CudaBuf::<f32>::size(SCRATCH_GRAIN)
}

impl<R: Real> Cuda<R> {
    /// Address of at least `floats` f32 for the operation under way, aligned to 16 bytes; the next
    /// operation may overwrite them. The operations of a model follow each other on one stream, so
    /// all share them. Smaller ones that came before are kept: recorded segments know their address.
    pub(super) fn scratch(&self, floats: usize) -> Result<u64> {
        let mut all = self.inner.scratch.borrow_mut();
        if all.last().is_none_or(|last| last.len() < floats) {
            all.push(CudaBuf::zeros(self.device(), floats.next_multiple_of(SCRATCH_GRAIN))?);
        }
        Ok(match all.last() {
            Some(last) => last.span("scratch", 0..floats)?.0,
            None => 0, // nothing was asked for
        })
    }
}

/// A dropout site as the last four arguments of a kernel.
fn dropout_args(drop: Dropout) -> [Arg; 4] {
    [Arg::U32(drop.threshold), Arg::F32(drop.scale), Arg::U32(drop.seed), Arg::U32(drop.site)]
}
