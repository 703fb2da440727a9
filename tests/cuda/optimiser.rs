//! The optimiser's passes on the device: against float64 by the error rule, on shares, in bf16 with
//! master weights, and with a norm that is not finite.

use std::ops::Range;

use super::buffers::*;
use super::support::all_held;
use crate::engine::optimiser::{N, Plain, groups, plain_lamb, update};
use crate::engine::support::{Pack, close, random, to64};
use ctune_dist::engine::cuda::{Cuda, CudaBuf};
use ctune_dist::engine::op;
use ctune_dist::engine::{Engine, Real};
use half::bf16;

/// One rank's share of the optimiser's state and a whole copy of weights and gradients.
struct Rank<R: Real> {
    gpu: Cuda<R>,
    owned: Vec<Range<usize>>,
    weights: CudaBuf<R>,
    master: CudaBuf<f32>,
    m: CudaBuf<f32>,
    v: CudaBuf<f32>,
    norm_sq: CudaBuf<f32>,
}

impl<R: Real> Rank<R> {
    fn new(start: &[f32], owned: &[Range<usize>]) -> Self {
        let gpu = engine::<R>(&Pack::new(&[1], 50), 1);
        let share: Vec<f32> = owned.iter().flat_map(|range| start[range.clone()].to_vec()).collect();
        let wide = size_of::<R>() == size_of::<f32>();
        Self {
            weights: put(&gpu, start, 8),
            master: put(&gpu, if wide { &[] } else { &share }, if wide { 0 } else { 8 }),
            m: put(&gpu, &vec![0.0; share.len()], 8),
            v: put(&gpu, &vec![0.0; share.len()], 8),
            norm_sq: put(&gpu, &[0.0], 8),
            owned: owned.to_vec(),
            gpu,
        }
    }

    /// One update; `g` with its norm over the whole arena.
    fn step(&mut self, step: u32, g: &[f32], lamb: bool) {
        let Self { gpu, owned, weights, master, m: moment1, v: moment2, norm_sq } = self;
        let (rule, groups, grads) = (update(step), &groups(), &mut put(gpu, g, 8));
        let ranges = &[0..10_000, 10_000..N];
        gpu.run(op::SumSquares { src: grads, ranges, out: norm_sq, slot: 0 }).unwrap();
        if lamb {
            let norms = &mut put(gpu, &vec![9.0; 2 * groups.len()], 8);
            gpu.run(op::LambDirection {
                rule,
                groups,
                owned,
                norm_sq,
                weights,
                master,
                grads,
                moment1,
                moment2,
                norms,
            })
            .unwrap();
            get::<f32, R>(gpu, norms, 2 * groups.len(), 0);
            gpu.run(op::LambApply { rule, groups, owned, norms, weights, master, grads }).unwrap();
        } else {
            gpu.run(op::AdamWUpdate {
                rule,
                groups,
                owned,
                norm_sq,
                weights,
                master,
                grads,
                moment1,
                moment2,
            })
            .unwrap();
        }
        assert!(get::<f32, R>(gpu, grads, N, 0).iter().all(|&x| x == 0.0), "gradients end as zeros");
    }

    /// Weights in f32: the master's where there is one, and then the weights are its rounding.
    fn state(&self) -> [Vec<f32>; 3] {
        let n = self.owned.iter().map(|range| range.len()).sum();
        let weights = get::<R, R>(&self.gpu, &self.weights, N, 0);
        let part = |buffer: &CudaBuf<f32>| get::<f32, R>(&self.gpu, buffer, n, 0);
        let own: Vec<f32> = self.owned.iter().flat_map(|range| weights[range.clone()].to_vec()).collect();
        if size_of::<R>() == size_of::<f32>() {
            return [own, part(&self.m), part(&self.v)];
        }
        let master = part(&self.master);
        assert_eq!(own, all_held::<R>(&master), "weights are the master's rounding");
        [master, part(&self.m), part(&self.v)]
    }
}

/// Norms of about 12 to 120: the first steps are not clipped.
fn gradient(step: u32) -> (Vec<f32>, f64) {
    let g: Vec<f32> = random(N, 90 + step).iter().map(|x| x * step as f32 * 0.1).collect();
    let norm = to64(&g).iter().map(|x| x * x).sum::<f64>().sqrt();
    (g, norm)
}

