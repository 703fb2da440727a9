//! The training loop: packs in, updates out. `pretrain`, `coarse` and `fine` all run it; what differs
//! is the samples (`data::source`, `train::groups`), the objective (`model::Objective`) and who
//! watches (`Watcher`).

use std::time::Instant;

use crate::config::Train;
use crate::data::loader::{Loader, Step};
use crate::dist::{Collective, Distributed, World};
use crate::engine::{AdamW, Backend, ParamGroup, stats};
use crate::model::{Bert, Mode, Objective};
use crate::train::check::against_reference;
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
    settings: Train,
    lr: LrPlan,
    /// Learning rate and decay by range of the arena.
    groups: Vec<ParamGroup>,
    /// [layout.len] each
    moments: [B::Buf<f32>; 2],
    /// Weights in f32 where `Real` is narrower, [layout.len]; else empty
    master: B::Buf<f32>,
    /// Squared global norm, [1]
    norm_sq: B::Buf<f32>,
    updates: u64,
    non_finite: u32,
    /// Steps between two checks; 0 is off.
    check: u64,
}

impl<'w, B: Distributed> Trainer<'w, B> {
    pub fn new(model: Bert<B>, world: &'w World, settings: &Train, steps: u64) -> Result<Self> {
        let head_scale = settings.head_lr.map_or(1.0, |lr| (lr / settings.lr) as f32);
        let len = model.layout.len;
        Ok(Self {
            groups: model.layout.groups(head_scale),
            moments: [model.backend.zeros(len)?, model.backend.zeros(len)?],
            norm_sq: model.backend.zeros(1)?,
            master: master(&model)?,
            reducer: model.backend.collective(world)?,
            model,
            world,
            settings: settings.clone(),
            lr: LrPlan::new(settings, steps),
            updates: 0,
            non_finite: 0,
            check: 0,
        })
    }

    // ---- the training loop -----------------------------------------------------------------------
    /// Makes the planned updates, or fewer when the watcher stops.
    pub fn train(&mut self, loader: &mut Loader, watcher: &mut dyn Watcher<B>) -> Result<()> {
        while self.updates < self.lr.steps {
            let start = Instant::now();
            let step = loader.next_step()?; // packed ahead by the loader's thread
            self.debug(&step)?; // nothing unless run.check is set
            for (i, batch) in step.batches.iter().enumerate() {
                let last = i + 1 == step.batches.len();
                self.model.forward(batch, Mode::Train)?;
                let reducer = &mut self.reducer;
                self.model.backward(batch, &mut |backend, grads, bucket| {
                    if last { reducer.all_reduce(backend, grads, bucket) } else { Ok(()) } // bucket by bucket
                })?;
            }
            if step.batches.is_empty() {
                self.join_reduction()?; // more ranks than packs: nothing to add, but the others wait
            }
            self.reducer.finish(&self.model.backend)?; // the device waits, not the host
            let update = self.update(&step, start)?; // norm, clip, AdamW: one pass
            if watcher.after(&update, &mut self.model)? == Flow::Stop {
                break;
            }
        }
        Ok(())
    }
    // ---- everything below is bookkeeping ---------------------------------------------------------

    /// Debug mode every `steps` steps (`check` says what it does); 0 is off.
    pub fn check_every(mut self, steps: u64) -> Self {
        self.check = steps;
        self
    }

    fn debug(&mut self, step: &Step) -> Result<()> {
        let due = self.check > 0 && self.updates.is_multiple_of(self.check);
        self.model.backend.check_results(due);
        let Some(batch) = step.batches.first().filter(|_| due) else { return Ok(()) };
        let Some(found) = against_reference(&mut self.model, batch)? else { return Ok(()) };
        if self.world.leads() {
            let (name, error) = found.worst();
            println!(
                "check at step {}: loss {:.6}, reference {:.6}; largest error of a gradient {error:.1e} ({name})",
                self.updates + 1,
                found.loss,
                found.reference_loss
            );
        }
        found.verdict()
    }

    /// Takes part in the sum of gradients with zeros.
    fn join_reduction(&mut self) -> Result<()> {
        for bucket in self.model.layout.buckets() {
            self.reducer.all_reduce(&self.model.backend, &mut self.model.grads, bucket)?;
        }
        Ok(())
    }

    /// Applies the summed gradients. A non-finite gradient (the same on all ranks, as it is the
    /// sum's) changes nothing; several in a row end the run.
    fn update(&mut self, step: &Step, start: Instant) -> Result<Update> {
        let lr = self.lr.at(self.updates);
        let model = &mut self.model;
        let backend = &model.backend;
        backend.sum_squares(
            &model.grads,
            std::slice::from_ref(&(0..model.layout.len)),
            &mut self.norm_sq,
            0,
        )?;
        let adamw = AdamW {
            lr: lr as f32,
            beta1: self.settings.beta1,
            beta2: self.settings.beta2,
            eps: self.settings.eps,
            weight_decay: self.settings.weight_decay,
            step: self.updates as u32 + 1,
            clip_norm: self.settings.clip_norm,
        };
        let [first, second] = &mut self.moments;
        let (weights, grads, master) = (&mut model.weights, &mut model.grads, &mut self.master);
        let all = 0..model.layout.len;
        let owned = std::slice::from_ref(&all);
        backend.adamw(adamw, &self.groups, owned, &self.norm_sq, weights, master, grads, first, second)?;
        self.updates += 1;

        let norm_sq = f64::from(self.model.backend.download(&self.norm_sq, 0..1)?[0]);
        self.count_non_finite(norm_sq)?;
        let mut sums = self.model.take_sums()?;
        self.world.sum_f64(&mut sums);
        let mut update = Update {
            step: self.updates,
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

    fn count_non_finite(&mut self, norm_sq: f64) -> Result<()> {
        if norm_sq.is_finite() {
            self.non_finite = 0;
            return Ok(());
        }
        self.non_finite += 1;
        if self.world.leads() {
            tracing::warn!("update {}: the gradient is not finite; skipped", self.updates);
        }
        if self.non_finite < NON_FINITE_LIMIT {
            return Ok(());
        }
        Err(Error::data(format!(
            "update {}: {NON_FINITE_LIMIT} gradients in a row were not finite: lower train.lr or check the \
             weights of model.path",
            self.updates
        )))
    }
}

/// The f32 copy of weights that are kept narrower, [layout.len]; empty where they are f32.
fn master<B: Backend>(model: &Bert<B>) -> Result<B::Buf<f32>> {
    if size_of::<B::Real>() == size_of::<f32>() {
        return model.backend.zeros(0);
    }
    let mut master = model.backend.zeros(model.layout.len)?;
    let weights = model.backend.download_weights(&model.weights, 0..model.layout.len)?;
    model.backend.upload(&weights, &mut master, 0)?;
    Ok(master)
}
