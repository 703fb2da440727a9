//! How many updates, and the learning rate of each.

use crate::config::{Schedule, Train};
use crate::{Error, Result};

/// The learning rate over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    pub peak: f64,
    /// Where linear and cosine end.
    pub min: f64,
    pub warmup: u64,
    pub steps: u64,
    pub schedule: Schedule,
}

impl LearningRate {
    pub fn new(train: &Train, steps: u64) -> Self {
        let warmup = train.warmup_steps.unwrap_or((train.warmup * steps as f64).round() as u64);
        Self { peak: train.lr, min: train.min_lr, warmup, steps, schedule: train.schedule }
    }

    /// Learning rate of update `step`, from 0: rises linearly from peak / warmup to the peak, then
    /// falls to `min` after the last update, in a line or half a cosine, or stays. As
    /// `get_*_schedule_with_warmup` of transformers, but the warm-up starts at one share of the peak
    /// and not at 0, which would waste the first update.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let falling = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let left = self.steps.saturating_sub(step) as f64 / falling; // from 1 to 0
        let height = match self.schedule {
            Schedule::Constant => return self.peak,
            Schedule::Linear => left,
            Schedule::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * left).cos()),
        };
        self.min + (self.peak - self.min) * height
    }
}

/// Updates of a run whose epoch has `packs` packs.
///
/// # Errors
/// `Error::Config` when neither `steps` nor `epochs` is set, or no update would be made.
pub fn steps(train: &Train, packs: impl FnOnce() -> Result<u64>) -> Result<u64> {
    let steps = match (train.steps, train.epochs) {
        (Some(steps), _) => steps,
        (None, Some(epochs)) => (packs()? as f64 * epochs / train.packs_per_step as f64).round() as u64,
        (None, None) => return Err(Error::config("set train.steps or train.epochs")),
    };
    if steps == 0 {
        return Err(Error::config(
            "the plan makes no update: raise train.steps or train.epochs, or lower train.packs_per_step",
        ));
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_and_falls_linearly() {
        let rate = LearningRate { peak: 1.0, min: 0.0, warmup: 4, steps: 12, schedule: Schedule::Linear };
        let rates: Vec<f64> = (0..12).map(|step| rate.at(step)).collect();
        assert_eq!(rates[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert_eq!(rates[11], 0.125);
        let flat = LearningRate { schedule: Schedule::Constant, ..rate };
        assert_eq!(flat.at(11), 1.0);
    }

    #[test]
    fn epochs_become_steps() {
        let train = Train { epochs: Some(1.5), packs_per_step: 4, ..Train::default() };
        assert_eq!(steps(&train, || Ok(40)).unwrap(), 15);
        let never = Train { epochs: Some(0.01), packs_per_step: 4, ..Train::default() };
        assert!(steps(&never, || Ok(40)).is_err());
        assert!(steps(&Train::default(), || Ok(40)).is_err());
    }
}
