//! The file between an experiment and its report: every number of every arm, per topic, so that significance
//! tests need not read the runs again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use statrs::statistics::Statistics;

use crate::files;
use crate::{Error, Result};

/// An experiment's outcome, `results.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub title: String,
    /// trec_eval names; the first is the one whose curve is plotted.
    pub measures: Vec<String>,
    /// The arm that the others are compared with.
    pub baseline: String,
    pub cells: Vec<Cell>,
    pub training: Vec<Training>,
    /// Config, data fingerprints, versions: shown as a table.
    pub facts: Vec<(String, String)>,
}

/// One arm fine-tuned on one number of topics, measured on the joined test folds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    pub arm: String,
    /// Topics that the arm was fine-tuned on; `None` for an arm that never is, like BM25.
    pub train_topics: Option<usize>,
    /// The full-size cell, which enters the table of arms.
    pub all_topics: bool,
    /// Measure -> mean over topics.
    pub means: BTreeMap<String, f64>,
    /// Means of each repetition with another seed, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repeats: Vec<BTreeMap<String, f64>>,
    /// Measure -> topic -> value (its mean over repetitions).
    pub per_topic: BTreeMap<String, BTreeMap<String, f64>>,
}

/// A training run whose losses are plotted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    pub name: String,
    /// `metrics.jsonl`, relative to the folder of `results.json` or absolute.
    pub metrics: PathBuf,
}

impl Results {
    /// # Errors
    /// `Error::Data` with path, line and column of what cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let text = files::read(path)?;
        serde_json::from_slice(&text).map_err(|cause| {
            Error::data(format!("{}: not the results of an experiment: {cause}", path.display()))
        })
    }

    /// Arms in the order in which they first appear.
    pub fn arms(&self) -> Vec<&str> {
        let mut arms: Vec<&str> = Vec::new();
        for cell in &self.cells {
            if !arms.contains(&cell.arm.as_str()) {
                arms.push(&cell.arm);
            }
        }
        arms
    }

    /// The cell of an arm that enters the table: its full-size cell, or the only one of an arm that is
    /// not fine-tuned.
    pub fn table_cell(&self, arm: &str) -> Option<&Cell> {
        let mut cells = self.cells.iter().filter(|cell| cell.arm == arm);
        cells.clone().find(|cell| cell.all_topics).or_else(|| cells.find(|cell| cell.train_topics.is_none()))
    }
}

impl Cell {
    /// # Errors
    /// `Error::Data` when the cell has no such measure.
    pub fn mean(&self, measure: &str) -> Result<f64> {
        self.means.get(measure).copied().ok_or_else(|| self.lacks(measure))
    }

    /// Standard deviation of the means over repetitions (n - 1); `None` for a single one.
    pub fn deviation(&self, measure: &str) -> Option<f64> {
        let values: Vec<f64> = self.repeats.iter().filter_map(|means| means.get(measure).copied()).collect();
        (values.len() > 1).then(|| values.std_dev())
    }

    /// Topic -> value.
    ///
    /// # Errors
    /// `Error::Data` when the cell has no such measure.
    pub fn topics(&self, measure: &str) -> Result<&BTreeMap<String, f64>> {
        self.per_topic.get(measure).ok_or_else(|| self.lacks(measure))
    }

    fn lacks(&self, measure: &str) -> Error {
        Error::data(format!(
            "results.json: arm \"{}\" has no values of {measure}: run its evaluation again",
            self.arm
        ))
    }
}
