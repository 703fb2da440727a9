//! The optimiser's operations over the arenas, once a step: the gradient's norm, AdamW, LAMB, and clearing
//! what a step without a finite gradient left. An update is given constants, the treatment of each range of
//! the arena, and the elements that this rank updates.

use std::ops::Range;

use super::{Cost, FULL, Grads, Operation, bytes_of};
use crate::engine::{Device, Floats, Reals};

/// How the optimiser treats one contiguous range of the arena.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamGroup {
    pub range: Range<usize>,
    /// Weight decay applies (not to biases and LayerNorms).
    pub decay: bool,
    /// Multiplies the learning rate; 0 freezes the range.
    pub lr_scale: f32,
}

/// Constants of one update: AdamW (Loshchilov & Hutter 2019, with bias correction, as `torch.optim.AdamW`) or
/// LAMB (You et al. 2020), which uses the same constants.
#[derive(Clone, Copy, Debug)]
pub struct UpdateRule {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    /// Update number, from 1.
    pub step: u32,
    /// Gradients are scaled by min(1, clip_norm / norm); 0 does not clip.
    pub clip_norm: f32,
}

/// Elements that belong to one group and to this rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Index in the list of groups.
    pub group: usize,
    /// Place in the arenas of weights and gradients.
    pub range: Range<usize>,
    /// Place of its first element in the moments and the master weights, which hold the owned ranges
    /// end to end.
    pub moment: usize,
}

/// The intersections of groups and owned ranges, ascending within each group; frozen groups (`lr_scale` 0)
/// are left out. `owned` ascends.
pub fn slices(groups: &[ParamGroup], owned: &[Range<usize>]) -> Vec<Slice> {
    let mut slices = Vec::new();
    for (index, group) in groups.iter().enumerate().filter(|(_, g)| g.lr_scale != 0.0) {
        let mut before = 0;
        for own in owned {
            let range = group.range.start.max(own.start)..group.range.end.min(own.end);
            if !range.is_empty() {
                let moment = before + range.start - own.start;
                slices.push(Slice { group: index, range, moment });
            }
            before += own.len();
        }
    }
    slices
}

/// out[slot] = sum of squares of `src` over `ranges` (accumulated in f64 on the CPU).
pub struct SumSquares<'a, D: Device> {
    pub src: &'a Floats<D>,
    pub ranges: &'a [Range<usize>],
    pub out: &'a mut Floats<D>,
    pub slot: usize,
}

impl<D: Device> Operation<D> for SumSquares<'_, D> {
    fn name(&self) -> &'static str {
        "sum_squares"
    }

    fn cost(&self) -> Cost {
        let n = total(self.ranges);
        Cost::update(FULL * n, 2.0 * n)
    }
}

/// One AdamW update of every group, clipping by the global norm sqrt(norm_sq[0]) in the same pass. Does
/// nothing when norm_sq[0] is not finite. Also sets the gradients of the groups to zero; a frozen group
/// (`lr_scale` 0) keeps its weights and moments.
pub struct AdamWUpdate<'a, D: Device> {
    pub rule: UpdateRule,
    pub groups: &'a [ParamGroup],
    /// The ranges of the arena that this rank updates, ascending: all of it, or its share when the
    /// optimiser's state is sharded.
    pub owned: &'a [Range<usize>],
    /// [1]
    pub norm_sq: &'a Floats<D>,
    /// The arena.
    pub weights: &'a mut Reals<D>,
    /// The weights in f32, which the update reads and writes: the owned ranges end to end. Empty where `Real`
    /// is f32.
    pub master: &'a mut Floats<D>,
    /// The arena.
    pub grads: Grads<'a, D>,
    /// The owned ranges end to end.
    pub moment1: &'a mut Floats<D>,
    /// The owned ranges end to end.
    pub moment2: &'a mut Floats<D>,
}

impl<D: Device> Operation<D> for AdamWUpdate<'_, D> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cost(&self) -> Cost {
        // reads gradient, weight and two moments, writes weight, moments and a zero gradient; a narrow weight
        // is written beside its master copy
        let owned = total(self.owned);
        let narrow = if bytes_of::<D>() < FULL { bytes_of::<D>() } else { 0.0 };
        Cost::update(owned * (7.0 * FULL + narrow) + FULL * grouped(self.groups), 20.0 * owned)
    }
}

