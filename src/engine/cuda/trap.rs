//! The NaN trap of debug mode: after each operation its result is looked at, so that the first
//! operation that makes a NaN or an infinity is named, not the loss that it ends in.

use std::cell::Cell;
use std::sync::Arc;

use super::device::Device;
use super::launch::Arg;
use super::upload::download_now;
use super::{Cuda, CudaBuf, Real};
use crate::engine::Rows;
use crate::{Error, Result};

/// Threads of a block of `non_finite`.
const THREADS: u32 = 256;
/// Its blocks, at most; each thread strides over the values.
const BLOCKS: u64 = 1024;

/// Whether results are looked at, and the device's counter, [1].
pub struct Trap {
    set: Cell<bool>,
    found: CudaBuf<u32>,
}

impl Trap {
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        Ok(Self { set: Cell::new(false), found: CudaBuf::zeros(device, 1)? })
    }

    pub fn set(&self, on: bool) {
        self.set.set(on);
    }

    pub fn is_set(&self) -> bool {
        self.set.get()
    }
}

impl<R: Real> Cuda<R> {
    /// Looks at `buf` [rows, width], the result of `op`, when the trap is set.
    pub(super) fn trap(&self, op: &str, buf: &CudaBuf<R>, rows: Rows, width: usize) -> Result<()> {
        let trap = &self.inner.trap;
        if !trap.is_set() || rows.count() == 0 {
            return Ok(());
        }
        let values = (rows.count() * width) as u64;
        buf.span(op, 0..values as usize)?;
        let grid = (values.div_ceil(u64::from(THREADS)).min(BLOCKS) as u32, 1, 1);
        self.launch("non_finite", grid, THREADS, 0, &[buf.at(0), Arg::U64(values), trap.found.at(0)])?;
        let (from, _) = trap.found.span("non_finite", 0..1)?;
        let found: Vec<u32> = download_now(self.device(), from, 1)?;
        if found[0] == 0 {
            return Ok(());
        }
        let place = match self.inner.segment.get() {
            Some(segment) => format!("{} {}: ", segment.name, segment.layer),
            None => String::new(),
        };
        Err(Error::data(format!(
            "{place}{op}: {} of {values} values are not finite: the first operation that made any; lower \
             train.lr, or look at the weights of model.path",
            found[0]
        )))
    }
}
