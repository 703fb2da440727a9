//! The GPU engine: `Backend` on one NVIDIA card in f32 or bf16, through the driver, NVRTC and
//! cuBLASLt, all found at run time, so that the one binary starts where none of them is.
//!
//! This file holds what an engine is made of; the work is next to it: `device` (context, streams,
//! events), `buffer` (memory), `upload` (packs to the device, results back), `module` (kernels
//! compiled and cached), `launch` (starting them), `gemm` (products), `graph` (recorded segments of a
//! step), `ops` (one launcher for each operation), `backend` (the trait).
//!
//! Order: every operation goes to the compute stream; packs arrive on the copy stream and sums over
//! ranks run on the communication stream, joined by events. The host waits for the device where it
//! asks for values, nowhere else.

mod buffer;
mod device;
mod launch;
mod module;
mod ops;
mod upload;

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

pub use buffer::CudaBuf;
pub use device::{Card, Device, Event, Installed, Stream, dotted, probe};
use module::Module;
use upload::{Fetches, Uploader};

use crate::Result;
use crate::engine::{Elem, PackCounts};

/// What weights and activations are on a GPU.
pub trait Real: Elem {
    /// Ending of the names of kernels that work on it.
    const SUFFIX: &'static str;
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
    fn to_f32(self) -> f32;
}

impl Real for f32 {
    const SUFFIX: &'static str = "f32";
    fn from_f32(value: f32) -> Self {
        value
    }
    fn to_f32(self) -> f32 {
        self
    }
}

impl Real for half::bf16 {
    const SUFFIX: &'static str = "bf16";
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

/// One GPU as an engine. Clones share the device and its kernels; `session` gives a model what is
/// its own (room for packs, recorded segments).
pub struct Cuda<R: Real> {
    inner: Rc<Inner>,
    kind: PhantomData<R>,
}

/// Fields are dropped in this order: the device last, as everything lives on it.
struct Inner {
    /// Packs on their way to the device.
    uploads: RefCell<Uploader>,
    /// Values on their way to the host.
    fetches: Rc<Fetches>,
    /// This pack's counts, `PackCounts` as u32.
    counts: CudaBuf<u32>,
    /// The largest pack to come; zeros where nothing was said.
    most: Cell<PackCounts>,
    module: Rc<Module>,
    device: Arc<Device>,
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
    pub fn new(ordinal: usize) -> Result<Self> {
        let device = Device::open(ordinal)?;
        let module = Rc::new(Module::load(&device)?);
        Self::with(device, module, PackCounts::default())
    }

    /// The same device for one model whose packs have at most `most` of everything.
    fn for_packs(&self, most: PackCounts) -> Result<Self> {
        Self::with(self.inner.device.clone(), self.inner.module.clone(), most)
    }

    fn with(device: Arc<Device>, module: Rc<Module>, most: PackCounts) -> Result<Self> {
        let inner = Inner {
            uploads: RefCell::new(Uploader::new(&device, &most)?),
            fetches: Rc::new(Fetches::new(&device)),
            counts: CudaBuf::zeros(&device, size_of::<PackCounts>() / size_of::<u32>())?,
            most: Cell::new(most),
            module,
            device,
        };
        Ok(Self { inner: Rc::new(inner), kind: PhantomData })
    }

    /// The GPU under this engine.
    pub fn device(&self) -> &Arc<Device> {
        &self.inner.device
    }

    /// Puts what was uploaded for this pack in front of the next operation.
    fn flush(&self) -> Result<()> {
        self.inner.uploads.borrow_mut().flush(&self.inner.device)
    }
}
