//! The training loop: packs in, updates out. `pretrain`, `coarse` and `fine` all run it; what differs
//! is the samples (`data::source`, `train::groups`), the objective (`model::Objective`) and who
//! watches (`Watcher`).

use std::ops::Range;
use std::time::Instant;

use crate::Result;
use crate::config::Train;
use crate::data::loader::{Cursor, Loader, Step};
use crate::dist::{Collective, Distributed, World};
use crate::engine::{AdamW, Backend, ParamGroup, stats};
use crate::model::{Bert, Mode, Objective};
use crate::train::schedule::LrPlan;
use crate::train::signals;
use crate::train::state::OptimiserState;

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
    /// Updates of the run that a non-finite gradient made void.
    pub skipped: u64,
    /// How many of them in a row end with this one.
    pub skipped_in_row: u32,
    /// What the ranks agreed on in this step's exchange.
    pub agreed: Agreed,
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
    progress: Progress,
    skipped_in_row: u32,
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
            progress: Progress::default(),
            skipped_in_row: 0,
        })
    }

    // ---- the training loop -----------------------------------------------------------------------
    /// Makes the planned updates, or fewer when the watcher stops; says which.
    pub fn train(&mut self, loader: &mut Loader, watcher: &mut dyn Watcher<B>) -> Result<Flow> {
        while self.progress.updates < self.lr.steps {
            let start = Instant::now();
            let step = loader.next_step()?; // packed ahead by the loader's thread
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
            let update = self.update(&step, start, watcher.word()?)?; // norm, clip, AdamW: one pass
            let flow = watcher.after(&update, self)?; // metrics, validation, checkpoints
            if flow != Flow::Continue {
                return Ok(flow);
            }
        }
        Ok(Flow::Continue)
    }
    // ---- everything below is bookkeeping ---------------------------------------------------------

    /// Takes part in the sum of gradients with zeros.
    fn join_reduction(&mut self) -> Result<()> {
        for bucket in self.model.layout.buckets() {
            self.reducer.all_reduce(&self.model.backend, &mut self.model.grads, bucket)?;
        }
        Ok(())
    }

    /// Applies the summed gradients. A non-finite gradient (the same on all ranks, as it is the
    /// sum's) changes nothing but the counts.
    fn update(&mut self, step: &Step, start: Instant, word: Word) -> Result<Update> {
        let lr = self.lr.at(self.progress.updates);
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
            step: self.progress.updates as u32 + 1,
            clip_norm: self.settings.clip_norm,
        };
        let [first, second] = &mut self.moments;
        let (weights, grads, master) = (&mut model.weights, &mut model.grads, &mut self.master);
        let all = 0..model.layout.len;
        let owned = std::slice::from_ref(&all);
        backend.adamw(adamw, &self.groups, owned, &self.norm_sq, weights, master, grads, first, second)?;
        self.progress.updates += 1;
        self.progress.cursor = step.after;

        let norm_sq = f64::from(self.model.backend.download(&self.norm_sq, 0..1)?[0]);
        self.count_non_finite(norm_sq);
        let (sums, agreed) = self.exchange(word)?;
        let mut update = Update {
            step: self.progress.updates,
            skipped: self.progress.skipped,
            skipped_in_row: self.skipped_in_row,
            agreed,
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

    /// The gradient is the sum over ranks, so all of them count the same.
    fn count_non_finite(&mut self, norm_sq: f64) {
        if norm_sq.is_finite() {
            self.skipped_in_row = 0;
            return;
        }
        self.progress.skipped += 1;
        self.skipped_in_row += 1;
        if self.world.leads() {
            let update = self.progress.updates;
            tracing::warn!("update {update}: the gradient is not finite; skipped");
        }
    }

    /// One exchange a step carries everything that ranks tell each other: the sums of the losses, and
    /// whether to save or to end.
    fn exchange(&mut self, word: Word) -> Result<([f64; stats::SLOTS], Agreed)> {
        let mut told = [0.0; stats::SLOTS + 3];
        told[..stats::SLOTS].copy_from_slice(&self.model.take_sums()?);
        told[stats::SLOTS] = f64::from(u8::from(signals::asked().is_some()));
        told[stats::SLOTS + 1] = f64::from(u8::from(word.save));
        told[stats::SLOTS + 2] = word.written as f64;
        let all = self.world.gather_f64(&told);
        let ranks = || all.chunks_exact(told.len());
        let sums = std::array::from_fn(|i| ranks().map(|rank| rank[i]).sum());
        let agreed = Agreed {
            stop: ranks().any(|rank| rank[stats::SLOTS] > 0.0),
            save: all[stats::SLOTS + 1] > 0.0,
            written: ranks().map(|rank| rank[stats::SLOTS + 2] as u64).min().unwrap_or(0),
        };
        Ok((sums, agreed))
    }

    // ---- state -----------------------------------------------------------------------------------

    /// Where training stands.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The ranks that train together.
    pub fn world(&self) -> &'w World {
        self.world
    }

    /// Ranges of the arena whose optimiser arrays this rank holds, ascending.
    pub fn owned(&self) -> Vec<Range<usize>> {
        vec![0..self.model.layout.len]
    }

    /// Whether other ranks hold other parts of the optimiser's arrays.
    pub fn shards_state(&self) -> bool {
        false
    }

    /// Whether the optimiser keeps f32 weights beside narrower ones.
    pub fn has_master(&self) -> bool {
        size_of::<B::Real>() < size_of::<f32>()
    }

    /// A copy of the optimiser's arrays; waits for the device.
    pub fn optimiser_state(&self) -> Result<OptimiserState> {
        let owned = self.owned();
        let len = owned.iter().map(ExactSizeIterator::len).sum();
        let backend = &self.model.backend;
        let master = if self.has_master() { len } else { 0 };
        Ok(OptimiserState {
            owned,
            master: backend.download(&self.master, 0..master)?,
            moment1: backend.download(&self.moments[0], 0..len)?,
            moment2: backend.download(&self.moments[1], 0..len)?,
        })
    }

    /// Takes up training where `state`, of this trainer's `owned` ranges, was copied at `progress`.
    /// The model's weights are the caller's to put back.
    pub fn restore(&mut self, progress: Progress, state: &OptimiserState) -> Result<()> {
        let backend = &self.model.backend;
        backend.upload(&state.master, &mut self.master, 0)?;
        backend.upload(&state.moment1, &mut self.moments[0], 0)?;
        backend.upload(&state.moment2, &mut self.moments[1], 0)?;
        let grads = &mut self.model.grads;
        backend.clear(grads, 0..self.model.layout.len)?;
        self.progress = progress;
        self.skipped_in_row = 0;
        Ok(())
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
