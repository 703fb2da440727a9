//! Operations on rows: GELU, LayerNorm alone and fused with bias, dropout and residual, gather and
//! scatter. Every row is read and written once while it is in the first-level cache.

use super::checks::{check_below, parameters, part, part_mut};
use super::columns::add_columns;
use super::device::Cpu;
use super::machine::Operand;
use super::math;
use super::norm::{Affine, CHUNK, Keys, Sums, backward_row, drop_row, moments, normalise};
use super::tasks::{In, Out, each, vectorised};
use super::widen::{copy, fresh, open, rooms, settle, size, store, widen};
use crate::Result;
use crate::engine::op;

/// Values of one task of GELU.
const VALUES: usize = 1 << 14;

pub(super) fn gelu<R: Operand>(cpu: &Cpu<R>, op: &mut op::Gelu<'_, Cpu<R>>) -> Result<()> {
    let len = op.rows.count() * op.width;
    let (pre, act) = (part("gelu pre", op.pre, 0, len)?, part_mut("gelu act", op.act, 0, len)?);
    let arch = cpu.machine.arch;
    each((In(pre, 1), Out(act, 1)), VALUES, &|_, (pre, act)| {
        vectorised(
            arch,
            #[inline(always)]
            || {
                for (act, &x) in act.0.iter_mut().zip(pre.0) {
                    *act = R::from_f32(math::gelu(x.to_f32()));
                }
            },
        );
    });
    Ok(())
}

pub(super) fn gelu_backward<R: Operand>(cpu: &Cpu<R>, op: &mut op::GeluBackward<'_, Cpu<R>>) -> Result<()> {
    let len = op.rows.count() * op.width;
    let (pre, dact) = (part("gelu pre", op.pre, 0, len)?, part_mut("gelu dact", op.dact, 0, len)?);
    let arch = cpu.machine.arch;
    each((In(pre, 1), Out(&mut *dact, 1)), VALUES, &|_, (pre, dact)| {
        vectorised(
            arch,
            #[inline(always)]
            || {
                for (d, &x) in dact.0.iter_mut().zip(pre.0) {
                    *d = R::from_f32(d.to_f32() * math::gelu_slope(x.to_f32()));
                }
            },
        );
    });
    if let Some(at) = op.bias {
        add_columns(arch, dact, part_mut("GELU bias gradient", op.grads, at, op.width)?);
    }
    Ok(())
}

/// The moments are those of y as stored, so that `norm` of it gives the same.
pub(super) fn residual_norm<R: Operand>(cpu: &Cpu<R>, op: &mut op::ResidualNorm<'_, Cpu<R>>) -> Result<()> {
    let (t, h, drop) = (op.batch.tokens, op.norm.hidden, op.drop);
    let (arch, pool, keys) = (cpu.machine.arch, &*cpu.pool, Keys::of(op.batch)?);
    let bias = parameters("residual_norm bias", op.weights, op.bias, h)?;
    let (bias, affine) = (&*bias, &Affine::of(op.weights, op.norm)?);
    let residual = In(part("residual", op.residual, 0, t * h)?, h);
    let y = Out(part_mut("residual_norm y", op.y, 0, t * h)?, h);
    let stats = Out(part_mut("residual_norm row_stats", op.row_stats, 0, 2 * t)?, 2);
    let out = Out(part_mut("residual_norm out", op.out, 0, t * h)?, h);
    each((residual, y, stats, out), CHUNK, &|first, (residual, y, stats, out)| {
        let mut factors = pool.take(h);
        let mut scratch = pool.take(size::<R>(2 * h));
        vectorised(
            arch,
            #[inline(always)]
            || {
                let [y_room, out_room] = rooms::<R, 2>(&mut scratch, h);
                let rows = residual.0.chunks_exact(h).zip(y.0.chunks_exact_mut(h));
                let outs = stats.0.as_chunks_mut::<2>().0.iter_mut().zip(out.0.chunks_exact_mut(h));
                for (i, ((residual, kept), (stats, out))) in rows.zip(outs).enumerate() {
                    let y = open(kept, y_room);
                    for (y, &b) in y.iter_mut().zip(bias) {
                        *y += b;
                    }
                    drop_row(&drop, keys, first + i, &mut factors, y);
                    for (y, &r) in y.iter_mut().zip(residual) {
                        *y += r.to_f32();
                    }
                    let y = settle(y_room, kept);
                    *stats = moments(y, affine.eps);
                    normalise(y, *stats, affine, fresh(out, out_room));
                    store(out_room, out);
                }
            },
        );
    });
    Ok(())
}

