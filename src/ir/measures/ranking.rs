//! The measures of one topic, computed from the labels of its ranked documents. The formulas and their corner
//! cases are trec_eval's (m_*.c and form_res_rels.c of 9.0.8 and 10.0), including how labels count: a
//! document outside the qrels or with a negative label is unjudged, gains nothing and is not relevant.

use super::super::run::{Hit, NO_RANK, RankedList, order_f64};
use super::{Measure, Options};
use crate::ir::qrels::Labels;

/// Stand in for the label of a document outside the qrels, and of one with a negative label (in the pool, but
/// not judged). Only `infAP` and `relstring` tell them apart.
const OUTSIDE: i32 = -1;
const UNJUDGED: i32 = -2;

/// What `infAP` adds to counts so that none is 0.
const INFERRED_LEAST: f64 = 0.00001;
/// Chance that the reader in `rbp` continues to the next document.
const PERSISTENCE: f64 = 0.9;

/// What the measures of one topic need to know.
pub(super) struct Ranking {
    /// [retrieved] labels in rank order, negative for documents without one.
    pub labels: Vec<i32>,
    /// Labels above 0 of all judged documents, descending: the best order there is.
    pub ideal: Vec<i32>,
    /// Ranks, from 1, of the relevant documents, ascending.
    ranks: Vec<usize>,
    level: i32,
    /// Relevant documents, retrieved or not.
    pub relevant: usize,
    /// Judged documents below the level: known not to be relevant.
    nonrelevant: usize,
}

impl Ranking {
    /// `hits` in trec_eval's f32 order, as `Run` keeps them.
    pub fn new(judged: &Labels, hits: &[Hit], options: &Options) -> Self {
        let depth = options.depth.unwrap_or(usize::MAX);
        let label = |hit: &Hit| match judged.get(hit.doc.as_str()) {
            Some(&label) if label < 0 => UNJUDGED,
            Some(&label) => label,
            None => OUTSIDE,
        };
        let mut labels: Vec<i32> = if options.f64_scores {
            let mut order: Vec<&Hit> = hits.iter().collect();
            order.sort_unstable_by(|a, b| order_f64((a.score, &a.doc), (b.score, &b.doc)));
            order.into_iter().take(depth).map(label).collect()
        } else {
            hits.iter().take(depth).map(label).collect()
        };
        if options.judged_only {
            labels.retain(|&label| label >= 0);
        }
        let mut ideal: Vec<i32> = judged.values().copied().filter(|&label| label > 0).collect();
        ideal.sort_unstable_by(|a, b| b.cmp(a));
        let level = options.level;
        let relevant = judged.values().filter(|&&label| label >= level).count();
        let nonrelevant = judged.values().filter(|&&label| (0..level).contains(&label)).count();
        let ranks = (1..).zip(&labels).filter(|&(_, &label)| label >= level).map(|(rank, _)| rank).collect();
        Self { labels, ideal, ranks, level, relevant, nonrelevant }
    }

    /// The value of a measure; 0 for one that this topic cannot have, and for texts. `msmarco_mrr_k` is
    /// computed elsewhere, from the rank column (`msmarco_reciprocal_rank`).
    pub fn value(&self, measure: Measure) -> f64 {
        let retrieved = self.labels.len();
        let found = self.ranks.len();
        match measure {
            Measure::RunId | Measure::RelString(_) | Measure::MsMarcoMrr(_) => 0.0,
            Measure::NumQ => 1.0,
            Measure::NumRet => retrieved as f64,
            Measure::NumRel => self.relevant as f64,
            Measure::NumRelRet => found as f64,
            Measure::NumNonrelJudgedRet => {
                self.labels.iter().filter(|&&label| (0..self.level).contains(&label)).count() as f64
            }
            Measure::Map | Measure::GmMap => self.average_precision(retrieved),
            Measure::MapCut(k) => self.average_precision(k),
            Measure::RPrec => ratio(self.relevant_in(self.relevant), self.relevant),
            Measure::RPrecMult(share) => self.precision(self.multiple(share)),
            Measure::Bpref | Measure::GmBpref => self.bpref(),
            Measure::InfAp => self.inferred_average_precision(),
            Measure::RecipRank => self.ranks.first().map_or(0.0, |&rank| 1.0 / rank as f64),
            Measure::IprecAtRecall(level) => self.interpolated_precision(level),
            Measure::ElevenPtAvg => {
                total((0..=10).map(|tenth| self.interpolated_precision(10 * tenth))) / 11.0
            }
            Measure::P(k) => self.precision(k),
            Measure::RelativeP(k) => ratio(self.relevant_in(k), k.min(self.relevant)),
            Measure::Recall(k) => ratio(self.relevant_in(k), self.relevant),
            Measure::Success(k) => f64::from(self.relevant_in(k) > 0),
            Measure::Ndcg => self.ndcg(retrieved.max(self.ideal.len()), f64::from),
            Measure::NdcgCut(k) => self.ndcg(k, f64::from),
            Measure::NdcgExpCut(k) => self.ndcg(k, |label| f64::from(label).exp2() - 1.0),
            Measure::NdcgRel => self.ndcg_at_relevant(),
            Measure::Rndcg => self.ndcg_at_levels(),
            Measure::BinG => self.binary_gain(),
            Measure::G => self.normalised_gain(),
            Measure::SetP => ratio(found, retrieved),
            Measure::SetRelativeP => ratio(found, retrieved.min(self.relevant)),
            Measure::SetRecall => ratio(found, self.relevant),
            Measure::SetMap => ratio(found * found, retrieved * self.relevant),
            Measure::SetF => self.harmonic_mean(),
            Measure::Utility => found as f64 - (retrieved - found) as f64,
            Measure::Rbp => self.rank_biased_precision(),
            Measure::RbpResid => self.rank_biased_residual(),
            Measure::Unjudged(k) => ratio(self.labels.iter().take(k).filter(|&&label| label < 0).count(), k),
            Measure::Judged(k) => ratio(self.labels.iter().take(k).filter(|&&label| label >= 0).count(), k),
        }
    }

