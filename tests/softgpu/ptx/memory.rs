//! Device memory with bounds, and a block's shared memory with a record of who touched each byte and when.

use std::collections::BTreeMap;

use bytemuck::Pod;

/// Where shared memory lies among generic addresses.
pub const SHARED_WINDOW: u64 = 0x7F00_0000_0000;
/// The first allocation's address, and the least unowned space after each allocation.
const FIRST: u64 = 0x1000_0000;
const GAP: u64 = 4096;
/// What memory holds before it is written: a NaN in every float type.
const POISON: u8 = 0xFF;

/// Global memory: allocations lie apart, so that no overrun lands in a neighbour.
#[derive(Default)]
pub struct Device {
    regions: BTreeMap<u64, Vec<u8>>,
}

impl Device {
    /// Makes a buffer of `values`; returns its address.
    pub fn upload<T: Pod>(&mut self, values: &[T]) -> u64 {
        let bytes: Vec<u8> = bytemuck::cast_slice(values).to_vec();
        let end = self.regions.last_key_value().map_or(FIRST, |(base, data)| base + data.len() as u64 + GAP);
        let base = end.next_multiple_of(256);
        self.regions.insert(base, bytes);
        base
    }

    /// Makes a buffer of `len` unwritten values.
    pub fn unwritten<T: Pod>(&mut self, len: usize) -> u64 {
        self.upload(&vec![POISON; len * size_of::<T>()])
    }

    /// The content of the buffer at `base`.
    #[track_caller]
    pub fn read<T: Pod>(&self, base: u64) -> Vec<T> {
        self.regions[&base].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    /// The `len` bytes at `address`.
    pub fn at(&mut self, address: u64, len: usize, what: &str) -> Result<&mut [u8], String> {
        let found = self.regions.range_mut(..=address).next_back().and_then(|(base, data)| {
            let start = (address - base) as usize;
            data.get_mut(start..start + len)
        });
        found.ok_or_else(|| format!("a {what} of {len} bytes at {address:#x}, which is in no buffer"))
    }
}

/// An accessor of shared memory: a thread, and how many block and warp barriers it has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub thread: u32,
    /// Block barriers passed.
    pub epoch: u32,
    /// Warp barriers passed.
    pub warp_epoch: u32,
}

impl Who {
    fn warp(self) -> u32 {
        self.thread / 32
    }

    /// Whether an access by `self` is complete and visible before one by `now`.
    fn before(self, now: Self) -> bool {
        self.thread == now.thread
            || self.epoch < now.epoch
            || (self.warp() == now.warp() && self.warp_epoch < now.warp_epoch)
    }
}

/// The record of one byte.
#[derive(Clone, Copy, Default)]
struct Byte {
    writer: Option<Who>,
    /// The latest reader, and the latest of another warp.
    readers: [Option<Who>; 2],
    /// Other lanes of `readers[0]`'s warp have read since its last barrier.
    crowd: bool,
    /// An asynchronous copy of this thread is under way to it.
    copying: Option<u32>,
}

/// A block's shared memory.
pub struct Shared {
    data: Vec<u8>,
    record: Vec<Byte>,
}

impl Shared {
    pub fn new(bytes: usize) -> Self {
        Self { data: vec![POISON; bytes], record: vec![Byte::default(); bytes] }
    }

    fn range(&self, at: u64, len: usize, what: &str) -> Result<std::ops::Range<usize>, String> {
        let start = at as usize;
        if start.checked_add(len).is_none_or(|end| end > self.data.len()) {
            let size = self.data.len();
            return Err(format!("a {what} of {len} bytes at {start} of shared memory, which has {size}"));
        }
        Ok(start..start + len)
    }

    pub fn load(&mut self, at: u64, len: usize, who: Who) -> Result<&[u8], String> {
        let range = self.range(at, len, "load")?;
        for i in range.clone() {
            let byte = &mut self.record[i];
            if let Some(thread) = byte.copying {
                return Err(format!(
                    "shared byte {i} is read, but thread {thread} has not waited for its copy"
                ));
            }
            if let Some(writer) = byte.writer.filter(|writer| !writer.before(who)) {
                let other = writer.thread;
                return Err(format!(
                    "race: shared byte {i} is read, thread {other} wrote it without a barrier between"
                ));
            }
            byte.read_by(who);
        }
        Ok(&self.data[range])
    }

    pub fn store(&mut self, at: u64, values: &[u8], who: Who) -> Result<(), String> {
        let range = self.range(at, values.len(), "store")?;
        self.written_by(range.clone(), who, None)?;
        self.data[range].copy_from_slice(values);
        Ok(())
    }

    /// Reads and writes in one step: atomics do not race with each other.
    pub fn exchange(&mut self, at: u64, len: usize) -> Result<&mut [u8], String> {
        let range = self.range(at, len, "atomic")?;
        Ok(&mut self.data[range])
    }

    /// An asynchronous copy begins: from here on it may land at any time.
    pub fn start_copy(&mut self, at: u64, len: usize, who: Who) -> Result<(), String> {
        let range = self.range(at, len, "copy")?;
        self.written_by(range.clone(), who, Some(who.thread))?;
        self.data[range].fill(POISON);
        Ok(())
    }

    /// The thread that began it has waited for it.
    pub fn end_copy(&mut self, at: u64, values: &[u8], who: Who) {
        let range = at as usize..at as usize + values.len();
        for byte in &mut self.record[range.clone()] {
            (byte.copying, byte.writer) = (None, Some(who));
        }
        self.data[range].copy_from_slice(values);
    }

    fn written_by(
        &mut self,
        range: std::ops::Range<usize>,
        who: Who,
        copying: Option<u32>,
    ) -> Result<(), String> {
        for i in range {
            let byte = &mut self.record[i];
            if let Some(thread) = byte.copying {
                return Err(format!(
                    "shared byte {i} is written while thread {thread}'s copy to it is under way"
                ));
            }
            if let Some(other) = byte.writer.filter(|writer| !writer.before(who)) {
                let other = other.thread;
                return Err(format!(
                    "race: shared byte {i} is written, as by thread {other}, without a barrier between"
                ));
            }
            if let Some(other) = byte.unordered_reader(who) {
                return Err(format!(
                    "race: shared byte {i} is written, thread {other} read it without a barrier between"
                ));
            }
            *byte = Byte { writer: Some(who), copying, ..Byte::default() };
        }
        Ok(())
    }
}

impl Byte {
    fn read_by(&mut self, who: Who) {
        match self.readers[0] {
            Some(last) if last.warp() == who.warp() => {
                let together = last.epoch == who.epoch && last.warp_epoch == who.warp_epoch;
                self.crowd = together && (self.crowd || last.thread != who.thread);
            }
            last => {
                self.readers[1] = last.or(self.readers[1]);
                self.crowd = false;
            }
        }
        self.readers[0] = Some(who);
    }

    fn unordered_reader(&self, who: Who) -> Option<u32> {
        let late = self.readers.iter().flatten().find(|reader| !reader.before(who));
        let last = self.readers[0].filter(|last| {
            // the writer itself read last, but lanes beside it did too
            self.crowd
                && last.warp() == who.warp()
                && last.epoch == who.epoch
                && last.warp_epoch == who.warp_epoch
        });
        late.or(last.as_ref()).map(|reader| reader.thread)
    }
}
