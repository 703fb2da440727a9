//! When checkpoints are made, and how without stopping: training waits for a copy to host memory; a thread
//! writes it. The ranks learn of each other's threads with the exchange that every step makes anyway, so
//! saving adds no further collective.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::finite;
use super::write::{Share, publish};
use super::{FORMAT, Identity, State, find, folder, steps_in};
use crate::config::Checkpoint;
use crate::model::checkpoint::Image;
use crate::ranks::{Distributed, World};
use crate::train::state::SavedOptimiser;
use crate::train::trainer::Trainer;
use crate::train::update::{Notice, Update};
use crate::{Error, Result};

/// Makes and keeps a run's checkpoints.
pub struct Saver {
    root: PathBuf,
    settings: Checkpoint,
    identity: Identity,
    /// Updates of the whole run.
    steps: u64,
    /// Folder with the tokenizer's files.
    tokenizer: PathBuf,
    rank: usize,
    ranks: usize,
    /// Runs since the last save.
    clock: Instant,
    /// Sum and number of the training losses since the last save.
    losses: (f64, u64),
    validation: Option<f64>,
    /// The last step that was saved, complete or not.
    saved: Option<u64>,
    /// A save whose shares are not yet known to be written.
    pending: Option<Pending>,
    /// Rank 0 gives the complete checkpoint its name and removes others.
    publishing: Option<JoinHandle<Result<()>>>,
}

/// A save in the hands of the writing thread.
struct Pending {
    step: u64,
    /// `None` when it has ended well.
    thread: Option<JoinHandle<Result<()>>>,
}

impl Saver {
    /// A saver below `root`. `steps` is the length of the whole run.
    pub fn new(
        root: PathBuf,
        settings: &Checkpoint,
        identity: Identity,
        steps: u64,
        tokenizer: PathBuf,
        world: &World,
    ) -> Self {
        Self {
            root,
            settings: settings.clone(),
            identity,
            steps,
            tokenizer,
            rank: world.rank(),
            ranks: world.size(),
            clock: Instant::now(),
            losses: (0.0, 0),
            validation: None,
            saved: None,
            pending: None,
            publishing: None,
        }
    }

    /// Whether the plan asks for checkpoints at all.
    pub fn is_on(&self) -> bool {
        self.settings.every_steps > 0 || self.settings.every_minutes > 0.0
    }

    /// Folder with the tokenizer's files.
    pub fn tokenizer(&self) -> &Path {
        &self.tokenizer
    }

    /// Makes the next checkpoint's value the loss on validation data instead of the training loss.
    pub fn note_validation(&mut self, loss: f64) {
        self.validation = Some(loss);
    }

