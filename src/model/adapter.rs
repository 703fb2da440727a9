//! Where low-rank adapters are attached and which part of their tensors is in use (`lora` says what they
//! are).

use std::ops::Range;

use crate::config::Target;
use crate::engine::op::LinearAt;

/// A product of the engine that adapters may be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Query, key and value in one.
    Qkv,
    Output,
    Up,
    Down,
}

impl Target {
    /// The product, and which block of its output.
    pub(super) fn place(self) -> (Place, usize) {
        match self {
            Self::Query => (Place::Qkv, 0),
            Self::Key => (Place::Qkv, 1),
            Self::Value => (Place::Qkv, 2),
            Self::AttentionOutput => (Place::Output, 0),
            Self::Intermediate => (Place::Up, 0),
            Self::Output => (Place::Down, 0),
        }
    }
}

/// The adapters attached to one product.
#[derive(Clone, Debug)]
pub struct AdapterAt {
    pub place: Place,
    /// A: [r, K]; has no bias.
    pub a: LinearAt,
    /// B transposed, with its factor: [r, N]; has no bias.
    pub b: LinearAt,
}

/// Which part of an adapter's tensor is in use.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Multiplies the learning rate.
    pub lr_scale: f32,
    /// Of a B: the columns of each row that are in use, by blocks of `rank` rows. Empty for an A.
    pub(super) columns: Vec<Range<usize>>,
    pub(super) rank: usize,
}

impl Block {
    /// The tensor's ranges in the arena, each with whether it is in use.
    pub fn parts(&self, offset: usize, shape: &[usize]) -> Vec<(Range<usize>, bool)> {
        let width = shape[1];
        if self.columns.is_empty() {
            return vec![(offset..offset + shape[0] * width, true)];
        }
        let row = |j: usize| {
            let (start, used) = (offset + j * width, &self.columns[j / self.rank]);
            let cuts = [start, start + used.start, start + used.end, start + width];
            [(cuts[0]..cuts[1], false), (cuts[1]..cuts[2], true), (cuts[2]..cuts[3], false)]
        };
        (0..shape[0]).flat_map(row).filter(|(range, _)| !range.is_empty()).collect()
    }
}
