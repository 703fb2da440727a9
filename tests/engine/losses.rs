//! The losses and the heads that feed them.

use super::naive::{self, Num};
use super::support::*;
use ctune_dist::engine::cpu::Cpu;
use ctune_dist::engine::op::{self, Aggregate, Dropout, HeadAt, LossScale, RankLoss};
use ctune_dist::engine::{Engine, Real, Reals, Rows, stats};

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

fn mlm_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    for (count, vocab) in [(1, 1), (2, 7), (63, 100), (65, 1025), (20, 8000)] {
        let what = format!("mlm {} {count}x{vocab}", R::NAME);
        let (bias, len, rows) = (3, count * vocab, Rows::Masked(count));
        let arena = held::<R>(&random(bias + vocab, 41));
        let before = held::<R>(&random(len, 42).iter().map(|x| 6.0 * x).collect::<Vec<_>>());
        let classes: Vec<u32> = (0..count).map(|i| (i * 7919 % vocab) as u32).collect();
        let (weights, labels) = (&poisoned(cpu, &arena), &indices(cpu, &classes));
        let sums = &mut poisoned(cpu, &[1.0; stats::SLOTS]);
        let grads = &mut poisoned(cpu, &vec![0.5; arena.len()]);
        let logits: &mut Reals<E> = &mut poisoned(cpu, &before);

        let scale = LossScale::MEASURE;
        cpu.run(op::MlmLoss { weights, bias, vocab, labels, rows, scale, logits, grads, sums }).unwrap();
        let biased: Vec<f32> = before.iter().enumerate().map(|(i, x)| x + arena[bias + i % vocab]).collect();
        assert_eq!(taken(cpu, logits, len), held::<R>(&biased), "scale 0 leaves the logits with their bias");
        assert_eq!(taken(cpu, grads, arena.len()), vec![0.5; arena.len()]);
        let measured = taken(cpu, sums, stats::SLOTS);
        write(cpu, sums, &[1.0; stats::SLOTS]);
        write(cpu, logits, &before);

        let scale = by(0.125);
        cpu.run(op::MlmLoss { weights, bias, vocab, labels, rows, scale, logits, grads, sums }).unwrap();
        let (loss32, d32, _) = mlm::<f32>(&before, &arena[bias..], &classes, scale.value);
        let d32 = held::<R>(&d32);
        let b32 = naive::columns(&d32, vocab);
        let (loss64, d64, b64) = mlm::<f64>(&before, &arena[bias..], &classes, scale.value);
        close(&what, &taken(cpu, logits, len), &d32, &d64);
        let got: Vec<f32> = taken(cpu, grads, arena.len())[bias..].iter().map(|x| x - 0.5).collect();
        // Its own rounding is that of 0.5 + the sum.
        let b32: Vec<f32> = b32.iter().map(|x| (0.5 + x) - 0.5).collect();
        close(
            &format!("{what} bias"),
            &[&got[..], &[0.5]].concat(),
            &[&b32[..], &[0.5]].concat(),
            &[&b64[..], &[0.5]].concat(),
        );
        let sums = taken(cpu, sums, stats::SLOTS);
        close(&format!("{what} loss"), &[sums[stats::MLM_LOSS] - 1.0], &[loss32], &[loss64]);
        close(&format!("{what} measured"), &[measured[stats::MLM_LOSS] - 1.0], &[loss32], &[loss64]);
        let right = before.chunks(vocab).zip(&classes).filter(|(row, class)| {
            let x = |j: usize| row[j] + arena[bias + j];
            (0..vocab).all(|j| x(j) <= x(**class as usize))
        });
        let right = right.count() as f32;
        for sums in [&sums, &measured] {
            assert_eq!(sums[stats::MLM_CORRECT], 1.0 + right);
            assert_eq!(sums[stats::MLM_COUNT], 1.0 + count as f32);
        }
    }
}

