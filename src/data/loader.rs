//! Turns packs into steps: a thread that works a few steps ahead, so that training never waits for samples,
//! and a cursor from which a run resumes with the same steps at any world size.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use rayon::prelude::*;

use super::batch::Batch;
use super::mask::count_masked;
use super::pack::Packer;
use super::source::SampleSource;
use crate::engine::op::MaskRule;
use crate::{Error, Result, threads};

/// Steps that the thread may be ahead of training: enough to hide the packing of a window.
const AHEAD: usize = 4;

/// A place in the global pack stream. Every field counts from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    pub epoch: u32,
    pub window: u32,
    /// Pack of the window.
    pub pack: u32,
}

/// How samples become steps.
#[derive(Clone)]
pub struct LoaderOptions {
    /// Keys the epoch's order.
    pub seed: u32,
    /// Tokens that a pack holds.
    pub pack_tokens: usize,
    /// Packs of a step over all ranks; pack k goes to rank k mod `world`.
    pub packs_per_step: usize,
    pub rank: usize,
    pub world: usize,
    /// How tokens are masked; `None` without MLM.
    pub rule: Option<MaskRule>,
    /// [V], 1 for a piece that continues a word; may be empty unless `rule` is whole-word.
    pub continues: Arc<Vec<u32>>,
    /// Where the first step starts.
    pub start: Cursor,
}

/// What one rank needs for one optimiser step. Counts are of all ranks together.
#[derive(Clone, Debug)]
pub struct Step {
    /// This rank's packs; none where `world` is larger than the packs of a step.
    pub batches: Vec<Batch>,
    /// Where the next step starts.
    pub after: Cursor,
    pub samples: usize,
    pub tokens: usize,
    /// Sum over sequences of their squared length: pairs of tokens that attend to each other.
    pub attended: u64,
    /// S of all packs.
    pub sequences: usize,
    /// Equals every batch's `step_masked`.
    pub masked: usize,
    /// Equals every batch's `step_pairs`.
    pub pairs: usize,
    /// Epoch of the step's first pack.
    pub epoch: u32,
    /// Milliseconds that [`Loader::next_step`] waited for this step.
    pub waited_ms: f64,
}

/// The steps of a run, from [`LoaderOptions::start`] on, without end.
pub struct Loader {
    /// `None` once dropped, which ends the thread at its next send.
    steps: Option<Receiver<Result<Step>>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Checks the options and starts the prefetch thread.
    ///
    /// # Errors
    /// `Error::Config` for impossible sizes and for samples longer than a pack, `Error::Data`
    /// without samples.
    pub fn new(source: Arc<dyn SampleSource>, options: LoaderOptions) -> Result<Self> {
        check(&options)?;
        let packer = Packer::new(source.as_ref(), options.seed, options.pack_tokens)?;
        let at = options.start;
        let stream = Stream { source, options, packer, at, packs: Vec::new(), loaded: None };
        let (sender, steps) = sync_channel(AHEAD);
        let none = |cause: &dyn Display| {
            Error::device(format!(
                "the loader's thread cannot be started: {cause}: raise the limit (ulimit -u)"
            ))
        };
        if threads::alone() {
            return Err(none(&"the process has only one thread"));
        }
        let thread = std::thread::Builder::new()
            .name("loader".into())
            .spawn(move || stream.run(&sender))
            .map_err(|cause| none(&cause))?;
        Ok(Self { steps: Some(steps), thread: Some(thread) })
    }

    /// The next step; blocks while the thread has none ready.
    ///
    /// # Errors
    /// Whatever went wrong in the thread, once; after that, that the loader has ended.
    pub fn next_step(&mut self) -> Result<Step> {
        let start = Instant::now();
        let ended = || Error::data("the loader has ended after an earlier error");
        let mut step = self.steps.as_ref().ok_or_else(ended)?.recv().map_err(|_| ended())??;
        step.waited_ms = start.elapsed().as_secs_f64() * 1e3;
        Ok(step)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // The receiver goes first: the thread's next send fails and ends it.
        self.steps = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been reported through the closed channel.
            let _ = thread.join();
        }
    }
}

/// Packs of epoch `options.start.epoch`, which turns epochs into steps. Epochs differ by a few packs,
/// as their negatives differ in length. Uses all threads: every window's packs are counted.
///
/// # Errors
/// As [`Loader::new`].
pub fn packs_per_epoch(source: &dyn SampleSource, options: &LoaderOptions) -> Result<u64> {
    check(options)?;
    let packer = Packer::new(source, options.seed, options.pack_tokens)?;
    let count = |window| packer.window(source, options.start.epoch, window).map(|packs| packs.len() as u64);
    (0..packer.windows()).into_par_iter().map(count).sum()
}

