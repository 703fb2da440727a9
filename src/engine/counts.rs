//! A pack as numbers: how many rows an operation works on, and the counts that kernels read.

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

/// The counts that differ from pack to pack, as a device's kernels read them.
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
