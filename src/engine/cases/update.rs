//! Cases of the optimiser's operations: two updates in a row, with a frozen group and a group that this rank
//! owns only in part, and `Forget`.

use std::ops::Range;

use super::pack::Room;
use super::pack::values;
use super::visitor::{Left, Visitor};
use crate::Result;
use crate::engine::op::{AdamWUpdate, Forget, LambApply, LambDirection, ParamGroup, SumSquares, UpdateRule};
use crate::engine::{Engine, Floats, Reals};

pub(super) fn visit<E: Engine>(room: &Room<'_, E>, visitor: &mut impl Visitor<E>) -> Result<()> {
    for step in 1..=2 {
        adamw(room, visitor, step)?;
        lamb(room, visitor, step)?;
    }
    forgetting(room, visitor)
}

fn rule(step: u32) -> UpdateRule {
    UpdateRule { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: 0.01, step, clip_norm: 1.0 }
}

/// The state that an update works on, with a random gradient.
struct State<E: Engine> {
    groups: Vec<ParamGroup>,
    owned: Vec<Range<usize>>,
    weights: Reals<E>,
    master: Floats<E>,
    grads: Floats<E>,
    moment1: Floats<E>,
    moment2: Floats<E>,
    norm_sq: Floats<E>,
}

impl<E: Engine> State<E> {
    fn new(room: &Room<'_, E>, step: u32) -> Result<Self> {
        let (e, len) = (&room.engine, room.at.len);
        let ends = [0, room.at.embed.segment, room.at.norm.gamma, room.at.up.w, len];
        let group = |i: usize, decay, lr_scale| ParamGroup { range: ends[i]..ends[i + 1], decay, lr_scale };
        let groups =
            vec![group(0, true, 1.0), group(1, true, 0.0), group(2, false, 1.0), group(3, true, 3.0)];
        let owned = vec![0..len / 2 / 8 * 8, len / 2 / 8 * 8 + 16..len];
        let state: usize = owned.iter().map(ExactSizeIterator::len).sum();
        let filled = |seed: u32, len: usize, map: &dyn Fn(f32) -> f32| -> Result<Floats<E>> {
            let mut buffer = e.zeros(len)?;
            let drawn: Vec<f32> = values(seed, len).into_iter().map(map).collect();
            e.upload(&drawn, &mut buffer, 0)?;
            Ok(buffer)
        };
        let start = e.download_weights(&room.weights, 0..len)?;
        let mut weights = e.zeros(len)?;
        e.upload_weights(&start, &mut weights, 0)?;
        let narrow = size_of::<E::Real>() < size_of::<f32>();
        let mut master = e.zeros(if narrow { state } else { 0 })?;
        if narrow {
            let of_owned: Vec<f32> = owned.iter().flat_map(|range| start[range.clone()].to_vec()).collect();
            e.upload(&of_owned, &mut master, 0)?;
        }
        // after the first update moments are not zero
        let later = if step > 1 { 1.0 } else { 0.0 };
        Ok(Self {
            grads: filled(21, len, &|x| x)?,
            moment1: filled(22, state, &|x| later * 0.1 * x)?,
            moment2: filled(26, state, &|x| later * 0.01 * x * x)?,
            norm_sq: e.zeros(1)?,
            groups,
            owned,
            weights,
            master,
        })
    }

    fn left(&self, e: &E, v: &mut impl Visitor<E>) -> Result<()> {
        let (len, state): (_, usize) =
            (self.groups[3].range.end, self.owned.iter().map(ExactSizeIterator::len).sum());
        v.left(e, "weights", Left::Reals(&self.weights), 0..len)?;
        v.left(e, "gradients", Left::Floats(&self.grads), 0..len)?;
        v.left(e, "first moment", Left::Floats(&self.moment1), 0..state)?;
        v.left(e, "second moment", Left::Floats(&self.moment2), 0..state)
    }

    fn norm(&mut self, e: &E, v: &mut impl Visitor<E>) -> Result<()> {
        let op = SumSquares { src: &self.grads, ranges: &self.owned, out: &mut self.norm_sq, slot: 0 };
        v.meet(e, "sum_squares", op)?;
        v.left(e, "", Left::Floats(&self.norm_sq), 0..1)
    }
}

fn adamw<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>, step: u32) -> Result<()> {
    let (e, mut state) = (&room.engine, State::new(room, step)?);
    state.norm(e, v)?;
    let op = AdamWUpdate {
        rule: rule(step),
        groups: &state.groups,
        owned: &state.owned,
        norm_sq: &state.norm_sq,
        weights: &mut state.weights,
        master: &mut state.master,
        grads: &mut state.grads,
        moment1: &mut state.moment1,
        moment2: &mut state.moment2,
    };
    v.meet(e, "adamw", op)?;
    state.left(e, v)
}

fn lamb<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>, step: u32) -> Result<()> {
    let (e, mut state) = (&room.engine, State::new(room, step)?);
    let op = SumSquares { src: &state.grads, ranges: &state.owned, out: &mut state.norm_sq, slot: 0 };
    e.run(op)?;
    let mut norms = e.zeros(2 * state.groups.len())?;
    let op = LambDirection {
        rule: rule(step),
        groups: &state.groups,
        owned: &state.owned,
        norm_sq: &state.norm_sq,
        weights: &state.weights,
        master: &state.master,
        grads: &mut state.grads,
        moment1: &mut state.moment1,
        moment2: &mut state.moment2,
        norms: &mut norms,
    };
    v.meet(e, "lamb_direction", op)?;
    v.left(e, "norms", Left::Floats(&norms), 0..2 * state.groups.len())?;
    let op = LambApply {
        rule: rule(step),
        groups: &state.groups,
        owned: &state.owned,
        norms: &norms,
        weights: &mut state.weights,
        master: &mut state.master,
        grads: &mut state.grads,
    };
    v.meet(e, "lamb_apply", op)?;
    state.left(e, v)
}

/// Values survive a step whose norm is finite; after any other step they are zero.
fn forgetting<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    // more buffers than one launch takes, each with its own length
    const BUFFERS: usize = 11;
    let (e, h) = (&room.engine, room.sizes.hidden);
    let len = room.t.count() * h;
    for (case, norm_sq) in [("forget nothing", 2.0), ("forget", f32::NAN)] {
        let drawn = |i: usize| room.drawn(30 + i as u32, room.t, h);
        let mut kept = (0..BUFFERS).map(drawn).collect::<Result<Vec<_>>>()?;
        let lengths = (1..=BUFFERS).map(|i| len * i / BUFFERS / 8 * 8);
        let mut norm = e.zeros(1)?;
        e.upload(&[norm_sq], &mut norm, 0)?;
        v.meet(e, case, Forget { norm_sq: &norm, buffers: kept.iter_mut().zip(lengths).collect() })?;
        for buffer in &kept {
            v.left(e, "", Left::Reals(buffer), 0..len)?;
        }
    }
    Ok(())
}
