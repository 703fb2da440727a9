//! The sizes at which operations are tried: small ones with every edge, and the widths of common pre-trained
//! models.

/// Widths and sequences of one round of cases.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Sizes {
    /// Tokens of each sequence of the pack.
    pub lengths: Vec<usize>,
    /// H
    pub hidden: usize,
    /// A
    pub heads: usize,
    /// I
    pub intermediate: usize,
    /// V
    pub vocab: usize,
    /// Dropout rate.
    pub dropout: f32,
    /// Share of tokens that are masked.
    pub mask_rate: f32,
}

/// BERT's vocabulary, and one that is not a multiple of 8.
pub const BERT_VOCAB: usize = 30_522;
const ODD_VOCAB: usize = 301;

impl Sizes {
    fn new(lengths: &[usize], [hidden, heads, intermediate, vocab]: [usize; 4]) -> Self {
        let lengths = lengths.to_vec();
        Self { lengths, hidden, heads, intermediate, vocab, dropout: 0.1, mask_rate: 0.2 }
    }

    /// Small sizes with heads of 64 and of 32: sequences from a few tokens to more than an attention block.
    pub fn small() -> [Self; 2] {
        [1, 2].map(|heads| Self::new(&[10, 19, 66, 133, 3], [64, heads, 136, ODD_VOCAB]))
    }

    /// Real widths on a short pack: TinyBERT (heads of 26), MiniLM (32), BERT-base and BERT-large (64).
    pub fn widths() -> [Self; 4] {
        let of = |hidden: usize, heads, intermediate, vocab| {
            Self::new(&[1, 40, 127], [hidden, heads, intermediate, vocab])
        };
        [
            of(312, 12, 1200, ODD_VOCAB),
            of(384, 12, 1536, BERT_VOCAB),
            of(768, 12, 3072, ODD_VOCAB),
            of(1024, 16, 4096, ODD_VOCAB),
        ]
    }

    /// Sequences of 1, 127, 512 and more tokens.
    pub fn long() -> Self {
        Self::new(&[1, 127, 512, 700], [64, 2, 136, ODD_VOCAB])
    }

    /// All of them.
    pub fn all() -> Vec<Self> {
        Self::small().into_iter().chain(Self::widths()).chain([Self::long()]).collect()
    }

    /// A pack of `sequences` of one length, for timing.
    pub fn even(sequences: usize, length: usize, widths: [usize; 4]) -> Self {
        Self { mask_rate: 0.15, ..Self::new(&vec![length; sequences], widths) }
    }

    /// D
    pub fn head_size(&self) -> usize {
        self.hidden / self.heads
    }

    /// T
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// S
    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// Whether the GPU has kernels for this operation at these sizes.
    pub fn runs_on_gpu(&self, op: &str) -> bool {
        !op.starts_with("attention") || self.attends_on_gpu()
    }

    /// Whether the GPU's kernels support heads of this size.
    pub fn attends_on_gpu(&self) -> bool {
        self.head_size().is_multiple_of(8) && (8..=128).contains(&self.head_size())
    }

    /// `hidden 384, 12 heads, vocabulary 30522, 168 tokens`
    pub fn describe(&self) -> String {
        format!(
            "hidden {}, {} heads, vocabulary {}, {} tokens",
            self.hidden,
            self.heads,
            self.vocab,
            self.tokens()
        )
    }
}
