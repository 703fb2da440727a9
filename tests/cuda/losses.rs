//! Kernels of the losses and heads against double precision, in both types.

use super::support::*;
use crate::engine::losses::{
    DOCUMENTS, GROUPS_OF_DOCUMENTS, HeadResult, WAYS, group_loss, head, head_at, loss_of_passages, mlm,
    pair_factors, weighted,
};
use crate::engine::naive;
use crate::engine::support::{Pack, factor, random, to64};
use ctune_dist::engine::cuda::{Cuda, CudaBuf};
use ctune_dist::engine::op::{self, Dropout, HeadAt, LossScale, RankLoss};
use ctune_dist::engine::{Device, Engine, PackCounts, Real, Rows, stats};

/// The weight of a loss whose step has `count` terms: `value` is what the device must compute itself.
fn scale(weight: f32, count: u32) -> LossScale {
    LossScale::mean(weight, count as usize)
}

fn fresh_sums<R: Real>(gpu: &Cuda<R>) -> CudaBuf<f32> {
    floats(gpu, &[1.0; stats::SLOTS], 0)
}

fn read_sums<R: Real>(gpu: &Cuda<R>, sums: &CudaBuf<f32>) -> Vec<f32> {
    gpu.download(sums, 0..stats::SLOTS).unwrap().iter().map(|x| x - 1.0).collect()
}

// ---- MLM -----------------------------------------------------------------------------------------

const STEP_MASKED: u32 = 300;

struct MlmCase {
    rows: usize,
    vocab: usize,
    weights: Vec<f32>,
    logits: Vec<f32>,
    labels: Vec<u32>,
}

/// Where the bias lies in the arena: tensors start at multiples of 8.
const BIAS_AT: usize = 16;

impl MlmCase {
    fn new<R: Real>(rows: usize, vocab: usize) -> Self {
        let weights = all_held::<R>(&random(BIAS_AT + vocab, 41));
        let logits: Vec<f32> = random(rows * vocab, 42).iter().map(|x| held::<R>(6.0 * x)).collect();
        let largest = |row: usize| {
            let x = |j: &usize| logits[row * vocab + j] + weights[BIAS_AT + j];
            (0..vocab).max_by(|a, b| x(a).total_cmp(&x(b)).then(b.cmp(a))).unwrap()
        };
        let label = |row| if row % 3 == 0 { largest(row) } else { row * 7919 % vocab };
        let labels = (0..rows).map(|row| label(row) as u32).collect();
        Self { rows, vocab, weights, logits, labels }
    }

    /// (logits, gradients of the arena, statistics) after the operation.
    fn run<R: Real>(&self, weight: f32, zeros: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let gpu = gpu::<R>(PackCounts {
            masked: self.rows as u32,
            step_masked: STEP_MASKED,
            ..PackCounts::default()
        });
        let len = self.rows * self.vocab;
        let mut logits = reals(&gpu, &self.logits, (ROOM + 2) * self.vocab);
        let mut grads = floats(&gpu, &vec![0.5; self.weights.len()], ROOM);
        let mut sums = fresh_sums(&gpu);
        let (weights, labels) = (reals(&gpu, &self.weights, ROOM), words(&gpu, &self.labels));
        let (rows, scale) = (Rows::Masked(self.rows), scale(weight, STEP_MASKED));
        gpu.run(op::MlmLoss {
            weights: &weights,
            bias: BIAS_AT,
            vocab: self.vocab,
            labels: &labels,
            rows,
            scale,
            logits: &mut logits,
            grads: &mut grads,
            sums: &mut sums,
        })
        .unwrap();
        let grads = taken_floats(&gpu, &grads, self.weights.len());
        (taken(&gpu, &logits, len, zeros * self.vocab), grads, read_sums(&gpu, &sums))
    }