    /// What this rank tells the others about saving: whether its clock asks for a save, and what its thread
    /// has done.
    ///
    /// # Errors
    /// What a thread could not write.
    pub fn notice(&mut self) -> Result<Notice> {
        if self.publishing.as_ref().is_some_and(JoinHandle::is_finished) {
            join(self.publishing.take())?;
        }
        let mut written = 0;
        if let Some(pending) = &mut self.pending {
            if pending.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                join(pending.thread.take())?;
            }
            written = if pending.thread.is_none() { pending.step } else { 0 };
        }
        let every = Duration::from_secs_f64(60.0 * self.settings.every_minutes);
        let save = self.settings.every_minutes > 0.0 && self.clock.elapsed() >= every;
        Ok(Notice { save, written, ..Notice::default() })
    }

    /// Whether the schedule by steps saves after step `step`.
    pub fn due(&self, step: u64) -> bool {
        self.settings.every_steps > 0 && step.is_multiple_of(self.settings.every_steps)
    }

    /// After an update: completes what all ranks have written, and saves when it is time.
    ///
    /// # Errors
    /// `Error::Data` when an earlier save could not be written.
    pub fn after<E: Distributed>(&mut self, update: &Update, trainer: &Trainer<E>) -> Result<()> {
        if update.loss.is_finite() {
            self.losses = (self.losses.0 + update.loss, self.losses.1 + 1);
        }
        if self.pending.as_ref().is_some_and(|pending| pending.step == update.agreed.written) {
            self.publish()?;
        }
        let due = update.agreed.save || self.due(update.step);
        // weights whose gradients are not finite are no place to go back to
        if due && update.skipped_in_row == 0 {
            match finite::count(&trainer.model, trainer.world())? {
                0 => self.save(trainer)?,
                found if self.rank == 0 => {
                    let step = update.step;
                    tracing::warn!(
                        "step {step}: {found} weights are not finite: no checkpoint is made of them"
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Copies the state, whose weights are finite, and has the thread write it; waits for the previous save.
    ///
    /// # Errors
    /// `Error::Data` when the previous save could not be written.
    pub fn save<E: Distributed>(&mut self, trainer: &Trainer<E>) -> Result<()> {
        self.complete(trainer.world())?;
        let start = Instant::now();
        let share = self.share(trainer)?;
        let step = share.state.progress.updates;
        let root = self.root.clone();
        let copied = start.elapsed();
        let work = move || {
            let start = Instant::now();
            share.write(&root).inspect(|()| {
                tracing::info!(
                    "checkpoint of step {step}: copied in {:.0} ms, written in {:.0} ms",
                    copied.as_secs_f64() * 1e3,
                    start.elapsed().as_secs_f64() * 1e3
                );
            })
        };
        self.pending = Some(Pending { step, thread: Some(spawn(work)?) });
        self.saved = Some(step);
        self.clock = Instant::now();
        self.losses = (0.0, 0);
        self.validation = None;
        Ok(())
    }

    /// Saves the present state unless it is the last one saved, and waits until it is complete.
    ///
    /// # Errors
    /// `Error::Data` when it cannot be written.
    pub fn save_now<E: Distributed>(&mut self, trainer: &Trainer<E>) -> Result<PathBuf> {
        let step = trainer.progress().updates;
        if self.saved != Some(step) {
            finite::check(&trainer.model, &format!("step {step}"), trainer.world())?;
            self.save(trainer)?;
        }
        self.complete(trainer.world())?;
        Ok(folder(&self.root, step))
    }

    /// Waits until what was saved is complete on every rank.
    ///
    /// # Errors
    /// The error of the lowest rank that could not write its share.
    pub fn complete(&mut self, world: &World) -> Result<()> {
        let thread = self.pending.as_mut().and_then(|pending| pending.thread.take());
        world.agree_all(join(thread))?;
        let started = if self.pending.is_some() { self.publish() } else { Ok(()) };
        world.agree_all(started)?;
        world.agree_all(join(self.publishing.take()))
    }

    /// Notes that the run has been resumed from the checkpoint of this step.
    pub fn resumed_at(&mut self, step: u64) {
        self.saved = Some(step);
        self.clock = Instant::now();
        self.losses = (0.0, 0);
    }

    fn share<E: Distributed>(&self, trainer: &Trainer<E>) -> Result<Share<E::Real>> {
        let arena = trainer.model.layout.len;
        let sharded = self.ranks > 1 && trainer.optimiser.sharded();
        let leads = self.rank == 0;
        let mean = (self.losses.1 > 0).then(|| self.losses.0 / self.losses.1 as f64);
        Ok(Share {
            rank: self.rank,
            model: if leads { Some(Image::of(&trainer.model)?) } else { None },
            optimiser: if leads || sharded {
                Some(SavedOptimiser::of(&trainer.model.engine, &trainer.optimiser.state)?)
            } else {
                None
            },
            state: State {
                format: FORMAT,
                identity: self.identity.clone(),
                progress: trainer.progress(),
                steps: self.steps,
                value: self.validation.or(mean),
                arena,
                ranks: self.ranks,
                parts: if sharded { self.ranks } else { 1 },
                program: concat!("ctune-dist ", env!("CARGO_PKG_VERSION")).into(),
                code: env!("CTUNE_CODE_VERSION").into(),
            },
            tokenizer: self.tokenizer.clone(),
        })
    }

    /// All shares are written: rank 0's thread turns them into a checkpoint.
    fn publish(&mut self) -> Result<()> {
        let Some(Pending { step, .. }) = self.pending.take() else { return Ok(()) };
        if self.rank > 0 {
            return Ok(());
        }
        let (root, ranks, keep) = (self.root.clone(), self.ranks, self.settings.keep);
        let before = self.publishing.take();
        let work = move || {
            join(before)?;
            publish(&root, step, ranks)?;
            prune(&root, keep)
        };
        self.publishing = Some(spawn(work)?);
        Ok(())
    }
}

fn spawn(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<JoinHandle<Result<()>>> {
    let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(work);
    thread.map_err(|e| Error::device(format!("the checkpoint's thread cannot be started: {e}")))
}

/// The outcome of a thread that may not have been started.
fn join(thread: Option<JoinHandle<Result<()>>>) -> Result<()> {
    let ended = |_| Err(Error::device("the thread that writes checkpoints has panicked"));
    thread.map_or(Ok(()), |thread| thread.join().unwrap_or_else(ended))
}

/// Removes complete checkpoints except the last `keep` and the best one.
fn prune(root: &Path, keep: usize) -> Result<()> {
    let mut whole = Vec::new();
    for step in steps_in(root)? {
        let dir = folder(root, step);
        if dir.join(super::DONE).exists() {
            whole.push((step, find::read_state(&dir)?.value));
        }
    }
    let best = whole
        .iter()
        .filter_map(|(step, value)| Some((value.filter(|v| v.is_finite())?, *step)))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, step)| step);
    for (step, _) in whole.iter().skip(keep.max(1)).filter(|(step, _)| Some(*step) != best) {
        let dir = folder(root, *step);
        // DONE goes first: an interrupted removal leaves nothing that looks complete
        let done = dir.join(super::DONE);
        std::fs::remove_file(&done).map_err(|e| Error::io("removed", &done, e))?;
        std::fs::remove_dir_all(&dir).map_err(|e| Error::io("removed", &dir, e))?;
    }
    Ok(())
}
