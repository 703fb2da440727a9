//! The engine that only counts: buffers are lengths, operations add up launches, bytes, floating-point
//! operations and live memory. It runs the real model, optimiser and packs through the GPU engine's own
//! launchers (`cuda::ops`), so it counts exactly what a GPU of the same description is given. `plan`, a run's
//! memory forecast and the step line's FLOPs come from it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{AddAssign, Range};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::cuda::gemm::{Operands, Product, WORKSPACE};
use super::cuda::launch::{Arg, Extra, Gpu, Launch, Launches, scratch_floats};
use super::cuda::{CudaBuf, TABLES_KEPT, pack_buffers, signatures};
use super::op::{Kind, Operation};
use super::{Card, Compute, Device, Elem, Memory, PackCounts, Real, Rows, Watch};
use crate::{Error, Result};

/// Elements that would be on a device; they count as live memory until dropped.
pub struct DryBuf<T: Elem> {
    len: usize,
    live: Arc<Live>,
    kind: PhantomData<T>,
}

/// Bytes of all buffers: now, and at their peak.
#[derive(Debug, Default)]
struct Live {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl<T: Elem> DryBuf<T> {
    fn new(len: usize, live: &Arc<Live>) -> Self {
        let now = live.now.fetch_add(CudaBuf::<T>::size(len), Ordering::Relaxed) + CudaBuf::<T>::size(len);
        live.most.fetch_max(now, Ordering::Relaxed);
        Self { len, live: live.clone(), kind: PhantomData }
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        CudaBuf::<T>::size(self.len)
    }

    fn check(&self, what: &str, range: &Range<usize>) -> Result<()> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::device(format!(
                "{what}: elements {range:?} do not fit a buffer of {}",
                self.len
            )));
        }
        Ok(())
    }
}

impl<T: Elem> Drop for DryBuf<T> {
    fn drop(&mut self) {
        self.live.now.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

/// The totals of the operations of one name and kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Tally {
    /// Operations.
    pub runs: usize,
    /// Kernels and products that they launched.
    pub launches: usize,
    /// The fewest bytes that they had to move.
    pub least_bytes: f64,
    /// Bytes that their kernels move.
    pub bytes: f64,
    /// Floating-point operations that the mathematics needs.
    pub least_flops: f64,
    /// Floating-point operations that are done: rows up to the capacity, scores computed again.
    pub flops: f64,
    /// Instructions of the ordinary lanes.
    pub lanes: f64,
}

impl Tally {
    /// The totals of `times` times as many packs.
    pub fn times(self, times: f64) -> Self {
        Self {
            runs: (self.runs as f64 * times).round() as usize,
            launches: (self.launches as f64 * times).round() as usize,
            least_bytes: self.least_bytes * times,
            bytes: self.bytes * times,
            least_flops: self.least_flops * times,
            flops: self.flops * times,
            lanes: self.lanes * times,
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.launches += other.launches;
        self.least_bytes += other.least_bytes;
        self.bytes += other.bytes;
        self.least_flops += other.least_flops;
        self.flops += other.flops;
        self.lanes += other.lanes;
    }
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// By the operation's name and kind; products by the shape that was launched.
    pub operations: BTreeMap<(&'static str, Kind), Tally>,
    /// Launches by the kernel's name; products are `product`, cleared ranges `clear`.
    pub launches: BTreeMap<String, usize>,
}

impl Counts {
    /// The sum over all operations.
    pub fn total(&self) -> Tally {
        let mut sum = Tally::default();
        self.operations.values().for_each(|tally| sum += *tally);
        sum
    }

    fn launch(&mut self, name: &str) {
        match self.launches.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(self.launches.insert(name.to_owned(), 1)),
        }
    }
}

/// The operation under way.
#[derive(Default)]
struct Open {
    tally: Tally,
    /// Shape of the product that it launched.
    product: Option<[usize; 3]>,
    /// It consists of other operations, which were counted.
    parts: bool,
}

/// What all models on the device share.
struct Shared {
    card: Card,
    /// Operations go through their launchers; otherwise they are only added up, whatever their sizes.
    launches: bool,
    live: Arc<Live>,
    counts: RefCell<Counts>,
    open: RefCell<Open>,
    /// The workspace of products.
    _workspace: DryBuf<u32>,
}

/// One model's own part, as in `Cuda`.
struct Own {
    most: PackCounts,
    scratch: RefCell<Vec<DryBuf<f32>>>,
    tables: RefCell<Vec<(Vec<u32>, DryBuf<u32>)>>,
    watch: Watch,
    _packs: Vec<DryBuf<u32>>,
}

/// A GPU that is not there. Cheap to clone; clones count together.
pub struct Dry<R: Real> {
    shared: Rc<Shared>,
    own: Rc<Own>,
    kind: PhantomData<R>,
}

impl<R: Real> Clone for Dry<R> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), own: self.own.clone(), kind: PhantomData }
    }
}

