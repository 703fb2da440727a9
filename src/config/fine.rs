//! `[fine]`: what fine-tuning learns from topics, qrels and a run, and how documents are scored.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::positive;
use crate::data::passages::Cut;
use crate::engine::{Aggregate, RankLoss};
use crate::ir::measures::Measure;
use crate::model::checkpoint::HeadStart;
use crate::model::lora::Lora;
use crate::{Error, Result};

/// `[fine]`: what fine-tuning learns from topics, qrels and a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fine {
    /// Non-relevant candidates beside each positive; 1 is the pairwise softmax loss.
    pub negatives: usize,
    /// Relevant candidates used of one topic in one epoch, drawn anew each epoch.
    pub positives_per_topic: usize,
    /// Candidates of a topic: the first `depth` documents of the run.
    pub depth: usize,
    pub start: HeadStart,
    /// Repetitions with seeds `seed`, `seed` + 1, ...: means come with their deviation.
    pub seeds: u32,
    /// Folds to draw when `data.folds` is absent.
    pub folds: usize,
    /// Which non-relevant documents may be negatives.
    pub negatives_from: NegativesFrom,
    /// A run whose first `depth` documents a topic give the negatives, instead of `data.run`.
    pub negatives_run: Option<PathBuf>,
    /// A run of the teacher's scores, for `margin-mse` (and `listnet`, which takes labels without).
    pub teacher: Option<PathBuf>,
    pub loss: FineLoss,
    /// Score by which the positive of a pair is to lead, for `hinge`.
    pub margin: f32,
    /// How a document's score follows from its passages'.
    pub aggregate: Aggregate,
    /// Which passages of a document a group trains on.
    pub train_passages: TrainPassages,
    /// Words of a passage; 0 leaves documents whole (cut at `data.max_tokens`).
    pub passage_words: usize,
    /// Words from one passage's start to the next's.
    pub passage_stride: usize,
    /// Passages of a document that are used.
    pub passages: usize,
    /// Measure of the validation fold that chooses the best weights.
    pub measure: String,
    /// Updates between two validations; 0 keeps the last weights without looking.
    pub validate_every: u64,
    /// Validations without a better measure before training stops; 0 never stops early.
    pub patience: usize,
    /// Training topics to use of each fold; 0 uses all.
    pub train_topics: usize,
    /// Low-rank adapters beside a frozen encoder; the head is always trained.
    pub lora: Option<Lora>,
}

impl Default for Fine {
    fn default() -> Self {
        Self {
            negatives: 4,
            positives_per_topic: 4,
            depth: 50,
            start: HeadStart::NewHead,
            seeds: 1,
            folds: 5,
            negatives_from: NegativesFrom::All,
            negatives_run: None,
            teacher: None,
            loss: FineLoss::Lce,
            margin: 1.0,
            aggregate: Aggregate::FirstP,
            train_passages: TrainPassages::One,
            passage_words: 0,
            passage_stride: 75,
            passages: 16,
            measure: "ndcg_cut_5".into(),
            validate_every: 0,
            patience: 0,
            train_topics: 0,
            lora: None,
        }
    }
}

/// Which non-relevant documents may be negatives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NegativesFrom {
    All,
    /// Judged not relevant.
    Judged,
    /// Never judged.
    Unjudged,
}

/// What a group of `fine` holds of documents with several passages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainPassages {
    /// One passage, drawn anew each epoch, with its document's label: passages are trained on by
    /// themselves and put together only for ranking, as Dai and Callan (SIGIR 2019) and Capreolus' BERT-MaxP
    /// do. A group costs the same however long its documents are.
    One,
    /// All of them, end to end, as PARADE is trained: the loss is taken of the documents' scores, and its
    /// gradient goes back through `aggregate`. A group costs as many passages as its documents have.
    All,
}

/// Ranking losses; `engine::RankLoss` has their formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FineLoss {
    Lce,
    PairwiseSoftmax,
    Hinge,
    Pointwise,
    #[serde(rename = "listnet")]
    ListNet,
    /// Distillation: `fine.teacher` names the run with the teacher's scores.
    MarginMse,
}

impl Fine {
    /// # Errors
    /// `Error::Config` naming keys that contradict each other.
    pub(super) fn check(&self) -> Result<()> {
        positive("fine.margin", f64::from(self.margin))?;
        let measure: Result<Measure> = self.measure.parse();
        measure.map_err(|error| Error::config(format!("fine.measure: {error}")))?;
        if self.loss == FineLoss::MarginMse && self.teacher.is_none() {
            return Err(Error::config(
                "fine.loss = \"margin-mse\" learns a teacher's margins: name its run as fine.teacher",
            ));
        }
        if self.aggregate != Aggregate::FirstP && self.passage_words == 0 {
            return Err(Error::config(
                "fine.aggregate puts passages together: set fine.passage_words (150 is usual), or keep first-p",
            ));
        }
        if self.passage_words > 0 && self.passage_stride > self.passage_words {
            return Err(Error::config(format!(
                "fine.passage_stride = {} skips words: at most fine.passage_words = {}",
                self.passage_stride, self.passage_words
            )));
        }
        Ok(())
    }

    /// How documents are cut into passages; FirstP needs only the first.
    pub fn cut(&self) -> Cut {
        let most = if self.aggregate == Aggregate::FirstP { 1 } else { self.passages };
        Cut { words: self.passage_words, stride: self.passage_stride, most }
    }

    /// How documents' scores come about in training; `None` where every sequence is a document.
    pub fn trained_aggregate(&self) -> Option<Aggregate> {
        (self.train_passages == TrainPassages::All).then_some(self.aggregate)
    }

    /// The loss as the engine knows it.
    pub fn loss(&self) -> RankLoss {
        match self.loss {
            FineLoss::Lce => RankLoss::Lce,
            FineLoss::PairwiseSoftmax => RankLoss::PairwiseSoftmax,
            FineLoss::Hinge => RankLoss::Hinge { margin: self.margin },
            FineLoss::Pointwise => RankLoss::Pointwise,
            FineLoss::ListNet => RankLoss::ListNet,
            FineLoss::MarginMse => RankLoss::MarginMse,
        }
    }
}
