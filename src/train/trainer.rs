//! The training loop: packs in, updates out. `pretrain`, `coarse` and `fine` all run it; what differs
//! is the samples (`data::source`, `data::groups`), the objective (`model::Objective`) and who
//! watches (`Watcher`).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::Result;
use crate::config::Train;
use crate::data::loader::{Cursor, Loader, Step};
use crate::engine::{Backend, stats};
use crate::model::{Bert, Mode};
use crate::ranks::{Collective, Distributed, World};
use crate::train::account::Unread;
use crate::train::check::against_reference;
use crate::train::health::{Health, Signs};
use crate::train::optimiser::Optimiser;
use crate::train::schedule::LrPlan;
use crate::train::state::SavedOptimiser;

/// Updates with a non-finite gradient that may follow each other before training goes back to the
/// last checkpoint.
pub const NON_FINITE_LIMIT: u32 = 3;

/// What one update did, summed over ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Update {
    /// Updates made so far, this one included.
    pub step: u64,
    pub epoch: u32,
    /// The weighted objective: means over the step's masked tokens, pairs or groups, in nats.
    pub loss: f64,
    /// Sums and counts as `engine::stats` orders them.
    pub sums: [f64; stats::SLOTS],
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// Tokens of all ranks.
    pub tokens: usize,
    /// Milliseconds of the whole step, waiting for the loader included.
    pub step_ms: f64,
    pub waited_ms: f64,
    /// Milliseconds in which this rank's host was busy with, or waited for, exchanges between ranks.
    pub exchange_ms: f64,
    /// Floating-point operations of all ranks.
    pub flops: f64,
    /// Updates of the run that a non-finite gradient made void.
    pub skipped: u64,
    /// How many of them in a row end with this one.
    pub skipped_in_row: u32,
    /// What the ranks agreed on in this step's exchange.
    pub agreed: Agreed,
    /// How unusual the step was.
    pub signs: Signs,
}

/// What one rank tells the others once a step, beside its sums.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Word {
    /// A checkpoint is due by this rank's clock; rank 0's counts.
    pub save: bool,
    /// The last step whose checkpoint this rank has written its part of; 0 is none.
    pub written: u64,
}

/// What follows from all ranks' words, the same on every rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreed {
    /// A signal asked some rank to end.
    pub stop: bool,
    pub save: bool,
    /// The last step whose checkpoint every rank has written its part of.
    pub written: u64,
}

impl Update {
    /// `sum / count` of two statistics; `None` where nothing was counted.
    pub fn mean(&self, sum: usize, count: usize) -> Option<f64> {
        (self.sums[count] > 0.0).then(|| self.sums[sum] / self.sums[count])
    }
}

/// Whether training goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    /// It has learnt enough.
    Stop,
    /// Too many gradients in a row were not finite: back to the last checkpoint.
    Diverged,
    /// A signal asked for the end.
    Preempted,
}

/// Looks on after every update: logs, validates, saves.
pub trait Watcher<B: Backend> {
    /// What this rank tells the others with the update's exchange.
    fn word(&mut self) -> Result<Word> {
        Ok(Word::default())
    }

    /// Whether `after` of this step works with the state that the step leaves, to save or to measure it:
    /// then no later step begins before. The same on all ranks.
    fn holds(&self, step: u64) -> bool {
        let _ = step;
        false
    }

    /// Called once a step, in order. On a device that works behind the host `trainer` may be a step ahead
    /// of `update`, but for steps that `holds` names, the last one, and those with something agreed.
    fn after(&mut self, update: &Update, trainer: &mut Trainer<'_, B>) -> Result<Flow>;
}

/// Where training stands, besides weights and the optimiser's arrays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// Updates made.
    pub updates: u64,
    /// Where the next step's packs start.
    pub cursor: Cursor,
    /// Updates that a non-finite gradient made void.
    pub skipped: u64,
}

/// The model with what changes it.
pub struct Trainer<'w, B: Backend> {
    pub model: Bert<B>,
    pub(super) world: &'w World,
    /// Sums gradients over ranks.
    reducer: Box<dyn Collective<B> + 'w>,
    pub optimiser: Optimiser<B>,
    pub(super) lr: LrPlan,
    /// Where the next step's packs start.
    cursor: Cursor,
    /// Steps whose numbers are still to be read: one between two steps, two before the older is read.
    pub(super) unread: VecDeque<Unread>,
    /// Updates that a non-finite gradient made void, and how many of them in a row came last.
    pub(super) skipped: u64,
    pub(super) skipped_in_row: u32,
    /// The ranks have agreed on something that waits for the step under way.
    pub(super) asked: bool,
    pub(super) health: Health,
    /// Since the last step was read, and the time in collectives until then.
    pub(super) clock: Instant,
    pub(super) waited: Duration,
    /// Steps between two checks; 0 is off.
    check: u64,
}

