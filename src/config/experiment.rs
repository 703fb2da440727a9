//! `[experiment]`: what is compared, on which topics.

use std::path::PathBuf;

use super::HeadStart;
use super::check::Fault;
use super::keys::{choice, keys, section, table};
use super::measure;

section! {
    /// What `experiment` compares: arms x folds x numbers of training topics.
    pub struct Experiment {
        /// Title of the report.
        pub title: String = "Experiment".into();
        /// The arms.
        pub arms: Vec<Arm> = Vec::new();
        /// Name of the arm that the others are compared with. Without it, the first.
        pub baseline: Option<String> = None;
        /// Numbers of training topics of the learning curve. 0 ranks without fine-tuning. All training topics are
        /// always run too.
        pub train_topics: Vec<usize> = Vec::new();
        /// Measures by their trec_eval names. The learning curve shows the first.
        pub measures: Vec<String> = vec!["ndcg_cut_5".into(), "recip_rank".into()];
        /// Which topics of each fold are ranked.
        pub split: Split = Split::Test;
    }
}

choice! {
    /// A part of every fold.
    pub enum Split {
        /// The test topics, for results.
        Test = "test",
        /// The validation topics, for a search of settings.
        Validation = "validation",
    }
}

table! {
    /// One arm: a model to fine-tune.
    pub struct Arm {
        /// Its name in the report.
        pub name: String;
        /// Model folder.
        pub model: PathBuf;
        /// Where its ranking head starts.
        pub start: HeadStart;
        /// `metrics.jsonl` of the training that made the model, for the report.
        pub metrics: Option<PathBuf>;
    }
}

impl Experiment {
    /// Measures by name, before hours are spent on what they are to measure.
    ///
    /// # Errors
    /// A name that is no measure.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.measures.is_empty() {
            let text = "experiment.measures is empty: name one, as \"ndcg_cut_5\"";
            return Err(Fault::about(["experiment.measures"], text));
        }
        self.measures.iter().try_for_each(|name| measure("experiment.measures", name))
    }
}
