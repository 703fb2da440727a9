//! The losses and the heads that feed them.

use super::naive::{self, Num};
use super::support::*;
use ctune_dist::engine::cpu::{Buffer, Cpu, Operand};
use ctune_dist::engine::{Aggregate, Backend, Dropout, HeadAt, LossScale, RankLoss, Real, Rows, stats};

fn of<F: Num>(values: &[f32]) -> Vec<F> {
    values.iter().map(|&x| F::of(f64::from(x))).collect()
}

/// (loss, dlogits, dbias)
pub fn mlm<F: Num>(logits: &[f32], bias: &[f32], labels: &[u32], scale: f32) -> (F, Vec<F>, Vec<F>) {
    let (bias, v) = (of::<F>(bias), bias.len());
    let (mut loss, mut d) = (F::of(0.0), vec![]);
    for (row, &label) in of::<F>(logits).chunks(v).zip(labels) {
        let row: Vec<F> = row.iter().zip(&bias).map(|(&x, &b)| x + b).collect();
        let (l, g) = naive::cross_entropy(&row, label as usize, F::of(f64::from(scale)));
        loss += l;
        d.extend(g);
    }
    let columns = naive::columns(&d, v);
    (loss, d, columns)
}

#[test]
fn mlm_loss() {
    on_engines!(mlm_case);
}

fn mlm_case<R: Operand>(cpu: &Cpu<R>) {
    for (rows, v) in [(1, 1), (2, 7), (63, 100), (65, 1025), (20, 8000)] {
        let what = format!("mlm {} {rows}x{v}", R::NAME);
        let bias_at = 3;
        let weights = held::<R>(&random(bias_at + v, 41));
        let logits = held::<R>(&random(rows * v, 42).iter().map(|x| 6.0 * x).collect::<Vec<_>>());
        let labels: Vec<u32> = (0..rows).map(|i| (i * 7919 % v) as u32).collect();
        let (wb, lb) = (poisoned(cpu, &weights), indices(cpu, &labels));
        let mut sums = poisoned(cpu, &[1.0; stats::SLOTS]);
        let mut grads = poisoned(cpu, &vec![0.5; weights.len()]);
        let mut buffer: Buffer<R> = poisoned(cpu, &logits);

        cpu.mlm_loss(
            &wb,
            bias_at,
            v,
            &lb,
            Rows::Masked(rows),
            LossScale::MEASURE,
            &mut buffer,
            &mut grads,
            &mut sums,
        )
        .unwrap();
        let biased: Vec<f32> = logits.iter().enumerate().map(|(i, x)| x + weights[bias_at + i % v]).collect();
        assert_eq!(taken(&buffer, rows * v), held::<R>(&biased), "scale 0 leaves the logits with their bias");
        assert_eq!(taken(&grads, weights.len()), vec![0.5; weights.len()]);
        let measured = taken(&sums, stats::SLOTS);
        sums[..stats::SLOTS].fill(1.0);
        write(&mut buffer, &logits);

        let scale = 0.125;
        cpu.mlm_loss(&wb, bias_at, v, &lb, Rows::Masked(rows), by(scale), &mut buffer, &mut grads, &mut sums)
            .unwrap();
        let (loss32, d32, _) = mlm::<f32>(&logits, &weights[bias_at..], &labels, scale);
        let d32 = held::<R>(&d32);
        let b32 = naive::columns(&d32, v);
        let (loss64, d64, b64) = mlm::<f64>(&logits, &weights[bias_at..], &labels, scale);
        close(&what, &taken(&buffer, rows * v), &d32, &d64);
        let got: Vec<f32> = taken(&grads, weights.len())[bias_at..].iter().map(|x| x - 0.5).collect();
        // Its own rounding is that of 0.5 + the sum.
        let b32: Vec<f32> = b32.iter().map(|x| (0.5 + x) - 0.5).collect();
        close(
            &format!("{what} bias"),
            &[&got[..], &[0.5]].concat(),
            &[&b32[..], &[0.5]].concat(),
            &[&b64[..], &[0.5]].concat(),
        );
        let sums = taken(&sums, stats::SLOTS);
        close(&format!("{what} loss"), &[sums[stats::MLM_LOSS] - 1.0], &[loss32], &[loss64]);
        close(&format!("{what} measured"), &[measured[stats::MLM_LOSS] - 1.0], &[loss32], &[loss64]);
        let right = logits
            .chunks(v)
            .zip(&labels)
            .filter(|(row, label)| {
                let x = |j: usize| row[j] + weights[bias_at + j];
                (0..v).all(|j| x(j) <= x(**label as usize))
            })
            .count();
        for sums in [&sums, &measured] {
            assert_eq!(sums[stats::MLM_CORRECT], 1.0 + right as f32);
            assert_eq!(sums[stats::MLM_COUNT], 1.0 + rows as f32);
        }
    }
}

