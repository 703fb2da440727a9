//! One device's arithmetic behind two traits, so that forward, backward and the training loop are written
//! once. `Device` is memory, transfers and packs; `Engine` is a device that runs every operation of `op`. Neither
//! knows a model. There are three: `cpu`, `cuda`, and `dry`, which only counts.
//!
//! Conventions, the same for every implementation:
//! * matrices are row-major; a linear layer's weight is [N, K] (out, in) as Hugging Face stores it;
//! * parameters and their gradients live in flat arenas, addressed by offset (`op::LinearAt`, ...);
//!   gradients are f32 and are *added to* (several packs accumulate into one step);
//! * activations are one buffer a field, allocated once at their largest size; every operation
//!   takes the row count it works on, and never touches rows after it;
//! * nothing here allocates per call in a way that the caller can see, waits for the host, or
//!   depends on how samples were packed: a row's result depends on its own sequence alone;
//! * reductions have a fixed order: the same call gives the same bits.
//!
//! Symbols T, S, M, H, I, A, D, V are those of `model/shape.rs`.

pub mod cases;
pub mod cpu;
pub mod cuda;
pub mod dry;
mod fetch;
pub mod op;
mod pack;
mod real;
pub mod stats;
mod watch;

use std::ops::Range;

use crate::Result;
pub use fetch::Fetch;
pub use op::{Cost, Operation};
pub use pack::{DeviceBatch, PackCounts, Rows};
pub use real::Real;
pub use watch::Watch;

/// What buffers hold.
pub trait Elem: bytemuck::Pod + Default + Send + Sync + std::fmt::Debug {}
impl Elem for f32 {}
impl Elem for u32 {}
impl Elem for half::bf16 {}

/// Weights or activations on a device.
pub type Reals<D> = <D as Device>::Buf<<D as Device>::Real>;
/// Gradients, moments, statistics.
pub type Floats<D> = <D as Device>::Buf<f32>;
/// Ids, row numbers, labels.
pub type Words<D> = <D as Device>::Buf<u32>;

/// A fixed sequence of operations of a model, which a device may record and replay. Equal segments
/// make the same calls with the same buffers and settings; packs and their counts may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    pub name: &'static str,
    /// Encoder layer, where it belongs to one.
    pub layer: usize,
    /// Which of the name's optional operations are in it.
    pub variant: u32,
}

/// A device's own memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// That buffers of this process hold.
    pub allocated: usize,
    pub free: usize,
}

/// A device's memory, its transfers, and the packs it is told of.
pub trait Device: Clone + 'static {
    /// Type of weights and activations.
    type Real: Real;
    /// Device memory.
    type Buf<T: Elem>: Send + 'static;
    /// Whether the device runs behind the host: a host that waits for a step's numbers before it gives the
    /// next step out leaves such a device without work.
    const ASYNCHRONOUS: bool = false;

    /// The device's name, for people.
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
    /// Hands `buf[range]` to `work` on the host and takes back what it leaves there.
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

    /// A device like this one that only counts; `None` where the memory is the host's.
    fn dry(&self) -> Option<dry::Dry<Self::Real>> {
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
    /// The engine for one model whose packs have at most `most` of everything.
    fn for_packs(&self, most: &PackCounts) -> Result<Self> {
        let _ = most;
        Ok(self.clone())
    }
    /// Announces the next pack's counts: before its operations, once a pack.
    fn begin_pack(&self, counts: &PackCounts) -> Result<()>;
    /// Runs the operations that `work` queues, or replays them where the device has recorded them. Callers use
    /// `Engine::segment`.
    fn replay(&self, segment: Segment, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let _ = segment;
        work()
    }

    // ---- debug mode --------------------------------------------------------------------------
    /// Whether results are looked at, and where the model stands.
    fn watch(&self) -> &Watch;
    /// How many of the first `len` values are NaN or infinite; waits for them.
    fn non_finite(&self, values: &Reals<Self>, len: usize) -> Result<usize>;
}

/// A device that computes one operation.
pub trait Compute<O>: Device {
    /// Computes `op`, or queues it. Callers use `Engine::run`.
    fn compute(&self, op: &mut O) -> Result<()>;
}

macro_rules! engine {
    ($($op:ident,)*) => {
        /// A device that runs every operation.
        pub trait Engine: Device $(+ for<'a> Compute<op::$op<'a, Self>>)* {
            /// Runs `op`.
            fn run<O: Operation<Self>>(&self, mut op: O) -> Result<()>
            where
                Self: Compute<O>,
            {
                self.compute(&mut op)?;
                if self.watch().is_set() { watch::look(self, &op) } else { Ok(()) }
            }

            /// Runs the operations of a segment, which `work` queues, or replays them.
            fn segment(&self, segment: Segment, mut work: impl FnMut() -> Result<()>) -> Result<()> {
                self.watch().enter(Some(segment));
                // looking at results waits for them, which a recording cannot do
                let done = if self.watch().is_set() { work() } else { self.replay(segment, &mut work) };
                self.watch().enter(None);
                done
            }
        }

        impl<D: Device $(+ for<'a> Compute<op::$op<'a, D>>)*> Engine for D {}
    };
}
op::operations!(engine);
