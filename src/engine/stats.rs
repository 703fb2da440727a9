//! Slots of the step's statistics buffer, f32 [`stats::SLOTS`], *added to* by the loss operations
//! and summed over packs and ranks at the end of a step.

/// Sum over masked tokens of the cross-entropy, in nats.
pub const MLM_LOSS: usize = 0;
/// Masked tokens whose label is the arg max.
pub const MLM_CORRECT: usize = 1;
/// Masked tokens.
pub const MLM_COUNT: usize = 2;
/// Sum over sequences of the QDPP cross-entropy, in nats.
pub const QDPP_LOSS: usize = 3;
/// Sequences whose QDPP class is the arg max.
pub const QDPP_CORRECT: usize = 4;
/// Sequences.
pub const QDPP_COUNT: usize = 5;
/// Sum over groups of the ranking loss, in nats.
pub const RANK_LOSS: usize = 6;
/// Groups whose positive has the highest score.
pub const RANK_CORRECT: usize = 7;
/// Groups.
pub const RANK_COUNT: usize = 8;
/// Length of the buffer.
pub const SLOTS: usize = 16;

/// The buffer's values.
pub fn read(values: &[f32]) -> [f64; SLOTS] {
    std::array::from_fn(|i| values.get(i).copied().map_or(0.0, f64::from))
}