fn pick(owned: &[Range<usize>], values: &[f64]) -> Vec<f64> {
    owned.iter().flat_map(|range| values[range.clone()].to_vec()).collect()
}

fn adamw_case<R: Real>(owned: &[Range<usize>]) {
    let start = random(N, 81);
    let mut rank = Rank::<R>::new(&start, owned);
    let (mut plain, mut exact) = (Plain::new(&start, |x| f64::from(x as f32)), Plain::new(&start, |x| x));
    for step in 1..=10 {
        let (g, norm) = gradient(step);
        rank.step(step, &g, false);
        plain.step(update(step), &g, norm);
        exact.step(update(step), &g, norm);
    }
    let [w, m, v] = rank.state();
    for (name, got, plain, exact) in
        [("weights", w, plain.w, exact.w), ("moment1", m, plain.m, exact.m), ("moment2", v, plain.v, exact.v)]
    {
        let plain: Vec<f32> = pick(owned, &plain).iter().map(|&x| x as f32).collect();
        close(&format!("{} {name} of {owned:?}", R::NAME), &got, &plain, &pick(owned, &exact));
    }
}

#[test]
fn adamw_for_ten_steps() {
    // the second share starts where nothing is aligned
    for owned in [vec![0..N; 1], vec![1000..5001, 9001..35_000]] {
        adamw_case::<f32>(&owned);
        adamw_case::<bf16>(&owned);
    }
}

fn lamb_case<R: Real>() {
    let start = random(N, 81);
    let all = vec![0..N; 1];
    let mut rank = Rank::<R>::new(&start, &all);
    let mut state = [to64(&start), vec![0.0; N], vec![0.0; N]];
    for step in 1..=10 {
        let (g, norm) = gradient(step);
        rank.step(step, &g, true);
        plain_lamb(update(step), &g, norm, &mut state);
    }
    // The plain computation in f32 would round each of ten steps some five times.
    for (got, exact) in rank.state().iter().zip(&state) {
        let size = exact.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        let worst = got.iter().zip(exact).map(|(&g, e)| (f64::from(g) - e).abs()).fold(0.0, f64::max);
        assert!(worst <= 50.0 * f64::from(f32::EPSILON) * size, "{} {worst:e} of {size}", R::NAME);
    }
}

#[test]
fn lamb_for_ten_steps() {
    lamb_case::<f32>();
    lamb_case::<bf16>();
}

fn broken_case<R: Real>(lamb: bool) {
    let start = all_held::<R>(&random(N, 81));
    for bad in [f32::NAN, f32::INFINITY] {
        let mut rank = Rank::<R>::new(&start, std::slice::from_ref(&(0..N)));
        let mut g = random(N, 82);
        g[20_000] = bad;
        rank.step(1, &g, lamb);
        let [w, m, v] = rank.state();
        assert_eq!(w, start);
        assert!(m.iter().chain(&v).all(|&x| x == 0.0));
    }
}

#[test]
fn a_broken_norm_skips_the_update() {
    for lamb in [false, true] {
        broken_case::<f32>(lamb);
        broken_case::<bf16>(lamb);
    }
}

#[test]
fn sums_of_squares() {
    let gpu = engine::<f32>(&Pack::new(&[1], 50), 1);
    let x = random(100_003, 83);
    let xb = put::<f32, f32>(&gpu, &x, 8);
    let mut out = put(&gpu, &[7.0; 3], 8);
    for ranges in [
        vec![],
        vec![5..6; 1],
        vec![1..100_003; 1],
        vec![0..3, 30_000..46_384, 50_001..50_001, 99_999..100_003],
    ] {
        gpu.run(op::SumSquares { src: &xb, ranges: &ranges, out: &mut out, slot: 1 }).unwrap();
        let values: Vec<f32> = ranges.iter().flat_map(|range| x[range.clone()].to_vec()).collect();
        let plain: f32 = values.iter().map(|x| x * x).sum();
        let exact: f64 = to64(&values).iter().map(|x| x * x).sum();
        let got = get::<f32, f32>(&gpu, &out, 3, 0);
        close(&format!("{ranges:?}"), &got[1..2], &[plain], &[exact]);
        assert_eq!((got[0], got[2]), (7.0, 7.0));
    }
}
