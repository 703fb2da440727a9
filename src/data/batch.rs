//! The one format that data hands to the model: a pack of sequences end to end, without padding. Every reader
//! of samples (click log, documents alone, ranking groups) ends here, so the model has one input type and the
//! engine one layout.

use crate::text::Special;

/// One pack on the host. T, S and M are defined in `model/shape.rs`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids before masking, [T].
    pub ids: Vec<u32>,
    /// Position of each token in its sequence, [T].
    pub positions: Vec<u32>,
    /// Segment of each token: 0 for `[CLS] query [SEP]`, 1 for `document [SEP]`, [T].
    pub segments: Vec<u32>,
    /// Sample id of each token's sequence, [T]: with the position it keys every random decision.
    pub row_sample: Vec<u32>,
    /// Start of each sequence in the pack and its end, [S + 1].
    pub cu_seqlens: Vec<u32>,
    /// Sample id of each sequence, [S].
    pub samples: Vec<u32>,
    /// QDPP class of each sequence, [S]: 0 = the query clicked the document (the class that a
    /// pre-trained NSP head calls "is next"), 1 = a drawn negative. Empty without QDPP.
    pub pair_labels: Vec<u32>,
    /// Factor of each pair's QDPP loss, [S]. Empty where every pair counts once.
    pub pair_weights: Vec<f32>,
    /// First sequence of each document and the end, [documents + 1], where a document's score comes
    /// from the scores of several passages. Empty where every sequence is a document.
    pub cu_documents: Vec<u32>,
    /// First document of each ranking group and the end, [groups + 1]; the first document of a
    /// group is its positive. Empty outside fine-tuning.
    pub cu_groups: Vec<u32>,
    /// Label or teacher's score of each document; read by the ranking losses that need them. Empty outside
    /// fine-tuning.
    pub targets: Vec<f32>,
    /// Epoch of the samples, part of every random decision's counter.
    pub epoch: u32,
    /// Tokens of this pack that masking will choose, M (known on the host because the choice is a
    /// pure function of seed, epoch, sample and position; so the device is never waited for).
    pub masked: usize,
    /// Masked tokens of the whole step over all ranks: the divisor of the MLM loss.
    pub step_masked: usize,
    /// Sequences (or ranking groups, in fine-tuning) of the whole step over all ranks: the
    /// divisor of the QDPP or ranking loss.
    pub step_pairs: usize,
}

impl Batch {
    /// T
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Documents of ranking groups.
    pub fn documents(&self) -> usize {
        if self.cu_documents.is_empty() { self.sequences() } else { self.cu_documents.len() - 1 }
    }

    /// S
    pub fn sequences(&self) -> usize {
        self.samples.len()
    }

    /// Sum of the squared lengths of the sequences: the pairs of tokens that attend to each other.
    pub fn attended(&self) -> u64 {
        self.cu_seqlens.windows(2).map(|ends| u64::from(ends[1] - ends[0]).pow(2)).sum()
    }

    /// Appends one sequence `[CLS] first [SEP] second [SEP]` (or `[CLS] first [SEP]` when
    /// `second` is `None`) of sample `sample`.
    pub fn push(&mut self, special: Special, sample: u32, first: &[u32], second: Option<&[u32]>) {
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        let start = self.ids.len();
        self.ids.push(special.cls);
        self.ids.extend_from_slice(first);
        self.ids.push(special.sep);
        let boundary = self.ids.len();
        if let Some(second) = second {
            self.ids.extend_from_slice(second);
            self.ids.push(special.sep);
        }
        let end = self.ids.len();
        self.positions.extend(0..(end - start) as u32);
        self.segments.extend((start..end).map(|i| u32::from(i >= boundary)));
        self.row_sample.extend(std::iter::repeat_n(sample, end - start));
        self.cu_seqlens.push(end as u32);
        self.samples.push(sample);
    }
}
