//! A pack as operations see it: its arrays on the device, and its counts.

use super::counts::Rows;
use super::device::{Device, Floats, Words};

/// A pack on the device. Buffers are allocated once at the pack budget; the counts say how much of
/// them is in use.
pub struct DeviceBatch<D: Device> {
    /// T
    pub tokens: usize,
    /// S
    pub sequences: usize,
    /// M
    pub masked: usize,
    /// Ranking groups.
    pub groups: usize,
    /// Documents of the ranking groups; 0 where every sequence is one.
    pub documents: usize,
    /// Sum of the squared lengths of the sequences: the pairs of tokens that attention scores.
    pub attended: u64,
    pub epoch: u32,
    /// Token ids, [T]; `mask_tokens` replaces the chosen ones in place.
    pub ids: Words<D>,
    /// [T]
    pub positions: Words<D>,
    /// [T]
    pub segments: Words<D>,
    /// [T]
    pub row_sample: Words<D>,
    /// [S + 1]; its first S entries are also the rows of the [CLS] tokens.
    pub cu_seqlens: Words<D>,
    /// [S]
    pub samples: Words<D>,
    /// QDPP classes, [S].
    pub pair_labels: Words<D>,
    /// Factors of the pairs' QDPP losses, [S].
    pub pair_weights: Floats<D>,
    /// First sequence of each document, [documents + 1].
    pub cu_documents: Words<D>,
    /// First document (or sequence, where every sequence is one) of each group, [groups + 1].
    pub cu_groups: Words<D>,
    /// Labels or a teacher's scores, one for each document; only some ranking losses read them.
    pub targets: Floats<D>,
    /// Rows of the masked tokens, ascending, [M]; written by `mask_tokens`.
    pub masked_rows: Words<D>,
    /// Their original ids, [M]; written by `mask_tokens`.
    pub masked_labels: Words<D>,
}

impl<D: Device> DeviceBatch<D> {
    /// All tokens' rows.
    pub fn rows(&self) -> Rows {
        Rows::Tokens(self.tokens)
    }

    /// What ranking groups rank: documents, or sequences where every sequence is one.
    pub fn ranked(&self) -> usize {
        if self.documents > 0 { self.documents } else { self.sequences }
    }
}
