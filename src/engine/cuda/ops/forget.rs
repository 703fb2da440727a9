//! Zeros where a step was not finite. kernels/forget.cu says why and how.

use super::super::launch::Arg;
use super::super::{Cuda, CudaBuf, Real};
use crate::Result;

const BLOCK: u32 = 256;
/// Bytes that a thread clears at once.
const VECTOR: usize = 16;
/// Vectors of 16 bytes that a thread clears, at least, before another block helps.
const EACH: usize = 16;
/// Blocks a multiprocessor for each buffer, at most.
const BLOCKS: u32 = 4;
/// Buffers of a launch.
const BUFFERS: usize = 8;

impl<R: Real> Cuda<R> {
    pub(in super::super) fn forget(
        &self,
        norm_sq: &CudaBuf<f32>,
        buffers: Vec<(&mut CudaBuf<R>, usize)>,
    ) -> Result<()> {
        self.flush()?;
        let norm_sq = norm_sq.span("norm_sq", 0..1)?.0;
        let most = BLOCKS * self.device().card.multiprocessors.max(1) as u32;
        // the last vector of a buffer may be padding in part, which is the buffer's own
        let parts = buffers
            .into_iter()
            .filter(|(_, len)| *len > 0)
            .map(|(buffer, len)| Ok((buffer.span("forget", 0..len)?.0, CudaBuf::<R>::size(len) / VECTOR)))
            .collect::<Result<Vec<_>>>()?;
        for parts in parts.chunks(BUFFERS) {
            let longest = parts.iter().map(|part| part.1).max().unwrap_or(0);
            let blocks = (longest.div_ceil(EACH * BLOCK as usize) as u32).clamp(1, most);
            let mut args = vec![Arg::Ptr(norm_sq)];
            args.extend((0..BUFFERS).map(|i| Arg::Ptr(parts.get(i).map_or(0, |part| part.0))));
            args.extend((0..BUFFERS).map(|i| Arg::U32(parts.get(i).map_or(0, |part| part.1 as u32))));
            let grid = (blocks, parts.len() as u32, 1);
            self.launch_on(&self.device().compute, "forget", grid, BLOCK, 0, &args)?;
        }
        Ok(())
    }
}
