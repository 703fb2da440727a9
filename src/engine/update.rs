//! What an optimiser's update is told: constants, which ranges of the arena get which treatment, and
//! which elements this rank updates.

use std::ops::Range;

/// What the optimiser applies to one contiguous range of the arena.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamGroup {
    pub range: Range<usize>,
    /// Weight decay applies (not to biases and LayerNorms).
    pub decay: bool,
    /// Multiplies the learning rate; 0 freezes the range.
    pub lr_scale: f32,
}

/// Constants of one update: AdamW (Loshchilov & Hutter 2019, with bias correction, as
/// `torch.optim.AdamW`) or LAMB (You et al. 2020), which reads the same.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
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

/// Where groups and owned ranges meet, ascending within each group; frozen groups (`lr_scale` 0) are
/// left out. `owned` ascends.
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