pub(super) fn residual_norm_backward<R: Operand>(
    cpu: &Cpu<R>,
    op: &mut op::ResidualNormBackward<'_, Cpu<R>>,
) -> Result<()> {
    let (t, h, drop) = (op.batch.tokens, op.norm.hidden, op.drop);
    let (arch, pool, keys) = (cpu.machine.arch, &*cpu.pool, Keys::of(op.batch)?);
    let affine = Affine::of(op.weights, op.norm)?;
    let gamma = &*affine.gamma;
    let y = In(part("residual_norm y", op.y, 0, t * h)?, h);
    let stats = In(part("residual_norm row_stats", op.row_stats, 0, 2 * t)?, 2);
    let dout = In(part("residual_norm dout", op.dout, 0, t * h)?, h);
    let dresidual = Out(part_mut("dresidual", op.dresidual, 0, t * h)?, h);
    let dy = Out(part_mut("residual_norm dy", op.dy, 0, t * h)?, h);
    let mut sums = Sums::new(pool, t, h);
    let all = (y, stats, dout, dresidual, dy, sums.partials());
    each(all, CHUNK, &|first, (y, stats, dout, dresidual, dy, mut partial)| {
        let mut factors = pool.take(h);
        let mut scratch = pool.take(size::<R>(4 * h));
        vectorised(
            arch,
            #[inline(always)]
            || {
                let [y_room, dout_room, dresidual_room, dy_room] = rooms::<R, 4>(&mut scratch, h);
                let (dgamma, rest) = partial.row().split_at_mut(h);
                let (dbeta, dbias) = rest.split_at_mut(h);
                let inputs = y.0.chunks_exact(h).zip(stats.0.as_chunks::<2>().0).zip(dout.0.chunks_exact(h));
                let outputs = dresidual.0.chunks_exact_mut(h).zip(dy.0.chunks_exact_mut(h));
                for (i, (((y, &stats), dout), (dresidual, dy))) in inputs.zip(outputs).enumerate() {
                    let (y, dout) = (widen(y, y_room), widen(dout, dout_room));
                    let d = fresh(dresidual, dresidual_room);
                    backward_row(y, stats, gamma, dout, d, [dgamma, dbeta]);
                    let through = fresh(dy, dy_room);
                    through.copy_from_slice(d);
                    drop_row(&drop, keys, first + i, &mut factors, through);
                    for (sum, &d) in dbias.iter_mut().zip(&*through) {
                        *sum += d;
                    }
                    store(dresidual_room, dresidual);
                    store(dy_room, dy);
                }
            },
        );
    });
    for (which, at) in [op.norm.gamma, op.norm.beta, op.bias].into_iter().enumerate() {
        sums.add_to(which, part_mut("residual_norm gradient", op.grads, at, h)?);
    }
    Ok(())
}