    /// The first labels as `relstring` shows them.
    pub fn text(&self, length: usize) -> String {
        let letter = |&label: &i32| match label {
            OUTSIDE => '-',
            UNJUDGED => '.',
            0..=9 => char::from(b'0' + label as u8),
            _ => '>',
        };
        self.labels.iter().take(length).map(letter).collect()
    }

    /// Relevant documents among the first `k`.
    fn relevant_in(&self, k: usize) -> usize {
        self.ranks.partition_point(|&rank| rank <= k)
    }

    fn precision(&self, k: usize) -> f64 {
        ratio(self.relevant_in(k), k)
    }

    /// The rank at a share of `num_rel`, in hundredths; trec_eval adds 0.9 and truncates.
    fn multiple(&self, share: u32) -> usize {
        (f64::from(share) / 100.0 * self.relevant as f64 + 0.9) as usize
    }

    fn average_precision(&self, k: usize) -> f64 {
        let ranks = self.ranks.iter().take_while(|&&rank| rank <= k);
        let sum = total((1..).zip(ranks).map(|(found, &rank)| ratio(found, rank)));
        if self.relevant == 0 { 0.0 } else { sum / self.relevant as f64 }
    }

    fn bpref(&self) -> f64 {
        let (mut above, mut sum) = (0, 0.0);
        let most = self.nonrelevant.min(self.relevant) as f64;
        for &label in self.labels.iter().filter(|&&label| label >= 0) {
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

    /// Of the documents above a relevant one, those in the pool count; the share of them taken as relevant is
    /// that of the judged ones.
    fn inferred_average_precision(&self) -> f64 {
        let (mut pool, mut relevant, mut nonrelevant, mut sum) = (0, 0, 0, 0.0);
        for (above, &label) in self.labels.iter().enumerate().filter(|&(_, &label)| label != OUTSIDE) {
            if label >= self.level {
                let rank = (above + 1) as f64;
                let share = (f64::from(relevant) + INFERRED_LEAST)
                    / (f64::from(relevant + nonrelevant) + 2.0 * INFERRED_LEAST);
                sum += 1.0 / rank + f64::from(pool) / rank * share;
                relevant += 1;
            } else if label >= 0 {
                nonrelevant += 1;
            }
            pool += 1;
        }
        if self.relevant == 0 { 0.0 } else { sum / self.relevant as f64 }
    }

    /// `level` in hundredths. The recall is reached at recall * num_rel relevant documents, rounded to the
    /// nearest as in trec_eval 10 and its published outputs (9 added 0.9 and truncated).
    fn interpolated_precision(&self, level: u32) -> f64 {
        let needed = (f64::from(level) / 100.0 * self.relevant as f64).round() as usize;
        let precisions = (1..).zip(&self.ranks).skip(needed.saturating_sub(1));
        precisions.fold(0.0, |best: f64, (found, &rank)| best.max(ratio(found, rank)))
    }

    fn harmonic_mean(&self) -> f64 {
        let found = self.ranks.len();
        if found == 0 {
            return 0.0;
        }
        let (precision, recall) = (ratio(found, self.labels.len()), ratio(found, self.relevant));
        2.0 * precision * recall / (precision + recall)
    }

    /// Labels are gains; if the topic has one above 1, all are divided by the highest.
    fn rank_biased_precision(&self) -> f64 {
        let (mut weight, mut sum) = (1.0, 0.0);
        let highest = f64::from(self.ideal.first().copied().unwrap_or(1));
        for &label in &self.labels {
            sum += f64::from(label.max(0)) * weight;
            weight *= PERSISTENCE;
        }
        (1.0 - PERSISTENCE) * sum / highest
    }

    fn rank_biased_residual(&self) -> f64 {
        let (mut weight, mut sum, mut unjudged) = (1.0, 0.0, false);
        for &label in &self.labels {
            if label < 0 {
                (sum, unjudged) = (sum + weight, true);
            }
            weight *= PERSISTENCE;
        }
        if unjudged { weight + (1.0 - PERSISTENCE) * sum } else { 0.0 }
    }

    /// The sum over relevant documents of 1 / log2(2 + other documents above), over `num_rel`.
    fn binary_gain(&self) -> f64 {
        let gains = (1..).zip(&self.ranks).map(|(found, &rank)| 1.0 / ((2 + rank - found) as f64).log2());
        let sum = total(gains);
        if self.relevant == 0 { 0.0 } else { sum / self.relevant as f64 }
    }
}

/// A sum from +0: `Iterator::sum` over nothing gives -0, which prints with its sign.
pub(super) fn total(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |sum, value| sum + value)
}

pub(super) fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Reciprocal rank as in the MS MARCO script: documents in the order of the rank column, ties by document id
/// ascending, only the first `k`; scores play no part.
pub(super) fn msmarco_reciprocal_rank(
    judged: &Labels,
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
