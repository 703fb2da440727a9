//! `[experiment]`: what is compared, on which topics.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::checkpoint::HeadStart;

/// `[experiment]`: arms x folds x numbers of training topics.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Experiment {
    pub title: String,
    pub arms: Vec<Arm>,
    /// Name of the arm that the others are compared with; the first when absent.
    pub baseline: Option<String>,
    /// Numbers of training topics of the learning curve (0: no fine-tuning); all topics are always run.
    pub train_topics: Vec<usize>,
    /// trec_eval names; the first is the curve's.
    pub measures: Vec<String>,
    /// Which topics of each fold are ranked: `validation` for a search of settings, `test` for results.
    pub split: Split,
}

/// A part of every fold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    #[default]
    Test,
    Validation,
}

impl Default for Experiment {
    fn default() -> Self {
        Self {
            title: "Experiment".into(),
            arms: Vec::new(),
            baseline: None,
            train_topics: Vec::new(),
            measures: vec!["ndcg_cut_5".into(), "recip_rank".into()],
            split: Split::Test,
        }
    }
}

/// One arm: a model to fine-tune.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    pub name: String,
    /// Model folder.
    pub model: PathBuf,
    pub start: HeadStart,
    /// metrics.jsonl of the training that made the model, for the report.
    pub metrics: Option<PathBuf>,
}