/// First half of a LAMB update (You et al. 2020, algorithm 2, phi the identity, with bias correction). Each
/// group is one tensor. For every owned element of a group, w being its master weight (or the weight where
/// `master` is empty):
///   g' = g min(1, clip_norm / (norm + 1e-6))   m = b1 m + (1 - b1) g'   v = b2 v + (1 - b2) g'^2
/// r = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + (weight_decay w if the group decays) r replaces the
/// gradient; norms[2 i] and norms[2 i + 1] become the sums of w^2 and of r^2 over the owned elements of group
/// i, in a fixed order (0 where none is owned and for frozen groups). Where norm_sq[0] is not finite, the
/// moments stay and r and the norms are 0.
pub struct LambDirection<'a, D: Device> {
    pub rule: UpdateRule,
    pub groups: &'a [ParamGroup],
    /// As in `AdamWUpdate`.
    pub owned: &'a [Range<usize>],
    /// [1]
    pub norm_sq: &'a Floats<D>,
    /// The arena.
    pub weights: &'a Reals<D>,
    /// As in `AdamWUpdate`.
    pub master: &'a Floats<D>,
    /// The arena.
    pub grads: Grads<'a, D>,
    /// The owned ranges end to end.
    pub moment1: &'a mut Floats<D>,
    /// The owned ranges end to end.
    pub moment2: &'a mut Floats<D>,
    /// [groups, 2]
    pub norms: &'a mut Floats<D>,
}

impl<D: Device> Operation<D> for LambDirection<'_, D> {
    fn name(&self) -> &'static str {
        "lamb_direction"
    }

    fn cost(&self) -> Cost {
        let owned = total(self.owned);
        Cost::update(7.0 * FULL * owned, 24.0 * owned)
    }
}

/// Second half, once `norms` hold the sums over all ranks: w -= lr lr_scale ratio r for every owned element,
/// ratio = sqrt(norms[2 i] / norms[2 i + 1]) where the group decays and both are above 0, else 1 (biases and
/// LayerNorms are not adapted, as in the authors' code). Sets the gradients of all groups to zero.
pub struct LambApply<'a, D: Device> {
    pub rule: UpdateRule,
    pub groups: &'a [ParamGroup],
    /// As in `AdamWUpdate`.
    pub owned: &'a [Range<usize>],
    /// [groups, 2]
    pub norms: &'a Floats<D>,
    /// The arena.
    pub weights: &'a mut Reals<D>,
    /// As in `AdamWUpdate`.
    pub master: &'a mut Floats<D>,
    /// The arena.
    pub grads: Grads<'a, D>,
}

impl<D: Device> Operation<D> for LambApply<'_, D> {
    fn name(&self) -> &'static str {
        "lamb_apply"
    }

    fn cost(&self) -> Cost {
        let owned = total(self.owned);
        let narrow = if bytes_of::<D>() < FULL { bytes_of::<D>() } else { 0.0 };
        Cost::update(owned * (3.0 * FULL + narrow) + FULL * grouped(self.groups), 4.0 * owned)
    }
}

/// Sets the first elements of each buffer to zero if norm_sq[0] is not finite; an asynchronous device decides
/// that by itself. For devices whose launches cover rows after a pack's last: values there meet gradients of
/// 0, which changes nothing unless they are NaN.
pub struct Forget<'a, D: Device> {
    /// [1]
    pub norm_sq: &'a Floats<D>,
    /// Buffers, and how many elements of each.
    pub buffers: Vec<(&'a mut Reals<D>, usize)>,
}

impl<D: Device> Operation<D> for Forget<'_, D> {
    fn name(&self) -> &'static str {
        "forget"
    }

    fn cost(&self) -> Cost {
        // the norm is nearly always finite, and then it is only read
        Cost::update(FULL, 0.0)
    }
}

fn total(ranges: &[Range<usize>]) -> f64 {
    ranges.iter().map(|range| range.len() as f64).sum()
}

fn grouped(groups: &[ParamGroup]) -> f64 {
    groups.iter().map(|group| group.range.len() as f64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_where_groups_and_ownership_meet() {
        let group = |range, lr_scale| ParamGroup { range, decay: true, lr_scale };
        let groups = [group(0..10, 1.0), group(12..20, 0.0), group(20..40, 2.0)];
        let slice = |group, range, moment| Slice { group, range, moment };
        let found = slices(&groups, &[4..16, 30..50]);
        assert_eq!(found, [slice(0, 4..10, 0), slice(2, 30..40, 12)]);
    }
}