/// Equal logits have one arg max, the first; and a NaN is not swallowed.
#[test]
fn mlm_loss_edge_values() {
    let cpu = Cpu::new();
    let bias = poisoned(&cpu, &[0.0; 40]);
    for scale in [0.0, 1.0] {
        let run = |logits: Vec<f32>| {
            let (mut buffer, mut grads) = (poisoned(&cpu, &logits), poisoned(&cpu, &[0.0; 40]));
            let mut sums = poisoned(&cpu, &[0.0; stats::SLOTS]);
            let labels = indices(&cpu, &[0, 5]);
            cpu.mlm_loss(
                &bias,
                0,
                40,
                &labels,
                Rows::Masked(2),
                by(scale),
                &mut buffer,
                &mut grads,
                &mut sums,
            )
            .unwrap();
            taken(&sums, stats::SLOTS)
        };
        let sums = run(vec![0.25; 80]);
        assert_eq!(sums[stats::MLM_CORRECT], 1.0);
        assert!((sums[stats::MLM_LOSS] - 2.0 * 40f32.ln()).abs() < 1e-5);
        let mut logits = vec![0.25; 80];
        logits[77] = f32::NAN;
        assert!(run(logits)[stats::MLM_LOSS].is_nan());
    }
    let (mut logits, mut grads) = (poisoned(&cpu, &[0.0; 40]), poisoned(&cpu, &[0.0; 40]));
    let mut sums = poisoned(&cpu, &[0.0; stats::SLOTS]);
    let result = cpu.mlm_loss(
        &bias,
        0,
        40,
        &indices(&cpu, &[40]),
        Rows::Masked(1),
        by(1.0),
        &mut logits,
        &mut grads,
        &mut sums,
    );
    assert!(result.unwrap_err().to_string().contains("label 40"));
}

/// Everything that a head makes: logits, loss, dpre, dbias_pool, dw, db.
pub struct HeadResult<F> {
    pub logits: Vec<F>,
    pub loss: F,
    pub dpre: Vec<F>,
    pub grads: Vec<F>,
}

/// `factors` [S, H] multiply the pooled rows; `dlogits` gives loss and gradient of a row's logits.
pub fn head<F: Num>(
    at: HeadAt,
    k: usize,
    weights: &[f32],
    pre: &[F],
    factors: &[F],
    mut dlogits: impl FnMut(usize, &[F]) -> (F, Vec<F>),
) -> HeadResult<F> {
    let (h, w) = (at.hidden, of::<F>(weights));
    let mut r =
        HeadResult { logits: vec![], loss: F::of(0.0), dpre: vec![], grads: vec![F::of(0.0); w.len()] };
    for (s, row) in pre.chunks(h).enumerate() {
        let pooled: Vec<F> = (0..h).map(|i| (row[i] + w[at.pool_bias + i]).tanh()).collect();
        let dropped = naive::times(&pooled, &factors[s * h..][..h]);
        let logits: Vec<F> = (0..k)
            .map(|c| (0..h).map(|i| dropped[i] * w[at.w + c * h + i]).sum::<F>() + w[at.b + c])
            .collect();
        let (loss, d) = dlogits(s, &logits);
        r.loss += loss;
        for i in 0..h {
            let dpooled = (0..k).map(|c| d[c] * w[at.w + c * h + i]).sum::<F>() * factors[s * h + i];
            let dpre = dpooled * (F::of(1.0) - pooled[i] * pooled[i]);
            r.dpre.push(dpre);
            r.grads[at.pool_bias + i] += dpre;
            (0..k).for_each(|c| r.grads[at.w + c * h + i] += d[c] * dropped[i]);
        }
        (0..k).for_each(|c| r.grads[at.b + c] += d[c]);
        r.logits.extend(logits);
    }
    r
}

