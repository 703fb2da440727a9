//! What a rank is doing, as its watchdog sees it from another thread: the step, how many collectives it has
//! entered, whether it is inside one, and how long nothing has changed. Noting it costs three relaxed stores.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Marks of one rank; written by its training thread alone.
#[derive(Debug)]
pub struct Beat {
    begun: Instant,
    /// Whether a lack of progress means anything: between the first and the last step of training.
    armed: AtomicBool,
    step: AtomicU64,
    collectives: AtomicU64,
    inside: AtomicBool,
    /// Microseconds after `begun` of the last change.
    changed: AtomicU64,
    /// Microseconds spent in collectives.
    waited: AtomicU64,
}

/// A snapshot of a [`Beat`], as sent to rank 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Look {
    pub armed: bool,
    pub step: u64,
    pub collectives: u64,
    pub inside: bool,
    /// Seconds without a change.
    pub still_s: f64,
}

impl Default for Beat {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            armed: AtomicBool::new(false),
            step: AtomicU64::new(0),
            collectives: AtomicU64::new(0),
            inside: AtomicBool::new(false),
            changed: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        }
    }
}

impl Beat {
    fn now(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    /// Notes progress: long work without collectives calls it now and then.
    pub fn alive(&self) {
        self.changed.store(self.now(), Relaxed);
    }

    /// While the guard lives a lack of progress is a hang.
    pub fn armed(&self) -> Armed<'_> {
        self.alive();
        self.armed.store(true, Relaxed);
        Armed(self)
    }

    /// A step begins.
    pub fn step(&self, step: u64) {
        self.step.store(step, Relaxed);
        self.alive();
    }

    /// Does `work`, which waits for other ranks.
    pub fn collective<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = self.now();
        self.changed.store(start, Relaxed);
        self.collectives.fetch_add(1, Relaxed);
        self.inside.store(true, Relaxed);
        let result = work();
        self.inside.store(false, Relaxed);
        let end = self.now();
        self.changed.store(end, Relaxed);
        self.waited.fetch_add(end - start, Relaxed);
        result
    }

    /// Time spent in collectives so far.
    pub fn waited(&self) -> Duration {
        Duration::from_micros(self.waited.load(Relaxed))
    }

    pub fn look(&self) -> Look {
        Look {
            armed: self.armed.load(Relaxed),
            step: self.step.load(Relaxed),
            collectives: self.collectives.load(Relaxed),
            inside: self.inside.load(Relaxed),
            still_s: self.now().saturating_sub(self.changed.load(Relaxed)) as f64 / 1e6,
        }
    }
}

/// Keeps a [`Beat`] armed.
pub struct Armed<'a>(&'a Beat);

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.0.armed.store(false, Relaxed);
    }
}

/// The ranks that the others wait for: those that have entered the fewest collectives; where all have
/// entered as many, those outside; empty where all are inside the same one.
pub fn late(looks: &[Look]) -> Vec<usize> {
    let ranks = |keep: &dyn Fn(&Look) -> bool| {
        looks.iter().enumerate().filter(|(_, look)| keep(look)).map(|(rank, _)| rank).collect::<Vec<_>>()
    };
    let least = looks.iter().map(|look| look.collectives).min().unwrap_or(0);
    let behind = ranks(&|look| look.collectives == least);
    if behind.len() < looks.len() { behind } else { ranks(&|look| !look.inside) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_that_others_wait_for_is_late() {
        let look = |collectives, inside| Look { collectives, inside, ..Look::default() };
        assert_eq!(late(&[look(7, true), look(6, false), look(7, true)]), [1]);
        assert_eq!(late(&[look(7, true), look(7, false)]), [1]);
        assert_eq!(late(&[look(7, true), look(6, true)]), [1]);
        assert!(late(&[look(7, true), look(7, true)]).is_empty());
    }

    #[test]
    fn a_beat_counts_and_ages() {
        let beat = Beat::default();
        let _armed = beat.armed();
        beat.step(3);
        let seen = beat.collective(|| {
            std::thread::sleep(Duration::from_millis(30));
            beat.look()
        });
        assert!(seen.inside && seen.armed && seen.collectives == 1 && seen.step == 3);
        assert!(seen.still_s >= 0.03);
        let after = beat.look();
        assert!(!after.inside && after.still_s < seen.still_s);
        assert!(beat.waited() >= Duration::from_millis(30));
    }
}
