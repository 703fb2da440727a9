//! The training loop: packs in, updates out. `pretrain`, `coarse` and `fine` all run it; what differs
//! is the samples (`data::source`, `data::groups`), the objective (`model::Objective`) and who
//! watches (`Watcher`).

use super::account::Account;
use super::check::against_reference;
use super::counted::{FlopRates, Setup, Work};
use super::optimiser::Optimiser;
use super::schedule::LearningRate;
use super::state::SavedOptimiser;
use super::update::{Notice, Update};
use crate::Result;
use crate::config::Train;
use crate::data::loader::{Cursor, Loader, Step};
use crate::engine::{Engine, Fetch};
use crate::model::{Bert, Mode};
use crate::ranks::{Collective, Distributed, World};

/// How many updates in a row may have a non-finite gradient before training goes back to the last checkpoint.
pub const NON_FINITE_LIMIT: u32 = 3;

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

/// Called after every update: logs, validates, saves.
pub trait Watcher<E: Engine> {
    /// What this rank tells the others in the update's exchange.
    fn notice(&mut self) -> Result<Notice> {
        Ok(Notice::default())
    }

    /// Whether `after` of this step needs the state that the step leaves, to save or to measure it: then no
    /// later step begins before it. The same on all ranks.
    fn holds(&self, step: u64) -> bool {
        let _ = step;
        false
    }

    /// Called once a step, in order. On an asynchronous device `trainer` may be a step ahead of `update`,
    /// but for steps that `holds` names, the last one, and those with something agreed.
    fn after(&mut self, update: &Update, trainer: &mut Trainer<'_, E>) -> Result<Flow>;
}

/// How far training has got, besides weights and the optimiser's arrays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// Updates made.
    pub updates: u64,
    /// Where the next step's packs start.
    pub cursor: Cursor,
    /// Updates that a non-finite gradient made void.
    pub skipped: u64,
}

/// The model and everything that changes it.
pub struct Trainer<'w, E: Engine> {
    pub model: Bert<E>,
    world: &'w World,
    /// Sums gradients over ranks.
    reducer: Box<dyn Collective<E> + 'w>,
    pub optimiser: Optimiser<E>,
    lr: LearningRate,
    /// Where the next step's packs start.
    cursor: Cursor,
    /// Steps whose numbers are still to be read, and the totals of the ones before.
    account: Account<'w>,
    /// Steps between two checks; 0 is off.
    check: u64,
    flops: FlopRates,
}

impl<'w, E: Distributed> Trainer<'w, E> {
    pub fn new(model: Bert<E>, world: &'w World, settings: &Train, steps: u64) -> Result<Self> {
        let account = Account::new(world, model.options.objective);
        let (layout, options) = (&model.layout, model.options.clone());
        let run = Setup { layout, options, train: settings, rank: world.rank(), ranks: world.size() };
        Ok(Self {
            flops: FlopRates::of(&run)?,
            optimiser: Optimiser::new(&model, world.rank(), world.size(), settings)?,
            reducer: model.engine.collective(world)?,
            model,
            world,
            lr: LearningRate::new(settings, steps),
            cursor: Cursor::default(),
            account,
            check: 0,
        })
    }

    // ---- the training loop -----------------------------------------------------------------------
    /// Makes the planned updates, or fewer when the watcher stops; says which.
    pub fn train(&mut self, loader: &mut Loader, watcher: &mut dyn Watcher<E>) -> Result<Flow> {
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
                self.model.backward(batch, &mut |engine, grads, bucket| {
                    if last { optimiser.reduce(reducer, engine, grads, &bucket) } else { Ok(()) }
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

    /// Tells the watchdog and the clocks that a step begins.
    fn mark_step(&mut self) {
        self.world.beat().step(self.optimiser.state.updates + 1);
        if self.account.oldest().is_none() {
            self.account.restart_clock(); // else the device is still at the step before
        }
    }

    /// Asks for the numbers of the step that was just queued.
    fn note(&mut self, step: &Step, lr: f64, norm_sq: Fetch) -> Result<()> {
        let Step { tokens, attended, masked, sequences, .. } = *step;
        let work = Work { tokens, attended, masked, sequences };
        let known = Update {
            step: self.optimiser.state.updates,
            epoch: step.epoch,
            lr,
            tokens: step.tokens,
            waited_ms: step.waited_ms,
            exchange_ms: self.optimiser.take_exchange_ms(),
            flops: self.flops.flops(&work),
            ..Update::default()
        };
        let sums = self.model.send_sums()?;
        self.account.note(known, sums, norm_sq);
        Ok(())
    }

    /// Reads the steps whose numbers have to be known by now, and shows them to `watcher`: all but the
    /// last, and the last where training may not run ahead of it.
    fn read(&mut self, watcher: &mut dyn Watcher<E>) -> Result<Flow> {
        while let Some((step, ahead)) = self.account.oldest() {
            if !ahead && self.may_run_ahead(step, watcher) {
                break;
            }
            let Some(update) = self.account.read(watcher.notice()?)? else { break };
            let flow = watcher.after(&update, self)?;
            if flow != Flow::Continue {
                return Ok(flow);
            }
        }
        Ok(Flow::Continue)
    }

    /// Whether the next step may begin before step `step` is read. The same on all ranks.
    fn may_run_ahead(&self, step: u64, watcher: &dyn Watcher<E>) -> bool {
        E::ASYNCHRONOUS && self.account.may_run_ahead() && step < self.lr.steps && !watcher.holds(step)
    }

    fn debug(&mut self, step: &Step) -> Result<()> {
        let updates = self.optimiser.state.updates;
        let due = self.check > 0 && updates.is_multiple_of(self.check);
        self.model.engine.watch().set(due);
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

    /// How far training has got.
    pub fn progress(&self) -> Progress {
        let (updates, skipped) = (self.optimiser.state.updates, self.account.skipped());
        Progress { updates, cursor: self.cursor, skipped }
    }

    /// The ranks that train together.
    pub fn world(&self) -> &'w World {
        self.world
    }

    /// Resumes training at `progress`, from the optimiser's arrays as they were then. The caller restores the
    /// model's weights.
    pub fn restore(&mut self, progress: Progress, saved: &SavedOptimiser) -> Result<()> {
        saved.restore(&self.model.engine, &mut self.optimiser.state)?;
        self.optimiser.state.updates = progress.updates;
        self.model.engine.clear(&mut self.model.grads, 0..self.model.layout.len)?;
        self.cursor = progress.cursor;
        self.account.restore(progress.skipped);
        Ok(())
    }
}
