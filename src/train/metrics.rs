//! What a run says while it trains: one JSON object a step in `metrics.jsonl`, the same numbers for
//! TensorBoard, a progress bar on a terminal, and a line every few steps.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::health::Running;
use super::speed::{Ceiling, Shares, speed};
use super::tensorboard::Events;
use super::update::Update;
use super::validation::Scores;
use crate::engine::stats;
use crate::{Error, Result};

/// The totals of some steps.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    steps: u64,
    ms: f64,
    tokens: usize,
    flops: f64,
    loader_ms: f64,
    exchange_ms: f64,
}

impl Spent {
    fn add(&mut self, update: &Update) {
        self.steps += 1;
        self.ms += update.step_ms;
        self.tokens += update.tokens;
        self.flops += update.flops;
        self.loader_ms += update.waited_ms;
        self.exchange_ms += update.exchange_ms;
    }

    fn tokens_per_s(&self) -> f64 {
        if self.ms > 0.0 { self.tokens as f64 / self.ms * 1e3 } else { 0.0 }
    }
}

/// Writes metrics and step lines; only the leading rank's does so.
pub struct Meter {
    file: Option<BufWriter<File>>,
    events: Option<Events>,
    bar: Option<ProgressBar>,
    /// Steps between two lines; 0 prints none.
    every: u64,
    steps: u64,
    /// What a step's speed is a share of; `None` where nothing was measured.
    ceiling: Option<Ceiling>,
    /// End of the first step that was recorded.
    start: Option<Instant>,
    /// Steps recorded: fewer than the run's step number when it was resumed.
    recorded: u64,
    /// Since the first step, which warms caches and is left out.
    all: Spent,
    /// Since the last line, likewise.
    recent: Spent,
    /// Of MLM and QDPP; the loss has its score already (`health`).
    unusual: [Running; 2],
}

