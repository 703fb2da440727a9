//! Segments of a step as CUDA graphs. A model announces each fixed sequence of operations ("layer 3
//! backward"); the first time it runs as it is (plans are made, kernels looked up), the second time
//! it is recorded, and from then on one call replays it: launching hundreds of small kernels one by
//! one would leave a fast card waiting for the host.
//!
//! Launches cover rounded-up shapes (`Cuda::capacity`) and kernels read the true counts on the
//! device, so one recording serves every pack of like size; other sizes get recordings of their own.
//! With and without graphs the same launches run in the same order: the same bits.

use std::collections::HashMap;

use cudarc::driver::result as driver;
use cudarc::driver::sys::{self, CUgraphExec};

use super::device::{Device, check};
use crate::Result;
use crate::engine::Segment;

/// A segment at rounded counts of tokens, sequences and masked tokens.
pub type Key = (Segment, [usize; 3]);

/// Where a segment stands.
enum Seen {
    /// Ran once.
    Once,
    Recorded(CUgraphExec),
}

/// The recordings of one model.
pub struct Graphs {
    enabled: bool,
    segments: HashMap<Key, Seen>,
    /// The segment that is being recorded.
    recording: Option<Key>,
}

impl Graphs {
    pub fn new(enabled: bool) -> Self {
        Self { enabled, segments: HashMap::new(), recording: None }
    }

    /// True when the segment was replayed; else the caller runs its operations and calls `end`.
    pub fn begin(&mut self, device: &Device, key: Key) -> Result<bool> {
        if !self.enabled {
            return Ok(false);
        }
        match self.segments.get(&key) {
            None => {
                self.segments.insert(key, Seen::Once);
                Ok(false)
            }
            Some(Seen::Once) => {
                let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
                // SAFETY: the stream lives; `end` ends the capture.
                check("recording", unsafe { driver::stream::begin_capture(device.compute.raw(), mode) })?;
                self.recording = Some(key);
                Ok(false)
            }
            Some(Seen::Recorded(graph)) => {
                // SAFETY: graph and stream live.
                check("replaying", unsafe { driver::graph::launch(*graph, device.compute.raw()) })?;
                Ok(true)
            }
        }
    }

    /// Ends the segment that `begin` left to the caller; what was recorded runs now.
    pub fn end(&mut self, device: &Device) -> Result<()> {
        let Some(key) = self.recording.take() else { return Ok(()) };
        // SAFETY: `begin` started the capture on this stream.
        let graph =
            check("the end of a recording", unsafe { driver::stream::end_capture(device.compute.raw()) })?;
        // SAFETY: the graph was just made; the executable form does not need it afterwards.
        let ready = unsafe {
            let ready = driver::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = driver::graph::destroy(graph);
            check("a recording", ready)?
        };
        self.segments.insert(key, Seen::Recorded(ready));
        // SAFETY: graph and stream live.
        check("replaying", unsafe { driver::graph::launch(ready, device.compute.raw()) })
    }

    /// Recordings that were made.
    pub fn recorded(&self) -> usize {
        self.segments.values().filter(|seen| matches!(seen, Seen::Recorded(_))).count()
    }
}

impl Drop for Graphs {
    fn drop(&mut self) {
        for (_, seen) in self.segments.drain() {
            if let Seen::Recorded(graph) = seen {
                // SAFETY: made once in `end`; nothing launches it later. A failure has no one to go to.
                let _ = unsafe { driver::graph::exec_destroy(graph) };
            }
        }
    }
}
