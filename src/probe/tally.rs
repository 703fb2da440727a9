//! Predictions added up: by word class, by query length, with and without the document.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::pairs::Pairs;
use super::predict::Prediction;
use crate::model::checkpoint;

/// The outcome of `probe`: probe.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Where the pairs come from.
    pub source: String,
    pub pairs: usize,
    pub words: usize,
    pub models: Vec<ModelTally>,
}

/// One model's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelTally {
    pub name: String,
    pub path: PathBuf,
    /// CRC-32 of model.safetensors.
    pub weights_crc32: Option<u32>,
    /// The model whose MLM head was used, if this one has none.
    pub head_from: Option<PathBuf>,
    pub groups: Vec<GroupTally>,
}

/// One group of words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupTally {
    pub group: String,
    pub query_alone: Scores,
    pub with_document: Scores,
}

/// Means over masked pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Masked pieces.
    pub pieces: usize,
    /// Share whose true piece comes first.
    pub accuracy_1: f64,
    /// Share whose true piece is among the first five.
    pub accuracy_5: f64,
    /// Mean of 1 / rank of the true piece.
    pub mrr: f64,
    /// exp of the mean -ln probability.
    pub perplexity: f64,
}

/// Names of the groups, in the order of `group_of`'s indices.
pub const GROUPS: [&str; 7] =
    ["all", "rare words", "common words", "1-2 words", "3-4 words", "5-6 words", "7+ words"];

/// The class and the length group of a word.
fn groups_of(common: bool, length: usize) -> [usize; 3] {
    let by_length = match length {
        0..=2 => 3,
        3..=4 => 4,
        5..=6 => 5,
        _ => 6,
    };
    [0, if common { 2 } else { 1 }, by_length]
}

impl Scores {
    /// Means over `predictions`; zeros for none.
    pub fn of(predictions: &[Prediction]) -> Self {
        let n = predictions.len().max(1) as f64;
        let mean = |value: &dyn Fn(&Prediction) -> f64| predictions.iter().map(value).sum::<f64>() / n;
        let within = |k: u32| move |p: &Prediction| f64::from(u8::from(p.rank <= k));
        Self {
            pieces: predictions.len(),
            accuracy_1: mean(&within(1)),
            accuracy_5: mean(&within(5)),
            mrr: mean(&|p| 1.0 / f64::from(p.rank.max(1))),
            perplexity: if predictions.is_empty() { 0.0 } else { mean(&|p| p.nats).exp() },
        }
    }
}

impl ModelTally {
    /// Adds up `predictions`, which are in the order of `predict`.
    pub fn new(
        name: &str,
        path: &Path,
        head_from: Option<PathBuf>,
        pairs: &Pairs,
        predictions: &[Prediction],
    ) -> Self {
        let mut by_group: [[Vec<Prediction>; 2]; GROUPS.len()] = Default::default();
        let mut rest = predictions;
        for pair in &pairs.list {
            for word in &pair.words {
                let (alone, after) = rest.split_at(word.pieces.len());
                let (with, after) = after.split_at(word.pieces.len());
                for group in groups_of(word.common, pair.length) {
                    by_group[group][0].extend_from_slice(alone);
                    by_group[group][1].extend_from_slice(with);
                }
                rest = after;
            }
        }
        let groups = GROUPS.iter().zip(&by_group).map(|(name, [alone, with])| GroupTally {
            group: (*name).into(),
            query_alone: Scores::of(alone),
            with_document: Scores::of(with),
        });
        let groups = groups.filter(|group| group.query_alone.pieces > 0).collect();
        // a table is only as good as the names of its models
        let weights_crc32 = checkpoint::fingerprint(path).ok();
        Self { name: name.into(), path: path.to_owned(), weights_crc32, head_from, groups }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_by_hand() {
        let p = |rank, nats| Prediction { rank, nats };
        let scores = Scores::of(&[p(1, 0.0), p(2, 1.0), p(10, 2.0), p(5, 1.0)]);
        assert_eq!((scores.pieces, scores.accuracy_1, scores.accuracy_5), (4, 0.25, 0.75));
        assert!((scores.mrr - (1.0 + 0.5 + 0.1 + 0.2) / 4.0).abs() < 1e-12);
        assert!((scores.perplexity - 1f64.exp()).abs() < 1e-12);
        assert_eq!(Scores::of(&[]), Scores::default());
    }

    #[test]
    fn every_word_is_in_three_groups() {
        assert_eq!(groups_of(true, 1), [0, 2, 3]);
        assert_eq!(groups_of(false, 4), [0, 1, 4]);
        assert_eq!(groups_of(false, 7).map(|g| GROUPS[g]), ["all", "rare words", "7+ words"]);
    }
}
