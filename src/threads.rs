//! The threads that a process computes with: as many as wanted, or as many as the system allows. Where
//! processes are limited (containers, login nodes), rayon's global pool would panic at its first use; here it
//! gets fewer threads, and at worst the main thread alone.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use rayon::{ThreadBuilder, ThreadPoolBuilder};

/// Threads that the pool leaves to others: readers, loaders, writers, watchdogs.
const SPARE: usize = 4;

/// Set when no thread could be started beside the main one.
static ALONE: AtomicBool = AtomicBool::new(false);

/// A started thread that waits for its place in the pool.
struct Waiting {
    place: SyncSender<ThreadBuilder>,
    handle: JoinHandle<()>,
}

impl Waiting {
    fn start() -> io::Result<Self> {
        let (place, given) = sync_channel::<ThreadBuilder>(1);
        let work = move || {
            if let Ok(place) = given.recv() {
                place.run();
            }
        };
        let handle = Builder::new().name("worker".into()).spawn(work)?;
        Ok(Self { place, handle })
    }

    fn end(self) {
        drop(self.place);
        let _ = self.handle.join(); // it had nothing to do
    }
}

/// Threads of a process: the machine's cores shared by its ranks, so that ranks do not fight each other.
/// `RAYON_NUM_THREADS` overrides.
pub fn wanted(ranks_here: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|v| v.parse().ok());
    asked.filter(|n| *n > 0).unwrap_or((cores / ranks_here).max(1))
}

/// Starts the pool. Warns if there are fewer than `wanted` threads. An existing pool stays.
///
/// The threads are started before the pool is told its size: rayon's global pool can be built only once, and
/// one thread that fails to start would be the end of it.
pub fn start(wanted: usize) {
    let mut threads: Vec<Waiting> = (0..wanted + SPARE).map_while(|_| Waiting::start().ok()).collect();
    let size = threads.len().saturating_sub(SPARE).max(1);
    if size < wanted || threads.is_empty() {
        tracing::warn!(
            "{size} of {wanted} threads: the system allows this process no more (ulimit -u, ulimit -v, pids of the \
             container)"
        );
    }
    let pool = ThreadPoolBuilder::new().num_threads(size);
    if threads.is_empty() {
        ALONE.store(true, Ordering::Relaxed);
        let _ = pool.use_current_thread().build_global(); // fails where there is a pool
        return;
    }
    let spare = threads.split_off(size.min(threads.len()));
    spare.into_iter().for_each(Waiting::end);
    let mut threads = threads.into_iter();
    let spawn = |place: ThreadBuilder| {
        let next = threads.next().ok_or(io::ErrorKind::WouldBlock)?;
        next.place.send(place).map_err(|_| io::ErrorKind::BrokenPipe.into())
    };
    let _ = pool.spawn_handler(spawn).build_global(); // fails where there is a pool
}

/// Whether the main thread is the whole pool. Then work that another thread gives to the pool would wait
/// forever: the main thread works for the pool only while it waits for the pool itself.
pub fn alone() -> bool {
    ALONE.load(Ordering::Relaxed)
}
