//! `[objective]`: what coarse-tuning learns, and from which pairs.

use std::path::PathBuf;

use super::check::Fault;
use super::keys::{choice, keys, section};

section! {
    /// What `coarse` learns. `pretrain` uses the MLM part.
    pub struct Objective {
        /// Weight of the MLM loss. 0 leaves the text unmasked.
        pub mlm: f32 = 1.0, within 0.0..;
        /// Weight of the QDPP loss. 0 leaves it out.
        pub qdpp: f32 = 1.0, within 0.0..;
        /// Share of tokens that MLM predicts. Of these, 80 % become `[MASK]`, 10 % a random token, and 10 % stay.
        pub mask_rate: f32 = 0.15, within 0.0..1.0;
        /// Which part of a pair is masked.
        pub mask_in: MaskIn = MaskIn::Both;
        /// Mask all pieces of a word or none.
        pub whole_word: bool = false;
        /// How the negative pairs of a clicked pair are drawn. No click of the same query is ever drawn.
        pub negatives: Negatives = Negatives::RandomDocument;
        /// Negative pairs for each clicked pair.
        pub negatives_per_positive: u32 = 1, within 1..=1_000_000;
        /// Run of the log's own queries for `run-file`: TREC or MS MARCO, a topic's rows together.
        pub negatives_run: Option<PathBuf> = None;
        /// First and last rank of `negatives_run` from which negatives are drawn.
        pub negatives_depth: [u32; 2] = [1, 100], within 1..;
        /// What a click's pairs weigh in the QDPP loss.
        pub grades: Grades = Grades::None;
    }
}

choice! {
    /// Which part of a pair is masked.
    pub enum MaskIn {
        /// The query.
        Query = "query",
        /// The document.
        Document = "document",
        /// Both.
        Both = "both",
    }
}

choice! {
    /// How the negatives of a clicked pair are drawn. Draws are independent: two negatives of one click may coincide.
    pub enum Negatives {
        /// The query with a document drawn uniformly from those that it never clicked.
        RandomDocument = "random-document",
        /// The document with a query drawn uniformly from those that never clicked it.
        RandomQuery = "random-query",
        /// The query with the document of a sample at most 4,096 places further in the epoch's order, as a batch's
        /// other documents would be. Popular documents are drawn as often as they are clicked. If 64 draws find no
        /// document that the query did not click, a random one takes its place.
        InBatch = "in-batch",
        /// The query with a document drawn uniformly from those that `negatives_run` ranks for it. If the run has
        /// none, a random document takes its place, and the number of such clicks is reported.
        RunFile = "run-file",
    }
}

choice! {
    /// What a click's pairs weigh in the QDPP loss.
    pub enum Grades {
        /// All weigh the same.
        None = "none",
        /// ln(1 + n), where n is how often the click happened, divided by its mean over the clicks that are trained
        /// on. A click's negatives weigh what it weighs, so neither class gains. The mean weight of a pair is 1, so
        /// the loss keeps its scale beside MLM's.
        ClickCount = "click-count",
    }
}

impl Objective {
    /// # Errors
    /// Keys that contradict each other.
    pub(super) fn check(&self) -> Result<(), Fault> {
        let [first, last] = self.negatives_depth;
        if first > last {
            let text =
                format!("objective.negatives_depth = [{first}, {last}]: must be the first and the last rank");
            return Err(Fault::about(["objective.negatives_depth"], text));
        }
        if self.negatives == Negatives::RunFile && self.negatives_run.is_none() {
            return Err(Fault::about(
                ["objective.negatives"],
                "objective.negatives = \"run-file\" draws from a run of the log's own queries: name it as \
                 objective.negatives_run (ctune-dist retrieve --clicks LOG makes one)",
            ));
        }
        Ok(())
    }
}
