//! `[fine]`: what fine-tuning learns from topics, qrels and a run, and how documents are scored.

use std::path::PathBuf;

use super::check::Fault;
use super::keys::{above, choice, keys, section, table};
use super::measure;

section! {
    /// What fine-tuning learns from topics, qrels and a run, and how documents are scored.
    pub struct Fine {
        /// Candidates that are not relevant, beside each relevant one. 1 gives pairs.
        pub negatives: usize = 4, within 1..=1_000_000;
        /// Relevant candidates of a topic that an epoch uses, drawn anew for each epoch.
        pub positives_per_topic: usize = 4, within 1..;
        /// Candidates of a topic: its first `depth` documents of the run.
        pub depth: usize = 50, within 1..;
        /// Where the ranking head starts.
        pub start: HeadStart = HeadStart::NewHead;
        /// Repetitions, with the seeds `seed`, `seed` + 1 and so on. Means are printed with their deviation.
        pub seeds: u32 = 1, within 1..;
        /// Folds to draw where `data.folds` is not set.
        pub folds: usize = 5, within 3..;
        /// Which candidates may be negatives.
        pub negatives_from: NegativesFrom = NegativesFrom::All;
        /// Run whose first `depth` documents of a topic are the negatives, instead of those of `data.run`.
        pub negatives_run: Option<PathBuf> = None;
        /// Run with a teacher's scores. `margin-mse` needs it; `listnet` learns labels without it.
        pub teacher: Option<PathBuf> = None;
        /// Loss of a group: a relevant candidate and its negatives.
        pub loss: FineLoss = FineLoss::Lce;
        /// Difference of scores that `hinge` asks for.
        pub margin: f32 = 1.0, within above(0.0);
        /// How a document's score follows from its passages' scores. All but `first-p` need `passage_words`.
        pub aggregate: Aggregate = Aggregate::FirstP;
        /// Which passages of a document a group trains on.
        pub train_passages: TrainPassages = TrainPassages::One;
        /// Words of a passage. 0 leaves documents whole, cut at `data.max_tokens`. In scripts without spaces, each
        /// letter counts as a word.
        pub passage_words: usize = 0;
        /// Words from the start of one passage to the start of the next. At most `passage_words`.
        pub passage_stride: usize = 75, within 1..;
        /// Passages of a document that are used.
        pub passages: usize = 16, within 1..;
        /// Measure on the validation fold that chooses the best weights, by its trec_eval name.
        pub measure: String = "ndcg_cut_5".into();
        /// Updates between two validations. 0 never validates and keeps the last weights.
        pub validate_every: u64 = 0;
        /// Validations without a better measure after which training stops. 0 never stops early. Needs
        /// `validate_every`.
        pub patience: usize = 0;
        /// Training topics of each fold. 0 uses all.
        pub train_topics: usize = 0;
        /// Low-rank adapters beside a frozen encoder. The head is always trained. Saved models have the adapters
        /// merged.
        pub lora: Option<Lora> = None;
    }
}

choice! {
    /// Where a ranking head starts.
    pub enum HeadStart {
        /// It is drawn anew.
        NewHead = "new-head",
        /// The "clicked" logit of the QDPP head minus its "negative" logit. It ranks without fine-tuning.
        QdppHead = "qdpp-head",
    }
}

choice! {
    /// Which candidates that are not relevant may be negatives.
    pub enum NegativesFrom {
        /// All of them.
        All = "all",
        /// Those that were judged.
        Judged = "judged",
        /// Those that were never judged.
        Unjudged = "unjudged",
    }
}

choice! {
    /// What a group of `fine` holds of documents with several passages.
    pub enum TrainPassages {
        /// One passage, drawn anew for each epoch, with the label of its document. Passages are put together only
        /// for ranking, as Dai and Callan (SIGIR 2019) and Capreolus' BERT-MaxP do. A group costs the same however
        /// long its documents are.
        One = "one",
        /// All of them, end to end, as PARADE is trained: the loss is of the documents' scores, and its gradient
        /// goes back through `aggregate`. A group costs as many passages as its documents have.
        All = "all",
    }
}

