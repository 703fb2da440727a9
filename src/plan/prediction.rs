//! The prediction of `plan` as data.

use serde::Serialize;

use super::hardware::Gpu;
use super::roofline::Operation;
use crate::model::Shape;
use crate::train::counted::Bytes;

/// The data as the prediction needs it.
#[derive(Clone, Debug, Serialize)]
pub struct Lengths {
    pub samples: u64,
    pub mean_tokens: f64,
    /// Mean over tokens of their sequence's length.
    pub attended: f64,
    pub source: String,
    /// Lengths of some samples, in the order of the epoch.
    #[serde(skip)]
    pub some: Vec<usize>,
}

/// One GPU model's prediction.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    pub gpu: Gpu,
    pub fits: bool,
    /// Largest `train.pack_tokens` that fits, a multiple of 1024; 0 when none does.
    pub largest_pack_tokens: usize,
    pub operations: Vec<Timed>,
    /// Milliseconds of a step.
    pub pack_ms: f64,
    pub update_ms: f64,
    pub all_reduce_ms: f64,
    /// The part of the all-reduce that no computation hides.
    pub exposed_ms: f64,
    pub step_ms: f64,
    /// The all-reduce by link, milliseconds.
    pub links: Vec<(&'static str, f64)>,
    pub tokens_per_s: f64,
    /// Model FLOPs utilisation, 0 to 1.
    pub mfu: f64,
    pub epoch_hours: f64,
    pub epoch_cost: Option<f64>,
    /// Where the step's time goes beyond what the peak would need, in per cent of the step.
    pub costs: Vec<(String, f64)>,
}

/// One operation with its time on one GPU.
#[derive(Clone, Debug, Serialize)]
pub struct Timed {
    #[serde(flatten)]
    pub operation: Operation,
    /// Milliseconds of all its runs in a step.
    pub ms: f64,
}

/// Sizes of one pack, averages over the data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pack {
    pub shape: Shape,
    /// T, true tokens of a pack.
    pub tokens: f64,
    /// S
    pub sequences: f64,
    /// M, masked tokens.
    pub masked: f64,
}

/// All that `plan` says.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub note: &'static str,
    pub assumptions: Vec<String>,
    pub model: String,
    pub parameters: usize,
    pub pack: Pack,
    pub lengths: Lengths,
    pub gpus: usize,
    pub packs_per_step: usize,
    pub packs_per_rank: usize,
    pub flops_per_token: f64,
    /// Bytes of a rank's buffers.
    pub memory: Bytes,
    /// Bytes of the gradients that ranks exchange.
    pub exchanged_bytes: f64,
    /// Bytes on each GPU, workspace and context included.
    pub memory_bytes: f64,
    pub predictions: Vec<Prediction>,
}
