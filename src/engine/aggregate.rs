//! How a document's score follows from its passages'. The names are those of Dai and Callan (SIGIR 2019):
//! FirstP, MaxP, SumP; AvgP is their mean. One definition for re-ranking and for training, so that what is
//! learnt is what is used.

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

    /// Gradient of `score` by the score of passage `i`: the best passage, the first of several, has all of
    /// MaxP's.
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