impl Meter {
    /// A meter that appends to `path`; with `None` it measures silently.
    pub fn new(path: Option<&Path>, every: u64, steps: u64) -> Result<Self> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.map_err(|e| Error::io("written", path, e))
        };
        Ok(Self {
            file: path.map(open).transpose()?.map(BufWriter::new),
            events: None,
            bar: None,
            every,
            steps,
            ceiling: None,
            start: None,
            recorded: 0,
            all: Spent::default(),
            recent: Spent::default(),
            unusual: Default::default(),
        })
    }

    /// Also writes for TensorBoard into `dir` and, on a terminal, draws a bar; `done` steps have been
    /// made already. Says of each step what share of `ceiling` it reached.
    pub fn visible(mut self, dir: &Path, done: u64, ceiling: Ceiling) -> Result<Self> {
        if self.file.is_some() {
            self.events = Some(Events::create(dir, done)?);
        }
        if self.every > 0 && std::io::stderr().is_terminal() {
            let template = "{bar:30} {pos}/{len} steps, {elapsed_precise}, {msg} left";
            // a bar is no reason to fail: without the style it uses the default one
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(self.steps).with_position(done).with_style(style);
            self.bar = Some(bar);
        }
        self.ceiling = Some(ceiling);
        Ok(self)
    }

    /// What steps are a share of from now on, where that is more than was known.
    pub fn raise(&mut self, ceiling: Ceiling) {
        if let Some(own) = &mut self.ceiling {
            own.join(ceiling);
        }
    }

    /// Records one update.
    pub fn record(&mut self, update: &Update) -> Result<()> {
        self.recorded += 1;
        if self.recorded > 1 {
            self.all.add(update);
            self.recent.add(update);
        } else {
            self.start = Some(Instant::now());
        }
        let scores = self.scores(update);
        if let Some(ceiling) = &mut self.ceiling {
            ceiling.raise(speed(update.flops, update.step_ms));
        }
        self.write(update.step, &line_json(update, scores, self.shares(update.flops, update.step_ms)))?;
        if let Some(bar) = &self.bar {
            bar.set_position(update.step);
            bar.set_message(self.left(update.step));
        }
        let due = update.step.is_multiple_of(self.every.max(1)) || self.recorded == 1;
        if self.every > 0 && (due || update.step == self.steps) {
            self.say(&self.line(update, scores));
            self.recent = Spent::default();
        }
        if let (Some(bar), true) = (&self.bar, update.step == self.steps) {
            bar.finish_and_clear();
        }
        Ok(())
    }

    /// Records a validation after step `step`; `best` when it is the best so far.
    pub fn validated(&mut self, step: u64, scores: &Scores, best: bool) -> Result<()> {
        self.write(step, &scores.line(step))?;
        if self.every > 0 {
            self.say(&format!("step {step:>6} | {scores}{}", if best { " | best" } else { "" }));
        }
        Ok(())
    }

    /// Tokens a second of all ranks, the first step left out; 0 before the second step.
    pub fn tokens_per_s(&self) -> f64 {
        self.all.tokens_per_s()
    }

    fn write(&mut self, step: u64, line: &Value) -> Result<()> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{line}")
                .and_then(|()| file.flush())
                .map_err(|e| Error::data(format!("metrics.jsonl cannot be written: {e}")))?;
        }
        let (Some(events), Some(line)) = (&mut self.events, line.as_object()) else { return Ok(()) };
        let number = |(key, value): (&'_ String, &Value)| Some((key.clone(), value.as_f64()?));
        let numbers: Vec<(String, f64)> = line.iter().filter_map(number).collect();
        let scalars: Vec<_> =
            numbers.iter().filter(|(k, _)| k != "step").map(|(k, v)| (k.as_str(), *v)).collect();
        events.scalars(step, &scalars)
    }

    /// z-scores of the loss, of MLM and of QDPP.
    fn scores(&mut self, update: &Update) -> [Option<f64>; 3] {
        let mut part = |i: usize, sum, count| {
            update.mean(sum, count).and_then(|value: f64| self.unusual[i].record(value))
        };
        let mlm = part(0, stats::MLM_LOSS, stats::MLM_COUNT);
        let qdpp = part(1, stats::QDPP_LOSS, stats::QDPP_COUNT);
        [update.signs.loss_z, mlm, qdpp]
    }

    fn shares(&self, flops: f64, ms: f64) -> Shares {
        self.ceiling.map(|ceiling| ceiling.shares(flops, ms)).unwrap_or_default()
    }

    fn left(&self, step: u64) -> String {
        let Some(start) = self.start.filter(|_| self.all.steps > 0) else { return "?".into() };
        let each = start.elapsed().as_secs_f64() / self.all.steps as f64;
        duration(each * self.steps.saturating_sub(step) as f64)
    }

    fn line(&self, update: &Update, scores: [Option<f64>; 3]) -> String {
        let z = |i: usize| scores[i].map(|z| format!(" ({z:+.1})")).unwrap_or_default();
        let part = |name: &str, sum, count, z: String| {
            update.mean(sum, count).map(|mean| format!(" | {name} {mean:.4}{z}")).unwrap_or_default()
        };
        let parts = [
            part("mlm", stats::MLM_LOSS, stats::MLM_COUNT, z(1)),
            part("qdpp", stats::QDPP_LOSS, stats::QDPP_COUNT, z(2)),
            part("qdpp acc", stats::QDPP_CORRECT, stats::QDPP_COUNT, String::new()),
            part("top acc", stats::RANK_CORRECT, stats::RANK_COUNT, String::new()),
        ];
        let mut spent = self.recent;
        if spent.steps == 0 {
            spent.add(update); // the first step has no other to be averaged with
        }
        let Shares { mfu, peak } = self.shares(spent.flops, spent.ms);
        let mfu = mfu.map(|s| format!(" | mfu {:.0}%", 100.0 * s)).unwrap_or_default();
        let peak = peak.map(|s| format!(" | {:.0}% of the data sheet's peak", 100.0 * s)).unwrap_or_default();
        format!(
            "step {:>6}/{} | loss {:.4}{}{} | norm {:.2} | lr {:.2e} | {:.0} ms | {:.0} tok/s{mfu}{peak} | loader \
             {:.0}% | comm {:.0}% | {} left",
            update.step,
            self.steps,
            update.loss,
            z(0),
            parts.concat(),
            update.grad_norm,
            update.lr,
            spent.ms / spent.steps as f64,
            spent.tokens_per_s(),
            100.0 * spent.loader_ms / spent.ms,
            100.0 * spent.exchange_ms / spent.ms,
            self.left(update.step),
        )
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tell!("{line}")),
            None => tell!("{line}"),
        }
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

fn line_json(update: &Update, [z, mlm_z, qdpp_z]: [Option<f64>; 3], shares: Shares) -> Value {
    let mean = |sum, count| update.mean(sum, count);
    json!({
        "step": update.step,
        "epoch": update.epoch,
        "loss": update.loss,
        "loss_z": z,
        "mlm_loss": mean(stats::MLM_LOSS, stats::MLM_COUNT),
        "mlm_z": mlm_z,
        "mlm_accuracy": mean(stats::MLM_CORRECT, stats::MLM_COUNT),
        "qdpp_loss": mean(stats::QDPP_LOSS, stats::QDPP_COUNT),
        "qdpp_z": qdpp_z,
        "qdpp_accuracy": mean(stats::QDPP_CORRECT, stats::QDPP_COUNT),
        "rank_loss": mean(stats::RANK_LOSS, stats::RANK_COUNT),
        "rank_accuracy": mean(stats::RANK_CORRECT, stats::RANK_COUNT),
        "grad_norm": update.grad_norm,
        "lr": update.lr,
        "tokens": update.tokens,
        "step_ms": update.step_ms,
        "loader_ms": update.waited_ms,
        "exchange_ms": update.exchange_ms,
        "tokens_per_s": update.tokens as f64 / update.step_ms * 1e3,
        "mfu": shares.mfu,
        "peak_share": shares.peak,
    })
}