impl<R: Real> Dry<R> {
    /// A GPU as `card` describes it.
    pub fn new(card: Card) -> Self {
        Self::made(card, true)
    }

    /// No device in particular: operations are added up, and sizes that no kernel takes count as well.
    pub fn operations_only() -> Self {
        Self::made(Card::default(), false)
    }

    fn made(card: Card, launches: bool) -> Self {
        let live = Arc::default();
        let workspace = DryBuf::new(WORKSPACE / size_of::<u32>(), &live);
        let (counts, open) = Default::default();
        let shared = Shared { card, launches, live, counts, open, _workspace: workspace };
        Self::with(Rc::new(shared), PackCounts::default())
    }

    fn with(shared: Rc<Shared>, most: PackCounts) -> Self {
        let packs = pack_buffers(&most).into_iter().map(|len| DryBuf::new(len, &shared.live)).collect();
        let own = Own {
            most,
            scratch: RefCell::default(),
            tables: RefCell::default(),
            watch: Watch::default(),
            _packs: packs,
        };
        Self { shared, own: Rc::new(own), kind: PhantomData }
    }

    /// What was counted since the last call.
    pub fn take_counts(&self) -> Counts {
        self.shared.counts.take()
    }

    /// The most bytes that all buffers have taken together.
    pub fn most_bytes(&self) -> usize {
        self.shared.live.most.load(Ordering::Relaxed)
    }

    /// The bytes that all buffers take now.
    pub fn bytes(&self) -> usize {
        self.shared.live.now.load(Ordering::Relaxed)
    }
}

impl<R: Real> Device for Dry<R> {
    type Real = R;
    type Buf<T: Elem> = DryBuf<T>;

    fn describe(&self) -> String {
        format!("{} ({}), counted only", self.shared.card.name, R::NAME)
    }

    fn zeros<T: Elem>(&self, len: usize) -> Result<DryBuf<T>> {
        Ok(DryBuf::new(len, &self.shared.live))
    }

    fn upload<T: Elem>(&self, src: &[T], dst: &mut DryBuf<T>, at: usize) -> Result<()> {
        dst.check("upload", &(at..at + src.len()))
    }

    fn download<T: Elem>(&self, src: &DryBuf<T>, range: Range<usize>) -> Result<Vec<T>> {
        src.check("download", &range)?;
        Ok(vec![T::default(); range.len()])
    }

    fn clear<T: Elem>(&self, dst: &mut DryBuf<T>, range: Range<usize>) -> Result<()> {
        dst.check("clear", &range)?;
        if !range.is_empty() {
            let bytes = (range.len() * size_of::<T>()) as f64;
            let mut counts = self.shared.counts.borrow_mut();
            counts.launch("clear");
            *counts.operations.entry(("clear", Kind::Rows)).or_default() +=
                Tally { runs: 1, launches: 1, bytes, ..Tally::default() };
        }
        Ok(())
    }

    fn clear_rows(&self, dst: &mut DryBuf<R>, rows: Rows, width: usize) -> Result<()> {
        self.clear(dst, 0..self.capacity(rows) * width)
    }

    fn on_host(
        &self,
        buf: &mut DryBuf<f32>,
        range: Range<usize>,
        work: &mut dyn FnMut(&mut [f32]),
    ) -> Result<()> {
        work(&mut self.download(buf, range)?);
        Ok(())
    }

    fn upload_weights(&self, src: &[f32], dst: &mut DryBuf<R>, at: usize) -> Result<()> {
        dst.check("upload of weights", &(at..at + src.len()))
    }

    fn download_weights(&self, src: &DryBuf<R>, range: Range<usize>) -> Result<Vec<f32>> {
        src.check("download of weights", &range)?;
        Ok(vec![0.0; range.len()])
    }

