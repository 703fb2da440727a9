//! What `Engine::run` does around every operation, the same for every engine: in debug mode (`run.check`) each
//! result is looked at before the next operation starts, so that the first operation that makes a NaN or an
//! infinity is named, not the loss that it ends in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::op::{Operation, Written};
use super::{Device, Segment};
use crate::{Error, Result};

/// Whether results are looked at, and where the model stands.
#[derive(Debug, Default)]
pub struct Watch {
    on: AtomicBool,
    segment: Mutex<Option<Segment>>,
}

impl Watch {
    /// Looks at the results of all operations from now on, or no longer.
    pub fn set(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    pub fn is_set(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// The segment that the next operations belong to.
    pub(super) fn enter(&self, segment: Option<Segment>) {
        *self.segment.lock().unwrap_or_else(PoisonError::into_inner) = segment;
    }

    fn place(&self) -> String {
        match *self.segment.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(segment) => format!("{} {}: ", segment.name, segment.layer),
            None => String::new(),
        }
    }
}

/// # Errors
/// `Error::Data` when `op` wrote a value that is not finite.
pub(super) fn look<D: Device>(device: &D, op: &dyn Operation<D>) -> Result<()> {
    let Some(Written { values, rows, width }) = op.written() else { return Ok(()) };
    let looked_at = rows.count() * width;
    if looked_at == 0 {
        return Ok(());
    }
    match device.non_finite(values, looked_at)? {
        0 => Ok(()),
        found => Err(Error::data(format!(
            "{}{}: {found} of {looked_at} values are not finite: the first operation that made any; lower \
             train.lr, or look at the weights of model.path",
            device.watch().place(),
            op.name()
        ))),
    }
}
