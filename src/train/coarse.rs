//! The training loop: packs in, updates out. `pretrain`, `coarse` and `fine` all run it; what differs
//! is the samples (`data::source`, `train::groups`), the objective (`model::Objective`) and who
//! watches (`Watcher`).

use std::time::Instant;

use crate::config::Train;
use crate::data::loader::{Loader, Step};
use crate::dist::{Collective, Distributed, World};
use crate::engine::{Backend, stats};
use crate::model::{Bert, Mode, Objective};
use crate::train::optimiser::Optimiser;
use crate::train::schedule::LrPlan;
use crate::{Error, Result};

/// Updates with a non-finite gradient that may follow each other before the run ends.
const NON_FINITE_LIMIT: u32 = 3;

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
    Stop,
}

/// Looks on after every update: logs, validates, saves.
pub trait Watcher<B: Backend> {
    fn after(&mut self, update: &Update, model: &mut Bert<B>) -> Result<Flow>;
}

/// The model with what changes it.
pub struct Trainer<'w, B: Backend> {
    pub model: Bert<B>,
    world: &'w World,
    /// Sums gradients over ranks.
    reducer: Box<dyn Collective<B> + 'w>,
    pub optimiser: Optimiser<B>,
    lr: LrPlan,
    non_finite: u32,
}

impl<'w, B: Distributed> Trainer<'w, B> {
    pub fn new(model: Bert<B>, world: &'w World, settings: &Train, steps: u64) -> Result<Self> {
        Ok(Self {
            optimiser: Optimiser::new(&model, world.rank(), world.size(), settings)?,
            reducer: model.backend.collective(world)?,
            model,
            world,
            lr: LrPlan::new(settings, steps),
            non_finite: 0,
        })
    }

    // ---- the training loop -----------------------------------------------------------------------
    /// Makes the planned updates, or fewer when the watcher stops.
    pub fn train(&mut self, loader: &mut Loader, watcher: &mut dyn Watcher<B>) -> Result<()> {
        while self.optimiser.state.updates < self.lr.steps {
            let start = Instant::now();
            let step = loader.next_step()?; // packed ahead by the loader's thread
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
            let update = self.summarise(&step, lr, norm_sq, start)?;
            if watcher.after(&update, &mut self.model)? == Flow::Stop {
                break;
            }
        }
        Ok(())
    }
    // ---- everything below is bookkeeping ---------------------------------------------------------

    /// What the update did, over all ranks.
    fn summarise(&mut self, step: &Step, lr: f64, norm_sq: f64, start: Instant) -> Result<Update> {
        self.count_non_finite(norm_sq)?;
        let mut sums = self.model.take_sums()?;
        self.world.sum_f64(&mut sums);
        let mut update = Update {
            step: self.optimiser.state.updates,
            epoch: step.epoch,
            sums,
            grad_norm: norm_sq.sqrt(),
            lr,
            tokens: step.tokens,
            waited_ms: step.waited_ms,
            ..Update::default()
        };
        update.loss = self.loss(&update);
        update.step_ms = start.elapsed().as_secs_f64() * 1e3;
        Ok(update)
    }

    fn loss(&self, update: &Update) -> f64 {
        let mean = |sum, count| update.mean(sum, count).unwrap_or(0.0);
        match self.model.options.objective {
            Objective::Pretraining { mlm, qdpp } => {
                f64::from(mlm) * mean(stats::MLM_LOSS, stats::MLM_COUNT)
                    + f64::from(qdpp) * mean(stats::QDPP_LOSS, stats::QDPP_COUNT)
            }
            Objective::Ranking(_) => mean(stats::RANK_LOSS, stats::RANK_COUNT),
        }
    }

    /// A non-finite gradient (the same on all ranks, as it is the sum's) has changed nothing; several
    /// in a row end the run.
    fn count_non_finite(&mut self, norm_sq: f64) -> Result<()> {
        if norm_sq.is_finite() {
            self.non_finite = 0;
            return Ok(());
        }
        self.non_finite += 1;
        if self.world.leads() {
            tracing::warn!("update {}: the gradient is not finite; skipped", self.optimiser.state.updates);
        }
        if self.non_finite < NON_FINITE_LIMIT {
            return Ok(());
        }
        Err(Error::data(format!(
            "update {}: {NON_FINITE_LIMIT} gradients in a row were not finite: lower train.lr or check the \
             weights of model.path",
            self.optimiser.state.updates
        )))
    }
}
