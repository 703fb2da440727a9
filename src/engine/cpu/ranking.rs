//! Ranking losses: a group is a query's documents, the first of them the positive. Groups are small,
//! so everything is computed in f64 and rounded once.

use super::checks::{check_ends, part, part_mut};
use super::device::Cpu;
use super::machine::Operand;
use crate::Result;
use crate::engine::op::{self, RankLoss};
use crate::engine::{DeviceBatch, stats};

pub(super) fn aggregate_scores<R: Operand>(
    _: &Cpu<R>,
    op: &mut op::AggregateScores<'_, Cpu<R>>,
) -> Result<()> {
    let cu_documents = cu_documents(op.batch)?;
    let scores = part("scores", op.scores, 0, op.batch.sequences)?;
    let documents = part_mut("documents", op.documents, 0, op.batch.documents)?;
    let mut passages = Vec::new();
    for (ends, document) in cu_documents.windows(2).zip(documents) {
        widen(&scores[ends[0] as usize..ends[1] as usize], &mut passages);
        *document = op.how.score(&passages) as f32;
    }
    Ok(())
}

pub(super) fn aggregate_scores_backward<R: Operand>(
    _: &Cpu<R>,
    op: &mut op::AggregateScoresBackward<'_, Cpu<R>>,
) -> Result<()> {
    let cu_documents = cu_documents(op.batch)?;
    let scores = part("scores", op.scores, 0, op.batch.sequences)?;
    let slopes = part("ddocuments", op.ddocuments, 0, op.batch.documents)?;
    let dscores = part_mut("dscores", op.dscores, 0, op.batch.sequences)?;
    let mut passages = Vec::new();
    for (ends, &slope) in cu_documents.windows(2).zip(slopes) {
        let range = ends[0] as usize..ends[1] as usize;
        widen(&scores[range.clone()], &mut passages);
        for (i, d) in dscores[range].iter_mut().enumerate() {
            *d = (f64::from(slope) * op.how.slope(&passages, i)) as f32;
        }
    }
    Ok(())
}

/// First sequence of each document, and the end.
fn cu_documents<R: Operand>(batch: &DeviceBatch<Cpu<R>>) -> Result<&[u32]> {
    let ends = part("cu_documents", &batch.cu_documents, 0, batch.documents + 1)?;
    check_ends("cu_documents", ends, batch.sequences)?;
    Ok(ends)
}

fn widen(values: &[f32], into: &mut Vec<f64>) {
    into.clear();
    into.extend(values.iter().map(|&x| f64::from(x)));
}

pub(super) fn group_loss<R: Operand>(_: &Cpu<R>, op: &mut op::GroupLoss<'_, Cpu<R>>) -> Result<()> {
    let (n, scale) = (op.batch.ranked(), f64::from(op.scale.value));
    let cu_groups = part("cu_groups", &op.batch.cu_groups, 0, op.batch.groups + 1)?;
    check_ends("cu_groups", cu_groups, n)?;
    let (scores, targets) = (part("scores", op.scores, 0, n)?, part("targets", &op.batch.targets, 0, n)?);
    let dscores = part_mut("dscores", op.dscores, 0, n)?;
    let sums = part_mut("statistics", op.sums, 0, stats::SLOTS)?;
    let (mut total, mut right) = (0.0f64, 0u32);
    let mut group = Group::default();
    for ends in cu_groups.windows(2) {
        let range = ends[0] as usize..ends[1] as usize;
        group.load(&scores[range.clone()], &targets[range.clone()]);
        total += group.loss(op.loss);
        for (d, &slope) in dscores[range.clone()].iter_mut().zip(&group.slopes) {
            *d = (scale * slope) as f32;
        }
        if let [positive, others @ ..] = &scores[range] {
            right += u32::from(others.iter().all(|other| other < positive));
        }
    }
    sums[stats::RANK_LOSS] += total as f32;
    sums[stats::RANK_CORRECT] += right as f32;
    sums[stats::RANK_COUNT] += op.batch.groups as f32;
    Ok(())
}

/// One group's values in f64; its vectors are kept from group to group.
#[derive(Default)]
struct Group {
    scores: Vec<f64>,
    targets: Vec<f64>,
    /// Gradient of the group's loss with respect to its scores.
    slopes: Vec<f64>,
}

impl Group {
    fn load(&mut self, scores: &[f32], targets: &[f32]) {
        widen(scores, &mut self.scores);
        widen(targets, &mut self.targets);
        self.slopes.clear();
        self.slopes.resize(scores.len(), 0.0);
    }

    fn loss(&mut self, loss: RankLoss) -> f64 {
        match loss {
            RankLoss::Lce => {
                let sum = softmax(&self.scores, &mut self.slopes);
                self.slopes[0] -= 1.0;
                sum - self.scores[0]
            }
            RankLoss::PairwiseSoftmax => self.pairs(|_, margin| (softplus(-margin), -sigmoid(-margin))),
            RankLoss::Hinge { margin: wanted } => self.pairs(|_, margin| {
                let short = f64::from(wanted) - margin;
                if short > 0.0 { (short, -1.0) } else { (0.0, 0.0) }
            }),
            RankLoss::MarginMse => self.pairs(|teacher, margin| {
                let off = margin - teacher;
                (off * off, 2.0 * off)
            }),
            RankLoss::Pointwise => {
                let n = self.scores.len() as f64;
                let mut sum = 0.0;
                for ((slope, &s), &target) in self.slopes.iter_mut().zip(&self.scores).zip(&self.targets) {
                    let label = if target > 0.0 { 1.0 } else { 0.0 };
                    sum += softplus(s) - label * s;
                    *slope = (sigmoid(s) - label) / n;
                }
                sum / n
            }
            RankLoss::ListNet => {
                let mut wanted = vec![0.0; self.targets.len()];
                softmax(&self.targets, &mut wanted);
                let sum = softmax(&self.scores, &mut self.slopes);
                let mut loss = 0.0;
                for ((slope, &s), p) in self.slopes.iter_mut().zip(&self.scores).zip(wanted) {
                    loss += p * (sum - s);
                    *slope -= p;
                }
                loss
            }
        }
    }

    /// The mean over the negatives of `each(teacher's margin, margin)`, which returns a pair's loss and its
    /// derivative with respect to the margin (score of the positive - score of the negative).
    fn pairs(&mut self, each: impl Fn(f64, f64) -> (f64, f64)) -> f64 {
        let n = (self.scores.len() - 1).max(1) as f64;
        let mut sum = 0.0;
        for j in 1..self.scores.len() {
            let teacher = self.targets.get(j).map_or(0.0, |target| self.targets[0] - target);
            let (loss, slope) = each(teacher, self.scores[0] - self.scores[j]);
            sum += loss;
            self.slopes[0] += slope / n;
            self.slopes[j] -= slope / n;
        }
        sum / n
    }
}

/// Softmax of `x` into `out`; returns the log of the sum of exponentials.
fn softmax(x: &[f64], out: &mut [f64]) -> f64 {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = x.iter().map(|&x| (x - top).exp()).sum();
    for (out, &x) in out.iter_mut().zip(x) {
        *out = (x - top).exp() / total;
    }
    top + total.ln()
}

/// ln(1 + e^x) without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
