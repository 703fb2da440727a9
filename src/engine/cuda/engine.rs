//! The GPU engine: the device with its kernels, which all models share, and each model's own part.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::buffer::CudaBuf;
use super::device::Device;
use super::gemm::Gemm;
use super::graph::Graphs;
use super::module::Module;
use super::tables::Tables;
use super::upload::{Fetches, Uploader};
use crate::Result;
use crate::engine::{PackCounts, Real, Watch};

/// Words on the device for a pack's counts, and for the check of results.
const COUNTS: usize = size_of::<PackCounts>() / size_of::<u32>();
const FOUND: usize = 1;

/// Words of the buffers that the engine makes for one model, whose packs have at most the counts `most`.
pub fn pack_buffers(most: &PackCounts) -> Vec<usize> {
    [&Uploader::block_words(most)[..], &[COUNTS, FOUND]].concat()
}

/// One GPU as an engine. Clones share the device and its kernels; `for_packs` gives a model its own part
/// (room for packs, recorded segments).
pub struct Cuda<R: Real> {
    pub(super) inner: Rc<Inner>,
    kind: PhantomData<R>,
}

/// Settings of an engine, the same for all models on it.
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
pub(super) struct Shared {
    pub(super) gemm: RefCell<Gemm>,
    pub(super) module: Module,
    pub(super) settings: Settings,
    pub(super) device: Arc<Device>,
}

/// One model's own part.
pub(super) struct Inner {
    /// Recorded segments.
    pub(super) graphs: RefCell<Graphs>,
    /// Packs on their way to the device.
    pub(super) uploads: RefCell<Uploader>,
    /// Values on their way to the host.
    pub(super) fetches: Rc<Fetches>,
    /// Temporary memory of operations, largest last (`ops`).
    pub(super) scratch: RefCell<Vec<CudaBuf<f32>>>,
    /// This pack's counts on the device, `PackCounts` as u32 [8].
    pub(super) counts: CudaBuf<u32>,
    /// The same on the host.
    pub(super) pack: Cell<PackCounts>,
    /// Whether every operation's result is checked, while `run.check` is due.
    pub(super) watch: Watch,
    /// How many values of a result are not finite, [1].
    pub(super) found: CudaBuf<u32>,
    /// Counts of the largest pack to come; zeros if they are unknown.
    pub(super) most: PackCounts,
    /// Tables of the optimiser's launches.
    pub(super) tables: Tables,
    pub(super) shared: Rc<Shared>,
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

    /// The same device for one model, whose packs have at most the counts `most`.
    pub(super) fn with_room(&self, most: PackCounts) -> Result<Self> {
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
            tables: Tables::default(),
            shared,
        };
        Ok(Self { inner: Rc::new(inner), kind: PhantomData })
    }

    /// The GPU under this engine.
    pub fn device(&self) -> &Arc<Device> {
        &self.inner.shared.device
    }

    /// Segments recorded so far.
    pub fn recorded_segments(&self) -> usize {
        self.inner.graphs.borrow().recorded()
    }

    /// Whether gradients are summed over ranks in bf16.
    pub fn sums_narrow(&self) -> bool {
        self.inner.shared.settings.narrow_sums
    }

    /// Queues what was uploaded for this pack before the next operation.
    pub(super) fn flush(&self) -> Result<()> {
        self.inner.uploads.borrow_mut().flush(self.device())
    }
}
