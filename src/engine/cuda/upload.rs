//! Packs to the device and results back, without waiting.
//!
//! A pack's arrays are gathered in one pinned block. One copy on the copy stream sends it while the device
//! still computes the previous pack. The compute stream then deals the arrays out to the buffers that kernels
//! (and recorded segments) know. Two blocks take turns: the host waits only when it is two packs ahead.
//! Results come back the same way: into a pinned slot, with an event that says when.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::result as driver;

use super::buffer::CudaBuf;
use super::device::{Device, Event, check};
use crate::engine::{Elem, Fetch, PackCounts};
use crate::{Error, Result};

/// Places in a block start at multiples of this many bytes.
const GRAIN: usize = 16;

/// Bytes of a block when the size of a model's packs is unknown.
const SMALL_BLOCK: usize = 1 << 20;

/// Host memory that the device copies from and to directly.
pub struct Pinned {
    start: *mut u8,
    bytes: usize,
    device: Arc<Device>,
}

impl Pinned {
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        device.bind()?;
        // SAFETY: freed once, in `drop`.
        let start: *mut c_void =
            check("pinned host memory", unsafe { driver::malloc_host(bytes.max(1), 0) })?;
        // SAFETY: `bytes` were just allocated; zeroed, so that every byte read later was written.
        unsafe { std::ptr::write_bytes(start.cast::<u8>(), 0, bytes) };
        Ok(Self { start: start.cast(), bytes, device: device.clone() })
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated and zeroed with this length; borrowed from the one owner.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated once in `new`; the driver waits for copies that use it.
            let _ = unsafe { driver::free_host(self.start.cast()) };
        }
    }
}

/// One of the two blocks.
struct Block {
    host: Pinned,
    staged: CudaBuf<u32>,
    /// The copy to the device is done: `host` may be written.
    copied: Event,
    /// The parts were dealt out: `staged` may be written.
    dealt: Event,
}

impl Block {
    fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        Ok(Self {
            host: Pinned::new(device, bytes)?,
            staged: CudaBuf::zeros(device, bytes / size_of::<u32>())?,
            copied: Event::new()?,
            dealt: Event::new()?,
        })
    }
}

/// A part of a block and where it goes.
struct Part {
    at: usize,
    bytes: usize,
    to: u64,
}

/// The two blocks and the parts gathered so far.
pub struct Uploader {
    blocks: [Block; 2],
    /// Block in use.
    turn: usize,
    /// Parts gathered since `begin`; `None` when no pack is open.
    open: Option<Vec<Part>>,
    used: usize,
}

impl Uploader {
    /// Bytes of a block for packs of at most `most`.
    fn block_bytes(most: &PackCounts) -> usize {
        let (t, s, m) = (most.tokens as usize, most.sequences as usize, most.masked as usize);
        // ids, positions, segments, samples of rows; starts, samples, labels, factors, documents, groups,
        // targets of sequences; rows and labels of masked tokens; counts; each part rounded up to GRAIN
        let words = 4 * t + 7 * (s + 1) + 2 * m;
        let need = words * size_of::<u32>() + size_of::<PackCounts>() + 16 * GRAIN;
        if t == 0 { SMALL_BLOCK } else { need.next_multiple_of(GRAIN) }
    }

    /// Words of the device's memory that each of the blocks takes.
    pub fn block_words(most: &PackCounts) -> [usize; 2] {
        [Self::block_bytes(most) / size_of::<u32>(); 2]
    }

    /// Room for packs of at most `most`.
    pub fn new(device: &Arc<Device>, most: &PackCounts) -> Result<Self> {
        let bytes = Self::block_bytes(most);
        let blocks = [Block::new(device, bytes)?, Block::new(device, bytes)?];
        Ok(Self { blocks, turn: 0, open: None, used: 0 })
    }

    /// Opens the next pack; the host waits when it is two packs ahead.
    pub fn begin(&mut self, device: &Device) -> Result<()> {
        self.flush(device)?;
        self.turn = 1 - self.turn;
        self.blocks[self.turn].copied.synchronize()?;
        self.open = Some(Vec::new());
        self.used = 0;
        Ok(())
    }

    /// Takes `bytes` for device address `to`; false when no pack is open or the block is full.
    pub fn gather(&mut self, bytes: &[u8], to: u64) -> bool {
        let Some(parts) = &mut self.open else { return false };
        let block = &mut self.blocks[self.turn];
        let Some(room) = block.host.bytes_mut().get_mut(self.used..self.used + bytes.len()) else {
            return false;
        };
        room.copy_from_slice(bytes);
        parts.push(Part { at: self.used, bytes: bytes.len(), to });
        self.used = (self.used + bytes.len()).next_multiple_of(GRAIN);
        true
    }

