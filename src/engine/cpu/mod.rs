//! The CPU engine: every operation on rayon's threads, with vector code chosen at run
//! time (AVX-512, AVX2 or the target's baseline). All arithmetic is f32; weights and activations are
//! kept in f32 or in bf16, which is widened when it is read and rounded when it is stored.
//!
//! Results are the same bits on any number of threads and with any of these instruction sets: sums run over
//! chunks of a fixed size and lanes of a fixed number, partial sums are added in their order, and where two
//! roundings become one, the code says so (`mul_add`). One thing differs from machine to machine: products of
//! bf16 use dot products of pairs where the processor has them (`machine`). These add in a different order
//! from the multiply-adds that are used elsewhere.
//!
//! Each family of operations has its own file, named as in `op`, which checks sizes and computes.

// The basis: memory, scalar functions, rows and tasks, cells.
mod buffer;
mod cell;
mod checks;
mod columns;
#[cfg_attr(not(target_arch = "x86_64"), path = "no_dots.rs")]
mod dots;
mod dropout;
mod machine;
mod math;
mod tasks;
mod tile;
mod widen;
// What families share.
mod device;
mod gemm;
mod norm;
// Families.
mod attention;
mod embedding;
mod heads;
mod linear;
mod mask;
mod mlm;
mod ranking;
mod rows;
mod update;

use super::{Compute, op};
use crate::Result;
pub use buffer::Buffer;
pub use device::Cpu;
use half::bf16;
pub use machine::Operand;

/// Hands each operation to the function that computes it, for one type of weights and activations.
macro_rules! compute {
    ($real:ty: $($op:ident $function:path,)*) => {$(
        impl Compute<op::$op<'_, Cpu<$real>>> for Cpu<$real> {
            fn compute(&self, op: &mut op::$op<'_, Cpu<$real>>) -> Result<()> {
                $function(self, op)
            }
        }
    )*};
}

/// Every operation with the function that computes it. The implementations are concrete, one for f32 and one
/// for bf16, rather than generic in R: generic code is compiled in every crate that calls it, and these
/// functions are large, three instruction sets each. The tests and the benchmarks would each compile the
/// whole engine again. Code that is generic in R asks for `Cpu<R>: Engine`.
macro_rules! table {
    ($($op:ident: $function:path,)*) => {
        compute! { f32: $($op $function,)* }
        compute! { bf16: $($op $function,)* }
    };
}

table! {
    MaskTokens: mask::mask_tokens,
    Embed: embedding::embed,
    EmbedBackward: embedding::embed_backward,
    Linear: linear::linear,
    LinearGelu: linear::linear_gelu,
    LinearBackwardInput: linear::linear_backward_input,
    LinearBackwardWeight: linear::linear_backward_weight,
    Gelu: rows::gelu,
    GeluBackward: rows::gelu_backward,
    ResidualNorm: rows::residual_norm,
    ResidualNormBackward: rows::residual_norm_backward,
    Norm: rows::norm,
    NormBackward: rows::norm_backward,
    GatherRows: rows::gather_rows,
    ScatterAddRows: rows::scatter_add_rows,
    Attention: attention::attention,
    AttentionBackward: attention::attention_backward,
    MlmLoss: mlm::mlm_loss,
    QdppHead: heads::qdpp_head,
    ScoreHead: heads::score_head,
    ScoreHeadBackward: heads::score_head_backward,
    AggregateScores: ranking::aggregate_scores,
    AggregateScoresBackward: ranking::aggregate_scores_backward,
    GroupLoss: ranking::group_loss,
    SumSquares: update::sum_squares,
    AdamWUpdate: update::adamw,
    LambDirection: update::lamb_direction,
    LambApply: update::lamb_apply,
    Forget: update::forget,
}
