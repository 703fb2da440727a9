//! The products of linear layers, through cuBLASLt. cuBLASLt's GELU epilogue is the tanh approximation and
//! BERT's is the exact erf, so GELU has its own kernel.

use super::super::gemm::{Form, Operands, Product};
use super::super::launch::{Arg, Gpu, Launches};
use crate::Result;
use crate::engine::op::{
    Epilogue, Gelu, Linear, LinearAt, LinearBackwardInput, LinearBackwardWeight, LinearGelu,
};
use crate::engine::{Reals, Rows};

/// Queues a product of `at` over the rows that launches cover.
fn product<G: Gpu>(gpu: &G, form: Form, at: LinearAt, rows: Rows, operands: Operands) -> Result<()> {
    let narrow = size_of::<G::Real>() == 2;
    gpu.product(Product { form, rows: gpu.capacity(rows), n: at.n, k: at.k, narrow }, operands)
}

fn weight<G: Gpu>(weights: &Reals<G>, at: LinearAt) -> Result<Arg> {
    G::span("linear weight", weights, at.w..at.w + at.n * at.k)
}

impl<G: Gpu> Launches<G> for Linear<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (at, rows) = (self.at, self.rows);
        let covered = gpu.capacity(rows);
        let bias = match self.epilogue {
            Epilogue::None => Arg::Ptr(0),
            Epilogue::Bias => G::span("linear bias", self.weights, at.b..at.b + at.n)?,
        };
        let operands = Operands {
            rows: G::rows("linear x", self.x, covered, at.k)?.pointer(),
            other: weight::<G>(self.weights, at)?.pointer(),
            out: G::rows("linear out", self.out, covered, at.n)?.pointer(),
            bias: bias.pointer(),
        };
        product(gpu, Form::Forward { bias: self.epilogue == Epilogue::Bias }, at, rows, operands)
    }
}

impl<G: Gpu> Launches<G> for LinearGelu<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (x, weights, at, rows) = (self.x, self.weights, self.at, self.rows);
        let out = &mut *self.pre;
        gpu.part(Linear::<G> { x, weights, at, rows, epilogue: Epilogue::Bias, out })?;
        gpu.part(Gelu::<G> { pre: self.pre, rows, width: at.n, act: self.act })
    }
}

impl<G: Gpu> Launches<G> for LinearBackwardInput<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (at, rows) = (self.at, self.rows);
        let covered = gpu.capacity(rows);
        let operands = Operands {
            rows: G::rows("linear dy", self.dy, covered, at.n)?.pointer(),
            other: weight::<G>(self.weights, at)?.pointer(),
            out: G::rows("linear dx", self.dx, covered, at.k)?.pointer(),
            bias: 0,
        };
        product(gpu, Form::BackwardInput { add: self.accumulate }, at, rows, operands)
    }
}

impl<G: Gpu> Launches<G> for LinearBackwardWeight<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (at, rows) = (self.at, self.rows);
        let covered = gpu.capacity(rows);
        let operands = Operands {
            rows: G::rows("linear dy", self.dy, covered, at.n)?.pointer(),
            other: G::rows("linear x", self.x, covered, at.k)?.pointer(),
            out: G::gradient("linear weight gradient", self.grads, at.w, at.n * at.k)?.pointer(),
            bias: 0,
        };
        product(gpu, Form::BackwardWeight, at, rows, operands)
    }
}
