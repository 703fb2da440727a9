//! Two runs, topic by topic: how far they differ in each measure, and whether that is more than the luck of
//! the topics.

use super::measures::{Evaluation, Measure};
use super::significance::{PairedT, bootstrap_interval, holm, paired_t, randomisation, wins_ties_losses};
use crate::{Error, Result};

/// Random draws of the randomisation test and of the bootstrap: p-values to about 0.002.
pub const DRAWS: u32 = 10_000;

/// A run against a baseline, over the topics that both have.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// In byte order.
    pub topics: Vec<String>,
    /// Measured topics that only one of the two has; no number here includes them.
    pub left_out: usize,
    pub seed: u32,
    pub measures: Vec<Compared>,
}

/// One measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    pub measure: Measure,
    /// Means over the topics of both.
    pub run: f64,
    pub baseline: f64,
    /// Paired t-test, two-sided.
    pub test: PairedT,
    /// `test.p` after Holm's correction over the measures.
    pub p_holm: f64,
    /// Fisher's randomisation test, two-sided, uncorrected.
    pub p_randomisation: f64,
    /// 95 % bootstrap interval of the mean difference.
    pub interval: (f64, f64),
    pub wins: usize,
    pub ties: usize,
    pub losses: usize,
    /// Run minus baseline, one per topic.
    pub differences: Vec<f64>,
}

/// Compares all measures that have a value per topic and are not counts. Errors: no common topic, no such
/// measure.
pub fn compare(run: &Evaluation, baseline: &Evaluation, seed: u32) -> Result<Comparison> {
    let is_common = |topic: &&String| baseline.topics.contains_key(*topic);
    let topics: Vec<String> = run.topics.keys().filter(is_common).cloned().collect();
    if topics.is_empty() {
        return Err(Error::data("the run and the baseline have no judged topic in common"));
    }
    let places: Vec<usize> = (0..run.measures.len()).filter(|&m| run.measures[m].is_comparable()).collect();
    if places.is_empty() {
        return Err(Error::config(
            "none of the measures can be compared topic by topic; name one with -m, such as map or \
            ndcg_cut.10",
        ));
    }
    let column = |of: &Evaluation, m: usize| -> Vec<f64> {
        topics.iter().map(|topic| of.topics[topic.as_str()][m]).collect()
    };
    let compared = places.iter().map(|&m| one(run.measures[m], &column(run, m), &column(baseline, m), seed));
    let mut measures = compared.collect::<Result<Vec<_>>>()?;
    let corrected = holm(&measures.iter().map(|compared| compared.test.p).collect::<Vec<_>>());
    for (compared, p) in measures.iter_mut().zip(corrected) {
        compared.p_holm = p;
    }
    let left_out = run.topics.len() + baseline.topics.len() - 2 * topics.len();
    Ok(Comparison { topics, left_out, seed, measures })
}

fn one(measure: Measure, a: &[f64], b: &[f64], seed: u32) -> Result<Compared> {
    let mean = |values: &[f64]| values.iter().fold(0.0, |sum, value| sum + value) / values.len() as f64;
    let test = paired_t(a, b)?;
    let (wins, ties, losses) = wins_ties_losses(a, b)?;
    Ok(Compared {
        measure,
        run: mean(a),
        baseline: mean(b),
        test,
        p_holm: test.p,
        p_randomisation: randomisation(a, b, DRAWS, seed)?,
        interval: bootstrap_interval(a, b, DRAWS, seed)?,
        wins,
        ties,
        losses,
        differences: a.iter().zip(b).map(|(a, b)| a - b).collect(),
    })
}
