//! `[train]`: the optimisation.

use super::check::Fault;
use super::data::MOST_TOKENS;
use super::keys::{above, above_to, choice, keys, section};

section! {
    /// The optimisation.
    pub struct Train {
        /// Updates to make. Exclusive with `epochs`; one of the two must be set.
        pub steps: Option<u64> = None, within 1.0..=1e12;
        /// Passes over the samples. Exclusive with `steps`.
        pub epochs: Option<f64> = None, within above_to(0.0, 1e6);
        /// Token budget of a pack. For `fine`, a pack holds at least one whole group.
        pub pack_tokens: usize = 4096, within 8..=MOST_TOKENS;
        /// Packs of a step over all ranks. This is the global batch.
        pub packs_per_step: usize = 1, within 1..=1_000_000;
        /// Peak learning rate.
        pub lr: f64 = 5e-5, within above(0.0);
        /// Peak learning rate of the ranking head. Without it, `lr`.
        pub head_lr: Option<f64> = None, within above(0.0);
        /// Share of the steps in which the learning rate rises.
        pub warmup: f64 = 0.1, within 0.0..1.0;
        /// Steps in which the learning rate rises. Replaces `warmup`. At most `steps`.
        pub warmup_steps: Option<u64> = None, within 0..;
        /// Learning rate after the warm-up.
        pub schedule: Schedule = Schedule::Linear;
        /// Learning rate at which `linear` and `cosine` end. At most `lr`.
        pub min_lr: f64 = 0.0, within 0.0..;
        /// Rule that turns a gradient into an update.
        pub optimizer: Optimizer = Optimizer::Adamw;
        /// What is divided over the ranks.
        pub sharding: Sharding = Sharding::None;
        /// What backward computes again instead of keeping it. The bits are the same.
        pub recompute: Recompute = Recompute::None;
        /// Factor of a layer's learning rate for every layer above it. 1 treats all layers alike.
        pub layer_decay: f64 = 1.0, within above_to(0.0, 10.0);
        /// Parts that keep their weights: `"embeddings"`, `"layer.3"`, `"layer.0-3"`.
        pub freeze: Vec<String> = Vec::new();
        /// Updates between two validations of `coarse` on `data.validation_pairs`. 0 validates at the end alone.
        pub validate_every: u64 = 0;
        /// Weight decay. Biases and LayerNorms do not decay. Its product with the learning rate is below 1.
        pub weight_decay: f32 = 0.01, within 0.0..;
        /// Decay of the first moment in a step.
        pub beta1: f32 = 0.9, within 0.0..1.0;
        /// Decay of the second moment in a step.
        pub beta2: f32 = 0.999, within 0.0..1.0;
        /// Added to the root of the second moment, so that nothing is divided by 0.
        pub eps: f32 = 1e-8, within above(0.0);
        /// Global norm at which gradients are clipped. 0 never clips.
        pub clip_norm: f32 = 1.0, within 0.0..;
        /// Share of values that dropout sets to 0.
        pub dropout: f32 = 0.1, within 0.0..1.0;
        /// Precision of weights and activations. Without it, bf16 on a GPU and f32 on a CPU. Gradients, moments and
        /// master weights are always f32.
        pub precision: Option<Precision> = None;
        /// Precision in which GPUs sum gradients over ranks. `bf16` halves the bytes.
        pub reduce: Precision = Precision::F32;
    }
}

choice! {
    /// How numbers are kept.
    pub enum Precision {
        /// 32 bits.
        F32 = "f32",
        /// 16 bits, with the exponents of f32.
        Bf16 = "bf16",
    }
}

choice! {
    /// Learning rate after the warm-up.
    pub enum Schedule {
        /// Falls in a line, to `min_lr` after the last step.
        Linear = "linear",
        /// Falls to `min_lr` in half a cosine.
        Cosine = "cosine",
        /// Stays.
        Constant = "constant",
    }
}

choice! {
    /// Rule that turns a gradient into an update.
    pub enum Optimizer {
        /// AdamW (Loshchilov and Hutter 2019).
        Adamw = "adamw",
        /// LAMB (You et al. 2020): AdamW's direction, scaled by a trust ratio for each tensor. For very large batches.
        Lamb = "lamb",
    }
}

choice! {
    /// What is divided over the ranks.
    pub enum Sharding {
        /// Nothing: every rank keeps the whole optimiser state.
        None = "none",
        /// The optimiser's state (ZeRO stage 1, Rajbhandari et al. 2020). AdamW gives the same bits either way.
        Optimizer = "optimizer",
    }
}

choice! {
    /// What backward computes again instead of finding it in memory. The bits are the same.
    pub enum Recompute {
        /// Nothing.
        None = "none",
        /// GELU and the first LayerNorm of each layer, which cost next to nothing. A layer keeps 11/16 of its
        /// activations.
        GeluNorm = "gelu-norm",
        /// Whole layers from their inputs, for one more forward. A layer keeps 1/16 of its activations.
        Layer = "layer",
    }
}

impl Train {
    /// # Errors
    /// Keys that contradict each other.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.steps.is_some() && self.epochs.is_some() {
            let text = "train.steps and train.epochs are both set: keep one";
            return Err(Fault::about(["train.steps", "train.epochs"], text));
        }
        if let (Some(warmup), Some(steps)) = (self.warmup_steps, self.steps)
            && warmup > steps
        {
            let text = format!("train.warmup_steps = {warmup}: must be at most train.steps = {steps}");
            return Err(Fault::about(["train.warmup_steps", "train.steps"], text));
        }
        if self.min_lr > self.lr {
            let text = format!("train.min_lr = {:?}: must be at most train.lr = {:?}", self.min_lr, self.lr);
            return Err(Fault::about(["train.min_lr", "train.lr"], text));
        }
        self.check_decay("train.lr", self.lr)?;
        self.head_lr.map_or(Ok(()), |rate| self.check_decay("train.head_lr", rate))
    }

    /// AdamW multiplies every weight by 1 - rate x decay.
    fn check_decay(&self, key: &str, rate: f64) -> Result<(), Fault> {
        let decay = self.weight_decay;
        if self.optimizer != Optimizer::Adamw || rate * f64::from(decay) < 1.0 {
            return Ok(());
        }
        let text = format!(
            "{key} = {rate:?} x train.weight_decay = {decay:?}: must be below 1, else a step takes more than the \
             whole weight"
        );
        Err(Fault::about([key, "train.weight_decay"], text))
    }
}
