//! Validation inside training: how well the model predicts pairs whose queries it never trains on. Each pair
//! is read with query tokens masked, with document tokens masked, and as it is (QDPP), always with the same
//! masks and the same negatives. Ranks share the packs; what is reported does not depend on how many there
//! are.

use std::fmt;

use serde_json::{Value, json};

use crate::Result;
use crate::data::batch::Batch;
use crate::data::mask::count_masked;
use crate::data::source::SampleSource;
use crate::engine::op::MaskRule;
use crate::engine::{Engine, stats};
use crate::model::activations::Capacity;
use crate::model::{Bert, Mode, Objective};
use crate::ranks::World;

/// Numbers of one pack: loss, correct and count of query tokens, of document tokens, of pairs.
const WIDTH: usize = 9;

/// The held-out pairs, packed.
pub struct Validation {
    /// This rank's packs without masks, and their places in the list of all.
    packs: Vec<(usize, Batch)>,
    /// Packs of all ranks.
    all: usize,
    /// Class of every sample, by its id: 0 was clicked. Empty without QDPP.
    labels: Vec<u32>,
    /// One for query and one for document tokens, as far as the objective masks them.
    rules: [Option<MaskRule>; 2],
    continues: Vec<u32>,
}

/// Means over some predictions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Means {
    /// Cross-entropy in nats.
    pub loss: f64,
    pub accuracy: f64,
    pub count: f64,
}

/// What one validation found; parts without weight in the objective are absent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// MLM on query tokens.
    pub query: Option<Means>,
    /// MLM on document tokens.
    pub document: Option<Means>,
    pub qdpp: Option<Means>,
    /// Of all combinations of a clicked and a negative pair, the share that QDPP orders correctly.
    pub auc: Option<f64>,
    /// The objective, which is lowest at the best checkpoint.
    pub loss: f64,
}

impl Validation {
    /// Packs the samples of `source` in packs of `pack_tokens`, one after another in the order of their ids.
    pub fn new(
        pack_tokens: usize,
        source: &dyn SampleSource,
        (rule, continues): (Option<MaskRule>, Vec<u32>),
        world: &World,
    ) -> Result<Self> {
        let room = Capacity::of_pack(pack_tokens, 0.0, false);
        let (mut packs, mut labels, mut batch) = (vec![], vec![], Batch::default());
        for sample in 0..source.samples() {
            let full = batch.tokens() + source.length(sample, 0) > room.tokens;
            if full || batch.sequences() == room.sequences {
                packs.push(std::mem::take(&mut batch));
            }
            source.push(sample, 0, &mut batch)?;
            labels.extend(batch.pair_labels.last().filter(|_| source.pairs(sample) > 0));
        }
        packs.push(batch);
        let all = packs.len();
        let own = packs.into_iter().enumerate().filter(|(i, _)| i % world.size() == world.rank());
        let of =
            |segment| rule.filter(|r| r.segments & segment != 0).map(|r| MaskRule { segments: segment, ..r });
        Ok(Self { packs: own.collect(), all, labels, rules: [of(1), of(2)], continues })
    }

    /// Pairs that are measured.
    pub fn describe(&self) -> String {
        format!("{} packs of held-out pairs", self.all)
    }

    /// Measures `model`; every rank calls it and gets the same.
    pub fn measure<E: Engine>(&self, model: &mut Bert<E>, world: &World) -> Result<Scores> {
        // of all packs; those of other ranks stay 0
        let mut sums = vec![0.0; self.all * WIDTH];
        let mut margins = vec![0.0; self.labels.len()];
        let training = model.options.rule;
        for (place, batch) in &self.packs {
            let found = self.pack(model, batch, &mut margins);
            model.options.rule = training;
            sums[place * WIDTH..][..WIDTH].copy_from_slice(&found?);
        }
        world.sum_f64(&mut sums);
        world.sum_f64(&mut margins);
        let mut total = [0.0; WIDTH];
        for pack in sums.chunks_exact(WIDTH) {
            total.iter_mut().zip(pack).for_each(|(sum, x)| *sum += x);
        }
        Ok(self.scores(&total, &margins, model.options.objective))
    }