impl<'w, B: Distributed> Trainer<'w, B> {
    pub fn new(model: Bert<B>, world: &'w World, settings: &Train, steps: u64) -> Result<Self> {
        Ok(Self {
            optimiser: Optimiser::new(&model, world.rank(), world.size(), settings)?,
            reducer: model.backend.collective(world)?,
            model,
            world,
            lr: LrPlan::new(settings, steps),
            cursor: Cursor::default(),
            unread: VecDeque::new(),
            skipped: 0,
            skipped_in_row: 0,
            asked: false,
            health: Health::default(),
            clock: Instant::now(),
            waited: Duration::ZERO,
            check: 0,
        })
    }

    // ---- the training loop -----------------------------------------------------------------------
    /// Makes the planned updates, or fewer when the watcher stops; says which.
    pub fn train(&mut self, loader: &mut Loader, watcher: &mut dyn Watcher<B>) -> Result<Flow> {
        let world = self.world;
        let _armed = world.beat().armed(); // from here on a standstill is a hang
        while self.optimiser.state.updates < self.lr.steps {
            self.mark_step();
            let step = loader.next_step()?; // packed ahead by the loader's thread
            self.debug(&step)?; // nothing unless run.check is set
            let (optimiser, reducer) = (&mut self.optimiser, &mut *self.reducer);
            for (i, batch) in step.batches.iter().enumerate() {
                let last = i + 1 == step.batches.len();
                self.model.forward(batch, Mode::Train)?;
                self.model.backward(batch, &mut |backend, grads, bucket| {
                    if last { optimiser.reduce(reducer, backend, grads, &bucket) } else { Ok(()) }
                })?; // a layer's gradients leave as soon as they are done
            }
            if step.batches.is_empty() {
                optimiser.join(reducer, &mut self.model)?; // more ranks than packs: the others wait
            }
            let lr = self.lr.at(optimiser.state.updates);
            let norm_sq = optimiser.step(reducer, &mut self.model, lr)?; // norm, clip, update: one pass
            self.cursor = step.after;
            self.note(&step, lr, norm_sq)?; // its numbers start on their way to the host
            let flow = self.read(watcher)?; // on a GPU a step late: metrics, validation, checkpoints
            if flow != Flow::Continue {
                return Ok(flow);
            }
        }
        Ok(Flow::Continue)
    }
    // ---- everything below is bookkeeping ---------------------------------------------------------

    /// Debug mode every `steps` steps (`check` says what it does); 0 is off.
    pub fn check_every(mut self, steps: u64) -> Self {
        self.check = steps;
        self
    }

    /// For the watchdog and the clocks.
    fn mark_step(&mut self) {
        self.world.beat().step(self.optimiser.state.updates + 1);
        if self.unread.is_empty() {
            self.restart_clock(); // else the device is still at the step before
        }
    }

    fn debug(&mut self, step: &Step) -> Result<()> {
        let updates = self.optimiser.state.updates;
        let due = self.check > 0 && updates.is_multiple_of(self.check);
        self.model.backend.check_results(due);
        let Some(batch) = step.batches.first().filter(|_| due) else { return Ok(()) };
        let Some(found) = against_reference(&mut self.model, batch)? else { return Ok(()) };
        if self.world.leads() {
            let (name, error) = found.worst();
            tell!(
                "check at step {}: loss {:.6}, reference {:.6}; largest error of a gradient {error:.1e} ({name})",
                updates + 1,
                found.loss,
                found.reference_loss
            );
        }
        found.verdict()
    }

    // ---- state -----------------------------------------------------------------------------------

    /// Where training stands.
    pub fn progress(&self) -> Progress {
        Progress { updates: self.optimiser.state.updates, cursor: self.cursor, skipped: self.skipped }
    }

    /// The ranks that train together.
    pub fn world(&self) -> &'w World {
        self.world
    }

    /// Takes up training at `progress`, from the optimiser's arrays as they were then. The model's
    /// weights are the caller's to put back.
    pub fn restore(&mut self, progress: Progress, saved: &SavedOptimiser) -> Result<()> {
        saved.restore(&self.model.backend, &mut self.optimiser.state)?;
        self.optimiser.state.updates = progress.updates;
        self.model.backend.clear(&mut self.model.grads, 0..self.model.layout.len)?;
        (self.cursor, self.skipped, self.skipped_in_row) = (progress.cursor, progress.skipped, 0);
        self.unread.clear();
        Ok(())
    }
}
