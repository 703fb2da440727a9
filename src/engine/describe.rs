//! What operations are told: row counts, places in the arenas, losses and what a device may replay.

/// How many rows an operation works on, and which of the pack's counts that is. A device that
/// replays a recorded step launches at capacity and reads the count of *this* pack from the
/// `PackCounts` of `begin_pack`; an eager device takes the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// T
    Tokens(usize),
    /// S
    Sequences(usize),
    /// M
    Masked(usize),
}

impl Rows {
    /// The number of rows.
    pub fn count(self) -> usize {
        match self {
            Self::Tokens(n) | Self::Sequences(n) | Self::Masked(n) => n,
        }
    }
}

/// A device's own memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// That buffers of this process hold.
    pub allocated: usize,
    pub free: usize,
    /// That the engine takes for itself beside one model's buffers.
    pub engine: usize,
}

/// What differs from pack to pack besides the token arrays, as a device's kernels read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PackCounts {
    /// T
    pub tokens: u32,
    /// S
    pub sequences: u32,
    /// M
    pub masked: u32,
    /// Ranking groups.
    pub groups: u32,
    pub epoch: u32,
    /// Masked tokens of the whole step over all ranks.
    pub step_masked: u32,
    /// Pairs or ranking groups of the whole step over all ranks.
    pub step_pairs: u32,
    /// Documents of the ranking groups, where their scores come from several passages.
    pub documents: u32,
}

/// What a ranking group teaches. Each is a mean over groups; within a group, of n negatives:
/// s are scores, t targets, 0 is the positive, j a negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RankLoss {
    /// Localised contrastive (Gao et al. 2021): -ln softmax(s)_0 over the group.
    Lce,
    /// Mean over j of ln(1 + e^(s_j - s_0)): RankNet; with one negative CEDR's pairwise softmax.
    PairwiseSoftmax,
    /// Mean over j of max(0, margin - s_0 + s_j).
    Hinge { margin: f32 },
    /// Mean over all members of the cross-entropy of sigmoid(s) against "target above 0".
    Pointwise,
    /// Cross-entropy of softmax(s) against softmax(t) (Cao et al. 2007, top one).
    ListNet,
    /// Mean over j of ((s_0 - s_j) - (t_0 - t_j))^2: targets are a teacher's scores (Hofstätter et
    /// al. 2020).
    MarginMse,
}

/// Factor of a loss's gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// Weight of the loss in the objective; 0 measures only.
    pub weight: f32,
    /// `weight` / max(count of the step, 1). Devices that replay compute it from `PackCounts`.
    pub value: f32,
}

impl LossScale {
    /// Losses are measured and leave no gradient.
    pub const MEASURE: Self = Self { weight: 0.0, value: 0.0 };

    /// The mean over the step's `count`, times `weight`.
    pub fn mean(weight: f32, count: usize) -> Self {
        Self { weight, value: weight / count.max(1) as f32 }
    }
}

/// A fixed sequence of operations of a model, which a device may record and replay. Equal segments
/// make the same calls with the same buffers and settings; packs and their counts may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    pub name: &'static str,
    /// Encoder layer, where it belongs to one.
    pub layer: usize,
    /// Which of the name's optional operations are in it.
    pub variant: u32,
}

/// A linear layer's place in a parameter arena: weight [n, k] at `w`, bias [n] at `b`.
#[derive(Clone, Copy, Debug)]
pub struct LinearAt {
    pub w: usize,
    pub b: usize,
    /// Output columns, N.
    pub n: usize,
    /// Input columns, K.
    pub k: usize,
}

/// A LayerNorm's place in a parameter arena: gamma [H] and beta [H].
#[derive(Clone, Copy, Debug)]
pub struct NormAt {
    pub gamma: usize,
    pub beta: usize,
    pub hidden: usize,
    /// Added to the variance (BERT: 1e-12).
    pub eps: f32,
}

/// The embedding tables' place in a parameter arena: word [V, H], position [P, H], segment [2, H].
#[derive(Clone, Copy, Debug)]
pub struct EmbedAt {
    pub word: usize,
    pub position: usize,
    pub segment: usize,
    pub norm: NormAt,
    pub vocab: usize,
}

/// A pooler with a small head on top: pooler bias [H], head weight [k, H], head bias [k].
/// (The pooler's own [H, H] product is an ordinary `linear`.)
#[derive(Clone, Copy, Debug)]
pub struct HeadAt {
    pub pool_bias: usize,
    pub w: usize,
    pub b: usize,
    pub hidden: usize,
}

/// What a linear layer does to its product before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// Nothing: the next fused operation adds the bias.
    None,
    /// y = x Wᵀ + b
    Bias,
}

/// Sizes of a multi-head attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// A
    pub heads: usize,
    /// D
    pub size: usize,
}
