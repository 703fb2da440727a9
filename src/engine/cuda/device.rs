//! One GPU: the context, the three streams that a step runs on, events between them, and the count of
//! allocated bytes. It is also the only place that checks whether CUDA's libraries are present: the bindings
//! panic if a library is missing, so nothing may call them before `probe`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use cudarc::driver::result::{self as driver, DriverError};
use cudarc::driver::sys;

use crate::engine::Card;
use crate::{Error, Result};

/// Oldest supported driver interface (CUDA 12.0).
const OLDEST_DRIVER: i32 = 12_000;

/// Oldest GPU that the kernels are compiled for: bf16 tensor cores and asynchronous copies came
/// with compute capability 8.0 (Ampere).
const OLDEST_ARCH: (i32, i32) = (8, 0);

/// What `probe` found.
#[derive(Clone, Debug)]
pub struct Installed {
    /// Driver interface, as 12080 for 12.8.
    pub driver: i32,
    /// GPUs that this process sees.
    pub gpus: usize,
}

/// Looks for the driver and the two libraries that one GPU needs, once a process.
///
/// # Errors
/// `Error::Device` that names what is missing and how to get it.
pub fn probe() -> Result<Installed> {
    static FOUND: OnceLock<std::result::Result<Installed, String>> = OnceLock::new();
    FOUND.get_or_init(look).clone().map_err(Error::device)
}

fn look() -> std::result::Result<Installed, String> {
    let instead = "or use run.device = \"cpu\"";
    // SAFETY: opening these libraries runs their initialisers and nothing else.
    let present = unsafe {
        [
            ("libcuda (the NVIDIA driver)", cudarc::driver::sys::is_culib_present()),
            ("libcublasLt (CUDA toolkit)", cudarc::cublaslt::sys::is_culib_present()),
            ("libnvrtc (CUDA toolkit)", cudarc::nvrtc::sys::is_culib_present()),
        ]
    };
    if let Some((name, _)) = present.iter().find(|(_, found)| !found) {
        return Err(format!(
            "no CUDA here: {name} cannot be loaded; install it, put it on LD_LIBRARY_PATH, {instead}"
        ));
    }
    driver::init()
        .map_err(|e| format!("no GPU here: the CUDA driver does not start: {}; {instead}", describe(e)))?;
    let mut version = 0;
    // SAFETY: `version` outlives the call.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(describe)?;
    if version < OLDEST_DRIVER {
        return Err(format!(
            "the NVIDIA driver offers CUDA {}, this program needs {}: update the driver, {instead}",
            dotted(version),
            dotted(OLDEST_DRIVER)
        ));
    }
    let gpus = driver::device::get_count().map_err(describe)?;
    if gpus < 1 {
        return Err(format!(
            "no GPU here: the CUDA driver finds none; check CUDA_VISIBLE_DEVICES, {instead}"
        ));
    }
    Ok(Installed { driver: version, gpus: gpus as usize })
}

/// 12080 as 12.8.
pub fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn describe(error: DriverError) -> String {
    let text = error.error_string().map(|s| s.to_string_lossy().into_owned());
    format!("{:?} ({})", error.0, text.unwrap_or_default())
}

/// The driver's answer as a `Result`; an error says `what` was being done.
pub(super) fn check<T>(what: &str, answer: std::result::Result<T, DriverError>) -> Result<T> {
    answer.map_err(|e| Error::device(format!("CUDA: {what}: {}", describe(e))))
}

/// A stream of the device: work on it runs in order.
pub struct Stream(sys::CUstream);

/// A point in a stream that another stream or the host can wait for. Timing is off unless asked for.
pub struct Event(sys::CUevent);

// SAFETY: the driver's handles may be used from any thread; `Device::bind` makes its context current.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}
// SAFETY: as above.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Stream {
    fn new() -> Result<Self> {
        check("a stream", driver::stream::create(driver::stream::StreamKind::NonBlocking)).map(Self)
    }

    pub(crate) fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// Later work of this stream waits for `event`; the host does not.
    pub fn wait(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both handles live as long as their owners.
        check("waiting for an event", unsafe { driver::stream::wait_event(self.0, event.0, flags) })
    }

    /// The host waits for all work of this stream.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the handle lives.
        check("the work of a stream", unsafe { driver::stream::synchronize(self.0) })
    }
}

impl Event {
    pub fn new() -> Result<Self> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        check("an event", driver::event::create(flags)).map(Self)
    }

    /// An event that records its time.
    pub fn timed() -> Result<Self> {
        check("an event", driver::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)).map(Self)
    }

    /// Seconds from `earlier` to this event; both were made by `timed` and are done.
    pub fn seconds_since(&self, earlier: &Self) -> Result<f64> {
        // SAFETY: both handles live.
        let milliseconds = unsafe { driver::event::elapsed(earlier.0, self.0) };
        Ok(f64::from(check("the time between events", milliseconds)?) / 1e3)
    }

    /// Marks the work that `stream` has been given so far.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both handles live.
        check("recording an event", unsafe { driver::event::record(self.0, stream.0) })
    }

    /// The host waits for what was recorded; if nothing was, this returns at once.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the handle lives.
        check("waiting for the device", unsafe { driver::event::synchronize(self.0) })
    }

    /// Whether what was recorded is done; does not wait.
    pub fn done(&self) -> Result<bool> {
        // SAFETY: the handle lives.
        match unsafe { driver::event::query(self.0) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(e) => check("asking the device", Err(e)),
        }
    }
}

