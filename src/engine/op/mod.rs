//! Operations as values. Each is a struct with named fields, its formula and its shapes in its doc; its
//! parameter list is written here and nowhere else. An engine takes an operation apart in the file that does
//! the work: `cpu/<family>.rs` and `cuda/ops/<family>.rs`.
//!
//! An operation also gives its name and its minimum cost, whatever computes it: `bench` divides by that cost;
//! `plan` and the step line's FLOPs add it up. What a kernel needs beyond it (extra passes, scratch) is noted
//! beside its launcher.
//!
//! To add one, write its struct in its family's file, its name in `operations!` below, the function that
//! computes it in `cpu/`, its launcher in `cuda/ops/`, and a case in `cases/`. The compiler points out the
//! rest.

mod attention;
mod dropout;
mod embedding;
mod heads;
mod linear;
mod mask;
mod mlm;
mod ranking;
mod rows;
mod update;

pub use attention::{Attention, AttentionBackward, Heads};
pub use dropout::Dropout;
pub use embedding::{Embed, EmbedAt, EmbedBackward};
pub use heads::{HeadAt, LossScale, QdppHead, ScoreHead, ScoreHeadBackward};
pub use linear::{Epilogue, Linear, LinearAt, LinearBackwardInput, LinearBackwardWeight, LinearGelu};
pub use mask::{MaskRule, MaskTokens};
pub use mlm::MlmLoss;
pub use ranking::{Aggregate, AggregateScores, AggregateScoresBackward, GroupLoss, RankLoss};
pub use rows::{
    GatherRows, Gelu, GeluBackward, Norm, NormAt, NormBackward, ResidualNorm, ResidualNormBackward,
    ScatterAddRows,
};
pub use update::{
    AdamWUpdate, Forget, LambApply, LambDirection, ParamGroup, Slice, SumSquares, UpdateRule, slices,
};

use super::{Device, Floats, Reals, Rows};

/// Hands the names of all operations to a macro: the one list of them.
macro_rules! operations {
    ($use:ident) => {
        $use! {
            MaskTokens, Embed, EmbedBackward,
            Linear, LinearGelu, LinearBackwardInput, LinearBackwardWeight,
            Gelu, GeluBackward, ResidualNorm, ResidualNormBackward, Norm, NormBackward,
            GatherRows, ScatterAddRows,
            Attention, AttentionBackward,
            MlmLoss, QdppHead, ScoreHead, ScoreHeadBackward,
            AggregateScores, AggregateScoresBackward, GroupLoss,
            SumSquares, AdamWUpdate, LambDirection, LambApply, Forget,
        }
    };
}
pub(super) use operations;

/// What a device can be asked to compute.
pub trait Operation<D: Device> {
    /// Its name in `bench`, `doctor` and error messages.
    fn name(&self) -> &'static str;
    /// The least that it takes, whatever computes it.
    fn cost(&self) -> Cost;
    /// The activations that it wrote, for the NaN trap; `None` if it writes other things (gradients, which
    /// the global norm checks; scores; lists).
    fn written(&self) -> Option<Written<'_, D>> {
        None
    }
}

/// Activations [rows, width] that an operation wrote.
pub struct Written<'a, D: Device> {
    pub values: &'a Reals<D>,
    pub rows: Rows,
    pub width: usize,
}

/// What an operation's time depends on besides its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A matrix product: result [m, n], summed over k.
    Product([usize; 3]),
    AttentionForward,
    AttentionBackward,
    /// One pass over rows.
    Rows,
    /// One pass over the arenas, once a step.
    Update,
}

/// The least that an operation takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub kind: Kind,
    /// Bytes that must move through memory: each operand once.
    pub bytes: f64,
    /// Floating-point operations of its matrix products; a multiply-add is two.
    pub flops: f64,
    /// Instructions of the ordinary lanes, a value each: GELU, LayerNorm, losses, dropout's Philox.
    pub lanes: f64,
}

impl Cost {
    /// The cost of one pass over rows.
    fn rows(bytes: f64, lanes: f64) -> Self {
        Self { kind: Kind::Rows, bytes, flops: 0.0, lanes }
    }

    /// The cost of one pass over the arenas.
    fn update(bytes: f64, lanes: f64) -> Self {
        Self { kind: Kind::Update, bytes, flops: 0.0, lanes }
    }

    /// The cost of a product with result [m, n] over k: both factors are read, `written` bytes a value are
    /// moved for the result.
    fn product<D: Device>([m, n, k]: [usize; 3], written: f64) -> Self {
        let real = bytes_of::<D>();
        let (m, n, k) = (m as f64, n as f64, k as f64);
        Self {
            kind: Kind::Product([m as usize, n as usize, k as usize]),
            bytes: real * (m * k + k * n) + written * m * n,
            flops: 2.0 * m * n * k,
            lanes: 0.0,
        }
    }
}

/// Bytes of an f32 or u32.
const FULL: f64 = 4.0;

/// Bytes of a weight or activation.
fn bytes_of<D: Device>() -> f64 {
    size_of::<D::Real>() as f64
}

/// Elements of an activation [rows, width].
fn elements(rows: Rows, width: usize) -> f64 {
    (rows.count() * width) as f64
}

/// An arena that gradients are added to.
pub type Grads<'a, D> = &'a mut Floats<D>;
