//! `Device` on a GPU: memory, transfers, packs, recorded segments and the check of results.

use std::ops::Range;

use cudarc::driver::result as driver;

use super::buffer::CudaBuf;
use super::device::{Event, check};
use super::engine::Cuda;
use super::launch::{Arg, Gpu, Launch};
use super::upload::{download_now, upload_now};
use crate::Result;
use crate::engine::{Card, Device, Elem, Fetch, Memory, PackCounts, Real, Rows, Segment, Watch};

/// Weights that are converted and copied at once, to and from the host.
const CHUNK: usize = 1 << 20;
/// Threads of a block of `non_finite`.
const THREADS: u32 = 256;
/// Its blocks, at most; each thread strides over the values.
const BLOCKS: u64 = 1024;

impl<R: Real> Device for Cuda<R> {
    type Real = R;
    type Buf<T: Elem> = CudaBuf<T>;
    const ASYNCHRONOUS: bool = true;

    fn describe(&self) -> String {
        let card = &self.inner.shared.device.card;
        format!("cuda:{} ({}, {})", self.inner.shared.device.ordinal, card.name, R::NAME)
    }

    // ---- memory ------------------------------------------------------------------------------
    fn zeros<T: Elem>(&self, len: usize) -> Result<CudaBuf<T>> {
        CudaBuf::zeros(&self.inner.shared.device, len)
    }

    fn upload<T: Elem>(&self, src: &[T], dst: &mut CudaBuf<T>, at: usize) -> Result<()> {
        let (to, _) = dst.span("upload", at..at + src.len())?;
        if src.is_empty() || self.inner.uploads.borrow_mut().gather(bytemuck::cast_slice(src), to) {
            return Ok(());
        }
        self.flush()?;
        upload_now(&self.inner.shared.device, src, to)
    }

    fn download<T: Elem>(&self, src: &CudaBuf<T>, range: Range<usize>) -> Result<Vec<T>> {
        self.flush()?;
        let len = range.len();
        let (from, _) = src.span("download", range)?;
        download_now(&self.inner.shared.device, from, len)
    }

    fn clear<T: Elem>(&self, dst: &mut CudaBuf<T>, range: Range<usize>) -> Result<()> {
        self.flush()?;
        let (at, bytes) = dst.span("clear", range)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range was checked.
        let answer = unsafe { driver::memset_d8_async(at, 0, bytes, self.inner.shared.device.compute.raw()) };
        check("clear", answer)
    }

    fn clear_rows(&self, dst: &mut CudaBuf<R>, rows: Rows, width: usize) -> Result<()> {
        self.clear(dst, 0..self.capacity(rows) * width)
    }

    fn on_host(
        &self,
        buf: &mut CudaBuf<f32>,
        range: Range<usize>,
        work: &mut dyn FnMut(&mut [f32]),
    ) -> Result<()> {
        let mut values = self.download(buf, range.clone())?;
        work(&mut values);
        self.upload(&values, buf, range.start)
    }

    fn upload_weights(&self, src: &[f32], dst: &mut CudaBuf<R>, at: usize) -> Result<()> {
        self.flush()?;
        for (i, part) in src.chunks(CHUNK).enumerate() {
            let values: Vec<R> = part.iter().map(|v| R::from_f32(*v)).collect();
            let start = at + i * CHUNK;
            let (to, _) = dst.span("upload of weights", start..start + part.len())?;
            upload_now(&self.inner.shared.device, &values, to)?;
        }
        Ok(())
    }

    fn download_weights(&self, src: &CudaBuf<R>, range: Range<usize>) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(range.len());
        for start in range.clone().step_by(CHUNK) {
            let values = self.download(src, start..(start + CHUNK).min(range.end))?;
            all.extend(values.into_iter().map(R::to_f32));
        }
        Ok(all)
    }

    fn fetch(&self, src: &CudaBuf<f32>, range: Range<usize>) -> Result<Fetch> {
        self.flush()?;
        self.inner.fetches.of(src, range)
    }

    fn memory(&self) -> Result<Option<Memory>> {
        let device = &self.inner.shared.device;
        let (free, _) = device.memory()?;
        Ok(Some(Memory { allocated: device.allocated(), free }))
    }

    fn gpu(&self) -> Option<Card> {
        Some(self.card().clone())
    }

    fn time(&self, times: usize, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
        self.flush()?;
        let compute = &self.inner.shared.device.compute;
        let marks = (0..=times).map(|_| Event::timed()).collect::<Result<Vec<_>>>()?;
        marks[0].record(compute)?;
        for mark in &marks[1..] {
            work()?;
            mark.record(compute)?;
        }
        marks[times].synchronize()?;
        marks.windows(2).map(|pair| pair[1].seconds_since(&pair[0])).collect()
    }

    // ---- packs -------------------------------------------------------------------------------
    fn for_packs(&self, most: &PackCounts) -> Result<Self> {
        self.with_room(*most)
    }

    fn begin_pack(&self, counts: &PackCounts) -> Result<()> {
        let (to, bytes) = self.inner.counts.span("counts", 0..self.inner.counts.len())?;
        let mut uploads = self.inner.uploads.borrow_mut();
        uploads.begin(&self.inner.shared.device)?;
        uploads.gather(&bytemuck::bytes_of(counts)[..bytes], to);
        self.inner.pack.set(*counts);
        Ok(())
    }

    fn replay(&self, segment: Segment, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.flush()?;
        let pack = self.inner.pack.get();
        let rounded = [
            Rows::Tokens(pack.tokens as usize),
            Rows::Sequences(pack.sequences as usize),
            Rows::Masked(pack.masked as usize),
        ]
        .map(|rows| self.capacity(rows));
        self.inner.graphs.borrow_mut().run(self.device(), (segment, rounded), work)
    }

    // ---- debug mode --------------------------------------------------------------------------
    fn watch(&self) -> &Watch {
        &self.inner.watch
    }

    fn non_finite(&self, values: &CudaBuf<R>, len: usize) -> Result<usize> {
        values.span("checked values", 0..len)?;
        let found = &self.inner.found;
        let grid = ((len as u64).div_ceil(u64::from(THREADS)).min(BLOCKS) as u32, 1, 1);
        let name = format!("non_finite_{}", R::NAME);
        let args = [values.at(0), Arg::U64(len as u64), found.at(0)];
        self.enqueue(Launch { name: &name, grid, block: THREADS, shared: 0, args: &args })?;
        let (from, _) = found.span("non_finite", 0..1)?;
        let found: Vec<u32> = download_now(self.device(), from, 1)?;
        Ok(found[0] as usize)
    }
}
