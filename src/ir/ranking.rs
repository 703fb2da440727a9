//! The measures of one topic, computed from the labels of its ranked documents. The formulas and their
//! corner cases are trec_eval's (m_*.c and form_res_rels.c of 9.0.8), including which label counts as
//! what: a document outside the qrels or with a negative label is unjudged, gains nothing and is not
//! relevant.

use std::collections::HashMap;

use super::measures::{Measure, Options};
use super::run::{Hit, NO_RANK, RankedList, order_f64};

/// A document without a judgement, in place of its label.
const UNJUDGED: i32 = -1;

/// What the measures of one topic need to know.
pub(crate) struct Ranking {
    /// [retrieved] labels in rank order, `UNJUDGED` for those without.
    labels: Vec<i32>,
    /// Labels above 0 of all judged documents, descending: the best order there is.
    ideal: Vec<i32>,
    level: i32,
    relevant: usize,
    /// Judged documents below the level, which is not relevant but known.
    nonrelevant: usize,
}

impl Ranking {
    /// `hits` in trec_eval's f32 order, as `Run` keeps them.
    pub fn new(judged: &HashMap<String, i32>, hits: &[Hit], options: &Options) -> Self {
        let depth = options.depth.unwrap_or(usize::MAX);
        let label = |hit: &Hit| judged.get(&hit.doc).map_or(UNJUDGED, |&label| label.max(UNJUDGED));
        let mut labels: Vec<i32> = if options.f64_scores {
            let mut order: Vec<&Hit> = hits.iter().collect();
            order.sort_unstable_by(|a, b| order_f64((a.score, &a.doc), (b.score, &b.doc)));
            order.into_iter().take(depth).map(label).collect()
        } else {
            hits.iter().take(depth).map(label).collect()
        };
        if options.judged_only {
            labels.retain(|&label| label != UNJUDGED);
        }
        let mut ideal: Vec<i32> = judged.values().copied().filter(|&label| label > 0).collect();
        ideal.sort_unstable_by(|a, b| b.cmp(a));
        let relevant = judged.values().filter(|&&label| label >= options.level).count();
        let nonrelevant = judged.values().filter(|&&label| (0..options.level).contains(&label)).count();
        Self { labels, ideal, level: options.level, relevant, nonrelevant }
    }

    /// The value of a measure; 0 for one that this topic cannot have. `msmarco_mrr_k` is not among
    /// them: it looks at the rank column (`msmarco_reciprocal_rank`).
    pub fn value(&self, measure: Measure) -> f64 {
        let everything = usize::MAX;
        match measure {
            Measure::NumQ => 1.0,
            Measure::NumRet => self.labels.len() as f64,
            Measure::NumRel => self.relevant as f64,
            Measure::NumRelRet => self.relevant_in(everything) as f64,
            Measure::Map | Measure::GmMap => self.average_precision(everything),
            Measure::MapCut(k) => self.average_precision(k),
            Measure::RPrec => ratio(self.relevant_in(self.relevant), self.relevant),
            Measure::Bpref => self.bpref(),
            Measure::RecipRank => {
                self.relevant_ranks(everything).next().map_or(0.0, |rank| 1.0 / rank as f64)
            }
            Measure::IprecAtRecall(level) => self.interpolated_precision(level),
            Measure::P(k) => ratio(self.relevant_in(k), k),
            Measure::Recall(k) => ratio(self.relevant_in(k), self.relevant),
            Measure::Ndcg => self.ndcg(everything, f64::from),
            Measure::NdcgCut(k) => self.ndcg(k, f64::from),
            Measure::NdcgExpCut(k) => self.ndcg(k, |label| f64::from(label).exp2() - 1.0),
            Measure::Success(k) => f64::from(self.relevant_in(k) > 0),
            Measure::Judged(k) => {
                ratio(self.labels.iter().take(k).filter(|&&label| label != UNJUDGED).count(), k)
            }
            Measure::MsMarcoMrr(_) => 0.0,
        }
    }

    /// The ranks, from 1, of relevant documents among the first `k`.
    fn relevant_ranks(&self, k: usize) -> impl Iterator<Item = usize> {
        let ranks = self.labels.iter().take(k).enumerate();
        ranks.filter(|&(_, &label)| label >= self.level).map(|(place, _)| place + 1)
    }

    fn relevant_in(&self, k: usize) -> usize {
        self.relevant_ranks(k).count()
    }

    fn average_precision(&self, k: usize) -> f64 {
        let precisions =
            self.relevant_ranks(k).enumerate().map(|(before, rank)| (before + 1) as f64 / rank as f64);
        let sum = total(precisions);
        if self.relevant == 0 { 0.0 } else { sum / self.relevant as f64 }
    }

    fn ndcg(&self, k: usize, gain: impl Fn(i32) -> f64) -> f64 {
        let sum = |labels: &[i32]| {
            let gains = labels.iter().take(k).enumerate().filter(|&(_, &label)| label > 0);
            total(gains.map(|(place, &label)| gain(label) / ((place + 2) as f64).log2()))
        };
        let ideal = sum(&self.ideal);
        if ideal > 0.0 { sum(&self.labels) / ideal } else { 0.0 }
    }

    fn bpref(&self) -> f64 {
        let (mut above, mut sum) = (0, 0.0);
        let most = self.nonrelevant.min(self.relevant) as f64;
        for &label in self.labels.iter().filter(|&&label| label != UNJUDGED) {
            if label < self.level {
                above += 1;
            } else if above == 0 {
                sum += 1.0;
            } else {
                sum += 1.0 - above.min(self.relevant) as f64 / most;
            }
        }
        if self.relevant == 0 { 0.0 } else { sum / self.relevant as f64 }
    }

    /// `level` in hundredths. The recall is reached at recall * num_rel relevant documents, rounded to
    /// the nearest as trec_eval 10 does and its published outputs have it (9 added 0.9 and cut).
    fn interpolated_precision(&self, level: u32) -> f64 {
        let needed = (f64::from(level) / 100.0 * self.relevant as f64).round() as usize;
        let ranks = self.relevant_ranks(usize::MAX).enumerate().map(|(before, rank)| (before + 1, rank));
        let reached = ranks.filter(|&(found, _)| found >= needed);
        reached.fold(0.0, |best: f64, (found, rank)| best.max(ratio(found, rank)))
    }
}

/// A sum from +0: that of `Iterator::sum` over nothing is -0, which prints with its sign.
pub(crate) fn total(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |sum, value| sum + value)
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Reciprocal rank as the MS MARCO script has it: documents in the order of the rank column, ties by
/// document id ascending, only the first `k`; scores are not looked at.
pub(crate) fn msmarco_reciprocal_rank(
    judged: &HashMap<String, i32>,
    list: &RankedList,
    k: usize,
    level: i32,
) -> std::result::Result<f64, String> {
    let mut order =
        list.ranks.iter().copied().zip(list.hits.iter().map(|hit| hit.doc.as_str())).collect::<Vec<_>>();
    if let Some((_, doc)) = order.iter().find(|(rank, _)| *rank == NO_RANK) {
        return Err(format!("msmarco_mrr reads the rank column, which is not a number for document '{doc}'"));
    }
    order.sort_unstable();
    let relevant = |doc: &str| judged.get(doc).is_some_and(|&label| label >= level);
    let first = order.iter().take(k).position(|(_, doc)| relevant(doc));
    Ok(first.map_or(0.0, |place| 1.0 / (place + 1) as f64))
}
