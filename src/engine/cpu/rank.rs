//! Ranking losses: a group is a query's documents, the first of them the positive. Groups are small,
//! so everything is computed in f64 and rounded once.

use crate::engine::{Aggregate, RankLoss, stats};

/// Documents' scores from their passages'. scores [S], documents [documents], cu_documents [documents + 1].
pub fn aggregate(how: Aggregate, cu_documents: &[u32], scores: &[f32], documents: &mut [f32]) {
    let mut passages = Vec::new();
    for (ends, document) in cu_documents.windows(2).zip(documents) {
        widen(&scores[ends[0] as usize..ends[1] as usize], &mut passages);
        *document = how.score(&passages) as f32;
    }
}

/// The gradient of passages' scores from that of documents'.
pub fn aggregate_backward(
    how: Aggregate,
    cu_documents: &[u32],
    scores: &[f32],
    ddocuments: &[f32],
    dscores: &mut [f32],
) {
    let mut passages = Vec::new();
    for (ends, &slope) in cu_documents.windows(2).zip(ddocuments) {
        let range = ends[0] as usize..ends[1] as usize;
        widen(&scores[range.clone()], &mut passages);
        for (i, d) in dscores[range].iter_mut().enumerate() {
            *d = (f64::from(slope) * how.slope(&passages, i)) as f32;
        }
    }
}

fn widen(values: &[f32], into: &mut Vec<f64>) {
    into.clear();
    into.extend(values.iter().map(|&x| f64::from(x)));
}

/// Adds the loss of every group to `sums` and leaves `scale` times its gradient by the scores in
/// `dscores`. scores, targets, dscores: [documents]; `cu_groups` [groups + 1].
pub fn rank(
    loss: RankLoss,
    cu_groups: &[u32],
    (scores, targets): (&[f32], &[f32]),
    scale: f32,
    dscores: &mut [f32],
    sums: &mut [f32],
) {
    let (mut total, mut right) = (0.0f64, 0u32);
    let mut group = Group::default();
    for ends in cu_groups.windows(2) {
        let range = ends[0] as usize..ends[1] as usize;
        group.load(&scores[range.clone()], targets.get(range.clone()).unwrap_or_default());
        total += group.loss(loss);
        for (d, &slope) in dscores[range.clone()].iter_mut().zip(&group.slopes) {
            *d = (f64::from(scale) * slope) as f32;
        }
        if let [positive, others @ ..] = &scores[range] {
            right += u32::from(others.iter().all(|other| other < positive));
        }
    }
    sums[stats::RANK_LOSS] += total as f32;
    sums[stats::RANK_CORRECT] += right as f32;
    sums[stats::RANK_COUNT] += cu_groups.len().saturating_sub(1) as f32;
}

/// One group's values in f64; its vectors are kept from group to group.
#[derive(Default)]
struct Group {
    scores: Vec<f64>,
    targets: Vec<f64>,
    /// Gradient of the group's loss by its scores.
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

    /// The mean over the negatives of `each(teacher's margin, margin)`, which returns a pair's loss
    /// and its slope by the margin (score of the positive - score of the negative).
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