/// Equal logits have one arg max, the first; and a NaN is not swallowed.
#[test]
fn mlm_loss_edge_values() {
    let cpu = Cpu::new();
    let weights = &poisoned(&cpu, &[0.0; 40]);
    let run = |classes: &[u32], scale: LossScale, values: &[f32]| {
        let labels = &indices(&cpu, classes);
        let (logits, grads) = (&mut poisoned(&cpu, values), &mut poisoned(&cpu, &[0.0; 40]));
        let sums = &mut poisoned(&cpu, &[0.0; stats::SLOTS]);
        let (bias, vocab, rows) = (0, 40, Rows::Masked(classes.len()));
        let loss = op::MlmLoss { weights, bias, vocab, labels, rows, scale, logits, grads, sums };
        cpu.run(loss).map(|()| taken(&cpu, sums, stats::SLOTS))
    };
    for scale in [by(0.0), by(1.0)] {
        let mut logits = [0.25; 80];
        let sums = run(&[0, 5], scale, &logits).unwrap();
        assert_eq!(sums[stats::MLM_CORRECT], 1.0);
        assert!((sums[stats::MLM_LOSS] - 2.0 * 40f32.ln()).abs() < 1e-5);
        logits[77] = f32::NAN;
        assert!(run(&[0, 5], scale, &logits).unwrap()[stats::MLM_LOSS].is_nan());
    }
    let error = run(&[40], by(1.0), &[0.0; 40]).unwrap_err();
    assert!(error.to_string().contains("label 40"));
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

fn qdpp_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    for (count, h) in [(1, 8), (2, 40), (65, 128), (27, 200)] {
        let what = format!("qdpp {} {count}x{h}", R::NAME);
        let (at, rows) = (head_at(h, 2), Rows::Sequences(count));
        let arena = held::<R>(&random(3 * h + 2, 51));
        let before = held::<R>(&random(count * h, 52).iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        let classes: Vec<u32> = (0..count as u32).map(|i| i % 3 % 2).collect();
        let by_pair = pair_factors(count);
        let (weights, labels) = (&poisoned(cpu, &arena), &indices(cpu, &classes));
        let factors = &poisoned(cpu, &by_pair);
        let pre: &mut Reals<E> = &mut poisoned(cpu, &before);
        let (logits, grads) = (&mut unwritten(cpu, 2 * count), &mut poisoned(cpu, &vec![0.0; arena.len()]));
        let sums = &mut poisoned(cpu, &[0.0; stats::SLOTS]);

        let scale = LossScale::MEASURE;
        cpu.run(op::QdppHead { weights, at, labels, factors, rows, scale, pre, logits, grads, sums })
            .unwrap();
        assert_eq!(taken(cpu, pre, count * h), before, "scale 0 only measures");
        assert!(taken(cpu, grads, arena.len()).iter().all(|&x| x == 0.0));
        let measured = taken(cpu, sums, stats::SLOTS);
        write(cpu, sums, &[0.0; stats::SLOTS]);
        let scale = by(0.25);
        cpu.run(op::QdppHead { weights, at, labels, factors, rows, scale, pre, logits, grads, sums })
            .unwrap();
        assert_eq!(measured, taken(cpu, sums, stats::SLOTS));

        let ones = vec![1.0; count * h];
        let plain = head::<f32>(at, 2, &arena, &before, &ones, |s, x| {
            weighted(x, classes[s] as usize, 0.25, by_pair[s])
        });
        let exact = head::<f64>(at, 2, &arena, &to64(&before), &to64(&ones), |s, x| {
            weighted(x, classes[s] as usize, 0.25, by_pair[s])
        });
        let got = taken(cpu, logits, 2 * count);
        close(&format!("{what} logits"), &got, &plain.logits, &exact.logits);
        close(&format!("{what} loss"), &[measured[stats::QDPP_LOSS]], &[plain.loss], &[exact.loss]);
        let right =
            got.chunks(2).zip(&classes).filter(|(x, l)| x[**l as usize] > x[1 - **l as usize]).count();
        assert_eq!(measured[stats::QDPP_CORRECT], right as f32);
        assert_eq!(measured[stats::QDPP_COUNT], count as f32);
        let got = (&taken(cpu, pre, count * h)[..], &taken(cpu, grads, arena.len())[..]);
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

fn score_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    for h in [8, 40, 136] {
        for drop in [Dropout::OFF, Dropout::new(0.4, 6, 13)] {
            let what = format!("score {} {h} {drop:?}", R::NAME);
            let pack = Pack::new(&[4; 21], 50);
            let (s, at, batch) = (pack.samples.len(), head_at(h, 1), &pack.device(cpu));
            let arena = held::<R>(&random(2 * h + 1, 61));
            let (before, slopes) = (held::<R>(&random(s * h, 62)), random(s, 63));
            let weights = &poisoned(cpu, &arena);
            let pre: &mut Reals<E> = &mut poisoned(cpu, &before);
            let scores = &mut unwritten(cpu, s);
            cpu.run(op::ScoreHead { batch, weights, at, drop, pre, scores }).unwrap();
            let factors: Vec<f64> = (0..s * h)
                .map(|i| {
                    let column = (i % h) as u32;
                    factor(drop, [pack.samples[i / h], 0, pack.epoch, column / 8], column)
                })
                .collect();
            // What R keeps of a pooled value, as one factor more.
            let kept = |i: usize| {
                let pooled = (before[i] + arena[at.pool_bias + i % h]).tanh();
                if pooled == 0.0 { 1.0 } else { R::from_f32(pooled).to_f32() / pooled }
            };
            let factors32: Vec<f32> = factors.iter().enumerate().map(|(i, &x)| x as f32 * kept(i)).collect();
            let plain = head::<f32>(at, 1, &arena, &before, &factors32, |s, _| (0.0, vec![slopes[s]]));
            let exact = head::<f64>(at, 1, &arena, &to64(&before), &factors, |s, _| {
                (0.0, vec![f64::from(slopes[s])])
            });
            close(&what, &taken(cpu, scores, s), &plain.logits, &exact.logits);

            let (dscores, grads) = (&poisoned(cpu, &slopes), &mut poisoned(cpu, &vec![0.0; arena.len()]));
            cpu.run(op::ScoreHeadBackward { batch, weights, at, drop, dscores, pooled: pre, grads }).unwrap();
            let got = (&taken(cpu, pre, s * h)[..], &taken(cpu, grads, arena.len())[..]);
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
    let (loss, scale) = (RankLoss::Lce, by(0.5));
    let there = poisoned(&cpu, &scores);
    let (dscores, sums) = (&mut unwritten(&cpu, 11), &mut poisoned(&cpu, &[0.0; stats::SLOTS]));
    cpu.run(op::GroupLoss { loss, batch: &batch, scores: &there, scale, dscores, sums }).unwrap();
    let (mut plain, mut exact, mut total, mut right) = (vec![], vec![], (0.0f32, 0.0f64), 0);
    for ends in groups.windows(2) {
        let group = &scores[ends[0] as usize..ends[1] as usize];
        let (l32, d32) = naive::cross_entropy(group, 0, 0.5f32);
        let (l64, d64) = naive::cross_entropy(&to64(group), 0, 0.5);
        plain.extend(d32);
        exact.extend(d64);
        total = (total.0 + l32, total.1 + l64);
        right += usize::from(group[1..].iter().all(|&x| x < group[0]));
    }
    close("rank dscores", &taken(&cpu, dscores, 11), &plain, &exact);
    let found = taken(&cpu, sums, stats::SLOTS);
    close("rank loss", &[found[stats::RANK_LOSS]], &[total.0], &[total.1]);
    assert_eq!((found[stats::RANK_CORRECT], found[stats::RANK_COUNT]), (right as f32, 4.0));
    batch.groups = 3;
    let refused = cpu.run(op::GroupLoss { loss, batch: &batch, scores: &there, scale, dscores, sums });
    assert!(refused.is_err(), "groups must cover the pack");
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
    let values: Vec<f32> = random(11, 72).iter().map(|x| 3.0 * x).collect();
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
        let (batch, scores) = (&batch, &poisoned(&cpu, &values));
        let (dscores, sums) = (&mut unwritten(&cpu, 11), &mut poisoned(&cpu, &[0.0; stats::SLOTS]));
        cpu.run(op::GroupLoss { loss, batch, scores, scale: by(0.5), dscores, sums }).unwrap();
        let total = |s: &[f64]| {
            let group = |ends: &[u32]| {
                let range = ends[0] as usize..ends[1] as usize;
                group_loss(loss, &s[range.clone()], &to64(&targets)[range])
            };
            groups.windows(2).map(group).sum::<f64>()
        };
        let wide = to64(&values);
        let found = f64::from(sums[stats::RANK_LOSS]);
        assert!(
            (found - total(&wide)).abs() <= 1e-6 * found.abs(),
            "{loss:?}: {found}, not {}",
            total(&wide)
        );
        let slopes = taken(&cpu, dscores, 11).iter().map(|&d| f64::from(d)).collect::<Vec<_>>();
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
    let values: Vec<f32> = random(11, 74).iter().map(|x| 3.0 * x).collect();
    let targets: Vec<f32> = random(7, 75).iter().map(|x| 2.0 * x).collect();
    batch.targets = poisoned(&cpu, &targets);
    let scores = &poisoned(&cpu, &values);
    for how in WAYS {
        for loss in [RankLoss::Lce, RankLoss::ListNet, RankLoss::PairwiseSoftmax] {
            let (batch, scale) = (&batch, by(0.5));
            let (documents, ddocuments) = (&mut unwritten(&cpu, 7), &mut unwritten(&cpu, 7));
            let (dscores, sums) = (&mut unwritten(&cpu, 11), &mut poisoned(&cpu, &[0.0; stats::SLOTS]));
            cpu.run(op::AggregateScores { how, batch, scores, documents }).unwrap();
            cpu.run(op::GroupLoss { loss, batch, scores: documents, scale, dscores: ddocuments, sums })
                .unwrap();
            cpu.run(op::AggregateScoresBackward { how, batch, scores, ddocuments, dscores }).unwrap();
            let total = |s: &[f64]| loss_of_passages(how, loss, s, &to64(&targets));
            let (wide, found) = (to64(&values), f64::from(sums[stats::RANK_LOSS]));
            assert!((found - total(&wide)).abs() <= 1e-6 * found.abs(), "{how:?} {loss:?}: {found}");
            let slopes: Vec<f64> = taken(&cpu, dscores, 11).iter().map(|&d| f64::from(d)).collect();
            differences(&format!("{how:?} {loss:?}"), &wide, &slopes, |s| 0.5 * total(s));
        }
    }
    batch.documents = 6;
    let (how, documents) = (Aggregate::MaxP, &mut unwritten(&cpu, 7));
    let error =
        cpu.run(op::AggregateScores { how, batch: &batch, scores, documents }).unwrap_err().to_string();
    assert!(error.contains("cu_documents"), "documents must cover the pack: {error}");
}
