//! `[objective]`: what coarse-tuning learns, and from which pairs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::negatives::Negatives;
use crate::data::source::Grades;
use crate::engine::MaskRule;
use crate::text::Special;
use crate::{Error, Result};

/// `[objective]`: what coarse-tuning learns.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Objective {
    /// Weight of the MLM loss; 0 leaves the text unmasked.
    pub mlm: f32,
    /// Weight of the QDPP loss; 0 draws no negatives.
    pub qdpp: f32,
    pub mask_rate: f32,
    pub mask_in: MaskIn,
    pub whole_word: bool,
    pub negatives: Negatives,
    pub negatives_per_positive: u32,
    /// A run of the log's own queries, for `negatives = "run-file"`.
    pub negatives_run: Option<PathBuf>,
    /// First and last rank of that run from which negatives are drawn.
    pub negatives_depth: [u32; 2],
    pub grades: Grades,
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            mlm: 1.0,
            qdpp: 1.0,
            mask_rate: 0.15,
            mask_in: MaskIn::Both,
            whole_word: false,
            negatives: Negatives::RandomDocument,
            negatives_per_positive: 1,
            negatives_run: None,
            negatives_depth: [1, 100],
            grades: Grades::None,
        }
    }
}

/// Which part of a pair is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskIn {
    Query,
    Document,
    Both,
}

impl Objective {
    /// # Errors
    /// `Error::Config` naming keys that contradict each other.
    pub(super) fn check(&self) -> Result<()> {
        let [first, last] = self.negatives_depth;
        if first == 0 || first > last {
            return Err(Error::config(format!(
                "objective.negatives_depth = [{first}, {last}]: first and last rank, counted from 1"
            )));
        }
        if self.negatives == Negatives::RunFile && self.negatives_run.is_none() {
            return Err(Error::config(
                "objective.negatives = \"run-file\" draws from a run of the log's own queries: name it as \
                 objective.negatives_run (ctune-dist retrieve --clicks LOG makes one)",
            ));
        }
        Ok(())
    }

    /// The masking rule for a model with `vocab` tokens; `None` when MLM has no weight.
    pub fn mask_rule(&self, seed: u32, vocab: usize, special: Special) -> Option<MaskRule> {
        (self.mlm > 0.0 && self.mask_rate > 0.0).then(|| MaskRule {
            seed,
            threshold: (f64::from(self.mask_rate) * 4_294_967_296.0) as u32,
            segments: match self.mask_in {
                MaskIn::Query => 1,
                MaskIn::Document => 2,
                MaskIn::Both => 3,
            },
            whole_word: self.whole_word,
            vocab: vocab as u32,
            cls: special.cls,
            sep: special.sep,
            mask: special.mask,
        })
    }
}
