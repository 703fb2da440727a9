//! Whether a run fits its GPU: counted before anything is allocated, by the engine that only counts, and
//! compared with what was allocated. A run that cannot fit ends here with advice, not at its first allocation
//! that fails.

use serde_json::{Value, json};

use super::counted::Setup;
use crate::config::{Sharding, Train};
use crate::engine::dry::Dry;
use crate::engine::{Card, Device, Memory};
use crate::model::activations::{Capacity, Recompute};
use crate::model::bert::Options;
use crate::ranks::World;
use crate::{Error, Result};

/// How far counting and allocation may differ: packs that are not full ask for scratch in other steps.
const SLACK: f64 = 0.02;
const SLACK_BYTES: f64 = 16e6;

/// Bytes of a run on this rank's device.
#[derive(Clone, Copy, Debug)]
pub struct Forecast {
    /// Of all buffers, the engine's own included.
    predicted: usize,
    /// Of buffers that were there before.
    before: usize,
    /// Free before.
    free: usize,
}

/// What a run's memory depends on.
pub struct Needs<'a> {
    pub run: Setup<'a>,
    /// The largest pack for a value of `train.pack_tokens`.
    pub capacity: &'a dyn Fn(usize) -> Capacity,
    /// The fewest `train.pack_tokens` that the run can have.
    pub least_tokens: usize,
}

impl Needs<'_> {
    /// Bytes of what training allocates under `train`.
    fn bytes<D: Device>(&self, card: &Card, train: &Train) -> Result<usize> {
        let capacity = (self.capacity)(train.pack_tokens);
        let options = Options { capacity, ..self.run.options.clone() };
        let run = Setup { options, train, ..self.run.clone() };
        Ok(run.count_full(&Dry::<D::Real>::new(card.clone()))?.bytes.total())
    }

    /// Predicts, and refuses what cannot fit; `None` for a device without its own memory.
    ///
    /// # Errors
    /// `Error::Device` with the changes of the plan that would make it fit.
    pub fn forecast<D: Device>(&self, device: &D) -> Result<Option<Forecast>> {
        let (Some(memory), Some(card)) = (device.memory()?, device.gpu()) else { return Ok(None) };
        let Memory { allocated, free } = memory;
        let needed = self.bytes::<D>(&card, self.run.train)?;
        if needed <= free {
            return Ok(Some(Forecast { predicted: allocated + needed, before: allocated, free }));
        }
        let advice = self.advice::<D>(&card, free)?;
        let advice = if advice.is_empty() {
            "no smaller train.pack_tokens, train.recompute or train.sharding alone makes it fit: combine \
            several, or use a smaller model"
                .into()
        } else {
            advice.join(", or ")
        };
        Err(Error::device(format!(
            "{}: this run needs {:.2} GB, {:.2} GB are free: {advice}",
            device.describe(),
            gb(needed),
            gb(free)
        )))
    }

    /// Single changes of the plan that would make it fit.
    fn advice<D: Device>(&self, card: &Card, free: usize) -> Result<Vec<String>> {
        let fits = |train: &Train| self.bytes::<D>(card, train).map(|bytes| bytes <= free);
        let train = self.run.train;
        let mut advice = Vec::new();
        let tokens = |pack_tokens| Train { pack_tokens, ..train.clone() };
        let (mut fit, mut too_many) = (self.least_tokens, train.pack_tokens);
        if fits(&tokens(fit))? {
            while too_many > fit + 1 {
                let middle = usize::midpoint(fit, too_many);
                if fits(&tokens(middle))? { fit = middle } else { too_many = middle }
            }
            advice.push(format!("lower train.pack_tokens to {fit}"));
        }
        for (recompute, name) in [(Recompute::GeluNorm, "gelu-norm"), (Recompute::Layer, "layer")] {
            if fits(&Train { recompute, ..train.clone() })? {
                advice.push(format!("set train.recompute = \"{name}\""));
                break;
            }
        }
        if fits(&Train { sharding: Sharding::Optimizer, ..train.clone() })? {
            advice.push("set train.sharding = \"optimizer\"".into());
        }
        Ok(advice)
    }
}

impl Forecast {
    /// Bytes that all buffers of this process will hold.
    pub fn predicted(&self) -> usize {
        self.predicted
    }

    /// Bytes that buffers hold now.
    fn allocated<D: Device>(device: &D) -> Result<usize> {
        Ok(device.memory()?.map_or(0, |memory| memory.allocated))
    }

    /// Prediction and allocation for `run.json`, said in one line by the leading rank.
    pub fn report<D: Device>(&self, device: &D, world: &World) -> Result<Value> {
        let allocated = Self::allocated(device)?;
        if world.leads() {
            tell!(
                "memory: {:.3} GB predicted, {:.3} GB allocated, {:.2} GB were free",
                gb(self.predicted),
                gb(allocated),
                gb(self.free)
            );
        }
        Ok(
            json!({ "predicted": self.predicted, "allocated": allocated, "before": self.before, "free": self.free }),
        )
    }

    /// At the end of a run: warns when the prediction was wrong.
    pub fn confirm<D: Device>(&self, device: &D) -> Result<()> {
        let allocated = Self::allocated(device)?;
        let off = (allocated as f64 - self.predicted as f64).abs();
        if off > SLACK_BYTES.max(SLACK * self.predicted as f64) {
            tracing::warn!(
                "memory: {:.3} GB were predicted, {:.3} GB are allocated: the difference is an error of \
                `plan`",
                gb(self.predicted),
                gb(allocated)
            );
        }
        Ok(())
    }
}

fn gb(bytes: usize) -> f64 {
    bytes as f64 / 1e9
}
