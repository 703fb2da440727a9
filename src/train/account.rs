//! Brings each training step's numbers to the host. The loop asks for them as soon as the step is queued and
//! reads them when the next step is queued, so that an asynchronous device always has work. A checkpoint, a
//! validation, the end, and gradients that are not finite need the state that a step leaves. Such a step is
//! read before the next one begins, so the outcome is the same as if every step were.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::health::Health;
use super::update::{Agreed, Notice, Update};
use crate::Result;
use crate::engine::{Fetch, stats};
use crate::model::Objective;
use crate::ranks::World;

/// The steps whose numbers are still to be read, and the totals of the ones before.
pub struct Account<'w> {
    world: &'w World,
    objective: Objective,
    /// Steps whose numbers are on their way: one between two steps, two before the older is read.
    unread: VecDeque<Unread>,
    /// Updates that a non-finite gradient made void, and how many of them in a row came last.
    skipped: u64,
    skipped_in_row: u32,
    /// The ranks have agreed on something that waits for the step under way.
    asked: bool,
    health: Health,
    /// Since the last step was read, and the time in collectives until then.
    clock: Instant,
    waited: Duration,
}

/// A step whose losses and norm are on their way.
struct Unread {
    /// What the host knows of the update by itself.
    known: Update,
    sums: Fetch,
    norm_sq: Fetch,
}

impl<'w> Account<'w> {
    pub fn new(world: &'w World, objective: Objective) -> Self {
        Self {
            world,
            objective,
            unread: VecDeque::new(),
            skipped: 0,
            skipped_in_row: 0,
            asked: false,
            health: Health::default(),
            clock: Instant::now(),
            waited: Duration::ZERO,
        }
    }

    /// Notes a step: what is known of it, and its losses and squared norm on their way.
    pub fn note(&mut self, known: Update, sums: Fetch, norm_sq: Fetch) {
        self.unread.push_back(Unread { known, sums, norm_sq });
    }

    /// The number of the oldest step that was not read, and whether the step after it is queued already.
    pub fn oldest(&self) -> Option<(u64, bool)> {
        self.unread.front().map(|unread| (unread.known.step, self.unread.len() > 1))
    }

    /// Whether the next step may begin before the last is read: nothing found or agreed on forbids it. The
    /// same on all ranks.
    pub fn may_run_ahead(&self) -> bool {
        self.skipped_in_row == 0 && !self.asked
    }

    /// Updates that a non-finite gradient made void.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// From here on time belongs to the step that is read next.
    pub fn restart_clock(&mut self) {
        (self.clock, self.waited) = (Instant::now(), self.world.beat().waited());
    }

    /// Resumes after `skipped` void updates; numbers still on their way no longer count.
    pub fn restore(&mut self, skipped: u64) {
        (self.skipped, self.skipped_in_row) = (skipped, 0);
        self.unread.clear();
    }

    /// Reads the oldest step: what it did, over all ranks. If the next step is queued already, what the ranks
    /// agreed on is put off until that one is read. `None` when every step is read.
    pub fn read(&mut self, notice: Notice) -> Result<Option<Update>> {
        let Some(unread) = self.unread.pop_front() else { return Ok(None) };
        let ahead = !self.unread.is_empty();
        let mut update = self.summarise(unread, notice)?;
        let Agreed { stop, save, .. } = update.agreed;
        self.asked = ahead && (stop || save);
        if ahead {
            (update.agreed.stop, update.agreed.save) = (false, false); // will be asked again after the next
        }
        Ok(Some(update))
    }

    /// A non-finite gradient (the same on all ranks, as it is the sum's) has changed nothing but the
    /// counts.
    fn summarise(&mut self, unread: Unread, notice: Notice) -> Result<Update> {
        let Unread { known, sums, norm_sq } = unread;
        let sums = stats::read(&sums.wait()?); // the norm was sent before: one wait for both
        let grad_norm = f64::from(norm_sq.wait()?[0]).sqrt();
        self.count_non_finite(grad_norm, known.step);
        let (sums, agreed, busy) = self.exchange(&sums, notice);
        let (skipped, skipped_in_row) = (self.skipped, self.skipped_in_row);
        let mut update = Update { sums, agreed, grad_norm, skipped, skipped_in_row, ..known };
        update.loss = self.loss(&update);
        update.signs = self.health.record(update.loss, update.grad_norm, busy.into_iter());
        update.step_ms = self.clock.elapsed().as_secs_f64() * 1e3;
        self.restart_clock();
        Ok(update)
    }

    fn loss(&self, update: &Update) -> f64 {
        let mean = |sum, count| update.mean(sum, count).unwrap_or(0.0);
        match self.objective {
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
    /// whether to save or to end, and how long each has been busy. Busy is by the host's clock: of an
    /// asynchronous device it shows the time that it kept the host waiting.
    fn exchange(
        &self,
        sums: &[f64; stats::SLOTS],
        notice: Notice,
    ) -> ([f64; stats::SLOTS], Agreed, Vec<f64>) {
        const STOP: usize = stats::SLOTS;
        const SAVE: usize = STOP + 1;
        const WRITTEN: usize = STOP + 2;
        const BUSY: usize = STOP + 3;
        let mut told = [0.0; BUSY + 1];
        told[..stats::SLOTS].copy_from_slice(sums);
        told[STOP] = f64::from(u8::from(notice.stop));
        told[SAVE] = f64::from(u8::from(notice.save));
        told[WRITTEN] = notice.written as f64;
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
