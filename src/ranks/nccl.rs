//! Collectives between GPUs: NCCL on its own stream. A bucket's sum starts as soon as backward has released
//! it (an event from the compute stream) and runs beside the backward of the layers below; before the update,
//! the device waits for all of them (an event back); the host waits for none.
//!
//! The ranks meet through MPI: rank 0 draws NCCL's id and broadcasts its bytes. Gradients are summed
//! in f32, or in bf16 (`train.reduce`): half the bytes on the wire, with the rounding of each
//! addend and of partial sums.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use cudarc::nccl::result as nccl;
use cudarc::nccl::sys::{self, ncclDataType_t, ncclRedOp_t, ncclResult_t};

use super::reduce::{Collective, Distributed};
use super::world::World;
use crate::engine::cuda::{Cuda, CudaBuf, Device, Event};
use crate::engine::{Device as _, Elem, Real};
use crate::{Error, Result};

/// Longest id that the ranks exchange: NCCL's is 128 bytes.
const ID_BYTES: usize = 128;

impl<R: Real> Distributed for Cuda<R> {
    fn collective<'w>(&self, world: &'w World) -> Result<Box<dyn Collective<Self> + 'w>> {
        let nccl = if world.size() > 1 { Some(Nccl::new(self, world)?) } else { None };
        Ok(Box::new(Ranks { nccl, rank: world.rank() }))
    }
}

/// The ranks of a world; a world of one exchanges nothing.
struct Ranks {
    nccl: Option<Nccl>,
    rank: usize,
}

/// One communicator with its events.
struct Nccl {
    comm: sys::ncclComm_t,
    device: Arc<Device>,
    /// The compute stream has produced what is about to be sent.
    made: Event,
    /// The communication stream has done what it was given so far.
    summed: Event,
    /// Gradients in bf16 while they are summed, as long as the longest range so far; unused in f32.
    narrow: Option<CudaBuf<half::bf16>>,
}

impl Nccl {
    fn new<R: Real>(engine: &Cuda<R>, world: &World) -> Result<Self> {
        // SAFETY: opening the library runs its initialisers and nothing else.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::device(format!(
                "libnccl.so.2 cannot be loaded, and {} ranks need it: install NCCL, put it on LD_LIBRARY_PATH, \
                 or run one rank",
                world.size()
            )));
        }
        let mut id = [0u8; ID_BYTES];
        let drawn = world.leads().then(|| {
            let drawn = check("an id", nccl::get_uniqueid())?;
            id = drawn.internal.map(|byte| byte as u8);
            Ok(())
        });
        world.agree(drawn)?;
        world.broadcast_bytes(&mut id);
        let id = sys::ncclUniqueId { internal: id.map(|byte| byte as std::ffi::c_char) };
        let mut comm = std::ptr::null_mut();
        // SAFETY: `comm` outlives the call; every rank makes it with the same id.
        let joined = unsafe { nccl::comm_init_rank(&mut comm, world.size() as i32, id, world.rank() as i32) };
        check("joining the ranks", joined)?;
        let device = engine.device().clone();
        Ok(Self { comm, device, made: Event::new()?, summed: Event::new()?, narrow: None })
    }

    /// Makes later work of the communication stream wait for what the compute stream has been given.
    fn follow(&self) -> Result<()> {
        self.made.record(&self.device.compute)?;
        self.device.communication.wait(&self.made)
    }

    fn stream(&self) -> sys::cudaStream_t {
        self.device.communication.raw().cast()
    }

    /// Sums `range` of `grads` in bf16 and puts the sum back, all on the communication stream.
    fn sum_narrow<R: Real>(
        &mut self,
        engine: &Cuda<R>,
        grads: &mut CudaBuf<f32>,
        range: Range<usize>,
    ) -> Result<()> {
        let len = range.len();
        if self.narrow.as_ref().is_none_or(|buffer| buffer.len() < len) {
            // grows only in the first step; waits for work that still uses the shorter one
            self.device.communication.synchronize()?;
            self.narrow = Some(engine.zeros(len)?);
        }
        let Some(narrow) = &mut self.narrow else { return Ok(()) };
        self.made.record(&self.device.compute)?;
        self.device.communication.wait(&self.made)?;
        engine.narrow(&self.device.communication, grads, range.clone(), narrow)?;
        let (address, _) = narrow.span("the sum of gradients", 0..len)?;
        let stream = self.device.communication.raw().cast();
        all_reduce(address, len, ncclDataType_t::ncclBfloat16, self.comm, stream)?;
        engine.widen(&self.device.communication, narrow, grads, range)
    }

    /// An error that came up in the background, on any rank; does not wait.
    fn poll(&self) -> Result<()> {
        let mut state = ncclResult_t::ncclSuccess;
        // SAFETY: the communicator lives; `state` outlives the call.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.comm, &mut state) };
        for answer in [asked, state] {
            if !matches!(answer, ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress) {
                return Err(failed("another rank or the network failed", answer));
            }
        }
        Ok(())
    }
}

impl<R: Real> Collective<Cuda<R>> for Ranks {
    fn all_reduce(&mut self, engine: &Cuda<R>, grads: &mut CudaBuf<f32>, range: Range<usize>) -> Result<()> {
        let Some(nccl) = &mut self.nccl else { return Ok(()) };
        if range.is_empty() {
            return Ok(());
        }
        if engine.sums_narrow() {
            return nccl.sum_narrow(engine, grads, range);
        }
        nccl.follow()?;
        let len = range.len();
        let (address, _) = grads.span("the sum of gradients", range)?;
        all_reduce(address, len, ncclDataType_t::ncclFloat32, nccl.comm, nccl.stream())
    }

