//! Watches a fine-tuning: it measures the validation fold, keeps the best weights, and stops training when
//! they no longer improve.

use super::rerank::rerank;
use crate::Result;
use crate::config::Fine;
use crate::data::collection::Collection;
use crate::ir::measures::{self, Measure, evaluate};
use crate::ir::qrels::Qrels;
use crate::ir::run::Run;
use crate::ranks::{Distributed, World};
use crate::run::signals;
use crate::train::metrics::Meter;
use crate::train::trainer::{Flow, NON_FINITE_LIMIT, Trainer, Watcher};
use crate::train::update::{Notice, Update};

/// Measures the validation fold at the set interval and keeps the best weights.
pub struct Validator<'a> {
    pub collection: &'a Collection,
    pub qrels: &'a Qrels,
    pub fine: &'a Fine,
    pub topics: &'a [String],
    pub measure: Measure,
    pub meter: Meter,
    pub world: &'a World,
    /// The best value so far and its weights.
    pub best: Option<(f64, Vec<f32>)>,
    /// Validations since the best.
    pub worse: usize,
}

impl<E: Distributed> Watcher<E> for Validator<'_> {
    fn notice(&mut self) -> Result<Notice> {
        Ok(Notice { stop: signals::asked().is_some(), ..Notice::default() })
    }

    fn holds(&self, step: u64) -> bool {
        let every = self.fine.validate_every;
        every > 0 && step.is_multiple_of(every)
    }

    fn after(&mut self, update: &Update, trainer: &mut Trainer<'_, E>) -> Result<Flow> {
        self.meter.record(update)?;
        if update.agreed.stop {
            return Ok(Flow::Preempted);
        }
        if update.skipped_in_row >= NON_FINITE_LIMIT {
            return Ok(Flow::Diverged);
        }
        let model = &mut trainer.model;
        if !Watcher::<E>::holds(self, update.step) {
            return Ok(Flow::Continue);
        }
        let aggregate = self.fine.aggregate.into();
        let run = rerank(model, self.collection, self.topics, aggregate, self.world)?;
        let value = mean(self.qrels, &run, self.measure)?;
        if self.best.as_ref().is_none_or(|(best, _)| value > *best) {
            let weights = model.engine.download_weights(&model.weights, 0..model.layout.len)?;
            self.best = Some((value, weights));
            self.worse = 0;
            return Ok(Flow::Continue);
        }
        self.worse += 1;
        let patience = self.fine.patience;
        Ok(if patience > 0 && self.worse >= patience { Flow::Stop } else { Flow::Continue })
    }
}

/// The mean of a measure over the topics of a run.
pub fn mean(qrels: &Qrels, run: &Run, measure: Measure) -> Result<f64> {
    Ok(evaluate(qrels, run, &[measure], &measures::Options::default())?.means[0])
}
