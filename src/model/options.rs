//! How a model is to be run: what for, at which size, and what training adds, freezes or computes twice.

use super::capacity::Capacity;
use super::layout::{HeadSet, Layout};
use super::shape::Shape;
use crate::config::{Lora, Recompute};
use crate::engine::op::{Aggregate, MaskRule, RankLoss};
use crate::{Error, Result};

/// What the model is trained for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// loss = `mlm` * MLM + `qdpp` * QDPP; a weight of 0 leaves the part out.
    Pretraining { mlm: f32, qdpp: f32 },
    /// A loss over ranking groups; with an `Aggregate`, over documents whose score comes from their
    /// passages' scores.
    Ranking(RankLoss, Option<Aggregate>),
}

/// Whether a forward prepares a backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Dropout on; losses leave their gradients behind.
    Train,
    /// Dropout off; losses are only measured.
    Measure,
}

/// How a model is to be run.
#[derive(Clone, Debug)]
pub struct Options {
    pub objective: Objective,
    pub heads: HeadSet,
    pub capacity: Capacity,
    /// Keep activations and gradients for training.
    pub train: bool,
    /// Dropout rate of every site while training.
    pub dropout: f32,
    /// Keys dropout.
    pub seed: u32,
    /// Masking; `None` leaves ids as they are.
    pub rule: Option<MaskRule>,
    /// [V]: 1 for pieces that continue a word.
    pub continues: Vec<u32>,
}

impl Options {
    /// Whether training leaves the QDPP head, which the model has, as it is.
    pub(super) fn leaves_pair(&self) -> bool {
        matches!(self.objective, Objective::Pretraining { qdpp, .. } if qdpp <= 0.0)
    }
}

/// What training adds, freezes and computes twice; by default nothing.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Low-rank adapters, beside a frozen encoder.
    pub lora: Option<Lora>,
    /// Parts that keep their weights, as `Layout::freeze` names them.
    pub freeze: Vec<String>,
    pub recompute: Recompute,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { lora: None, freeze: Vec::new(), recompute: Recompute::None }
    }
}

impl Tuning {
    /// The parameter table of a model that is trained so.
    ///
    /// # Errors
    /// As `Layout::with` and `Layout::freeze`.
    pub fn layout(&self, shape: &Shape, heads: HeadSet) -> Result<Layout> {
        let mut layout = Layout::with(shape, heads, self.lora.as_ref())?;
        layout.freeze(&self.freeze)?;
        Ok(layout)
    }
}

/// The error of an objective whose head the model was made without.
pub(super) fn missing_part(name: &str) -> Error {
    Error::config(format!("the model was made without the {name} part that this objective needs"))
}
