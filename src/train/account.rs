//! What a training step did, told to the host. The loop asks for a step's numbers as soon as the step
//! is given to the device and reads them when the next one is: a device that works behind the host
//! has work all the while. Whatever needs the state that a step leaves (a checkpoint, a validation,
//! the end, gradients that are not finite) has its step read before the next one begins, so it is
//! the same as if every step were.

use std::time::Instant;

use super::speed::Work;
use super::trainer::{Agreed, Flow, Trainer, Update, Watcher, Word};
use crate::Result;
use crate::data::loader::Step;
use crate::engine::{Fetch, stats};
use crate::model::Objective;
use crate::ranks::Distributed;
use crate::run::signals;

/// A step whose losses and norm are on their way.
pub struct Unread {
    /// What the host knows of the update by itself.
    known: Update,
    sums: Fetch,
    norm_sq: Fetch,
}

impl<B: Distributed> Trainer<'_, B> {
    /// Has the numbers of the step that was just made brought to the host.
    pub(super) fn note(&mut self, step: &Step, lr: f64, norm_sq: Fetch) -> Result<()> {
        let work = Work { tokens: step.tokens, attended: step.attended, masked: step.masked };
        let known = Update {
            step: self.optimiser.state.updates,
            epoch: step.epoch,
            lr,
            tokens: step.tokens,
            waited_ms: step.waited_ms,
            exchange_ms: self.optimiser.take_exchange_ms(),
            flops: work.flops(&self.model.layout.shape),
            ..Update::default()
        };
        self.unread.push_back(Unread { known, sums: self.model.send_sums()?, norm_sq });
        Ok(())
    }

    /// Reads the steps whose numbers have to be known by now, and shows them to `watcher`: all but the
    /// last, and the last where training may not run ahead of it.
    pub(super) fn read(&mut self, watcher: &mut dyn Watcher<B>) -> Result<Flow> {
        while let Some(unread) = self.unread.pop_front() {
            let ahead = !self.unread.is_empty(); // the next step is made already
            if !ahead && self.may_run_ahead(unread.known.step, watcher) {
                self.unread.push_front(unread);
                break;
            }
            let mut update = self.summarise(unread, watcher.word()?)?;
            let Agreed { stop, save, .. } = update.agreed;
            self.asked = ahead && (stop || save);
            if ahead {
                (update.agreed.stop, update.agreed.save) = (false, false); // will be asked again after the next
            }
            let flow = watcher.after(&update, self)?;
            if flow != Flow::Continue {
                return Ok(flow);
            }
        }
        Ok(Flow::Continue)
    }

    /// Whether the next step may begin before step `step` is read. The same on all ranks.
    fn may_run_ahead(&self, step: u64, watcher: &dyn Watcher<B>) -> bool {
        let well = self.skipped_in_row == 0 && !self.asked;
        B::WORKS_BEHIND && well && step < self.lr.steps && !watcher.holds(step)
    }

    /// What the update did, over all ranks. A non-finite gradient (the same on all ranks, as it is the
    /// sum's) has changed nothing but the counts.
    fn summarise(&mut self, unread: Unread, word: Word) -> Result<Update> {
        let Unread { known, sums, norm_sq } = unread;
        let sums = stats::read(&sums.wait()?); // the norm was sent before: one wait for both
        let grad_norm = f64::from(norm_sq.wait()?[0]).sqrt();
        self.count_non_finite(grad_norm, known.step);
        let (sums, agreed, busy) = self.exchange(&sums, word);
        let (skipped, skipped_in_row) = (self.skipped, self.skipped_in_row);
        let mut update = Update { sums, agreed, grad_norm, skipped, skipped_in_row, ..known };
        update.loss = self.loss(&update);
        update.signs = self.health.record(update.loss, update.grad_norm, busy.into_iter());
        update.step_ms = self.clock.elapsed().as_secs_f64() * 1e3;
        self.restart_clock();
        Ok(update)
    }

    /// From here on time belongs to the step that is read next.
    pub(super) fn restart_clock(&mut self) {
        (self.clock, self.waited) = (Instant::now(), self.world.beat().waited());
    }

    fn loss(&self, update: &Update) -> f64 {
        let mean = |sum, count| update.mean(sum, count).unwrap_or(0.0);
        match self.model.options.objective {
            Objective::Pretraining { mlm, qdpp } => {
                f64::from(mlm) * mean(stats::MLM_LOSS, stats::MLM_COUNT)
                    + f64::from(qdpp) * mean(stats::QDPP_LOSS, stats::QDPP_COUNT)
            }
            Objective::Ranking(..) => mean(stats::RANK_LOSS, stats::RANK_COUNT),
        }
    }

    /// The gradient is the sum over ranks, so all of them count the same.
    fn count_non_finite(&mut self, norm: f64, step: u64) {
        if norm.is_finite() {
            self.skipped_in_row = 0;
            return;
        }
        self.skipped += 1;
        self.skipped_in_row += 1;
        if self.world.leads() {
            tracing::warn!("update {step}: the gradient is not finite; skipped");
        }
    }

    /// One exchange a step carries everything that ranks tell each other: the sums of the losses,
    /// whether to save or to end, and how long each has been busy. By the host's clock: a device that
    /// works behind shows the time that it kept the host waiting.
    fn exchange(&self, sums: &[f64; stats::SLOTS], word: Word) -> ([f64; stats::SLOTS], Agreed, Vec<f64>) {
        const STOP: usize = stats::SLOTS;
        const SAVE: usize = STOP + 1;
        const WRITTEN: usize = STOP + 2;
        const BUSY: usize = STOP + 3;
        let mut told = [0.0; BUSY + 1];
        told[..stats::SLOTS].copy_from_slice(sums);
        told[STOP] = f64::from(u8::from(signals::asked().is_some()));
        told[SAVE] = f64::from(u8::from(word.save));
        told[WRITTEN] = word.written as f64;
        let waited = self.world.beat().waited() - self.waited;
        told[BUSY] = 1e3 * self.clock.elapsed().saturating_sub(waited).as_secs_f64();
        let all = self.world.gather_f64(&told);
        let ranks = || all.chunks_exact(told.len());
        let sums = std::array::from_fn(|i| ranks().map(|rank| rank[i]).sum());
        let agreed = Agreed {
            stop: ranks().any(|rank| rank[STOP] > 0.0),
            save: all[SAVE] > 0.0,
            written: ranks().map(|rank| rank[WRITTEN] as u64).min().unwrap_or(0),
        };
        (sums, agreed, ranks().map(|rank| rank[BUSY]).collect())
    }
}