pub fn head_at(h: usize, k: usize) -> HeadAt {
    HeadAt { pool_bias: 0, w: h, b: h + k * h, hidden: h }
}

/// The head is computed in f32; only what is kept of a row is rounded.
fn check_head<R: Real>(
    what: &str,
    at: HeadAt,
    k: usize,
    got: (&[f32], &[f32]),
    plain: &HeadResult<f32>,
    exact: &HeadResult<f64>,
) {
    close(&format!("{what} dpre"), got.0, &held::<R>(&plain.dpre), &exact.dpre);
    for (name, range) in [("dpool", 0..at.hidden), ("dw", at.w..at.w + k * at.hidden), ("db", at.b..at.b + k)]
    {
        let name = format!("{what} {name}");
        close(&name, &got.1[range.clone()], &plain.grads[range.clone()], &exact.grads[range]);
    }
}

/// Factors of pairs' losses: most are 1, one is 0.
pub fn pair_factors(rows: usize) -> Vec<f32> {
    (0..rows).map(|i| [1.0, 1.0, 0.4, 2.5, 1.0, 0.0, 1.75][i % 7]).collect()
}

/// `naive::cross_entropy` of a pair whose loss has a factor.
pub fn weighted<F: Num>(logits: &[F], label: usize, scale: f64, factor: f32) -> (F, Vec<F>) {
    let factor = F::of(f64::from(factor));
    let (loss, d) = naive::cross_entropy(logits, label, F::of(scale) * factor);
    (factor * loss, d)
}

#[test]
fn qdpp_head() {
    on_engines!(qdpp_case);
}

