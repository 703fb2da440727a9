//! What a device is: memory, transfers, and the packs announced to it. It knows no operation.

use std::ops::Range;

use super::card::Card;
use super::counts::{PackCounts, Rows};
use super::fetch::Fetch;
use super::real::{Elem, Real};
use super::segment::Segment;
use super::watch::Watch;
use crate::Result;

/// Weights or activations on a device.
pub type Reals<D> = <D as Device>::Buf<<D as Device>::Real>;
/// Gradients, moments, statistics.
pub type Floats<D> = <D as Device>::Buf<f32>;
/// Ids, row numbers, labels.
pub type Words<D> = <D as Device>::Buf<u32>;

/// A device's own memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Held by buffers of this process.
    pub allocated: usize,
    pub free: usize,
}

/// A device's memory, its transfers, and the packs announced to it.
pub trait Device: Clone + 'static {
    /// Type of weights and activations.
    type Real: Real;
    /// Device memory.
    type Buf<T: Elem>: Send + 'static;
    /// Whether the device is asynchronous: if the host waits for a step's numbers before it queues the next
    /// step, such a device has nothing to do.
    const ASYNCHRONOUS: bool = false;

    /// The device's name, as the user sees it.
    fn describe(&self) -> String;

    // ---- memory ------------------------------------------------------------------------------
    /// A zeroed buffer of `len` elements.
    fn zeros<T: Elem>(&self, len: usize) -> Result<Self::Buf<T>>;
    /// Copies `src` to `dst[at..at + src.len()]`.
    fn upload<T: Elem>(&self, src: &[T], dst: &mut Self::Buf<T>, at: usize) -> Result<()>;
    /// Copies `src[range]` to the host; waits for it.
    fn download<T: Elem>(&self, src: &Self::Buf<T>, range: Range<usize>) -> Result<Vec<T>>;
    /// Sets `dst[range]` to zero.
    fn clear<T: Elem>(&self, dst: &mut Self::Buf<T>, range: Range<usize>) -> Result<()>;
    /// Lets `work` change `buf[range]` on the host.
    fn on_host(
        &self,
        buf: &mut Self::Buf<f32>,
        range: Range<usize>,
        work: &mut dyn FnMut(&mut [f32]),
    ) -> Result<()>;
    /// Host f32 values to weights at `at`.
    fn upload_weights(&self, src: &[f32], dst: &mut Self::Buf<Self::Real>, at: usize) -> Result<()>;
    /// Weights to host f32 values.
    fn download_weights(&self, src: &Self::Buf<Self::Real>, range: Range<usize>) -> Result<Vec<f32>>;

    /// Sets `dst` [rows, width] to zero.
    fn clear_rows(&self, dst: &mut Self::Buf<Self::Real>, rows: Rows, width: usize) -> Result<()> {
        self.clear(dst, 0..rows.count() * width)
    }
    /// Starts bringing `src[range]` to the host, without waiting for it (some values, not arenas).
    fn fetch(&self, src: &Self::Buf<f32>, range: Range<usize>) -> Result<Fetch> {
        Ok(Fetch::here(self.download(src, range)?))
    }

    /// The device's memory; `None` where it is the host's.
    fn memory(&self) -> Result<Option<Memory>> {
        Ok(None)
    }

    /// The card, so that the counting engine can stand in for it; `None` if the device is not a GPU.
    fn gpu(&self) -> Option<Card> {
        None
    }

    /// Seconds that the device takes for each of `times` calls of `work`, one after the other.
    fn time(&self, times: usize, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
        let once = |_| {
            let start = std::time::Instant::now();
            work()?;
            Ok(start.elapsed().as_secs_f64())
        };
        (0..times).map(once).collect()
    }

    // ---- packs -------------------------------------------------------------------------------
    /// The engine for one model, whose packs have at most the counts `most`.
    fn for_packs(&self, most: &PackCounts) -> Result<Self> {
        let _ = most;
        Ok(self.clone())
    }
    /// Announces the next pack's counts: before its operations, once a pack.
    fn begin_pack(&self, counts: &PackCounts) -> Result<()>;
    /// Runs the operations that `work` queues, or replays them if the device has recorded them. Callers use
    /// `Engine::segment`.
    fn replay(&self, segment: Segment, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let _ = segment;
        work()
    }

    // ---- debug mode --------------------------------------------------------------------------
    /// Whether results are checked, and which segment is running.
    fn watch(&self) -> &Watch;
    /// How many of the first `len` values are NaN or infinite; waits for them.
    fn non_finite(&self, values: &Reals<Self>, len: usize) -> Result<usize>;
}
