//! f32 to bf16 and back, on any stream: for gradients that are summed over ranks in bf16.

use std::ops::Range;

use super::buffer::CudaBuf;
use super::device::Stream;
use super::engine::Cuda;
use super::launch::{Arg, Grid, Launch};
use crate::Result;
use crate::engine::Real;

/// Threads of a block; each takes 8 values.
const THREADS: usize = 256;
const VALUES: usize = 8;

impl<R: Real> Cuda<R> {
    /// to[..range.len()] = from[range], rounded to nearest.
    pub(crate) fn narrow(
        &self,
        stream: &Stream,
        from: &CudaBuf<f32>,
        range: Range<usize>,
        to: &mut CudaBuf<half::bf16>,
    ) -> Result<()> {
        let len = range.len();
        from.span("gradients in bf16", range.clone())?;
        to.span("gradients in bf16", 0..len)?;
        let args = [from.at(range.start), to.at(0), Arg::U64(len as u64)];
        self.enqueue_on(stream, Launch { name: "narrow", ..launch(len, &args) })
    }

    /// to[range] = from[..range.len()].
    pub(crate) fn widen(
        &self,
        stream: &Stream,
        from: &CudaBuf<half::bf16>,
        to: &mut CudaBuf<f32>,
        range: Range<usize>,
    ) -> Result<()> {
        let len = range.len();
        to.span("gradients in f32", range.clone())?;
        from.span("gradients in f32", 0..len)?;
        let args = [from.at(0), to.at(range.start), Arg::U64(len as u64)];
        self.enqueue_on(stream, Launch { name: "widen", ..launch(len, &args) })
    }
}

/// A launch over `len` values, still to be named.
fn launch(len: usize, args: &[Arg]) -> Launch<'_> {
    let grid: Grid = (len.div_ceil(THREADS * VALUES) as u32, 1, 1);
    Launch { name: "", grid, block: THREADS as u32, shared: 0, args }
}
