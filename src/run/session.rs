//! A run between its start and its end: trains, logs and saves every step, goes back to the last
//! checkpoint when gradients stay non-finite, and stops when a signal asks for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::checkpoints::find;
use super::checkpoints::saver::Saver;
use super::{finite, resume, signals};
use crate::config::Run;
use crate::data::loader::{Loader, LoaderOptions};
use crate::data::source::SampleSource;
use crate::files;
use crate::model::checkpoint;
use crate::ranks::{Distributed, World};
use crate::train::metrics::{Meter, duration};
use crate::train::speed::Ceiling;
use crate::train::trainer::{Flow, NON_FINITE_LIMIT, Trainer, Watcher};
use crate::train::update::{Notice, Update};
use crate::train::validation::Validation;
use crate::{Error, Result, journal};

/// Watches a run of `pretrain` or `coarse`.
pub struct Session<'w> {
    world: &'w World,
    dir: PathBuf,
    saver: Saver,
    validation: Option<Validation>,
    validate_every: u64,
    /// The least loss on validation pairs so far in this process.
    best: f64,
    meter: Option<Meter>,
    every: u64,
    /// What the speed of steps is a share of.
    ceiling: Ceiling,
    steps: u64,
    start: Instant,
    /// The step that training went back to after non-finite gradients.
    went_back: Option<u64>,
    /// Ranks already reported as slow.
    slow: Vec<usize>,
}

impl<'w> Session<'w> {
    /// A run of `steps` steps in the directory of `settings`.
    pub fn new(settings: &Run, saver: Saver, steps: u64, world: &'w World) -> Self {
        Self {
            validation: None,
            validate_every: 0,
            best: f64::INFINITY,
            world,
            dir: settings.out.clone(),
            saver,
            meter: None,
            ceiling: Ceiling::default(),
            every: if world.leads() { settings.log_every } else { 0 },
            steps,
            start: Instant::now(),
            went_back: None,
            slow: Vec::new(),
        }
    }

    /// Measures held-out pairs every `every` steps, and after the last.
    pub fn validating(mut self, validation: Option<Validation>, every: u64) -> Self {
        (self.validation, self.validate_every) = (validation, every);
        self
    }

    /// Reports which share of `ceiling` each step reached.
    pub fn against(mut self, ceiling: Ceiling) -> Self {
        self.ceiling = ceiling;
        self
    }

    /// Trains to the planned step.
    ///
    /// # Errors
    /// `Error::Preempted` after a signal, once everything is saved; `Error::Data` when gradients stay
    /// non-finite at a step that training has already gone back from.
    pub fn train<E: Distributed>(
        &mut self,
        trainer: &mut Trainer<E>,
        source: Arc<dyn SampleSource>,
        mut options: LoaderOptions,
    ) -> Result<()> {
        loop {
            let mut loader = Loader::new(source.clone(), options.clone())?;
            let flow = trainer.train(&mut loader, self)?;
            match flow {
                Flow::Continue | Flow::Stop => return Ok(()),
                Flow::Preempted => return Err(self.preempted(trainer)?),
                Flow::Diverged => {}
            }
            let found = self.last_checkpoint(trainer.progress().updates)?;
            self.go_back(&found, trainer)?;
            options.start = trainer.progress().cursor;
        }
    }

    /// Loads a checkpoint's weights, optimiser and position, and cuts the metrics.
    ///
    /// # Errors
    /// As `resume::load`.
    pub fn go_back<E: Distributed>(&mut self, from: &Path, trainer: &mut Trainer<E>) -> Result<()> {
        let state = self.world.agree_all(resume::load(from, trainer))?;
        self.saver.resumed_at(state.progress.updates);
        if self.world.leads() {
            let step = state.progress.updates;
            journal::say(&format!(
                "resumed from {}, made by {} rank(s); {} steps are left",
                from.display(),
                state.ranks,
                self.steps.saturating_sub(step)
            ));
        }
        self.cut_metrics(trainer)
    }

    /// Keeps in metrics.jsonl only the steps that the weights have seen, and continues after them.
    pub fn cut_metrics<E: Distributed>(&mut self, trainer: &Trainer<E>) -> Result<()> {
        let path = self.dir.join("metrics.jsonl");
        self.meter = None;
        let cut = || resume::cut_metrics(&path, trainer.progress());
        self.world.agree(self.world.leads().then(cut))?;
        let meter = Meter::new(self.world.leads().then_some(path.as_path()), self.every, self.steps)?;
        self.meter = Some(meter.visible(&self.dir, trainer.progress().updates, self.ceiling)?);
        Ok(())
    }

    /// Whether a validation follows step `step`: at the set interval, and after the last.
    fn validates(&self, step: u64) -> bool {
        let due = self.validate_every > 0 && step.is_multiple_of(self.validate_every);
        self.validation.is_some() && (due || step == self.steps)
    }

