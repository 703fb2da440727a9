//! Cases of the embedding layer, the LayerNorms, gather and scatter.

use super::pack::Room;
use super::visitor::{Left, Visitor};
use crate::Result;
use crate::engine::Engine;
use crate::engine::op::{
    Embed, EmbedBackward, GatherRows, Norm, NormBackward, ResidualNorm, ResidualNormBackward, ScatterAddRows,
};

pub(super) fn visit<E: Engine>(room: &Room<'_, E>, visitor: &mut impl Visitor<E>) -> Result<()> {
    embedding(room, visitor)?;
    residual(room, visitor)?;
    norm(room, visitor)?;
    picking(room, visitor)
}

fn embedding<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    let (e, batch, weights, at, drop) = (&room.engine, &room.batch, &room.weights, room.at.embed, room.drop);
    let (t, h) = (room.t, at.norm.hidden);
    let (mut sum, mut out, mut row_stats) = (room.empty(t, h)?, room.empty(t, h)?, room.floats(t, 2)?);
    let op = Embed { batch, weights, at, drop, sum: &mut sum, row_stats: &mut row_stats, out: &mut out };
    v.meet(e, "embed", op)?;
    v.left(e, "", Left::Reals(&out), 0..t.count() * h)?;
    v.left(e, "statistics", Left::Floats(&row_stats), 0..t.count() * 2)?;
    let (mut dout, mut grads) = (room.drawn(5, t, h)?, room.grads()?);
    let op = EmbedBackward {
        batch,
        weights,
        at,
        drop,
        sum: &sum,
        row_stats: &row_stats,
        dout: &mut dout,
        grads: &mut grads,
    };
    v.meet(e, "embed_backward", op)?;
    v.left(e, "", Left::Floats(&grads), at.word..at.norm.beta + h)
}

fn residual<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    let (e, batch, weights) = (&room.engine, &room.batch, &room.weights);
    let (norm, bias, drop, t) = (room.at.norm, room.at.bias, room.drop, room.t);
    let (h, n) = (norm.hidden, room.t.count() * norm.hidden);
    let residual = room.drawn(6, t, h)?;
    let (mut y, mut out, mut row_stats) = (room.drawn(7, t, h)?, room.empty(t, h)?, room.floats(t, 2)?);
    let op = ResidualNorm {
        batch,
        weights,
        bias,
        norm,
        drop,
        residual: &residual,
        y: &mut y,
        row_stats: &mut row_stats,
        out: &mut out,
    };
    v.meet(e, "residual_norm", op)?;
    v.left(e, "", Left::Reals(&out), 0..n)?;
    v.left(e, "sum", Left::Reals(&y), 0..n)?;
    let dout = room.drawn(8, t, h)?;
    let (mut dresidual, mut dy, mut grads) = (room.empty(t, h)?, room.empty(t, h)?, room.grads()?);
    let op = ResidualNormBackward {
        batch,
        weights,
        bias,
        norm,
        drop,
        y: &y,
        row_stats: &row_stats,
        dout: &dout,
        dresidual: &mut dresidual,
        dy: &mut dy,
        grads: &mut grads,
    };
    v.meet(e, "residual_norm_backward", op)?;
    v.left(e, "dresidual", Left::Reals(&dresidual), 0..n)?;
    v.left(e, "dy", Left::Reals(&dy), 0..n)?;
    for (what, at) in [("bias", bias), ("gamma", norm.gamma), ("beta", norm.beta)] {
        v.left(e, what, Left::Floats(&grads), at..at + h)?;
    }
    Ok(())
}

fn norm<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    let (e, weights, at, rows) = (&room.engine, &room.weights, room.at.norm, room.m);
    let (h, n) = (at.hidden, room.m.count() * at.hidden);
    let x = room.drawn(9, rows, h)?;
    let (mut out, mut row_stats) = (room.empty(rows, h)?, room.floats(rows, 2)?);
    v.meet(e, "norm", Norm { x: &x, weights, at, rows, row_stats: &mut row_stats, out: &mut out })?;
    v.left(e, "", Left::Reals(&out), 0..n)?;
    let (mut d, mut grads) = (room.drawn(10, rows, h)?, room.grads()?);
    let op = NormBackward { x: &x, weights, at, rows, row_stats: &row_stats, d: &mut d, grads: &mut grads };
    v.meet(e, "norm_backward", op)?;
    v.left(e, "", Left::Reals(&d), 0..n)?;
    for (what, at) in [("gamma", at.gamma), ("beta", at.beta)] {
        v.left(e, what, Left::Floats(&grads), at..at + h)?;
    }
    Ok(())
}

fn picking<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    let (e, picked, rows, hidden) = (&room.engine, &room.batch.masked_rows, room.m, room.sizes.hidden);
    let (mut x, mut out) = (room.drawn(12, room.t, hidden)?, room.empty(rows, hidden)?);
    v.meet(e, "gather_rows", GatherRows { x: &x, picked, rows, hidden, out: &mut out })?;
    v.left(e, "", Left::Reals(&out), 0..rows.count() * hidden)?;
    let src = room.drawn(13, rows, hidden)?;
    v.meet(e, "scatter_add_rows", ScatterAddRows { src: &src, picked, rows, hidden, x: &mut x })?;
    v.left(e, "", Left::Reals(&x), 0..room.t.count() * hidden)
}