    /// Sends what was gathered and deals it out, in the order of the compute stream.
    pub fn flush(&mut self, device: &Device) -> Result<()> {
        let Some(parts) = self.open.take() else { return Ok(()) };
        let block = &self.blocks[self.turn];
        let bytes = &block.host.bytes()[..self.used.min(block.host.bytes)];
        let (staged, _) = block.staged.span("a pack's block", 0..block.staged.len())?;
        device.copy.wait(&block.dealt)?;
        // SAFETY: the pinned bytes are not written before `copied` is done; the block on the device
        // is as large.
        let answer = unsafe { driver::memcpy_htod_async(staged, bytes, device.copy.raw()) };
        check("copying a pack to the device", answer)?;
        block.copied.record(&device.copy)?;
        device.compute.wait(&block.copied)?;
        for part in &parts {
            let from = staged + part.at as u64;
            // SAFETY: both ranges were checked when they were gathered.
            let answer =
                unsafe { driver::memcpy_dtod_async(part.to, from, part.bytes, device.compute.raw()) };
            check("dealing out a pack", answer)?;
        }
        block.dealt.record(&device.compute)
    }
}

/// Copies host values to the device and waits: for weights and other things that are not part of every pack.
pub fn upload_now<T: Elem>(device: &Device, src: &[T], to: u64) -> Result<()> {
    if src.is_empty() {
        return Ok(());
    }
    // SAFETY: the caller has checked the range; `src` outlives the wait.
    check("copying to the device", unsafe { driver::memcpy_htod_async(to, src, device.compute.raw()) })?;
    device.compute.synchronize()
}

/// Copies device values to the host and waits for what the compute stream was given so far.
pub fn download_now<T: Elem>(device: &Device, from: u64, len: usize) -> Result<Vec<T>> {
    let mut values = vec![T::default(); len];
    if len > 0 {
        // SAFETY: the caller has checked the range; `values` outlives the wait.
        let answer = unsafe { driver::memcpy_dtoh_async(&mut values[..], from, device.compute.raw()) };
        check("copying to the host", answer)?;
        device.compute.synchronize()?;
    }
    Ok(values)
}

/// A pinned slot with the event that says its values are there.
struct Slot {
    host: Pinned,
    arrived: Event,
}

/// Slots that are free, kept so that none is made while training.
pub struct Fetches {
    free: RefCell<Vec<Slot>>,
    device: Arc<Device>,
}

/// Bytes of a slot: statistics and norms are far smaller.
const SLOT: usize = 4096;

impl Fetches {
    pub fn new(device: &Arc<Device>) -> Self {
        Self { free: RefCell::default(), device: device.clone() }
    }

    /// Starts copying `len` values from device address `from`.
    pub fn start(self: &Rc<Self>, from: u64, len: usize) -> Result<Fetch> {
        let bytes = len * size_of::<f32>();
        if bytes > SLOT {
            return Err(Error::device(format!("{len} values fetched at once: at most {}", SLOT / 4)));
        }
        let slot = match self.free.borrow_mut().pop() {
            Some(slot) => slot,
            None => Slot { host: Pinned::new(&self.device, SLOT)?, arrived: Event::new()? },
        };
        // SAFETY: the slot holds `bytes` and is not read before `arrived`; the caller has checked
        // the device range.
        let answer = unsafe {
            let host: &mut [u8] = std::slice::from_raw_parts_mut(slot.host.start, bytes);
            driver::memcpy_dtoh_async(host, from, self.device.compute.raw())
        };
        check("copying to the host", answer)?;
        slot.arrived.record(&self.device.compute)?;
        let home = self.clone();
        Ok(Fetch::later(move || {
            slot.arrived.synchronize()?;
            let values = bytemuck::cast_slice(&slot.host.bytes()[..bytes]).to_vec(); // pinned memory is page-aligned
            home.free.borrow_mut().push(slot);
            Ok(values)
        }))
    }

    /// Checks the range and starts.
    pub fn of(self: &Rc<Self>, src: &CudaBuf<f32>, range: Range<usize>) -> Result<Fetch> {
        let len = range.len();
        let (from, _) = src.span("fetch", range)?;
        self.start(from, len)
    }
}
