//! The operations of one type, compiled once, in this crate. Generic code is compiled in every crate
//! that calls it, and these functions are large, three instruction sets each: the tests and the
//! benchmarks would each compile the whole engine again.

use super::attention::{self, Kept, Layout};
use super::buffer::{Pool, Scratch};
use super::embed::{self, Tables};
use super::gemm::{self, AddBias, BiasGelu, Plain, Product};
use super::heads::{self, Head, HeadGrads};
use super::machine::{Machine, Operand};
use super::norm::{self, Affine, Keys};
use super::{adamw, elementwise, lamb, loss};
use crate::engine::{AdamW, Dropout, ParamGroup};
use half::bf16;
use pulp::Arch;

/// One function an operation; each says itself what it does.
#[allow(clippy::type_complexity)]
pub struct Kernels<R: 'static> {
    pub product: fn(&Product<'_, R, R, Plain>, Machine, &Pool),
    pub product_to_gradient: fn(&Product<'_, R, f32, Plain>, Machine, &Pool),
    pub product_bias: fn(&Product<'_, R, R, AddBias<'_>>, Machine, &Pool),
    pub product_gelu: fn(&Product<'_, R, R, BiasGelu<'_, R>>, Machine, &Pool),
    pub gelu: fn(Arch, &[R], &mut [R]),
    pub gelu_backward: fn(Arch, &[R], &mut [R]),
    pub embed: fn(
        Arch,
        &Pool,
        Keys<'_>,
        Dropout,
        Tables<'_, R>,
        &Affine<'_>,
        (&[u32], &[u32]),
        &mut [R],
        &mut [f32],
        &mut [R],
    ),
    pub embed_backward:
        for<'a> fn(Arch, &'a Pool, Keys<'_>, Dropout, &[f32], &[R], &[f32], &mut [R]) -> Scratch<'a>,
    pub add_rows: fn(Arch, &[u32], &[R], usize, &mut Vec<u64>, &mut [f32]),
    pub norm: fn(Arch, &Pool, &[R], &Affine<'_>, &mut [f32], &mut [R]),
    pub norm_backward: for<'a> fn(Arch, &'a Pool, &[R], &[f32], &[f32], &mut [R]) -> Scratch<'a>,
    pub residual_norm:
        fn(Arch, &Pool, Keys<'_>, Dropout, &[f32], &Affine<'_>, &[R], &mut [R], &mut [f32], &mut [R]),
    pub residual_norm_backward: for<'a> fn(
        Arch,
        &'a Pool,
        Keys<'_>,
        Dropout,
        &[f32],
        &[R],
        &[f32],
        &[R],
        &mut [R],
        &mut [R],
    ) -> Scratch<'a>,
    pub attention: fn(Machine, &Pool, Layout<'_>, &[R], &mut [f32], &mut [R]),
    pub attention_backward: fn(Machine, &Pool, Layout<'_>, Kept<'_, R>, &mut [R]),
    pub mlm: fn(Arch, &Pool, &[f32], &[u32], f32, &mut [R]) -> (f64, f64),
    pub add_columns: fn(Arch, &[R], &mut [f32]),
    pub qdpp:
        fn(Arch, &Head<'_>, (&[u32], &[f32]), f32, &mut [R], &mut [f32], &mut [f32]) -> Option<HeadGrads>,
    pub score: fn(Arch, &Head<'_>, Dropout, (&[u32], u32), &mut [R], &mut [f32]),
    pub score_backward: fn(Arch, &Head<'_>, Dropout, (&[u32], u32), &[f32], &mut [R]) -> HeadGrads,
    pub adamw:
        fn(Arch, AdamW, &ParamGroup, f32, (&mut [R], &mut [f32]), &mut [f32], (&mut [f32], &mut [f32])),
    pub lamb_apply: fn(Arch, f32, (&mut [R], &mut [f32]), &[f32]),
}

impl<R: Operand> Kernels<R> {
    const fn new() -> Self {
        Self {
            product: gemm::plain,
            product_to_gradient: gemm::plain,
            product_bias: gemm::bias,
            product_gelu: gemm::bias_gelu,
            gelu: elementwise::gelu,
            gelu_backward: elementwise::gelu_backward,
            embed: embed::forward,
            embed_backward: embed::backward_norm,
            add_rows: embed::add_rows,
            norm: norm::forward,
            norm_backward: norm::backward,
            residual_norm: norm::residual_forward,
            residual_norm_backward: norm::residual_backward,
            attention: attention::forward,
            attention_backward: attention::backward,
            mlm: loss::mlm,
            add_columns: loss::add_columns,
            qdpp: heads::qdpp,
            score: heads::score,
            score_backward: heads::score_backward,
            adamw: adamw::update_slice,
            lamb_apply: lamb::apply,
        }
    }
}

/// In f32.
pub static WIDE: Kernels<f32> = Kernels::new();
/// In bf16.
pub static NARROW: Kernels<bf16> = Kernels::new();