choice! {
    /// Ranking losses; `engine::op::RankLoss` has their formulas.
    pub enum FineLoss {
        /// Localised contrastive loss (Gao et al. 2021): softmax over the group.
        Lce = "lce",
        /// Softmax over each pair of the relevant candidate and a negative (RankNet).
        PairwiseSoftmax = "pairwise-softmax",
        /// Hinge loss of each pair, with `margin`.
        Hinge = "hinge",
        /// Cross-entropy of each candidate by itself.
        Pointwise = "pointwise",
        /// Cross-entropy with the distribution of the labels, or of the `teacher`'s scores (Cao et al. 2007).
        ListNet = "listnet",
        /// Distillation: squared error of the `teacher`'s differences of scores (Hofstätter et al. 2020).
        MarginMse = "margin-mse",
    }
}

choice! {
    /// How a document's score follows from its passages' scores; `engine::op::Aggregate` has the formulas.
    pub enum Aggregate {
        /// The first passage's score. The others are not scored.
        FirstP = "first-p",
        /// The best passage's score.
        MaxP = "max-p",
        /// The sum over the passages.
        SumP = "sum-p",
        /// The mean over the passages.
        AvgP = "avg-p",
    }
}

table! {
    /// Low-rank adapters (LoRA, Hu et al. 2022).
    pub struct Lora {
        /// Rank of the adapters. A multiple of 8.
        pub rank: usize, within 8..=4096;
        /// The adapters' product is multiplied by `alpha` / `rank`.
        pub alpha: f32, within above(0.0);
        /// Linear layers that get an adapter.
        pub targets: Vec<Target>;
    }
}

choice! {
    /// A linear layer of the encoder.
    pub enum Target {
        /// `attention.self.query`
        Query = "query",
        /// `attention.self.key`
        Key = "key",
        /// `attention.self.value`
        Value = "value",
        /// `attention.output.dense`
        AttentionOutput = "attention-output",
        /// `intermediate.dense`
        Intermediate = "intermediate",
        /// `output.dense`
        Output = "output",
    }
}

impl Fine {
    /// # Errors
    /// Keys that contradict each other.
    pub(super) fn check(&self) -> Result<(), Fault> {
        measure("fine.measure", &self.measure)?;
        if self.loss == FineLoss::MarginMse && self.teacher.is_none() {
            return Err(Fault::about(
                ["fine.loss"],
                "fine.loss = \"margin-mse\" learns a teacher's margins: name its run as fine.teacher",
            ));
        }
        if self.aggregate != Aggregate::FirstP && self.passage_words == 0 {
            return Err(Fault::about(
                ["fine.aggregate"],
                "fine.aggregate puts passages together: set fine.passage_words (150 is usual), or keep first-p",
            ));
        }
        if self.passage_words > 0 && self.passage_stride > self.passage_words {
            let (stride, words) = (self.passage_stride, self.passage_words);
            let text =
                format!("fine.passage_stride = {stride} skips words: at most fine.passage_words = {words}");
            return Err(Fault::about(["fine.passage_stride", "fine.passage_words"], text));
        }
        if self.patience > 0 && self.validate_every == 0 {
            return Err(Fault::about(
                ["fine.patience", "fine.validate_every"],
                "fine.patience without fine.validate_every: nothing is validated, so nothing can end early",
            ));
        }
        self.lora.as_ref().map_or(Ok(()), Lora::check)
    }
}

impl Lora {
    fn check(&self) -> Result<(), Fault> {
        if !self.rank.is_multiple_of(8) {
            let text = format!("fine.lora.rank = {}: must be a multiple of 8", self.rank);
            return Err(Fault::about(["fine.lora.rank"], text));
        }
        if self.targets.is_empty() {
            return Err(Fault::about(
                ["fine.lora.targets"],
                "fine.lora.targets is empty: name linear layers, as in [\"query\", \"value\"]",
            ));
        }
        match self.targets.iter().enumerate().find(|(i, target)| self.targets[..*i].contains(target)) {
            Some((_, twice)) => {
                Err(Fault::about(["fine.lora.targets"], format!("fine.lora.targets names \"{twice}\" twice")))
            }
            None => Ok(()),
        }
    }
}
