//! Debug mode (`run.check`): whether the result of every operation is checked before the next one starts. The
//! error then names the first operation that makes a NaN or an infinity, not the loss where it ends up.
//! `Engine::run` does the check.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::segment::Segment;

/// Whether results are checked, and which segment is running.
#[derive(Debug, Default)]
pub struct Watch {
    on: AtomicBool,
    segment: Mutex<Option<Segment>>,
}

impl Watch {
    /// Checks the results of all operations from now on, or stops checking.
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

    /// `backward of layer 3: `, for a message.
    pub(super) fn place(&self) -> String {
        match *self.segment.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(segment) => format!("{} {}: ", segment.name, segment.layer),
            None => String::new(),
        }
    }
}
