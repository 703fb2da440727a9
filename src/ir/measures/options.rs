//! The options of trec_eval besides the names of measures. They apply to every measure of a topic.

/// How to measure, in trec_eval's options.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// `-c`: average over all topics of the qrels; a topic that the run lacks counts as 0.
    pub complete: bool,
    /// `-l`: the lowest label that is relevant; at least 0. Does not touch nDCG.
    pub level: i32,
    /// `-J`: drop documents without a judgement (or with a negative one) before measuring.
    pub judged_only: bool,
    /// `-M`: documents per topic that count, in trec_eval's order, before `judged_only`.
    pub depth: Option<usize>,
    /// Compare scores as f64, as trec_eval 10.0 does, and not as f32, as 9.0.8 and pytrec_eval do.
    pub f64_scores: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { complete: false, level: 1, judged_only: false, depth: None, f64_scores: false }
    }
}
