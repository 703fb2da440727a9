//! Whether a run fits its GPU: predicted before anything is allocated, from the same list of buffers as
//! `plan`'s, and compared with what was allocated. A run that cannot fit ends here with advice, not at
//! its first allocation that fails.

use serde_json::{Value, json};

use super::optimiser::owned;
use crate::config::{Precision, Sharding, Train};
use crate::engine::{Backend, Memory};
use crate::model::activations::{Capacity, Recompute};
use crate::model::layout::Layout;
use crate::model::memory::{self, Sizes};
use crate::ranks::World;
use crate::{Error, Result};

/// What prediction and allocation may differ by: scratch that an operation asks for when it first runs.
const SLACK: f64 = 0.02;
const SLACK_BYTES: f64 = 16e6;

/// Buffers end at multiples of 16 bytes, and the optimiser's launches have tables of slices.
const ROUNDING: usize = 32 << 10;

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
    pub layout: &'a Layout,
    pub train: &'a Train,
    /// The largest pack for so many `train.pack_tokens`.
    pub capacity: &'a dyn Fn(usize) -> Capacity,
    /// The fewest `train.pack_tokens` that the run can have.
    pub least_tokens: usize,
}

impl Needs<'_> {
    /// Bytes of what training allocates under `train`.
    fn bytes<B: Backend>(&self, backend: &B, train: &Train, world: &World) -> Result<usize> {
        let capacity = (self.capacity)(train.pack_tokens);
        let (rank, ranks) = (world.rank(), world.size());
        let state = owned(self.layout, rank, ranks, train.sharding).iter().map(ExactSizeIterator::len).sum();
        let sizes = Sizes { layout: self.layout, capacity, recompute: train.recompute, state };
        let mut fields = memory::parameters(sizes, size_of::<B::Real>() < size_of::<f32>());
        fields.extend(memory::activations(sizes));
        fields.extend(memory::pack(sizes));
        if size_of::<B::Real>() < size_of::<f32>() {
            fields.push(memory::scratch(sizes));
        }
        let model: usize = fields.iter().map(|field| field.bytes(size_of::<B::Real>())).sum();
        let narrow = train.reduce == Precision::Bf16 && ranks > 1;
        let longest = self.layout.buckets().iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        let engine = backend.memory(&capacity.counts())?.map_or(0, |memory| memory.engine);
        Ok(model + engine + ROUNDING + if narrow { 2 * longest } else { 0 })
    }

    /// Predicts, and refuses what cannot fit; `None` for a device without memory of its own.
    ///
    /// # Errors
    /// `Error::Device` with the changes of the plan that would make it fit.
    pub fn forecast<B: Backend>(&self, backend: &B, world: &World) -> Result<Option<Forecast>> {
        let Some(memory) = backend.memory(&(self.capacity)(self.train.pack_tokens).counts())? else {
            return Ok(None);
        };
        let Memory { allocated, free, .. } = memory;
        let needed = self.bytes(backend, self.train, world)?;
        if needed <= free {
            return Ok(Some(Forecast { predicted: allocated + needed, before: allocated, free }));
        }
        let advice = self.advice(backend, free, world)?;
        let advice = if advice.is_empty() {
            "no smaller train.pack_tokens, train.recompute or train.sharding alone makes it fit: combine \
            several, or use a smaller model"
                .into()
        } else {
            advice.join(", or ")
        };
        Err(Error::device(format!(
            "{}: this run needs {:.2} GB, {:.2} GB are free: {advice}",
            backend.describe(),
            gb(needed),
            gb(free)
        )))
    }

    /// Single changes of the plan that would make it fit.
    fn advice<B: Backend>(&self, backend: &B, free: usize, world: &World) -> Result<Vec<String>> {
        let fits = |train: &Train| self.bytes(backend, train, world).map(|bytes| bytes <= free);
        let mut advice = Vec::new();
        let tokens = |pack_tokens| Train { pack_tokens, ..self.train.clone() };
        let (mut fit, mut too_many) = (self.least_tokens, self.train.pack_tokens);
        if fits(&tokens(fit))? {
            while too_many > fit + 1 {
                let middle = usize::midpoint(fit, too_many);
                if fits(&tokens(middle))? { fit = middle } else { too_many = middle }
            }
            advice.push(format!("lower train.pack_tokens to {fit}"));
        }
        for (recompute, name) in [(Recompute::GeluNorm, "gelu-norm"), (Recompute::Layer, "layer")] {
            if fits(&Train { recompute, ..self.train.clone() })? {
                advice.push(format!("set train.recompute = \"{name}\""));
                break;
            }
        }
        if fits(&Train { sharding: Sharding::Optimizer, ..self.train.clone() })? {
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
    fn allocated<B: Backend>(backend: &B) -> Result<usize> {
        Ok(backend.memory(&Default::default())?.map_or(0, |memory| memory.allocated))
    }

    /// Prediction and allocation for `run.json`, said in one line by the leading rank.
    pub fn report<B: Backend>(&self, backend: &B, world: &World) -> Result<Value> {
        let allocated = Self::allocated(backend)?;
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
    pub fn confirm<B: Backend>(&self, backend: &B) -> Result<()> {
        let allocated = Self::allocated(backend)?;
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