    fn check<R: Real>(&self) {
        let what = format!("mlm {} {}x{}", R::NAME, self.rows, self.vocab);
        let bias = &self.weights[BIAS_AT..];
        let (measured_logits, untouched, measured) = self.run::<R>(0.0, 0);
        let biased = self.logits.iter().enumerate().map(|(i, x)| held::<R>(x + bias[i % self.vocab]));
        assert!(
            measured_logits == biased.collect::<Vec<_>>(),
            "{what}: measuring leaves the logits with their bias"
        );
        assert!(untouched.iter().all(|&x| x == 0.5), "{what}: measuring leaves no gradient");

        let value = scale(1.5, STEP_MASKED).value;
        let (logits, grads, sums) = self.run::<R>(1.5, capacity(self.rows, 128) - self.rows);
        let (loss32, d32, _) = mlm::<f32>(&self.logits, bias, &self.labels, value);
        let (loss64, d64, columns64) = mlm::<f64>(&self.logits, bias, &self.labels, value);
        let stored = all_held::<R>(&d32);
        close(&what, &logits, &stored, &d64);
        let added = |columns: &[f32]| columns.iter().map(|x| 0.5 + x).collect::<Vec<_>>();
        let exact: Vec<f64> = columns64.iter().map(|x| 0.5 + x).collect();
        close(
            &format!("{what} bias"),
            &grads[BIAS_AT..],
            &added(&naive::columns(&stored, self.vocab)),
            &exact,
        );
        assert!(grads[..BIAS_AT].iter().all(|&x| x == 0.5));
        let right = (0..self.rows).filter(|row| row % 3 == 0 || self.is_largest(*row)).count();
        for sums in [&sums, &measured] {
            close(&format!("{what} loss"), &[sums[stats::MLM_LOSS]], &[(1.0 + loss32) - 1.0], &[loss64]);
            assert_eq!(sums[stats::MLM_CORRECT], right as f32, "{what}");
            assert_eq!(sums[stats::MLM_COUNT], self.rows as f32);
        }
    }

    fn is_largest(&self, row: usize) -> bool {
        let x = |j: usize| self.logits[row * self.vocab + j] + self.weights[BIAS_AT + j];
        let label = self.labels[row] as usize;
        (0..self.vocab).all(|j| if j < label { x(j) < x(label) } else { x(j) <= x(label) })
    }
}

/// Widths that are no multiple of a vector, of a pair, or of anything; BERT's; wider than registers hold.
#[test]
fn mlm_loss() {
    for (rows, vocab) in [(1, 1), (2, 7), (63, 100), (300, 129), (5, 1025), (4, 30522), (2, 40010)] {
        MlmCase::new::<f32>(rows, vocab).check::<f32>();
        MlmCase::new::<half::bf16>(rows, vocab).check::<half::bf16>();
    }
}

/// Equal logits have one arg max, the first; and a NaN is not swallowed.
#[test]
fn mlm_loss_edge_values() {
    for at in [3, 4000, 8999] {
        let mut case = MlmCase::new::<half::bf16>(2, 9000);
        case.weights.fill(0.0);
        case.logits.fill(0.25);
        case.labels = vec![0, 5];
        let (_, _, sums) = case.run::<half::bf16>(0.0, 0);
        assert_eq!(sums[stats::MLM_CORRECT], 1.0);
        assert!((sums[stats::MLM_LOSS] - 2.0 * 9000f32.ln()).abs() < 1e-3);
        case.logits[9000 + at] = f32::NAN;
        assert!(case.run::<half::bf16>(0.0, 0).2[stats::MLM_LOSS].is_nan(), "NaN in column {at}");
    }
}

// ---- heads ---------------------------------------------------------------------------------------

fn check_head<R: Real>(
    what: &str,
    at: HeadAt,
    k: usize,
    (dpre, grads): (&[f32], &[f32]),
    plain: &HeadResult<f32>,
    exact: &HeadResult<f64>,
) {
    close(&format!("{what} dpre"), dpre, &all_held::<R>(&plain.dpre), &exact.dpre);
    for (name, range) in [("dpool", 0..at.hidden), ("dw", at.w..at.w + k * at.hidden), ("db", at.b..at.b + k)]
    {
        let name = format!("{what} {name}");
        close(&name, &grads[range.clone()], &plain.grads[range.clone()], &exact.grads[range]);
    }
}

