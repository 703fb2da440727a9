//! What a sample is: its length and its tokens, as pure functions of (sample id, epoch). Packing,
//! masking counts and the loader know samples only through [`SampleSource`], so click logs,
//! documents alone and ranking groups share them.

use super::batch::Batch;
use crate::Result;

/// A set of samples that an epoch visits once each.
pub trait SampleSource: Send + Sync {
    /// Samples of an epoch; their ids are `0..samples`.
    fn samples(&self) -> u32;

    /// Packed tokens that [`push`](Self::push) will append, special tokens included.
    fn length(&self, sample: u32, epoch: u32) -> usize;

    /// What the sample adds to `Batch::step_pairs`: 1 for a labelled query-document pair or a
    /// ranking group, 0 for text alone.
    fn pairs(&self, sample: u32) -> usize;

    /// Appends the sample's sequence or sequences to `batch`.
    ///
    /// # Errors
    /// `Error::Data` when the sample cannot be made (no negative exists).
    fn push(&self, sample: u32, epoch: u32, batch: &mut Batch) -> Result<()>;

    /// An upper bound of every sample's length, compared with the pack budget before training
    /// starts. By default it measures every sample of epoch 0.
    fn longest(&self) -> usize {
        (0..self.samples()).map(|sample| self.length(sample, 0)).max().unwrap_or(0)
    }
}
