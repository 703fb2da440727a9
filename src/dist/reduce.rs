//! The sum of gradients over ranks. Each rank sums one share of the arena over all ranks in rank
//! order and hands the result back: the same volume as a ring all-reduce, and the same bits on every
//! rank and in every run, which MPI_Allreduce does not promise.

use std::ops::Range;

use mpi::traits::*;

use super::World;
use crate::Result;
use crate::engine::Backend;

/// Sums ranges of the gradient arena over the ranks of a world.
pub struct Reducer<'w> {
    world: &'w World,
    /// All ranks' copies of one range, padded to equal shares: [size, share]
    sent: Vec<f32>,
    /// Every rank's copy of this rank's share: [size, share]
    received: Vec<f32>,
    /// The sum of this rank's share: [share]
    share: Vec<f32>,
}

impl<'w> Reducer<'w> {
    pub fn new(world: &'w World) -> Self {
        Self { world, sent: Vec::new(), received: Vec::new(), share: Vec::new() }
    }

    /// Sums `grads[range]` over ranks. Every rank calls it with the same ranges in the same order.
    pub fn reduce<B: Backend>(
        &mut self,
        backend: &B,
        grads: &mut B::Buf<f32>,
        range: Range<usize>,
    ) -> Result<()> {
        if self.world.size() == 1 {
            return Ok(());
        }
        backend.on_host(grads, range, &mut |values| self.sum(values))
    }

    fn sum(&mut self, values: &mut [f32]) {
        let Some(mpi) = &self.world.mpi else { return };
        let size = self.world.size();
        let share = values.len().div_ceil(size);
        self.sent.clear();
        self.sent.extend_from_slice(values);
        self.sent.resize(share * size, 0.0);
        self.received.resize(share * size, 0.0);
        self.share.resize(share, 0.0);
        mpi.comm.all_to_all_into(&self.sent[..], &mut self.received[..]);
        self.share.copy_from_slice(&self.received[..share]);
        for other in self.received.chunks_exact(share).skip(1) {
            for (sum, value) in self.share.iter_mut().zip(other) {
                *sum += value;
            }
        }
        mpi.comm.all_gather_into(&self.share[..], &mut self.sent[..]);
        values.copy_from_slice(&self.sent[..values.len()]);
    }
}