/// One GPU of this process.
pub struct Device {
    pub ordinal: usize,
    pub card: Card,
    context: sys::CUcontext,
    raw: sys::CUdevice,
    /// Kernels and products.
    pub compute: Stream,
    /// Uploads of packs.
    pub copy: Stream,
    /// Sums over ranks.
    pub communication: Stream,
    allocated: AtomicUsize,
}

// SAFETY: the context may be made current on any thread; `bind` does so before each use.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// Opens GPU `ordinal` and makes it this thread's.
    ///
    /// # Errors
    /// `Error::Device` when there is no such GPU or it is too old.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let installed = probe()?;
        if ordinal >= installed.gpus {
            return Err(Error::device(format!(
                "GPU {ordinal} was asked for, but this process sees {}",
                installed.gpus
            )));
        }
        let raw = check("the GPU", driver::device::get(ordinal as i32))?;
        let card = card(raw)?;
        if card.arch < OLDEST_ARCH {
            return Err(Error::device(format!(
                "{}: compute capability {}.{}, at least {}.{} is needed (bf16 tensor cores); use run.device = \
                 \"cpu\"",
                card.name, card.arch.0, card.arch.1, OLDEST_ARCH.0, OLDEST_ARCH.1
            )));
        }
        // SAFETY: `raw` is a device; the context is released once, in `drop`.
        let context = check("the GPU's context", unsafe { driver::primary_ctx::retain(raw) })?;
        // SAFETY: the context lives until `drop`.
        check("the GPU's context", unsafe { driver::ctx::set_current(context) })?;
        let (compute, copy, communication) = (Stream::new()?, Stream::new()?, Stream::new()?);
        let allocated = AtomicUsize::new(0);
        Ok(Arc::new(Self { ordinal, card, context, raw, compute, copy, communication, allocated }))
    }

    /// Makes the context current on this thread.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        check("the GPU's context", unsafe { driver::ctx::set_current(self.context) })
    }

    /// Bytes that buffers hold.
    pub fn allocated(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Free and total bytes, as the driver counts them (other processes included).
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        check("the GPU's memory", driver::mem_get_info())
    }

    /// `bytes` of zeroed device memory; the host waits for it (buffers are only made at the start).
    pub(super) fn allocate(&self, bytes: usize) -> Result<sys::CUdeviceptr> {
        if bytes == 0 {
            return Ok(0);
        }
        self.bind()?;
        // SAFETY: the address is handed to one owner, which frees it once.
        let address = unsafe { driver::malloc_sync(bytes) }.map_err(|e| self.no_memory(bytes, e))?;
        // SAFETY: the range was just allocated.
        check("clearing memory", unsafe { driver::memset_d8_async(address, 0, bytes, self.compute.0) })?;
        self.compute.synchronize()?;
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
        Ok(address)
    }

    fn no_memory(&self, bytes: usize, error: DriverError) -> Error {
        let gb = |n: usize| n as f64 / 1e9;
        let free = driver::mem_get_info().map_or(0, |(free, _)| free);
        Error::device(format!(
            "{}: {:.2} GB cannot be allocated ({:.2} GB are in use here, {:.2} GB are free): lower \
             train.pack_tokens ({})",
            self.card.name,
            gb(bytes),
            gb(self.allocated()),
            gb(free),
            describe(error)
        ))
    }

    /// Frees what `allocate` returned.
    pub(super) fn free(&self, address: sys::CUdeviceptr, bytes: usize) {
        if bytes == 0 || self.bind().is_err() {
            return;
        }
        // SAFETY: the owner frees its own allocation once, and nothing that uses it is queued later. The
        // driver waits for queued work by itself. A failure here cannot be reported.
        if unsafe { driver::free_sync(address) }.is_ok() {
            self.allocated.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the owner destroys its handle once; a failure cannot be reported.
        let _ = unsafe { driver::stream::destroy(self.0) };
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: as for streams.
        let _ = unsafe { driver::event::destroy(self.0) };
    }
}

/// Destroys the streams, then releases the context. Fields are dropped only after this runs, which would be
/// too late for the streams.
impl Drop for Device {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        for stream in [&mut self.compute, &mut self.copy, &mut self.communication] {
            let raw = std::mem::replace(&mut stream.0, std::ptr::null_mut());
            // SAFETY: destroyed once: `Stream::drop` meets the null stream, which the driver refuses.
            let _ = unsafe { driver::stream::destroy(raw) };
        }
        // SAFETY: retained once in `open`.
        let _ = unsafe { driver::primary_ctx::release(self.raw) };
    }
}

fn card(raw: sys::CUdevice) -> Result<Card> {
    use sys::CUdevice_attribute as A;
    let attribute = |which: A| {
        // SAFETY: `raw` is a device.
        check("a property of the GPU", unsafe { driver::device::get_attribute(raw, which) })
    };
    let clock = f64::from(attribute(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?) * 1e3;
    let bytes = f64::from(attribute(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?) / 8.0;
    Ok(Card {
        name: check("the GPU's name", driver::device::get_name(raw))?,
        arch: (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // SAFETY: `raw` is a device.
        memory: check("the GPU's memory", unsafe { driver::device::total_mem(raw) })?,
        shared: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        bandwidth: 2.0 * clock * bytes,
        clock: f64::from(attribute(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?) * 1e3,
    })
}
