//! What training must remember besides the model's weights, on the host: the optimiser's arrays with
//! the ranges of the arena that they belong to, so that any number of ranks can take them up again.

use std::ops::Range;

/// The optimiser's arrays of one rank.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OptimiserState {
    /// Ranges of the arena that the arrays hold end to end, ascending: all of it, or the rank's share.
    pub owned: Vec<Range<usize>>,
    /// f32 weights where the device keeps narrower ones, else empty.
    pub master: Vec<f32>,
    /// [sum of `owned`]
    pub moment1: Vec<f32>,
    /// [sum of `owned`]
    pub moment2: Vec<f32>,
}

impl OptimiserState {
    /// Arrays of zeros over `owned`; `master` says whether there are f32 weights too.
    pub fn zeros(owned: Vec<Range<usize>>, master: bool) -> Self {
        let len = owned.iter().map(ExactSizeIterator::len).sum();
        Self {
            owned,
            master: vec![0.0; if master { len } else { 0 }],
            moment1: vec![0.0; len],
            moment2: vec![0.0; len],
        }
    }

    /// Elements of each array.
    pub fn len(&self) -> usize {
        self.moment1.len()
    }

    /// Whether this rank owns nothing.
    pub fn is_empty(&self) -> bool {
        self.moment1.is_empty()
    }
}