fn qdpp<R: Real>(rows: usize, h: usize) {
    let what = format!("qdpp {} {rows}x{h}", R::NAME);
    let at = head_at(h, 2);
    let weights = all_held::<R>(&random(3 * h + 2, 51));
    let pre: Vec<f32> = random(rows * h, 52).iter().map(|x| held::<R>(2.0 * x)).collect();
    let labels: Vec<u32> = (0..rows as u32).map(|i| i % 3 % 2).collect();
    let pairs = 50;
    let gpu = gpu::<R>(PackCounts { sequences: rows as u32, step_pairs: pairs, ..PackCounts::default() });
    let (on_device, labels_there) = (reals(&gpu, &weights, ROOM), words(&gpu, &labels));
    let factors = pair_factors(rows);
    let factors_there = floats(&gpu, &factors, ROOM);
    let run = |weight: f32| {
        let mut buffer = reals(&gpu, &pre, (ROOM + 3) * h);
        let mut logits = floats(&gpu, &[], 2 * (rows + ROOM));
        let mut grads = floats(&gpu, &vec![0.0; weights.len()], ROOM);
        let (mut sums, rows_of, scale) = (fresh_sums(&gpu), Rows::Sequences(rows), scale(weight, pairs));
        gpu.run(op::QdppHead {
            weights: &on_device,
            at,
            labels: &labels_there,
            factors: &factors_there,
            rows: rows_of,
            scale,
            pre: &mut buffer,
            logits: &mut logits,
            grads: &mut grads,
            sums: &mut sums,
        })
        .unwrap();
        let zeros = if weight == 0.0 { 0 } else { (capacity(rows, 64) - rows) * h };
        let grads = taken_floats(&gpu, &grads, weights.len());
        let logits = taken_floats(&gpu, &logits, 2 * rows);
        (taken(&gpu, &buffer, rows * h, zeros), logits, grads, read_sums(&gpu, &sums))
    };
    let (untouched, _, no_grads, measured) = run(0.0);
    assert!(untouched == pre && no_grads.iter().all(|&x| x == 0.0), "{what}: measuring leaves no gradient");
    let (dpre, logits, grads, sums) = run(2.0);
    assert_eq!(measured, sums, "{what}");

    let (value, ones) = (f64::from(scale(2.0, pairs).value), vec![1.0; rows * h]);
    let plain =
        head::<f32>(at, 2, &weights, &pre, &ones, |s, x| weighted(x, labels[s] as usize, value, factors[s]));
    let exact = head::<f64>(at, 2, &weights, &to64(&pre), &to64(&ones), |s, x| {
        weighted(x, labels[s] as usize, value, factors[s])
    });
    close(&format!("{what} logits"), &logits, &plain.logits, &exact.logits);
    close(&format!("{what} loss"), &[sums[stats::QDPP_LOSS]], &[(1.0 + plain.loss) - 1.0], &[exact.loss]);
    let right = logits.chunks(2).zip(&labels).filter(|(x, l)| x[**l as usize] > x[1 - **l as usize]).count();
    assert_eq!((sums[stats::QDPP_CORRECT], sums[stats::QDPP_COUNT]), (right as f32, rows as f32), "{what}");
    check_head::<R>(&what, at, 2, (&dpre, &grads), &plain, &exact);
}

#[test]
fn qdpp_head() {
    for (rows, h) in [(1, 8), (2, 40), (65, 128), (27, 200)] {
        qdpp::<f32>(rows, h);
        qdpp::<half::bf16>(rows, h);
    }
}