    fn reduce_scatter(
        &mut self,
        _engine: &Cuda<R>,
        grads: &mut CudaBuf<f32>,
        pieces: &[Range<usize>],
    ) -> Result<()> {
        let Some(nccl) = &self.nccl else { return Ok(()) };
        nccl.follow()?;
        let kind = ncclDataType_t::ncclFloat32;
        if let Some(len) = equal(pieces) {
            let (from, _) = grads.span("the sum of gradients", pieces[0].start..pieces[0].start + len)?;
            let (to, _) = grads.span("the sum of gradients", pieces[self.rank].clone())?;
            // SAFETY: both ranges were checked; in place, as NCCL allows it for its own piece.
            let answer = unsafe {
                let sum = ncclRedOp_t::ncclSum;
                nccl::reduce_scatter(pointer(from), pointer(to), len, kind, sum, nccl.comm, nccl.stream())
            };
            return check("the sum of gradients", answer).map(|_| ());
        }
        grouped(|| {
            for (root, piece) in pieces.iter().enumerate().filter(|(_, piece)| !piece.is_empty()) {
                let (at, _) = grads.span("the sum of gradients", piece.clone())?;
                // SAFETY: the range was checked; in place on every rank.
                let answer = unsafe {
                    let sum = ncclRedOp_t::ncclSum;
                    let (root, len) = (root as i32, piece.len());
                    nccl::reduce(pointer(at), pointer(at), len, kind, sum, root, nccl.comm, nccl.stream())
                };
                check("the sum of gradients", answer)?;
            }
            Ok(())
        })
    }

    fn all_gather(
        &mut self,
        _engine: &Cuda<R>,
        weights: &mut CudaBuf<R>,
        pieces: &[Range<usize>],
    ) -> Result<()> {
        let Some(nccl) = &self.nccl else { return Ok(()) };
        nccl.follow()?;
        let kind = kind_of::<R>();
        if let Some(len) = equal(pieces) {
            let (to, _) = weights.span("the weights of all ranks", pieces[0].start..pieces[0].start + len)?;
            let (from, _) = weights.span("the weights of all ranks", pieces[self.rank].clone())?;
            // SAFETY: both ranges were checked; in place, as NCCL allows it for its own piece.
            let answer =
                unsafe { nccl::all_gather(pointer(from), pointer(to), len, kind, nccl.comm, nccl.stream()) };
            return check("the weights of all ranks", answer).map(|_| ());
        }
        grouped(|| {
            for (root, piece) in pieces.iter().enumerate().filter(|(_, piece)| !piece.is_empty()) {
                let (at, _) = weights.span("the weights of all ranks", piece.clone())?;
                // SAFETY: the range was checked; in place on every rank.
                let answer = unsafe {
                    let (root, len) = (root as i32, piece.len());
                    nccl::broadcast(pointer(at), pointer(at), len, kind, root, nccl.comm, nccl.stream())
                };
                check("the weights of all ranks", answer)?;
            }
            Ok(())
        })
    }

    fn finish(&mut self, _engine: &Cuda<R>) -> Result<()> {
        let Some(nccl) = &self.nccl else { return Ok(()) };
        nccl.poll()?;
        nccl.summed.record(&nccl.device.communication)?;
        nccl.device.compute.wait(&nccl.summed)
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // A communicator whose work is done is destroyed; one in trouble is aborted, as destroying
        // would wait for ranks that may be gone.
        let quiet = self.poll().is_ok() && self.device.communication.synchronize().is_ok();
        // SAFETY: made once in `new`; a failure cannot be reported.
        let _ = unsafe { if quiet { nccl::comm_destroy(self.comm) } else { nccl::comm_abort(self.comm) } };
    }
}

/// NCCL's version, as 2.20.5; `None` where the library cannot be loaded.
pub fn version() -> Option<String> {
    // SAFETY: opening the library runs its initialisers and nothing else.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let code = nccl::get_nccl_version().ok()?;
    Some(format!("{}.{}.{}", code / 10_000, code / 100 % 100, code % 100))
}

fn all_reduce(
    address: u64,
    len: usize,
    kind: ncclDataType_t,
    comm: sys::ncclComm_t,
    stream: sys::cudaStream_t,
) -> Result<()> {
    let at = pointer(address);
    // SAFETY: the caller has checked the range; in place.
    let answer = unsafe { nccl::all_reduce(at, at, len, kind, ncclRedOp_t::ncclSum, comm, stream) };
    check("the sum of gradients", answer).map(|_| ())
}

/// Runs `calls` as one group of NCCL.
fn grouped(calls: impl FnOnce() -> Result<()>) -> Result<()> {
    check("a group", nccl::group_start())?;
    let done = calls();
    check("a group", nccl::group_end())?;
    done
}

/// The one length of all pieces, when they have one.
fn equal(pieces: &[Range<usize>]) -> Option<usize> {
    let len = pieces.first()?.len();
    (len > 0 && pieces.iter().all(|piece| piece.len() == len)).then_some(len)
}

fn kind_of<T: Elem>() -> ncclDataType_t {
    if size_of::<T>() == 2 { ncclDataType_t::ncclBfloat16 } else { ncclDataType_t::ncclFloat32 }
}

fn pointer(address: u64) -> *mut c_void {
    address as *mut c_void
}

fn check<T>(what: &str, answer: std::result::Result<T, nccl::NcclError>) -> Result<T> {
    answer.map_err(|e| failed(what, e.0))
}

fn failed(what: &str, code: ncclResult_t) -> Error {
    // SAFETY: NCCL's messages are static strings.
    let text = unsafe { std::ffi::CStr::from_ptr(sys::ncclGetErrorString(code)) };
    Error::device(format!("NCCL: {what}: {} ({code:?}); NCCL_DEBUG=INFO says more", text.to_string_lossy()))
}
