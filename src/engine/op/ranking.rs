//! Losses over ranking groups, and how a document's score follows from its passages'. The ways to combine
//! passages are those of Dai and Callan (SIGIR 2019): FirstP, MaxP, SumP; AvgP takes the mean. Re-ranking and
//! training share one definition, so that what is learnt is what is used.

use super::{Cost, FULL, LossScale, Operation};
use crate::engine::{Device, DeviceBatch, Floats};

/// The loss of ranking groups. Each is a mean over groups. Within a group of n negatives, s are scores, t
/// targets, 0 is the positive, j a negative.
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

/// A document's score from its passages'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    /// The first passage's; the others are not scored.
    FirstP,
    /// The best passage's.
    MaxP,
    /// The sum over passages.
    SumP,
    /// The mean over passages.
    AvgP,
}

impl Aggregate {
    /// The document's score from its passages' scores, in their order; 0 without any.
    pub fn score(self, passages: &[f64]) -> f64 {
        let sum = || passages.iter().sum::<f64>();
        match self {
            Self::FirstP => passages.first().copied().unwrap_or(0.0),
            Self::MaxP => passages.iter().copied().reduce(f64::max).unwrap_or(0.0),
            Self::SumP => sum(),
            Self::AvgP => sum() / passages.len().max(1) as f64,
        }
    }

    /// Gradient of `score` with respect to the score of passage `i`. All of MaxP's goes to the best passage
    /// (to the first of several).
    pub fn slope(self, passages: &[f64], i: usize) -> f64 {
        let alone = |chosen: usize| if i == chosen { 1.0 } else { 0.0 };
        match self {
            Self::FirstP => alone(0),
            Self::MaxP => {
                let best = self.score(passages);
                alone(passages.iter().position(|&score| score == best).unwrap_or(0))
            }
            Self::SumP => 1.0,
            Self::AvgP => 1.0 / passages.len().max(1) as f64,
        }
    }
}

/// Scores of documents from their passages' scores, summed in f64.
pub struct AggregateScores<'a, D: Device> {
    pub how: Aggregate,
    pub batch: &'a DeviceBatch<D>,
    /// [S]
    pub scores: &'a Floats<D>,
    /// [documents], overwritten.
    pub documents: &'a mut Floats<D>,
}

impl<D: Device> Operation<D> for AggregateScores<'_, D> {
    fn name(&self) -> &'static str {
        "aggregate"
    }

    fn cost(&self) -> Cost {
        scores_cost(self.batch.sequences + self.batch.documents)
    }
}

/// Gradients of passages' scores from those of documents' scores.
pub struct AggregateScoresBackward<'a, D: Device> {
    pub how: Aggregate,
    pub batch: &'a DeviceBatch<D>,
    /// [S]
    pub scores: &'a Floats<D>,
    /// [documents]
    pub ddocuments: &'a Floats<D>,
    /// [S], overwritten.
    pub dscores: &'a mut Floats<D>,
}

impl<D: Device> Operation<D> for AggregateScoresBackward<'_, D> {
    fn name(&self) -> &'static str {
        "aggregate_backward"
    }

    fn cost(&self) -> Cost {
        scores_cost(2 * self.batch.sequences + self.batch.documents)
    }
}

/// `loss` of every group; a group's first document is its positive. Loss, accuracy and count are added to
/// `sums`.
pub struct GroupLoss<'a, D: Device> {
    pub loss: RankLoss,
    pub batch: &'a DeviceBatch<D>,
    /// Of documents, or of sequences where every sequence is one.
    pub scores: &'a Floats<D>,
    pub scale: LossScale,
    /// As `scores`, overwritten: the loss's gradient times `scale.value`.
    pub dscores: &'a mut Floats<D>,
    /// [stats::SLOTS]
    pub sums: &'a mut Floats<D>,
}

impl<D: Device> Operation<D> for GroupLoss<'_, D> {
    fn name(&self) -> &'static str {
        "rank_loss"
    }

    fn cost(&self) -> Cost {
        scores_cost(3 * self.batch.ranked())
    }
}

/// A few KB: latency is all that counts.
fn scores_cost(values: usize) -> Cost {
    Cost::rows(FULL * values as f64, 10.0 * values as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_put_together() {
        let scores = [1.0, 4.0, -2.0];
        let all = [Aggregate::FirstP, Aggregate::MaxP, Aggregate::SumP, Aggregate::AvgP];
        assert_eq!(all.map(|how| how.score(&scores)), [1.0, 4.0, 3.0, 1.0]);
        assert_eq!(all.map(|how| how.score(&[])), [0.0; 4]);
        assert_eq!(
            all.map(|how| [0, 1, 2].map(|i| how.slope(&scores, i))),
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0; 3], [1.0 / 3.0; 3]]
        );
        assert_eq!([0, 1, 2].map(|i| Aggregate::MaxP.slope(&[0.5, 2.0, 2.0], i)), [0.0, 1.0, 0.0], "a tie");
    }
}
