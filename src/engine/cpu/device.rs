//! The CPU as a device: its type, its memory (the host's own), and what its operations share.

use super::buffer::{Buffer, Pool};
use super::checks::{part, part_mut};
use super::machine::{Machine, Operand};
use super::widen;
use crate::Result;
use crate::engine::{Device, Elem, PackCounts, Watch};
use pulp::Arch;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// The CPU as a device that keeps weights and activations in R (f32 or bf16). Cheap to make; one a
/// process is enough, and clones share their scratch.
#[derive(Clone)]
pub struct Cpu<R = f32> {
    pub(super) machine: Machine,
    pub(super) pool: Arc<Pool>,
    /// Scratch of the embedding gradient: table rows and pack rows, to be sorted.
    pub(super) sorted: Arc<Mutex<Vec<u64>>>,
    watch: Arc<Watch>,
    kind: PhantomData<R>,
}

impl Cpu {
    /// In f32, on rayon's current thread pool, with the best instruction set that the machine has.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<R: Operand> Cpu<R> {
    /// With a given instruction set; below AVX-512 there are no dot products of bf16 pairs.
    pub fn with(arch: Arch) -> Self {
        Self {
            machine: Machine::new(arch),
            pool: Arc::default(),
            sorted: Arc::default(),
            watch: Arc::default(),
            kind: PhantomData,
        }
    }

    /// Multiplies bf16 as on machines without dot products of pairs.
    pub fn widening(self) -> Self {
        Self { machine: self.machine.widening(), ..self }
    }
}

impl<R: Operand> Default for Cpu<R> {
    fn default() -> Self {
        Self::with(Arch::new())
    }
}

impl<R: Operand> Device for Cpu<R> {
    type Real = R;
    type Buf<T: Elem> = Buffer<T>;

    fn describe(&self) -> String {
        match (R::NARROW, self.machine.has_dots()) {
            (false, _) => "cpu".into(),
            (true, true) => "cpu (bf16)".into(),
            (true, false) => "cpu (bf16, multiplied as f32)".into(),
        }
    }

    fn zeros<T: Elem>(&self, len: usize) -> Result<Buffer<T>> {
        Ok(Buffer::zeros(len))
    }

    fn upload<T: Elem>(&self, src: &[T], dst: &mut Buffer<T>, at: usize) -> Result<()> {
        part_mut("upload", dst, at, src.len())?.copy_from_slice(src);
        Ok(())
    }

    fn download<T: Elem>(&self, src: &Buffer<T>, range: Range<usize>) -> Result<Vec<T>> {
        Ok(part("download", src, range.start, range.len())?.to_vec())
    }

    fn clear<T: Elem>(&self, dst: &mut Buffer<T>, range: Range<usize>) -> Result<()> {
        part_mut("clear", dst, range.start, range.len())?.fill(T::default());
        Ok(())
    }

    fn on_host(
        &self,
        buf: &mut Buffer<f32>,
        range: Range<usize>,
        work: &mut dyn FnMut(&mut [f32]),
    ) -> Result<()> {
        work(part_mut("on_host", buf, range.start, range.len())?);
        Ok(())
    }

    fn upload_weights(&self, src: &[f32], dst: &mut Buffer<R>, at: usize) -> Result<()> {
        widen::round(src, part_mut("upload of weights", dst, at, src.len())?);
        Ok(())
    }

    fn download_weights(&self, src: &Buffer<R>, range: Range<usize>) -> Result<Vec<f32>> {
        let from = part("download of weights", src, range.start, range.len())?;
        Ok(widen::parameters(from).into_owned())
    }

    fn begin_pack(&self, _counts: &PackCounts) -> Result<()> {
        Ok(())
    }

    fn watch(&self) -> &Watch {
        &self.watch
    }

    fn non_finite(&self, values: &Buffer<R>, len: usize) -> Result<usize> {
        let values = part("non_finite", values, 0, len)?;
        Ok(values.iter().filter(|x| !x.to_f32().is_finite()).count())
    }
}
