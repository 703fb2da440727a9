//! Cases of the matrix products, GELU and attention.

use super::pack::Room;
use super::visitor::{Left, Visitor};
use crate::Result;
use crate::engine::Engine;
use crate::engine::op::{
    Attention, AttentionBackward, Epilogue, Gelu, GeluBackward, Linear, LinearBackwardInput,
    LinearBackwardWeight, LinearGelu,
};

pub(super) fn visit<E: Engine>(room: &Room<'_, E>, visitor: &mut impl Visitor<E>) -> Result<()> {
    forward(room, visitor)?;
    backward(room, visitor)?;
    attention(room, visitor)
}

fn forward<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    let (e, weights, at, rows) = (&room.engine, &room.weights, room.at.up, room.t);
    let all = 0..rows.count() * at.n;
    let (x, mut out) = (room.drawn(2, rows, at.k)?, room.empty(rows, at.n)?);
    for (case, epilogue) in [("linear", Epilogue::None), ("linear with bias", Epilogue::Bias)] {
        v.meet(e, case, Linear { x: &x, weights, at, rows, epilogue, out: &mut out })?;
        v.left(e, "", Left::Reals(&out), all.clone())?;
    }
    let mut act = room.empty(rows, at.n)?;
    v.meet(e, "linear_gelu", LinearGelu { x: &x, weights, at, rows, pre: &mut out, act: &mut act })?;
    v.left(e, "", Left::Reals(&act), all.clone())?;
    v.meet(e, "gelu", Gelu { pre: &out, rows, width: at.n, act: &mut act })?;
    v.left(e, "", Left::Reals(&act), all)
}

fn backward<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    let (e, weights, at, rows) = (&room.engine, &room.weights, room.at.up, room.t);
    let (n, k) = (rows.count() * at.n, rows.count() * at.k);
    let (pre, mut dact, mut grads) = (room.drawn(25, rows, at.n)?, room.drawn(3, rows, at.n)?, room.grads()?);
    let (width, bias) = (at.n, Some(at.b));
    let op = GeluBackward { pre: &pre, rows, width, bias, dact: &mut dact, grads: &mut grads };
    v.meet(e, "gelu_backward", op)?;
    v.left(e, "", Left::Reals(&dact), 0..n)?;
    v.left(e, "bias", Left::Floats(&grads), at.b..at.b + at.n)?;

    let (dy, mut dx) = (room.drawn(3, rows, at.n)?, room.drawn(4, rows, at.k)?);
    for (case, accumulate) in [("linear_backward_input, added", true), ("linear_backward_input", false)] {
        v.meet(e, case, LinearBackwardInput { dy: &dy, weights, at, rows, accumulate, dx: &mut dx })?;
        v.left(e, "", Left::Reals(&dx), 0..k)?;
    }
    let x = room.drawn(2, rows, at.k)?;
    for case in ["linear_backward_weight", "linear_backward_weight, added"] {
        v.meet(e, case, LinearBackwardWeight { dy: &dy, x: &x, at, rows, grads: &mut grads })?;
        v.left(e, "", Left::Floats(&grads), at.w..at.w + at.n * at.k)?;
    }
    Ok(())
}

fn attention<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    if !v.wants("attention", room.sizes) {
        return Ok(());
    }
    let (e, batch, heads, drop, t) = (&room.engine, &room.batch, room.heads, room.drop, room.t);
    let (h, n) = (heads.hidden(), room.t.count());
    let qkv = room.drawn(14, t, 3 * h)?;
    let (mut lse, mut out) = (room.floats(t, heads.heads)?, room.empty(t, h)?);
    v.meet(e, "attention", Attention { batch, heads, drop, qkv: &qkv, lse: &mut lse, out: &mut out })?;
    v.left(e, "", Left::Reals(&out), 0..n * h)?;
    v.left(e, "log-sum-exp", Left::Floats(&lse), 0..n * heads.heads)?;
    let (dout, mut dqkv, mut grads) = (room.drawn(15, t, h)?, room.empty(t, 3 * h)?, room.grads()?);
    let bias = room.at.qkv_bias;
    let op = AttentionBackward {
        batch,
        heads,
        drop,
        qkv: &qkv,
        lse: &lse,
        out: &out,
        dout: &dout,
        dqkv: &mut dqkv,
        bias: Some(bias),
        grads: &mut grads,
    };
    v.meet(e, "attention_backward", op)?;
    v.left(e, "", Left::Reals(&dqkv), 0..n * 3 * h)?;
    v.left(e, "bias", Left::Floats(&grads), bias..bias + 3 * h)
}