fn qdpp_case<R: Operand>(cpu: &Cpu<R>) {
    for (rows, h) in [(1, 8), (2, 40), (65, 128), (27, 200)] {
        let what = format!("qdpp {} {rows}x{h}", R::NAME);
        let at = head_at(h, 2);
        let weights = held::<R>(&random(3 * h + 2, 51));
        let pre = held::<R>(&random(rows * h, 52).iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        let labels: Vec<u32> = (0..rows as u32).map(|i| i % 3 % 2).collect();
        let factors = pair_factors(rows);
        let (wb, lb, fb) = (poisoned(cpu, &weights), indices(cpu, &labels), poisoned(cpu, &factors));
        let (mut buffer, mut logits): (Buffer<R>, _) = (poisoned(cpu, &pre), unwritten(cpu, 2 * rows));
        let mut grads = poisoned(cpu, &vec![0.0; weights.len()]);
        let mut sums = poisoned(cpu, &[0.0; stats::SLOTS]);
        cpu.qdpp_head(
            &wb,
            at,
            &lb,
            &fb,
            Rows::Sequences(rows),
            LossScale::MEASURE,
            &mut buffer,
            &mut logits,
            &mut grads,
            &mut sums,
        )
        .unwrap();
        assert_eq!(taken(&buffer, rows * h), pre, "scale 0 only measures");
        assert!(taken(&grads, weights.len()).iter().all(|&x| x == 0.0));
        let measured = taken(&sums, stats::SLOTS);
        sums[..stats::SLOTS].fill(0.0);
        cpu.qdpp_head(
            &wb,
            at,
            &lb,
            &fb,
            Rows::Sequences(rows),
            by(0.25),
            &mut buffer,
            &mut logits,
            &mut grads,
            &mut sums,
        )
        .unwrap();
        assert_eq!(measured, taken(&sums, stats::SLOTS));

        let ones = vec![1.0; rows * h];
        let plain = head::<f32>(at, 2, &weights, &pre, &ones, |s, x| {
            weighted(x, labels[s] as usize, 0.25, factors[s])
        });
        let exact = head::<f64>(at, 2, &weights, &to64(&pre), &to64(&ones), |s, x| {
            weighted(x, labels[s] as usize, 0.25, factors[s])
        });
        let got = taken(&logits, 2 * rows);
        close(&format!("{what} logits"), &got, &plain.logits, &exact.logits);
        close(&format!("{what} loss"), &[measured[stats::QDPP_LOSS]], &[plain.loss], &[exact.loss]);
        let right = got.chunks(2).zip(&labels).filter(|(x, l)| x[**l as usize] > x[1 - **l as usize]).count();
        assert_eq!(measured[stats::QDPP_CORRECT], right as f32);
        assert_eq!(measured[stats::QDPP_COUNT], rows as f32);
        let got = (&taken(&buffer, rows * h)[..], &taken(&grads, weights.len())[..]);
        check_head::<R>(&what, at, 2, got, &plain, &exact);
    }
}

#[test]
fn head_gradient_is_the_slope() {
    let (at, weights, ones) = (head_at(8, 2), random(26, 51), vec![1.0; 24]);
    let run =
        |pre: &[f64]| head::<f64>(at, 2, &weights, pre, &ones, |s, x| naive::cross_entropy(x, s % 2, 0.25));
    let pre = to64(&random(24, 52));
    differences("head", &pre, &run(&pre).dpre, |pre| 0.25 * run(pre).loss);
}

#[test]
fn score_head() {
    on_engines!(score_case);
}

fn score_case<R: Operand>(cpu: &Cpu<R>) {
    for h in [8, 40, 136] {
        for drop in [Dropout::OFF, Dropout::new(0.4, 6, 13)] {
            let what = format!("score {} {h} {drop:?}", R::NAME);
            let pack = Pack::new(&[4; 21], 50);
            let (s, at) = (pack.samples.len(), head_at(h, 1));
            let (batch, weights) = (pack.device(cpu), held::<R>(&random(2 * h + 1, 61)));
            let (pre, dscores) = (held::<R>(&random(s * h, 62)), random(s, 63));
            let wb = poisoned(cpu, &weights);
            let (mut buffer, mut scores): (Buffer<R>, _) = (poisoned(cpu, &pre), unwritten(cpu, s));
            cpu.score_head(&batch, &wb, at, drop, &mut buffer, &mut scores).unwrap();
            let factors: Vec<f64> = (0..s * h)
                .map(|i| {
                    let column = (i % h) as u32;
                    factor(drop, [pack.samples[i / h], 0, pack.epoch, column / 8], column)
                })
                .collect();
            // What R keeps of a pooled value, as one factor more.
            let kept = |i: usize| {
                let pooled = (pre[i] + weights[at.pool_bias + i % h]).tanh();
                if pooled == 0.0 { 1.0 } else { R::from_f32(pooled).to_f32() / pooled }
            };
            let factors32: Vec<f32> = factors.iter().enumerate().map(|(i, &x)| x as f32 * kept(i)).collect();
            let plain = head::<f32>(at, 1, &weights, &pre, &factors32, |s, _| (0.0, vec![dscores[s]]));
            let exact = head::<f64>(at, 1, &weights, &to64(&pre), &factors, |s, _| {
                (0.0, vec![f64::from(dscores[s])])
            });
            close(&what, &taken(&scores, s), &plain.logits, &exact.logits);

            let mut grads = poisoned(cpu, &vec![0.0; weights.len()]);
            let dscores = poisoned(cpu, &dscores);
            cpu.score_head_backward(&batch, &wb, at, drop, &dscores, &mut buffer, &mut grads).unwrap();
            let got = (&taken(&buffer, s * h)[..], &taken(&grads, weights.len())[..]);
            check_head::<R>(&what, at, 1, got, &plain, &exact);
        }
    }
}

#[test]
fn rank_loss() {
    let cpu = Cpu::new();
    let pack = Pack::new(&[4; 11], 50);
    let groups = [0u32, 2, 5, 6, 11];
    let mut batch = pack.device(&cpu);
    batch.groups = groups.len() - 1;
    batch.cu_groups = indices(&cpu, &groups);
    batch.targets = poisoned(&cpu, &[0.0; 11]);
    let scores: Vec<f32> = random(11, 71).iter().map(|x| 3.0 * x).collect();
    let (mut d, mut sums) = (unwritten(&cpu, 11), poisoned(&cpu, &[0.0; stats::SLOTS]));
    cpu.rank_loss(RankLoss::Lce, &batch, &poisoned(&cpu, &scores), by(0.5), &mut d, &mut sums).unwrap();
    let (mut plain, mut exact, mut loss, mut right) = (vec![], vec![], (0.0f32, 0.0f64), 0);
    for ends in groups.windows(2) {
        let group = &scores[ends[0] as usize..ends[1] as usize];
        let (l32, d32) = naive::cross_entropy(group, 0, 0.5f32);
        let (l64, d64) = naive::cross_entropy(&to64(group), 0, 0.5);
        plain.extend(d32);
        exact.extend(d64);
        loss = (loss.0 + l32, loss.1 + l64);
        right += usize::from(group[1..].iter().all(|&x| x < group[0]));
    }
    close("rank dscores", &taken(&d, 11), &plain, &exact);
    let sums = taken(&sums, stats::SLOTS);
    close("rank loss", &[sums[stats::RANK_LOSS]], &[loss.0], &[loss.1]);
    assert_eq!((sums[stats::RANK_CORRECT], sums[stats::RANK_COUNT]), (right as f32, 4.0));
    batch.groups = 3;
    let scores = poisoned(&cpu, &scores);
    let mut sums = cpu.zeros(stats::SLOTS).unwrap();
    assert!(
        cpu.rank_loss(RankLoss::Lce, &batch, &scores, by(0.5), &mut d, &mut sums).is_err(),
        "groups must cover the pack"
    );
}

/// A group's loss straight from its formula.
pub fn group_loss(loss: RankLoss, s: &[f64], t: &[f64]) -> f64 {
    let mean = |terms: Vec<f64>| terms.iter().sum::<f64>() / terms.len().max(1) as f64;
    let pairs = |term: &dyn Fn(usize) -> f64| mean((1..s.len()).map(term).collect());
    let log_softmax = |x: &[f64], i: usize| x[i] - x.iter().map(|x| x.exp()).sum::<f64>().ln();
    match loss {
        RankLoss::Lce => -log_softmax(s, 0),
        RankLoss::PairwiseSoftmax => pairs(&|j| (1.0 + (s[j] - s[0]).exp()).ln()),
        RankLoss::Hinge { margin } => pairs(&|j| (f64::from(margin) - s[0] + s[j]).max(0.0)),
        RankLoss::MarginMse => pairs(&|j| ((s[0] - s[j]) - (t[0] - t[j])).powi(2)),
        RankLoss::Pointwise => mean(
            (0..s.len())
                .map(|i| {
                    let p = 1.0 / (1.0 + (-s[i]).exp());
                    if t[i] > 0.0 { -p.ln() } else { -(1.0 - p).ln() }
                })
                .collect(),
        ),
        RankLoss::ListNet => -(0..s.len()).map(|i| log_softmax(t, i).exp() * log_softmax(s, i)).sum::<f64>(),
    }
}

#[test]
fn every_ranking_loss_and_its_slope() {
    let cpu = Cpu::new();
    let pack = Pack::new(&[4; 11], 50);
    let groups = [0u32, 2, 5, 6, 11];
    let scores: Vec<f32> = random(11, 72).iter().map(|x| 3.0 * x).collect();
    let targets: Vec<f32> = random(11, 73).iter().map(|x| 2.0 * x).collect();
    let mut batch = pack.device(&cpu);
    batch.groups = groups.len() - 1;
    batch.cu_groups = indices(&cpu, &groups);
    batch.targets = poisoned(&cpu, &targets);
    for loss in [
        RankLoss::Lce,
        RankLoss::PairwiseSoftmax,
        RankLoss::Hinge { margin: 1.0 },
        RankLoss::Pointwise,
        RankLoss::ListNet,
        RankLoss::MarginMse,
    ] {
        let (mut d, mut sums) = (unwritten(&cpu, 11), poisoned(&cpu, &[0.0; stats::SLOTS]));
        cpu.rank_loss(loss, &batch, &poisoned(&cpu, &scores), by(0.5), &mut d, &mut sums).unwrap();
        let total = |s: &[f64]| {
            let group = |ends: &[u32]| {
                let range = ends[0] as usize..ends[1] as usize;
                group_loss(loss, &s[range.clone()], &to64(&targets)[range])
            };
            groups.windows(2).map(group).sum::<f64>()
        };
        let wide = to64(&scores);
        let found = f64::from(sums[stats::RANK_LOSS]);
        assert!(
            (found - total(&wide)).abs() <= 1e-6 * found.abs(),
            "{loss:?}: {found}, not {}",
            total(&wide)
        );
        let slopes = taken(&d, 11).iter().map(|&d| f64::from(d)).collect::<Vec<_>>();
        differences(&format!("{loss:?}"), &wide, &slopes, |s| 0.5 * total(s));
        assert_eq!(sums[stats::RANK_COUNT], 4.0);
    }
}

/// Passages [0, 11) of documents, documents of groups.
pub const DOCUMENTS: [u32; 8] = [0, 2, 3, 4, 7, 8, 10, 11];
pub const GROUPS_OF_DOCUMENTS: [u32; 4] = [0, 2, 4, 7];
pub const WAYS: [Aggregate; 4] = [Aggregate::FirstP, Aggregate::MaxP, Aggregate::SumP, Aggregate::AvgP];

/// A document's score straight from the names of Dai and Callan.
pub fn document_score(how: Aggregate, passages: &[f64]) -> f64 {
    match how {
        Aggregate::FirstP => passages[0],
        Aggregate::MaxP => passages.iter().fold(f64::NEG_INFINITY, |best, &score| best.max(score)),
        Aggregate::SumP => passages.iter().sum(),
        Aggregate::AvgP => passages.iter().sum::<f64>() / passages.len() as f64,
    }
}

/// Sum over groups of the loss of documents whose scores come from passages' scores `s`.
pub fn loss_of_passages(how: Aggregate, loss: RankLoss, s: &[f64], targets: &[f64]) -> f64 {
    let document = |ends: &[u32]| document_score(how, &s[ends[0] as usize..ends[1] as usize]);
    let documents: Vec<f64> = DOCUMENTS.windows(2).map(document).collect();
    let group = |ends: &[u32]| {
        let range = ends[0] as usize..ends[1] as usize;
        group_loss(loss, &documents[range.clone()], &targets[range])
    };
    GROUPS_OF_DOCUMENTS.windows(2).map(group).sum()
}

#[test]
fn a_loss_of_documents_reaches_their_passages() {
    let cpu = Cpu::new();
    let mut batch = Pack::new(&[4; 11], 50).device(&cpu);
    batch.documents = DOCUMENTS.len() - 1;
    batch.cu_documents = indices(&cpu, &DOCUMENTS);
    batch.groups = GROUPS_OF_DOCUMENTS.len() - 1;
    batch.cu_groups = indices(&cpu, &GROUPS_OF_DOCUMENTS);
    let scores: Vec<f32> = random(11, 74).iter().map(|x| 3.0 * x).collect();
    let targets: Vec<f32> = random(7, 75).iter().map(|x| 2.0 * x).collect();
    batch.targets = poisoned(&cpu, &targets);
    let on_device = poisoned(&cpu, &scores);
    for how in WAYS {
        for loss in [RankLoss::Lce, RankLoss::ListNet, RankLoss::PairwiseSoftmax] {
            let (mut documents, mut slopes) = (unwritten(&cpu, 7), unwritten(&cpu, 7));
            let (mut d, mut sums) = (unwritten(&cpu, 11), poisoned(&cpu, &[0.0; stats::SLOTS]));
            cpu.aggregate(how, &batch, &on_device, &mut documents).unwrap();
            cpu.rank_loss(loss, &batch, &documents, by(0.5), &mut slopes, &mut sums).unwrap();
            cpu.aggregate_backward(how, &batch, &on_device, &slopes, &mut d).unwrap();
            let total = |s: &[f64]| loss_of_passages(how, loss, s, &to64(&targets));
            let (wide, found) = (to64(&scores), f64::from(sums[stats::RANK_LOSS]));
            assert!((found - total(&wide)).abs() <= 1e-6 * found.abs(), "{how:?} {loss:?}: {found}");
            let slopes: Vec<f64> = taken(&d, 11).iter().map(|&d| f64::from(d)).collect();
            differences(&format!("{how:?} {loss:?}"), &wide, &slopes, |s| 0.5 * total(s));
        }
    }
    batch.documents = 6;
    let mut documents = unwritten(&cpu, 7);
    let error = cpu.aggregate(Aggregate::MaxP, &batch, &on_device, &mut documents).unwrap_err().to_string();
    assert!(error.contains("cu_documents"), "documents must cover the pack: {error}");
}