    fn memory(&self) -> Result<Option<Memory>> {
        let allocated = self.bytes();
        Ok(Some(Memory { allocated, free: self.shared.card.memory.saturating_sub(allocated) }))
    }

    fn gpu(&self) -> Option<Card> {
        Some(self.shared.card.clone())
    }

    fn for_packs(&self, most: &PackCounts) -> Result<Self> {
        Ok(Self::with(self.shared.clone(), *most))
    }

    fn begin_pack(&self, _counts: &PackCounts) -> Result<()> {
        Ok(())
    }

    fn watch(&self) -> &Watch {
        &self.own.watch
    }

    fn non_finite(&self, values: &DryBuf<R>, len: usize) -> Result<usize> {
        values.check("checked values", &(0..len))?;
        Ok(0)
    }
}

impl<R: Real, O: Launches<Self> + Operation<Self>> Compute<O> for Dry<R> {
    fn compute(&self, op: &mut O) -> Result<()> {
        let cost = op.cost();
        *self.shared.open.borrow_mut() = Open::default();
        if self.shared.launches {
            op.launches(self)?;
        }
        let Open { mut tally, product, parts } = self.shared.open.take();
        if parts {
            return Ok(());
        }
        tally += Tally {
            runs: 1,
            launches: 0,
            least_bytes: cost.bytes,
            bytes: cost.bytes,
            least_flops: cost.flops,
            flops: if product.is_some() { 0.0 } else { cost.flops },
            lanes: cost.lanes,
        };
        let kind = product.map_or(cost.kind, Kind::Product);
        *self.shared.counts.borrow_mut().operations.entry((op.name(), kind)).or_default() += tally;
        Ok(())
    }
}

impl<R: Real> Gpu for Dry<R> {
    /// Addresses only tell whether there is a buffer.
    fn span<T: Elem>(what: &str, buf: &DryBuf<T>, range: Range<usize>) -> Result<Arg> {
        buf.check(what, &range)?;
        Ok(Arg::Ptr(1))
    }

    fn elements<T: Elem>(buf: &DryBuf<T>) -> usize {
        buf.len
    }

    fn card(&self) -> &Card {
        &self.shared.card
    }

    fn most(&self) -> PackCounts {
        self.own.most
    }

    fn counts(&self) -> Arg {
        Arg::Ptr(1)
    }

    fn enqueue(&self, launch: Launch<'_>) -> Result<()> {
        let (x, y, z) = launch.grid;
        signatures::of(launch.name)?.check(launch.args)?;
        if x > 0 && y > 0 && z > 0 {
            self.shared.counts.borrow_mut().launch(launch.name);
            self.shared.open.borrow_mut().tally.launches += 1;
        }
        Ok(())
    }

    fn product(&self, product: Product, _operands: Operands) -> Result<()> {
        if product.rows > 0 {
            self.shared.counts.borrow_mut().launch("product");
            let mut open = self.shared.open.borrow_mut();
            let shape = product.shape();
            open.tally.launches += 1;
            open.tally.flops += 2.0 * shape.iter().map(|&n| n as f64).product::<f64>();
            open.product = Some(shape);
        }
        Ok(())
    }

    fn scratch(&self, floats: usize) -> Result<u64> {
        let mut all = self.own.scratch.borrow_mut();
        if all.last().is_none_or(|last| last.len < floats) {
            all.push(DryBuf::new(scratch_floats(floats), &self.shared.live));
        }
        Ok(1)
    }

    fn table(&self, words: Vec<u32>) -> Result<u64> {
        let mut tables = self.own.tables.borrow_mut();
        if !tables.iter().any(|table| table.0 == words) {
            if tables.len() == TABLES_KEPT {
                tables.remove(0);
            }
            let buffer = DryBuf::new(words.len(), &self.shared.live);
            tables.push((words, buffer));
        }
        Ok(1)
    }

    fn expect_count(&self, _what: &str, _address: u64, _expected: usize) -> Result<()> {
        Ok(())
    }

    fn part<O: Launches<Self> + Operation<Self>>(&self, mut op: O) -> Result<()> {
        self.compute(&mut op)?;
        self.shared.open.borrow_mut().parts = true;
        Ok(())
    }

    fn needs(&self, extra: Extra) {
        let mut open = self.shared.open.borrow_mut();
        open.tally.bytes += extra.bytes;
        open.tally.flops += extra.flops;
    }
}
