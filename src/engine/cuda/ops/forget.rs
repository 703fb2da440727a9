//! Zeros where a step was not finite. kernels/forget.cu says why and how.

use super::super::launch::Arg;
use super::super::{Cuda, CudaBuf, Real};
use crate::Result;

const BLOCK: u32 = 256;
/// Bytes that a thread clears at once.
const VECTOR: usize = 16;
/// Vectors of 16 bytes that a thread clears, at least, before another block helps.
const EACH: usize = 16;
/// Blocks a multiprocessor, at most.
const BLOCKS: u32 = 4;

impl<R: Real> Cuda<R> {
    pub(in super::super) fn forget(
        &self,
        norm_sq: &CudaBuf<f32>,
        buffers: Vec<(&mut CudaBuf<R>, usize)>,
    ) -> Result<()> {
        self.flush()?;
        let norm_sq = norm_sq.span("norm_sq", 0..1)?.0;
        let most = BLOCKS * self.device().card.multiprocessors.max(1) as u32;
        for (buffer, len) in buffers.into_iter().filter(|(_, len)| *len > 0) {
            // the last vector of a buffer may be padding in part, which is the buffer's own
            let vectors = CudaBuf::<R>::size(len) / VECTOR;
            let blocks = (vectors.div_ceil(EACH * BLOCK as usize) as u32).clamp(1, most);
            let to = buffer.span("forget", 0..len)?.0;
            let args = [Arg::Ptr(norm_sq), Arg::Ptr(to), Arg::U32(vectors as u32)];
            self.launch_on(&self.device().compute, "forget", (blocks, 1, 1), BLOCK, 0, &args)?;
        }
        Ok(())
    }
}