fn score<R: Real>(h: usize, drop: Dropout) {
    let what = format!("score {} {h} rate {}", R::NAME, drop.threshold);
    let pack = Pack::new(&[4; 21], 50);
    let (s, at) = (pack.samples.len(), head_at(h, 1));
    let weights = all_held::<R>(&random(2 * h + 1, 61));
    let (pre, dscores) = (all_held::<R>(&random(s * h, 62)), random(s, 63));
    let gpu = gpu::<R>(counts(&pack));
    let (batch, on_device) = (device(&gpu, &pack), reals(&gpu, &weights, ROOM));
    let mut buffer = reals(&gpu, &pre, (ROOM + 3) * h);
    let mut scores = floats(&gpu, &[], s + ROOM);
    gpu.run(op::ScoreHead {
        batch: &batch,
        weights: &on_device,
        at,
        drop,
        pre: &mut buffer,
        scores: &mut scores,
    })
    .unwrap();
    let factors: Vec<f64> = (0..s * h)
        .map(|i| factor(drop, [pack.samples[i / h], 0, pack.epoch, (i % h) as u32 / 8], (i % h) as u32))
        .collect();
    // What R keeps of a pooled value, as one factor more.
    let kept: Vec<f32> = (0..s * h)
        .map(|i| {
            let pooled = (pre[i] + weights[at.pool_bias + i % h]).tanh();
            factors[i] as f32 * if pooled == 0.0 { 1.0 } else { held::<R>(pooled) / pooled }
        })
        .collect();
    let plain = head::<f32>(at, 1, &weights, &pre, &kept, |s, _| (0.0, vec![dscores[s]]));
    let exact =
        head::<f64>(at, 1, &weights, &to64(&pre), &factors, |s, _| (0.0, vec![f64::from(dscores[s])]));
    close(&what, &taken_floats(&gpu, &scores, s), &plain.logits, &exact.logits);

    let mut grads = floats(&gpu, &vec![0.0; weights.len()], ROOM);
    let dscores = floats(&gpu, &dscores, ROOM);
    gpu.run(op::ScoreHeadBackward {
        batch: &batch,
        weights: &on_device,
        at,
        drop,
        dscores: &dscores,
        pooled: &mut buffer,
        grads: &mut grads,
    })
    .unwrap();
    let dpre = taken(&gpu, &buffer, s * h, (capacity(s, 64) - s) * h);
    check_head::<R>(&what, at, 1, (&dpre, &taken_floats(&gpu, &grads, weights.len())), &plain, &exact);
}

#[test]
fn score_head() {
    for h in [8, 40, 136] {
        for drop in [Dropout::OFF, Dropout::new(0.4, 6, 13)] {
            score::<f32>(h, drop);
            score::<half::bf16>(h, drop);
        }
    }
}

