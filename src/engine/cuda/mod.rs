//! The GPU engine, on one NVIDIA card in f32 or bf16, through the driver, NVRTC and
//! cuBLASLt, all found at run time, so that the one binary starts where none of them is.
//!
//! This file holds what an engine is made of; the work is next to it: `device` (context, streams,
//! events), `buffer` (memory), `upload` (packs to the device, results back), `module` (kernels
//! compiled and cached), `launch` (starting them), `signatures` (what they take), `gemm` (products),
//! `graph` (recorded segments of a step), `ops` (one launcher for each operation), `memory` (the `Device`
//! trait).
//!
//! Order: every operation goes to the compute stream; packs arrive on the copy stream and sums over
//! ranks run on the communication stream, joined by events. The host waits for the device where it
//! asks for values, nowhere else.

mod buffer;
mod convert;
mod device;
pub mod gemm;
mod graph;
pub mod launch;
mod memory;
mod module;
mod ops;
pub mod signatures;
mod tables;
mod upload;

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

pub use buffer::CudaBuf;
pub use device::{Card, Device, Event, Installed, Stream, dotted, probe};
pub use gemm::version as cublaslt_version;
pub use module::version as nvrtc_version;
pub use ops::dq_sums;
pub use tables::KEPT as TABLES_KEPT;

use gemm::Gemm;
use graph::Graphs;
use module::Module;
use upload::{Fetches, Uploader};

use crate::Result;
use crate::engine::{PackCounts, Real, Watch};

/// Words of a pack's counts on the device, and of the look at results.
const COUNTS: usize = size_of::<PackCounts>() / size_of::<u32>();
const FOUND: usize = 1;

/// Words of the buffers that the engine makes for one model whose packs have at most `most` of everything.
pub fn pack_buffers(most: &PackCounts) -> Vec<usize> {
    [&Uploader::block_words(most)[..], &[COUNTS, FOUND]].concat()
}

/// One GPU as an engine. Clones share the device and its kernels; `session` gives a model what is
/// its own (room for packs, recorded segments).
pub struct Cuda<R: Real> {
    inner: Rc<Inner>,
    kind: PhantomData<R>,
}

/// How an engine works, the same for all models on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Record the segments of a training step and replay them.
    pub graph: bool,
    /// Sum gradients over ranks in bf16.
    pub narrow_sums: bool,
    /// Folder for compiled kernels; `None` is $XDG_CACHE_HOME/ctune-dist or ~/.cache/ctune-dist.
    pub kernel_cache: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { graph: true, narrow_sums: false, kernel_cache: None }
    }
}

/// What all models on a device share. Fields are dropped in this order: the device last, as
/// everything lives on it.
struct Shared {
    gemm: RefCell<Gemm>,
    module: Module,
    settings: Settings,
    device: Arc<Device>,
}

/// What one model has to itself.
struct Inner {
    /// Recorded segments.
    graphs: RefCell<Graphs>,
    /// Packs on their way to the device.
    uploads: RefCell<Uploader>,
    /// Values on their way to the host.
    fetches: Rc<Fetches>,
    /// What operations use for a moment, largest last (`ops`).
    scratch: RefCell<Vec<CudaBuf<f32>>>,
    /// This pack's counts on the device, `PackCounts` as u32 [8].
    counts: CudaBuf<u32>,
    /// The same on the host.
    pack: Cell<PackCounts>,
    /// Whether every operation's result is looked at, while `run.check` is due.
    watch: Watch,
    /// How many values of a result are not finite, [1].
    found: CudaBuf<u32>,
    /// The largest pack to come; zeros where nothing was said.
    most: PackCounts,
    /// Tables of the optimiser's launches.
    tables: tables::Tables,
    shared: Rc<Shared>,
}

impl<R: Real> Clone for Cuda<R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), kind: PhantomData }
    }
}

impl<R: Real> Cuda<R> {
    /// The engine on GPU `ordinal` of this process.
    ///
    /// # Errors
    /// `Error::Device` when there is no usable GPU or its kernels do not compile.
    pub fn new(ordinal: usize, settings: Settings) -> Result<Self> {
        let device = Device::open(ordinal)?;
        let module = Module::load(&device, settings.kernel_cache.as_deref())?;
        let gemm = RefCell::new(Gemm::new(&device)?);
        Self::with(Rc::new(Shared { gemm, module, settings, device }), PackCounts::default())
    }

    /// The same device for one model whose packs have at most `most` of everything.
    fn with_room(&self, most: PackCounts) -> Result<Self> {
        Self::with(self.inner.shared.clone(), most)
    }

    fn with(shared: Rc<Shared>, most: PackCounts) -> Result<Self> {
        let device = &shared.device;
        let inner = Inner {
            graphs: RefCell::new(Graphs::new(shared.settings.graph)),
            uploads: RefCell::new(Uploader::new(device, &most)?),
            fetches: Rc::new(Fetches::new(device)),
            scratch: RefCell::default(),
            counts: CudaBuf::zeros(device, COUNTS)?,
            pack: Cell::default(),
            watch: Watch::default(),
            found: CudaBuf::zeros(device, FOUND)?,
            most,
            tables: tables::Tables::default(),
            shared,
        };
        Ok(Self { inner: Rc::new(inner), kind: PhantomData })
    }

    /// The GPU under this engine.
    pub fn device(&self) -> &Arc<Device> {
        &self.inner.shared.device
    }

    /// Segments that were recorded so far.
    pub fn recorded_segments(&self) -> usize {
        self.inner.graphs.borrow().recorded()
    }

    /// Whether gradients are summed over ranks in bf16.
    pub fn sums_narrow(&self) -> bool {
        self.inner.shared.settings.narrow_sums
    }

    /// Puts what was uploaded for this pack in front of the next operation.
    fn flush(&self) -> Result<()> {
        self.inner.uploads.borrow_mut().flush(self.device())
    }
}
