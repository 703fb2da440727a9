//! How a model is to be run: its purpose, its size, and what training adds, freezes or recomputes.

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

/// Whether a forward pass prepares a backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Dropout on; losses write their gradients.
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
    /// Whether the model has a QDPP head that training does not change.
    pub(super) fn leaves_pair(&self) -> bool {
        matches!(self.objective, Objective::Pretraining { qdpp, .. } if qdpp <= 0.0)
    }
}

/// What training adds, freezes and recomputes; by default nothing.
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
    /// The parameter table of a model that is trained this way.
    ///
    /// # Errors
    /// As `Layout::with` and `Layout::freeze`.
    pub fn layout(&self, shape: &Shape, heads: HeadSet) -> Result<Layout> {
        let mut layout = Layout::with(shape, heads, self.lora.as_ref())?;
        layout.freeze(&self.freeze)?;
        Ok(layout)
    }
}

/// The error when an objective needs a head that the model was made without.
pub(super) fn missing_part(name: &str) -> Error {
    Error::config(format!("the model was made without the {name} part that this objective needs"))
}
