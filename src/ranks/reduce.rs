//! Collectives over the arenas behind one trait, and their MPI form. Gradients: each rank sums one
//! share over all ranks in rank order and hands the result back: the same volume as a ring
//! all-reduce, and the same bits on every rank and in every run, which MPI_Allreduce does not promise.

use std::ops::Range;

use mpi::traits::*;

use super::world::World;
use crate::Result;
use crate::engine::cpu::{Cpu, Operand};
use crate::engine::{Device, Engine, Floats, Reals};

/// What a training step exchanges. Every rank makes the same calls with the same ranges in the same order. A
/// device may do the work on another stream and complete it at `finish`.
pub trait Collective<D: Device> {
    /// Sums `grads[range]` over ranks.
    fn all_reduce(&mut self, device: &D, grads: &mut Floats<D>, range: Range<usize>) -> Result<()>;
    /// Sums one bucket over ranks, cut into a piece a rank: rank r has the sum of `pieces[r]`
    /// afterwards; what the other pieces hold is unspecified.
    fn reduce_scatter(&mut self, device: &D, grads: &mut Floats<D>, pieces: &[Range<usize>]) -> Result<()>;
    /// Hands every rank the piece that rank r owns, `pieces[r]`.
    fn all_gather(&mut self, device: &D, weights: &mut Reals<D>, pieces: &[Range<usize>]) -> Result<()>;
    /// Every operation given to the device from now on sees the exchanges completed.
    fn finish(&mut self, device: &D) -> Result<()>;
}

/// An engine whose ranks can exchange arenas.
pub trait Distributed: Engine {
    /// The collectives of `world` on this engine's device.
    ///
    /// # Errors
    /// `Error::Device` when the ranks cannot be connected.
    fn collective<'w>(&self, world: &'w World) -> Result<Box<dyn Collective<Self> + 'w>>;
}

impl<R: Operand> Distributed for Cpu<R>
where
    Self: Engine,
{
    fn collective<'w>(&self, world: &'w World) -> Result<Box<dyn Collective<Self> + 'w>> {
        Ok(Box::new(MpiCollective::new(world)))
    }
}

/// Collectives through host memory and MPI.
pub struct MpiCollective<'w> {
    world: &'w World,
    /// Pieces for all ranks, padded to one length: [size, piece]
    sent: Vec<f32>,
    /// All ranks' copies of this rank's piece: [size, piece]
    received: Vec<f32>,
    /// Their sum: [piece]
    sum: Vec<f32>,
}

/// Equal pieces of `range` for `size` ranks, in multiples of 8 elements (16 bytes of bf16, what device
/// code loads at once); the last ones may be shorter or empty.
pub fn pieces(range: &Range<usize>, size: usize) -> Vec<Range<usize>> {
    let piece = range.len().div_ceil(size).next_multiple_of(8).max(8);
    let at = |rank: usize| (range.start + rank * piece).min(range.end);
    (0..size).map(|rank| at(rank)..at(rank + 1)).collect()
}

impl<'w> MpiCollective<'w> {
    /// Collectives over the ranks of `world`.
    pub fn new(world: &'w World) -> Self {
        Self { world, sent: Vec::new(), received: Vec::new(), sum: Vec::new() }
    }

    /// `values` hold the pieces end to end, `lens[r]` for rank r; leaves the sum of this rank's
    /// piece in `self.sum` and returns the padded length.
    fn scatter(&mut self, values: &[f32], lens: &[usize]) -> usize {
        let size = self.world.size();
        let longest = lens.iter().copied().max().unwrap_or(0);
        self.sent.clear();
        let mut at = 0;
        for (rank, &len) in lens.iter().enumerate() {
            self.sent.extend_from_slice(&values[at..at + len]);
            self.sent.resize((rank + 1) * longest, 0.0);
            at += len;
        }
        self.received.resize(longest * size, 0.0);
        if let Some(mpi) = &self.world.mpi {
            let (sent, received) = (&self.sent[..], &mut self.received[..]);
            self.world.beat().collective(|| mpi.comm.all_to_all_into(sent, received));
        }
        self.sum.clear();
        self.sum.extend_from_slice(&self.received[..longest]);
        for other in self.received.chunks_exact(longest).skip(1) {
            for (sum, value) in self.sum.iter_mut().zip(other) {
                *sum += value;
            }
        }
        longest
    }

    /// Every rank's `self.sum`, end to end: [size, longest]
    fn gather(&mut self) -> &[f32] {
        self.received.resize(self.sum.len() * self.world.size(), 0.0);
        if let Some(mpi) = &self.world.mpi {
            let (sum, received) = (&self.sum[..], &mut self.received[..]);
            self.world.beat().collective(|| mpi.comm.all_gather_into(sum, received));
        }
        &self.received
    }
}

impl<D: Device> Collective<D> for MpiCollective<'_> {
    fn all_reduce(&mut self, device: &D, grads: &mut Floats<D>, range: Range<usize>) -> Result<()> {
        if self.world.size() == 1 || range.is_empty() {
            return Ok(());
        }
        let pieces = pieces(&(0..range.len()), self.world.size());
        let lens: Vec<usize> = pieces.iter().map(ExactSizeIterator::len).collect();
        device.on_host(grads, range, &mut |values| {
            let longest = self.scatter(values, &lens);
            let all = self.gather();
            for (rank, piece) in pieces.iter().enumerate() {
                values[piece.clone()].copy_from_slice(&all[rank * longest..][..piece.len()]);
            }
        })
    }

    fn reduce_scatter(&mut self, device: &D, grads: &mut Floats<D>, pieces: &[Range<usize>]) -> Result<()> {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return Ok(()) };
        let range = first.start..last.end;
        if self.world.size() == 1 || range.is_empty() {
            return Ok(());
        }
        let lens: Vec<usize> = pieces.iter().map(ExactSizeIterator::len).collect();
        let own = &pieces[self.world.rank()];
        let own = own.start - range.start..own.end - range.start;
        device.on_host(grads, range, &mut |values| {
            self.scatter(values, &lens);
            values[own.clone()].copy_from_slice(&self.sum[..own.len()]);
        })
    }

    fn all_gather(&mut self, device: &D, weights: &mut Reals<D>, pieces: &[Range<usize>]) -> Result<()> {
        let longest = pieces.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        if self.world.size() == 1 || longest == 0 {
            return Ok(());
        }
        self.sum = device.download_weights(weights, pieces[self.world.rank()].clone())?;
        self.sum.resize(longest, 0.0);
        let all = self.gather();
        for (rank, piece) in pieces.iter().enumerate() {
            device.upload_weights(&all[rank * longest..][..piece.len()], weights, piece.start)?;
        }
        Ok(())
    }

    fn finish(&mut self, _device: &D) -> Result<()> {
        Ok(()) // every call above has waited
    }
}
