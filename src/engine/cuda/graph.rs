//! Segments of a step as CUDA graphs. A model announces each fixed sequence of operations ("layer 3
//! backward"); the first time it runs normally (plans are made, kernels looked up), the second time it is
//! recorded, and from then on one call replays it: launching hundreds of small kernels one by one would leave
//! a fast card waiting for the host.
//!
//! Launches cover rounded-up shapes (`Cuda::capacity`) and kernels read the true counts on the device, so one
//! recording serves every pack of similar size; other sizes get their own recordings. With and without graphs
//! the same launches run in the same order: the same bits.

use std::collections::HashMap;

use cudarc::driver::result as driver;
use cudarc::driver::sys::{self, CUgraphExec};

use super::device::{Device, check};
use crate::Result;
use crate::engine::Segment;

/// A segment at rounded counts of tokens, sequences and masked tokens.
pub type Key = (Segment, [usize; 3]);

/// The state of a segment.
enum Seen {
    /// Ran once.
    Once,
    Recorded(CUgraphExec),
}

/// The recordings of one model.
pub struct Graphs {
    enabled: bool,
    segments: HashMap<Key, Seen>,
}

impl Graphs {
    pub fn new(enabled: bool) -> Self {
        Self { enabled, segments: HashMap::new() }
    }

    /// Runs the segment's operations, which `work` queues; from the third time on, replays them.
    pub fn run(&mut self, device: &Device, key: Key, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        match self.segments.get(&key) {
            _ if !self.enabled => work(),
            None => {
                self.segments.insert(key, Seen::Once);
                work()
            }
            Some(Seen::Once) => {
                let ready = record(device, work)?;
                self.segments.insert(key, Seen::Recorded(ready));
                replay(device, ready)
            }
            Some(Seen::Recorded(graph)) => replay(device, *graph),
        }
    }

    /// Recordings made so far.
    pub fn recorded(&self) -> usize {
        self.segments.values().filter(|seen| matches!(seen, Seen::Recorded(_))).count()
    }
}

/// Records what `work` queues; none of it runs.
fn record(device: &Device, work: &mut dyn FnMut() -> Result<()>) -> Result<CUgraphExec> {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let stream = device.compute.raw();
    // SAFETY: the stream lives; the capture ends below, whatever `work` answers.
    check("recording", unsafe { driver::stream::begin_capture(stream, mode) })?;
    let done = work();
    // SAFETY: the capture was started on this stream.
    let graph = unsafe { driver::stream::end_capture(stream) };
    done?;
    let graph = check("the end of a recording", graph)?;
    // SAFETY: the graph was just made; the executable form does not need it afterwards.
    unsafe {
        let ready = driver::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
        let _ = driver::graph::destroy(graph);
        check("a recording", ready)
    }
}

fn replay(device: &Device, graph: CUgraphExec) -> Result<()> {
    // SAFETY: graph and stream live.
    check("replaying", unsafe { driver::graph::launch(graph, device.compute.raw()) })
}

impl Drop for Graphs {
    fn drop(&mut self) {
        for (_, seen) in self.segments.drain() {
            if let Seen::Recorded(graph) = seen {
                // SAFETY: made once in `end`; nothing launches it later. A failure cannot be reported.
                let _ = unsafe { driver::graph::exec_destroy(graph) };
            }
        }
    }
}