fn check(options: &LoaderOptions) -> Result<()> {
    if options.packs_per_step == 0 {
        return Err(Error::config("[train] packs_per_step = 0: must be at least 1"));
    }
    if options.rank >= options.world {
        return Err(Error::config(format!(
            "rank {} of a world of {}: ranks count from 0",
            options.rank, options.world
        )));
    }
    if options.rule.is_some_and(|rule| rule.whole_word) && options.continues.is_empty() {
        return Err(Error::config(
            "[objective] whole_word = true needs a tokenizer whose pieces show which of them continue a word",
        ));
    }
    Ok(())
}

/// The thread's side: the pack stream and its current window.
struct Stream {
    source: Arc<dyn SampleSource>,
    options: LoaderOptions,
    packer: Packer,
    at: Cursor,
    /// Packs of window `loaded`.
    packs: Vec<Vec<u32>>,
    /// (epoch, window)
    loaded: Option<(u32, u32)>,
}

impl Stream {
    fn run(mut self, steps: &SyncSender<Result<Step>>) {
        loop {
            let step = self.step();
            let failed = step.is_err();
            if steps.send(step).is_err() || failed {
                return;
            }
        }
    }

    fn step(&mut self) -> Result<Step> {
        self.settle()?;
        let mut step = Step {
            batches: Vec::new(),
            after: self.at,
            samples: 0,
            tokens: 0,
            attended: 0,
            sequences: 0,
            masked: 0,
            pairs: 0,
            epoch: self.at.epoch,
            waited_ms: 0.0,
        };
        for pack in 0..self.options.packs_per_step {
            self.settle()?;
            let (batch, pairs) = self.batch()?;
            step.samples += self.packs[self.at.pack as usize].len();
            step.tokens += batch.tokens();
            step.attended += batch.attended();
            step.sequences += batch.sequences();
            step.masked += batch.masked;
            step.pairs += pairs;
            if pack % self.options.world == self.options.rank {
                step.batches.push(batch);
            }
            self.at.pack += 1;
        }
        self.settle()?;
        step.after = self.at;
        for batch in &mut step.batches {
            (batch.step_masked, batch.step_pairs) = (step.masked, step.pairs);
        }
        Ok(step)
    }

    /// The pack under the cursor and its pairs. Other ranks' packs are built too: their masked tokens
    /// count in this rank's divisor, and which tokens may be masked is known from their ids alone.
    fn batch(&self) -> Result<(Batch, usize)> {
        let tokens = self.options.pack_tokens;
        let mut batch = Batch {
            ids: Vec::with_capacity(tokens),
            positions: Vec::with_capacity(tokens),
            segments: Vec::with_capacity(tokens),
            row_sample: Vec::with_capacity(tokens),
            epoch: self.at.epoch,
            ..Batch::default()
        };
        let mut pairs = 0;
        for &sample in &self.packs[self.at.pack as usize] {
            self.source.push(sample, self.at.epoch, &mut batch)?;
            pairs += self.source.pairs(sample);
        }
        if let Some(rule) = &self.options.rule {
            batch.masked = count_masked(rule, &batch, &self.options.continues);
        }
        Ok((batch, pairs))
    }

    /// Moves the cursor from the end of a window or an epoch to the next pack, and loads its window.
    fn settle(&mut self) -> Result<()> {
        if self.at.window >= self.packer.windows() {
            return Err(self.foreign_cursor());
        }
        loop {
            if self.loaded != Some((self.at.epoch, self.at.window)) {
                self.packs = self.packer.window(self.source.as_ref(), self.at.epoch, self.at.window)?;
                self.loaded = Some((self.at.epoch, self.at.window));
            }
            let packs = self.packs.len() as u32;
            if self.at.pack < packs {
                return Ok(());
            }
            if self.at.pack > packs {
                return Err(self.foreign_cursor());
            }
            let last = self.at.window + 1 == self.packer.windows();
            self.at = Cursor {
                epoch: self.at.epoch + u32::from(last),
                window: if last { 0 } else { self.at.window + 1 },
                pack: 0,
            };
        }
    }

    fn foreign_cursor(&self) -> Error {
        Error::data(format!(
            "pack {} of window {} of epoch {} does not exist ({} windows an epoch): the checkpoint was made \
             from other data or another [train] pack_tokens",
            self.at.pack,
            self.at.window,
            self.at.epoch,
            self.packer.windows()
        ))
    }
}
