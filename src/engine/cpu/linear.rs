//! The products of linear layers.

use super::checks::{parameters, part, part_mut};
use super::device::Cpu;
use super::gemm::{AddBias, BiasGelu, Plain, Product};
use super::machine::Operand;
use super::tasks::Shared;
use super::tile::View;
use crate::Result;
use crate::engine::op::{self, Epilogue, LinearAt};

pub(super) fn linear<R: Operand>(cpu: &Cpu<R>, op: &mut op::Linear<'_, Cpu<R>>) -> Result<()> {
    let (LinearAt { w, b, n, k }, m) = (op.at, op.rows.count());
    let x = View::rows(part("linear x", op.x, 0, m * k)?, k);
    let weight = View::transposed(part("linear weight", op.weights, w, n * k)?, k);
    let out = Shared::new(part_mut("linear out", op.out, 0, m * n)?);
    match op.epilogue {
        Epilogue::None => {
            Product { m, n, k, a: x, b: weight, c: out, add: false, epilogue: &Plain }
                .run(cpu.machine, &cpu.pool);
        }
        Epilogue::Bias => {
            let bias = parameters("linear bias", op.weights, b, n)?;
            Product { m, n, k, a: x, b: weight, c: out, add: false, epilogue: &AddBias(&bias) }
                .run(cpu.machine, &cpu.pool);
        }
    }
    Ok(())
}

pub(super) fn linear_gelu<R: Operand>(cpu: &Cpu<R>, op: &mut op::LinearGelu<'_, Cpu<R>>) -> Result<()> {
    let (LinearAt { w, b, n, k }, m) = (op.at, op.rows.count());
    let x = View::rows(part("linear_gelu x", op.x, 0, m * k)?, k);
    let weight = View::transposed(part("linear_gelu weight", op.weights, w, n * k)?, k);
    let pre = Shared::new(part_mut("linear_gelu pre", op.pre, 0, m * n)?);
    let act = Shared::new(part_mut("linear_gelu act", op.act, 0, m * n)?);
    let bias = parameters("linear_gelu bias", op.weights, b, n)?;
    let epilogue = BiasGelu { bias: &bias, act };
    Product { m, n, k, a: x, b: weight, c: pre, add: false, epilogue: &epilogue }.run(cpu.machine, &cpu.pool);
    Ok(())
}

pub(super) fn linear_backward_input<R: Operand>(
    cpu: &Cpu<R>,
    op: &mut op::LinearBackwardInput<'_, Cpu<R>>,
) -> Result<()> {
    let (LinearAt { w, n, k, .. }, m) = (op.at, op.rows.count());
    let dy = View::rows(part("linear dy", op.dy, 0, m * n)?, n);
    let weight = View::rows(part("linear weight", op.weights, w, n * k)?, k);
    let dx = Shared::new(part_mut("linear dx", op.dx, 0, m * k)?);
    Product { m, n: k, k: n, a: dy, b: weight, c: dx, add: op.accumulate, epilogue: &Plain }
        .run(cpu.machine, &cpu.pool);
    Ok(())
}

pub(super) fn linear_backward_weight<R: Operand>(
    cpu: &Cpu<R>,
    op: &mut op::LinearBackwardWeight<'_, Cpu<R>>,
) -> Result<()> {
    let (LinearAt { w, n, k, .. }, m) = (op.at, op.rows.count());
    let dy = View::transposed(part("linear dy", op.dy, 0, m * n)?, n);
    let x = View::rows(part("linear x", op.x, 0, m * k)?, k);
    let gradient = Shared::new(part_mut("linear weight gradient", op.grads, w, n * k)?);
    Product { m: n, n: k, k: m, a: dy, b: x, c: gradient, add: true, epilogue: &Plain }
        .run(cpu.machine, &cpu.pool);
    Ok(())
}