    /// Measures the held-out pairs when it is time.
    fn validate<E: Distributed>(&mut self, step: u64, trainer: &mut Trainer<E>) -> Result<()> {
        let Some(validation) = self.validation.as_ref().filter(|_| self.validates(step)) else {
            return Ok(());
        };
        let scores = validation.measure(&mut trainer.model, self.world)?;
        self.saver.note_validation(scores.loss);
        let best = scores.loss < self.best;
        self.best = self.best.min(scores.loss);
        if let Some(meter) = &mut self.meter {
            meter.validated(step, &scores, best)?;
        }
        Ok(())
    }

    /// Reports signs of trouble on the terminal; a rank that is slow again, in the log alone.
    fn report(&mut self, update: &Update) {
        let known = update.signs.slow.is_some_and(|slow| self.slow.contains(&slow.rank));
        self.slow.extend(update.signs.slow.map(|slow| slow.rank).filter(|_| !known));
        for line in update.signs.lines(update.step, update.loss, update.grad_norm) {
            if known { journal::note(&line) } else { tracing::warn!("{line}") }
        }
    }

    /// The checkpoint to go back to, which the user is told; an error if that cannot help.
    fn last_checkpoint(&mut self, step: u64) -> Result<PathBuf> {
        self.saver.complete(self.world)?;
        let advice = format!(
            "step {step}: {NON_FINITE_LIMIT} gradients in a row were not finite: lower train.lr, set \
             train.clip_norm, or check the weights of model.path"
        );
        let root = self.dir.join("checkpoints");
        let found = self.world.agree(self.world.leads().then(|| find::latest(&root, step)))?;
        let mut text = String::new();
        if let Some((found, skipped)) = found {
            skipped.iter().for_each(|line| journal::say(line));
            text = found.map(|path| path.display().to_string()).unwrap_or_default();
        }
        self.world.broadcast_text(&mut text);
        if text.is_empty() {
            return Err(Error::data(format!("{advice}; there is no checkpoint to go back to")));
        }
        if self.went_back.is_some_and(|before| before == step) {
            return Err(Error::data(format!("{advice}; going back to {text} did not help")));
        }
        self.went_back = Some(step);
        if self.world.leads() {
            journal::say(&format!(
                "step {step}: {NON_FINITE_LIMIT} gradients in a row were not finite: back to {text}"
            ));
        }
        Ok(text.into())
    }

    /// All ranks stop after the same step: everything is saved before any of them ends.
    fn preempted<E: Distributed>(&mut self, trainer: &Trainer<E>) -> Result<Error> {
        let saved = self.saver.save_now(trainer)?;
        let signal = signals::asked().unwrap_or("a signal to another rank");
        Ok(Error::Preempted(format!(
            "{signal}: stopped after step {} of {}; saved {}; the same command continues from there",
            trainer.progress().updates,
            self.steps,
            saved.display()
        )))
    }

    /// Writes the trained model and marks the run as finished.
    ///
    /// # Errors
    /// `Error::Data` with the file that cannot be written.
    pub fn finish<E: Distributed>(&mut self, trainer: &mut Trainer<E>, command: &str) -> Result<()> {
        finite::check(&trainer.model, &format!("step {}", trainer.progress().updates), self.world)?;
        if self.saver.is_on() {
            self.saver.save_now(trainer)?;
        }
        let model = self.dir.join("model");
        let conclude = || {
            checkpoint::save(&trainer.model, &model, Some(self.saver.tokenizer()))?;
            let text = format!("{} steps\n", trainer.progress().updates);
            files::write(&self.dir.join(resume::FINISHED), text.as_bytes())
        };
        self.world.agree(self.world.leads().then(conclude))?;
        if self.world.leads() {
            let took = duration(self.start.elapsed().as_secs_f64());
            let speed = self.meter.as_ref().map_or(0.0, Meter::tokens_per_s);
            journal::say(&format!(
                "{command} done in {took}, {speed:.0} tokens/s; model: {}",
                model.display()
            ));
        }
        Ok(())
    }
}

impl<E: Distributed> Watcher<E> for Session<'_> {
    fn notice(&mut self) -> Result<Notice> {
        Ok(Notice { stop: signals::asked().is_some(), ..self.saver.notice()? })
    }

    fn holds(&self, step: u64) -> bool {
        self.saver.due(step) || self.validates(step)
    }

    fn after(&mut self, update: &Update, trainer: &mut Trainer<'_, E>) -> Result<Flow> {
        self.ceiling.look_again(update.step, &trainer.model.engine, self.world)?;
        if let Some(meter) = &mut self.meter {
            meter.raise(self.ceiling);
            meter.record(update)?;
        }
        if self.world.leads() {
            self.report(update);
        }
        if update.skipped_in_row >= NON_FINITE_LIMIT {
            return Ok(Flow::Diverged);
        }
        self.validate(update.step, trainer)?;
        self.saver.after(update, trainer)?;
        let stop = update.agreed.stop && update.step < self.steps;
        Ok(if stop { Flow::Preempted } else { Flow::Continue })
    }
}