    fn pack<E: Engine>(
        &self,
        model: &mut Bert<E>,
        batch: &Batch,
        margins: &mut [f64],
    ) -> Result<[f64; WIDTH]> {
        let mut found = [0.0; WIDTH];
        for (part, rule) in self.rules.iter().enumerate() {
            let Some(rule) = rule else { continue };
            let masked = count_masked(rule, batch, &self.continues);
            let batch = Batch { masked, pair_labels: Vec::new(), ..batch.clone() };
            model.options.rule = Some(*rule);
            model.forward(&batch, Mode::Measure)?;
            let sums = model.take_sums()?;
            for (i, slot) in [stats::MLM_LOSS, stats::MLM_CORRECT, stats::MLM_COUNT].into_iter().enumerate() {
                found[3 * part + i] = sums[slot];
            }
        }
        if !self.labels.is_empty() {
            model.options.rule = None;
            model.forward(batch, Mode::Measure)?;
            let sums = model.take_sums()?;
            found[6..].copy_from_slice(
                &[stats::QDPP_LOSS, stats::QDPP_CORRECT, stats::QDPP_COUNT].map(|s| sums[s]),
            );
            for (sample, logits) in batch.samples.iter().zip(model.pair_logits()?.chunks_exact(2)) {
                margins[*sample as usize] = f64::from(logits[0]) - f64::from(logits[1]);
            }
        }
        Ok(found)
    }

    fn scores(&self, total: &[f64; WIDTH], margins: &[f64], objective: Objective) -> Scores {
        let means = |at: usize| {
            let count = total[at + 2];
            (count > 0.0).then(|| Means { loss: total[at] / count, accuracy: total[at + 1] / count, count })
        };
        let (query, document, qdpp) = (means(0), means(3), means(6));
        let masked = total[2] + total[5];
        let mlm_loss = if masked > 0.0 { (total[0] + total[3]) / masked } else { 0.0 };
        let loss = match objective {
            Objective::Pretraining { mlm, qdpp: weight } => {
                f64::from(mlm) * mlm_loss + f64::from(weight) * qdpp.map_or(0.0, |means| means.loss)
            }
            Objective::Ranking(..) => 0.0,
        };
        let auc = qdpp.map(|_| auc(margins, &self.labels));
        Scores { query, document, qdpp, auc, loss }
    }
}

impl Scores {
    /// The object for `metrics.jsonl`.
    pub fn line(&self, step: u64) -> Value {
        let mut line = json!({ "step": step, "val_loss": self.loss });
        for (name, means) in [("mlm_query", self.query), ("mlm_document", self.document), ("qdpp", self.qdpp)]
        {
            let Some(means) = means else { continue };
            line[format!("val_{name}_loss")] = means.loss.into();
            line[format!("val_{name}_accuracy")] = means.accuracy.into();
            line[format!("val_{name}_count")] = means.count.into();
            if name != "qdpp" {
                line[format!("val_{name}_perplexity")] = means.loss.exp().into();
            }
        }
        if let Some(auc) = self.auc {
            line["val_qdpp_auc"] = auc.into();
        }
        line
    }
}

impl fmt::Display for Scores {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "val loss {:.4}", self.loss)?;
        for (name, means) in [("query", self.query), ("document", self.document)] {
            if let Some(means) = means {
                write!(f, " | {name} ppl {:.2} acc {:.3}", means.loss.exp(), means.accuracy)?;
            }
        }
        if let (Some(means), Some(auc)) = (self.qdpp, self.auc) {
            write!(f, " | qdpp {:.4} acc {:.3} auc {auc:.3}", means.loss, means.accuracy)?;
        }
        Ok(())
    }
}

/// Probability that a clicked pair has a larger margin than a negative one, ties counting half (Mann &
/// Whitney 1947); 0.5 where one kind is missing.
pub fn auc(margins: &[f64], labels: &[u32]) -> f64 {
    let mut sorted: Vec<(f64, u32)> = margins.iter().copied().zip(labels.iter().copied()).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut wins, mut below) = (0.0, 0.0);
    for tied in sorted.chunk_by(|a, b| a.0 == b.0) {
        let negatives = tied.iter().filter(|(_, label)| *label != 0).count() as f64;
        let clicked = tied.len() as f64 - negatives;
        wins += clicked * (below + negatives / 2.0);
        below += negatives;
    }
    let clicked = labels.len() as f64 - below;
    if clicked > 0.0 && below > 0.0 { wins / (clicked * below) } else { 0.5 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auc_counts_pairs_and_halves_ties() {
        // clicked: 3, 1; negatives: 2, 1: 3 > 2, 3 > 1, 1 < 2, 1 = 1
        assert_eq!(auc(&[3.0, 2.0, 1.0, 1.0], &[0, 1, 0, 1]), 2.5 / 4.0);
        assert_eq!(auc(&[1.0, 2.0], &[0, 1]), 0.0);
        assert_eq!(auc(&[-0.0, 0.0], &[0, 1]), 0.5);
        assert_eq!(auc(&[1.0, 2.0], &[0, 0]), 0.5);
    }
}
