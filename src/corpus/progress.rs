//! How far a long reading is: a bar where a person looks on, a line now and then where a log file does.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two plain lines.
const EVERY: Duration = Duration::from_secs(15);

/// Progress through the bytes of one file.
pub(super) struct Progress {
    what: String,
    total: u64,
    /// Set by the reader of the file.
    pub(super) done: Arc<AtomicU64>,
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Progress {
    pub(super) fn of_file(what: &str, path: &Path) -> Self {
        let total = std::fs::metadata(path).map_or(0, |about| about.len());
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_message(what.to_owned());
            let template = "{msg:<28} {wide_bar} {bytes:>10} of {total_bytes:>10}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Self { what: what.into(), total, done: Arc::default(), bar, last: Instant::now() }
    }

    /// Shows where the reading is.
    pub(super) fn tick(&mut self) {
        let done = self.done.load(Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.last.elapsed() >= EVERY {
            self.last = Instant::now();
            let percent = 100 * done / self.total.max(1);
            eprintln!("{}: {percent} % of {} MB", self.what, self.total / 1_000_000);
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
