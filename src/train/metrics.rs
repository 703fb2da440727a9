//! What a run says while it trains: one JSON object a step in `metrics.jsonl`, and a line on the
//! terminal every few steps.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::coarse::{Flow, Trainer, Update, Watcher};
use crate::engine::{Backend, stats};
use crate::{Error, Result};

/// Writes metrics and step lines; only the leading rank has one that does.
pub struct Meter {
    file: Option<BufWriter<File>>,
    /// Steps between two lines; 0 prints none.
    every: u64,
    steps: u64,
    start: Instant,
    /// Steps recorded: fewer than the run's step number when it was resumed.
    recorded: u64,
    /// Milliseconds and tokens since the first step, which warms caches and is left out.
    measured: (f64, usize),
}

impl Meter {
    /// A meter that adds to `path`; `None` measures in silence.
    pub fn new(path: Option<&Path>, every: u64, steps: u64) -> Result<Self> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.map_err(|e| Error::io("written", path, e))
        };
        let file = path.map(open).transpose()?.map(BufWriter::new);
        Ok(Self { file, every, steps, start: Instant::now(), recorded: 0, measured: (0.0, 0) })
    }

    /// Records one update.
    pub fn record(&mut self, update: &Update) -> Result<()> {
        self.recorded += 1;
        if self.recorded > 1 {
            self.measured.0 += update.step_ms;
            self.measured.1 += update.tokens;
        }
        if let Some(file) = &mut self.file {
            writeln!(file, "{}", line_json(update))
                .and_then(|()| file.flush())
                .map_err(|e| Error::data(format!("metrics.jsonl cannot be written: {e}")))?;
        }
        if self.every > 0
            && (update.step.is_multiple_of(self.every) || self.recorded == 1 || update.step == self.steps)
        {
            self.print(update);
        }
        Ok(())
    }

    /// Tokens a second of all ranks, the first step left out; 0 before the second step.
    pub fn tokens_per_s(&self) -> f64 {
        if self.measured.0 > 0.0 { self.measured.1 as f64 / self.measured.0 * 1e3 } else { 0.0 }
    }

    fn print(&self, update: &Update) {
        let part = |name: &str, sum, count| {
            update.mean(sum, count).map(|mean| format!(" | {name} {mean:.4}")).unwrap_or_default()
        };
        let parts = [
            part("mlm", stats::MLM_LOSS, stats::MLM_COUNT),
            part("qdpp", stats::QDPP_LOSS, stats::QDPP_COUNT),
            part("qdpp acc", stats::QDPP_CORRECT, stats::QDPP_COUNT),
            part("top acc", stats::RANK_CORRECT, stats::RANK_COUNT),
        ];
        let left = self.start.elapsed().as_secs_f64() / self.recorded as f64
            * self.steps.saturating_sub(update.step) as f64;
        println!(
            "step {:>6}/{} | loss {:.4}{} | norm {:.2} | lr {:.2e} | {:.0} ms | {:.0} tok/s | {} left",
            update.step,
            self.steps,
            update.loss,
            parts.concat(),
            update.grad_norm,
            update.lr,
            update.step_ms,
            update.tokens as f64 / update.step_ms * 1e3,
            duration(left),
        );
    }
}

impl<B: Backend> Watcher<B> for Meter {
    fn after(&mut self, update: &Update, _trainer: &mut Trainer<'_, B>) -> Result<Flow> {
        self.record(update)?;
        Ok(Flow::Continue)
    }
}

/// `1 h 02 min`, `3 min 04 s`, `5 s`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

fn line_json(update: &Update) -> Value {
    let mean = |sum, count| update.mean(sum, count);
    json!({
        "step": update.step,
        "epoch": update.epoch,
        "loss": update.loss,
        "mlm_loss": mean(stats::MLM_LOSS, stats::MLM_COUNT),
        "mlm_accuracy": mean(stats::MLM_CORRECT, stats::MLM_COUNT),
        "qdpp_loss": mean(stats::QDPP_LOSS, stats::QDPP_COUNT),
        "qdpp_accuracy": mean(stats::QDPP_CORRECT, stats::QDPP_COUNT),
        "rank_loss": mean(stats::RANK_LOSS, stats::RANK_COUNT),
        "rank_accuracy": mean(stats::RANK_CORRECT, stats::RANK_COUNT),
        "grad_norm": update.grad_norm,
        "lr": update.lr,
        "tokens": update.tokens,
        "step_ms": update.step_ms,
        "loader_ms": update.waited_ms,
        "tokens_per_s": update.tokens as f64 / update.step_ms * 1e3,
    })
}
