//! How far a long reading is, how fast and until when: a bar where a person looks on, a line now and then
//! where a log file does.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two plain lines.
const EVERY: Duration = Duration::from_secs(15);

/// Progress through the bytes of some files.
pub(crate) struct Progress {
    what: String,
    total: u64,
    /// Set by the reader of the files.
    pub(crate) done: Arc<AtomicU64>,
    /// Bytes that an earlier process had read.
    before: Option<u64>,
    rows: u64,
    bar: Option<ProgressBar>,
    start: Instant,
    last: Instant,
}

impl Progress {
    pub(crate) fn new(what: &str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_message(what.to_owned());
            let template = "{msg:<28} {wide_bar} {bytes:>10} of {total_bytes:>10}  {prefix:>14}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        let now = Instant::now();
        Self {
            what: what.into(),
            total,
            done: Arc::default(),
            before: None,
            rows: 0,
            bar,
            start: now,
            last: now,
        }
    }

    /// Shows where the reading is after some more rows.
    pub(crate) fn tick(&mut self, rows: u64) {
        let done = self.done.load(Ordering::Relaxed);
        let before = *self.before.get_or_insert(done.min(self.total));
        self.rows += rows;
        let seconds = self.start.elapsed().as_secs_f64().max(1e-3);
        let speed = self.rows as f64 / seconds;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_prefix(format!("{speed:.0} rows/s"));
        } else if self.last.elapsed() >= EVERY {
            self.last = Instant::now();
            let percent = 100 * done / self.total.max(1);
            let left = self.total.saturating_sub(done) as f64 * seconds / (done - before).max(1) as f64;
            eprintln!(
                "{}: {percent} % of {} MB, {speed:.0} rows/s, {left:.0} s left",
                self.what,
                self.total / 1_000_000
            );
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