#[test]
fn every_ranking_loss() {
    let pack = Pack::new(&[4; 11], 50);
    let groups = [0u32, 2, 5, 6, 11];
    let scores: Vec<f32> = random(11, 72).iter().map(|x| 3.0 * x).collect();
    let targets: Vec<f32> = random(11, 73).iter().map(|x| 2.0 * x).collect();
    let gpu = gpu::<f32>(PackCounts { groups: 4, ..counts(&pack) });
    let mut batch = device(&gpu, &pack);
    batch.groups = 4;
    batch.cu_groups = words(&gpu, &groups);
    batch.targets = floats(&gpu, &targets, ROOM);
    let right = groups.windows(2).filter(|ends| {
        let group = &scores[ends[0] as usize..ends[1] as usize];
        group[1..].iter().all(|&x| x < group[0])
    });
    let right = right.count() as f32;
    for loss in [
        RankLoss::Lce,
        RankLoss::PairwiseSoftmax,
        RankLoss::Hinge { margin: 1.0 },
        RankLoss::Pointwise,
        RankLoss::ListNet,
        RankLoss::MarginMse,
    ] {
        let (mut d, mut sums) = (floats(&gpu, &[], 11 + ROOM), fresh_sums(&gpu));
        let on_device = floats(&gpu, &scores, ROOM);
        let factor = scale(3.5, counts(&pack).step_pairs);
        gpu.run(op::GroupLoss {
            loss,
            batch: &batch,
            scores: &on_device,
            scale: factor,
            dscores: &mut d,
            sums: &mut sums,
        })
        .unwrap();
        let total = |s: &[f64]| {
            let group = |ends: &[u32]| {
                let range = ends[0] as usize..ends[1] as usize;
                group_loss(loss, &s[range.clone()], &to64(&targets)[range])
            };
            groups.windows(2).map(group).sum::<f64>()
        };
        let (wide, sums) = (to64(&scores), read_sums(&gpu, &sums));
        let expected = total(&wide);
        let found = f64::from(sums[stats::RANK_LOSS]);
        assert!(
            (found - expected).abs() <= 1e-6 * (1.0 + expected.abs()),
            "{loss:?}: {found}, not {expected}"
        );
        let slopes: Vec<f64> = taken_floats(&gpu, &d, 11).iter().map(|&d| f64::from(d)).collect();
        crate::engine::support::differences(&format!("{loss:?}"), &wide, &slopes, |s| {
            f64::from(factor.value) * total(s)
        });
        assert_eq!((sums[stats::RANK_CORRECT], sums[stats::RANK_COUNT]), (right, 4.0), "{loss:?}");
    }
}

#[test]
fn a_loss_of_documents_reaches_their_passages() {
    let pack = Pack::new(&[4; 11], 50);
    let (documents, groups) = (DOCUMENTS.len() - 1, GROUPS_OF_DOCUMENTS.len() - 1);
    let counts = PackCounts { documents: documents as u32, groups: groups as u32, ..counts(&pack) };
    let gpu = gpu::<f32>(counts);
    let scores: Vec<f32> = random(11, 74).iter().map(|x| 3.0 * x).collect();
    let targets: Vec<f32> = random(7, 75).iter().map(|x| 2.0 * x).collect();
    let mut batch = device(&gpu, &pack);
    (batch.documents, batch.groups) = (documents, groups);
    (batch.cu_documents, batch.cu_groups) = (words(&gpu, &DOCUMENTS), words(&gpu, &GROUPS_OF_DOCUMENTS));
    batch.targets = floats(&gpu, &targets, ROOM);
    let on_device = floats(&gpu, &scores, ROOM);
    let factor = scale(3.5, counts.step_pairs);
    for how in WAYS {
        let (mut of_documents, mut slopes) = (floats(&gpu, &[], 7 + ROOM), floats(&gpu, &[], 7 + ROOM));
        let (mut d, mut sums) = (floats(&gpu, &[], 11 + ROOM), fresh_sums(&gpu));
        gpu.run(op::AggregateScores { how, batch: &batch, scores: &on_device, documents: &mut of_documents })
            .unwrap();
        gpu.run(op::GroupLoss {
            loss: RankLoss::ListNet,
            batch: &batch,
            scores: &of_documents,
            scale: factor,
            dscores: &mut slopes,
            sums: &mut sums,
        })
        .unwrap();
        gpu.run(op::AggregateScoresBackward {
            how,
            batch: &batch,
            scores: &on_device,
            ddocuments: &slopes,
            dscores: &mut d,
        })
        .unwrap();
        let total = |s: &[f64]| loss_of_passages(how, RankLoss::ListNet, s, &to64(&targets));
        let (wide, found) = (to64(&scores), f64::from(read_sums(&gpu, &sums)[stats::RANK_LOSS]));
        assert!((found - total(&wide)).abs() <= 1e-6 * (1.0 + total(&wide)), "{how:?}: {found}");
        let slopes: Vec<f64> = taken_floats(&gpu, &d, 11).iter().map(|&d| f64::from(d)).collect();
        crate::engine::support::differences(&format!("{how:?}"), &wide, &slopes, |s| {
            f64::from(factor.value) * total(s)
        });
    }
}