pub(super) fn norm<R: Operand>(cpu: &Cpu<R>, op: &mut op::Norm<'_, Cpu<R>>) -> Result<()> {
    let (rows, h) = (op.rows.count(), op.at.hidden);
    let (arch, pool) = (cpu.machine.arch, &*cpu.pool);
    let x = In(part("norm x", op.x, 0, rows * h)?, h);
    let affine = &Affine::of(op.weights, op.at)?;
    let stats = Out(part_mut("norm row_stats", op.row_stats, 0, 2 * rows)?, 2);
    let out = Out(part_mut("norm out", op.out, 0, rows * h)?, h);
    each((x, stats, out), CHUNK, &|_, (x, stats, out)| {
        let mut scratch = pool.take(size::<R>(2 * h));
        vectorised(
            arch,
            #[inline(always)]
            || {
                let [x_room, out_room] = rooms::<R, 2>(&mut scratch, h);
                let stats = stats.0.as_chunks_mut::<2>().0;
                for ((x, stats), out) in x.0.chunks_exact(h).zip(stats).zip(out.0.chunks_exact_mut(h)) {
                    let x = widen(x, x_room);
                    *stats = moments(x, affine.eps);
                    normalise(x, *stats, affine, fresh(out, out_room));
                    store(out_room, out);
                }
            },
        );
    });
    Ok(())
}

pub(super) fn norm_backward<R: Operand>(cpu: &Cpu<R>, op: &mut op::NormBackward<'_, Cpu<R>>) -> Result<()> {
    let (rows, h) = (op.rows.count(), op.at.hidden);
    let (arch, pool) = (cpu.machine.arch, &*cpu.pool);
    let x = In(part("norm x", op.x, 0, rows * h)?, h);
    let affine = Affine::of(op.weights, op.at)?;
    let gamma = &*affine.gamma;
    let stats = In(part("norm row_stats", op.row_stats, 0, 2 * rows)?, 2);
    let d = Out(part_mut("norm d", op.d, 0, rows * h)?, h);
    let mut sums = Sums::new(pool, rows, h);
    each((x, stats, d, sums.partials()), CHUNK, &|_, (x, stats, d, mut partial)| {
        let mut scratch = pool.take(size::<R>(2 * h));
        vectorised(
            arch,
            #[inline(always)]
            || {
                let (dgamma, rest) = partial.row().split_at_mut(h);
                let (dbeta, dout) = rest.split_at_mut(h);
                let [x_room, d_room] = rooms::<R, 2>(&mut scratch, h);
                let stats = stats.0.as_chunks::<2>().0;
                for ((x, &stats), d) in x.0.chunks_exact(h).zip(stats).zip(d.0.chunks_exact_mut(h)) {
                    let x = widen(x, x_room);
                    copy(d, dout);
                    backward_row(x, stats, gamma, dout, fresh(d, d_room), [dgamma, dbeta]);
                    store(d_room, d);
                }
            },
        );
    });
    sums.add_to(0, part_mut("gamma gradient", op.grads, op.at.gamma, h)?);
    sums.add_to(1, part_mut("beta gradient", op.grads, op.at.beta, h)?);
    Ok(())
}

pub(super) fn gather_rows<R: Operand>(_: &Cpu<R>, op: &mut op::GatherRows<'_, Cpu<R>>) -> Result<()> {
    let (n, hidden) = (op.rows.count(), op.hidden);
    let picked = part("gather rows", op.picked, 0, n)?;
    check_below("gathered row", picked, op.x.len() / hidden)?;
    let out = part_mut("gather out", op.out, 0, n * hidden)?;
    for (out, &row) in out.chunks_exact_mut(hidden).zip(picked) {
        out.copy_from_slice(&op.x[row as usize * hidden..][..hidden]);
    }
    Ok(())
}

pub(super) fn scatter_add_rows<R: Operand>(
    _: &Cpu<R>,
    op: &mut op::ScatterAddRows<'_, Cpu<R>>,
) -> Result<()> {
    let (n, hidden) = (op.rows.count(), op.hidden);
    let picked = part("scatter rows", op.picked, 0, n)?;
    check_below("scattered row", picked, op.x.len() / hidden)?;
    let src = part("scatter src", op.src, 0, n * hidden)?;
    for (src, &row) in src.chunks_exact(hidden).zip(picked) {
        for (x, &s) in op.x[row as usize * hidden..][..hidden].iter_mut().zip(src) {
            *x = R::from_f32(x.to_f32() + s.to_f32());
        }
    }
    Ok(())
}
