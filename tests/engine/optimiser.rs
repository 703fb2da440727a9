//! AdamW, LAMB and the gradient norm.

use std::ops::Range;

use super::support::*;
use ctune_dist::engine::cpu::Cpu;
use ctune_dist::engine::op::{self, ParamGroup, UpdateRule};
use ctune_dist::engine::{Device, Engine, Floats, Real, Reals};

pub const N: usize = 40_000;

pub fn groups() -> Vec<ParamGroup> {
    vec![
        ParamGroup { range: 0..17_001, decay: true, lr_scale: 1.0 },
        ParamGroup { range: 17_001..17_010, decay: false, lr_scale: 1.0 },
        ParamGroup { range: 17_010..30_000, decay: true, lr_scale: 0.5 },
        ParamGroup { range: 30_000..N, decay: true, lr_scale: 0.0 },
    ]
}

pub fn update(step: u32) -> UpdateRule {
    UpdateRule { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step, clip_norm: 50.0 }
}

/// Plain state of one run, in f64 or (every value rounded after each statement) in f32.
pub struct Plain {
    round: fn(f64) -> f64,
    pub w: Vec<f64>,
    pub m: Vec<f64>,
    pub v: Vec<f64>,
}

impl Plain {
    pub fn new(w: &[f32], round: fn(f64) -> f64) -> Self {
        Self { round, w: to64(w), m: vec![0.0; w.len()], v: vec![0.0; w.len()] }
    }

    /// As the documentation of torch.optim.AdamW states it.
    pub fn step(&mut self, u: UpdateRule, g: &[f32], norm: f64) {
        let r = self.round;
        let f = |x: f32| f64::from(x);
        let clip = (f(u.clip_norm) / (norm + 1e-6)).min(1.0);
        for group in groups() {
            let lr = f(u.lr) * f(group.lr_scale);
            if lr == 0.0 {
                continue;
            }
            for i in group.range {
                let g = r(f(g[i]) * r(clip));
                if group.decay {
                    self.w[i] = r(self.w[i] * r(1.0 - lr * f(u.weight_decay)));
                }
                self.m[i] = r(r(f(u.beta1) * self.m[i]) + r(r(1.0 - f(u.beta1)) * g));
                self.v[i] = r(r(f(u.beta2) * self.v[i]) + r(r(1.0 - f(u.beta2)) * r(g * g)));
                let m = r(self.m[i] / r(1.0 - f(u.beta1).powi(u.step as i32)));
                let v = r(self.v[i] / r(1.0 - f(u.beta2).powi(u.step as i32)));
                self.w[i] = r(self.w[i] - r(r(lr * m) / r(r(v.sqrt()) + f(u.eps))));
            }
        }
    }
}

/// What one rank updates, and the state that it keeps for it.
struct State<E: Engine> {
    owned: Vec<Range<usize>>,
    weights: Reals<E>,
    /// Empty where weights are f32.
    master: Floats<E>,
    moment1: Floats<E>,
    moment2: Floats<E>,
}

impl<E: Engine> State<E> {
    fn new(cpu: &E, start: &[f32], owned: &[Range<usize>]) -> Self {
        let own: Vec<f32> = owned.iter().flat_map(|range| start[range.clone()].to_vec()).collect();
        let zeros = vec![0.0; own.len()];
        Self {
            owned: owned.to_vec(),
            weights: poisoned(cpu, start),
            master: if <E::Real>::NARROW { poisoned(cpu, &own) } else { cpu.zeros(0).unwrap() },
            moment1: poisoned(cpu, &zeros),
            moment2: poisoned(cpu, &zeros),
        }
    }

    fn adamw(&mut self, cpu: &E, step: u32, norm_sq: &Floats<E>, grads: &mut Floats<E>) {
        let (rule, groups) = (update(step), &groups());
        let Self { owned, weights, master, moment1, moment2 } = self;
        cpu.run(op::AdamWUpdate { rule, groups, owned, norm_sq, weights, master, grads, moment1, moment2 })
            .unwrap();
    }

    fn lamb(&mut self, cpu: &E, step: u32, norm_sq: &Floats<E>, grads: &mut Floats<E>) {
        let (rule, groups, norms) = (update(step), &groups(), &mut poisoned(cpu, &[1.0; 8]));
        let Self { owned, weights, master, moment1, moment2 } = self;
        cpu.run(op::LambDirection {
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
        cpu.run(op::LambApply { rule, groups, owned, norms, weights, master, grads }).unwrap();
    }
}

#[test]
fn adamw_for_ten_steps() {
    let cpu = Cpu::new();
    let (start, ranges) = (random(N, 81), &vec![0..N; 1]);
    let mut state = State::new(&cpu, &start, ranges);
    let norm_sq = &mut poisoned(&cpu, &[0.0, 0.0]);
    let (mut plain, mut exact) = (Plain::new(&start, |x| f64::from(x as f32)), Plain::new(&start, |x| x));
    for step in 1..=10 {
        // Norms of about 12 to 120: the first steps are not clipped.
        let g: Vec<f32> = random(N, 90 + step).iter().map(|x| x * step as f32 * 0.1).collect();
        let grads = &mut poisoned(&cpu, &g);
        cpu.run(op::SumSquares { src: grads, ranges, out: norm_sq, slot: 0 }).unwrap();
        state.adamw(&cpu, step, norm_sq, grads);
        assert!(taken(&cpu, grads, N).iter().all(|&x| x == 0.0), "gradients end as zeros");
        let norm = to64(&g).iter().map(|x| x * x).sum::<f64>().sqrt();
        plain.step(update(step), &g, norm);
        exact.step(update(step), &g, norm);
    }
    let f32s = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<_>>();
    let State { weights, moment1, moment2, .. } = &state;
    let weights = taken(&cpu, weights, N);
    close("weights", &weights, &f32s(&plain.w), &exact.w);
    close("moment1", &taken(&cpu, moment1, N), &f32s(&plain.m), &exact.m);
    close("moment2", &taken(&cpu, moment2, N), &f32s(&plain.v), &exact.v);
    assert_eq!(weights[30_000..N], start[30_000..], "a frozen range stays");
    assert!(weights[..30_000].iter().zip(&start).all(|(a, b)| a != b));
}

/// LAMB as the paper states it, in f64: one group is one tensor.
pub fn plain_lamb(u: UpdateRule, g: &[f32], norm: f64, state: &mut [Vec<f64>; 3]) {
    let f = |x: f32| f64::from(x);
    let [w, m, v] = state;
    for group in groups() {
        let decay = if group.decay { f(u.weight_decay) } else { 0.0 };
        let mut r = vec![0.0; group.range.len()];
        for (r, i) in r.iter_mut().zip(group.range.clone()) {
            let g = f(g[i]) * (f(u.clip_norm) / (norm + 1e-6)).min(1.0);
            if group.lr_scale > 0.0 {
                m[i] = f(u.beta1) * m[i] + (1.0 - f(u.beta1)) * g;
                v[i] = f(u.beta2) * v[i] + (1.0 - f(u.beta2)) * g * g;
            }
            let m = m[i] / (1.0 - f(u.beta1).powi(u.step as i32));
            let v = v[i] / (1.0 - f(u.beta2).powi(u.step as i32));
            *r = m / (v.sqrt() + f(u.eps)) + decay * w[i];
        }
        let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let ratio = if group.decay { length(&w[group.range.clone()]) / length(&r) } else { 1.0 };
        for (i, r) in group.range.zip(r) {
            w[i] -= f(u.lr) * f(group.lr_scale) * ratio * r;
        }
    }
}

/// Two ranks with a share each, the norms of what they share summed between the passes.
#[test]
fn lamb_for_ten_steps_on_two_shares() {
    let cpu = Cpu::new();
    let start = random(N, 81);
    let mut exact = [to64(&start), vec![0.0; N], vec![0.0; N]];
    let mut ranks = [vec![0..777, 20_000..31_000], vec![777..20_000, 31_000..N]]
        .map(|owned| State::new(&cpu, &start, &owned));
    let square = |g: &[f32]| to64(g).iter().map(|x| x * x).sum::<f64>();
    let (groups, weights) = (&groups(), &mut poisoned(&cpu, &start));
    let master = &mut cpu.zeros(0).unwrap();
    for step in 1..=10 {
        let rule = update(step);
        let g: Vec<f32> = random(N, 90 + step).iter().map(|x| x * step as f32 * 0.1).collect();
        let norm_sq = &poisoned(&cpu, &[square(&g) as f32]);
        let mut total = vec![0.0f32; 8];
        let mut directions = Vec::new();
        for State { owned, moment1, moment2, .. } in &mut ranks {
            let (mut direction, norms) = (poisoned(&cpu, &g), &mut poisoned(&cpu, &[1.0; 8]));
            cpu.run(op::LambDirection {
                rule,
                groups,
                owned,
                norm_sq,
                weights,
                master,
                grads: &mut direction,
                moment1,
                moment2,
                norms,
            })
            .unwrap();
            total.iter_mut().zip(taken(&cpu, norms, 8)).for_each(|(sum, x)| *sum += x);
            directions.push(direction);
        }
        let norms = &poisoned(&cpu, &total);
        for (State { owned, .. }, grads) in ranks.iter().zip(&mut directions) {
            cpu.run(op::LambApply { rule, groups, owned, norms, weights, master, grads }).unwrap();
            assert!(taken(&cpu, grads, N).iter().all(|&x| x == 0.0), "gradients end as zeros, owned or not");
        }
        plain_lamb(rule, &g, square(&g).sqrt(), &mut exact);
    }
    // ten updates of f32: a handful of roundings each
    for (i, (&w, e)) in taken(&cpu, weights, N).iter().zip(&exact[0]).enumerate() {
        assert!((f64::from(w) - e).abs() <= 2e-6 * e.abs().max(1.0), "weight {i}: {w} is not {e}");
    }
    assert_eq!(weights[30_000..N], start[30_000..], "a frozen range stays");
    assert!(weights[..30_000].iter().zip(&start).all(|(a, b)| a != b));
}

/// Ranks that each update a share change together what one rank changes alone.
#[test]
fn shares_add_up_to_the_whole() {
    let cpu = Cpu::new();
    let (start, g) = (random(N, 81), random(N, 84));
    let run = |owned: &[Range<usize>]| {
        let own: usize = owned.iter().map(ExactSizeIterator::len).sum();
        let (mut state, grads) = (State::new(&cpu, &start, owned), &mut poisoned(&cpu, &g));
        state.adamw(&cpu, 1, &poisoned(&cpu, &[4.0]), grads);
        assert!(taken(&cpu, grads, N).iter().all(|&x| x == 0.0), "gradients end as zeros, owned or not");
        (taken(&cpu, &state.weights, N), taken(&cpu, &state.moment1, own), taken(&cpu, &state.moment2, own))
    };
    let whole = run(&vec![0..N; 1]);
    let (cut, other) = (run(&[0..777, 20_000..31_000]), run(&[777..20_000, 31_000..N]));
    for i in 0..N {
        let of = if i < 777 || (20_000..31_000).contains(&i) { &cut } else { &other };
        assert_eq!(of.0[i], whole.0[i], "weight {i}");
    }
    assert_eq!(cut.1[777..], whole.1[20_000..31_000]);
    assert_eq!(other.2[..19_223], whole.2[777..20_000]);
}

#[test]
fn a_broken_norm_skips_the_update() {
    let cpu = Cpu::new();
    let (start, ranges) = (random(N, 81), &vec![0..N; 1]);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut g = random(N, 82);
        g[20_000] = bad;
        let (mut state, grads) = (State::new(&cpu, &start, ranges), &mut poisoned(&cpu, &g));
        let norm_sq = &mut poisoned(&cpu, &[0.0]);
        cpu.run(op::SumSquares { src: grads, ranges, out: norm_sq, slot: 0 }).unwrap();
        assert!(!norm_sq[0].is_finite());
        state.adamw(&cpu, 1, norm_sq, grads);
        assert_eq!(taken(&cpu, &state.weights, N), start);
        state.lamb(&cpu, 1, norm_sq, &mut poisoned(&cpu, &g));
        assert_eq!(taken(&cpu, &state.weights, N), start);
        let kept =
            [taken(&cpu, grads, N), taken(&cpu, &state.moment1, N), taken(&cpu, &state.moment2, N)].concat();
        assert!(kept.iter().all(|&x| x == 0.0));
    }
}

#[test]
fn sums_of_squares() {
    let cpu = Cpu::new();
    let x = random(100_003, 83);
    let (src, out) = (&poisoned(&cpu, &x), &mut poisoned(&cpu, &[7.0; 3]));
    for range in [0..0, 5..6, 1..100_003, 30_000..46_384] {
        let ranges = std::slice::from_ref(&range);
        cpu.run(op::SumSquares { src, ranges, out, slot: 1 }).unwrap();
        let exact: f64 = to64(&x[range]).iter().map(|x| x * x).sum();
        assert!((f64::from(out[1]) - exact).abs() <= exact * 6e-8, "{} {exact}", out[1]);
    }
    assert_eq!((out[0], out[2]), (7.0, 7.0));
}

/// An update of bf16 weights is the update of their f32 master, rounded; in f32 there is no master.
#[test]
fn narrow_weights_are_their_master_rounded() {
    let (wide, narrow) = (Cpu::new(), Cpu::<half::bf16>::default());
    let start = held::<half::bf16>(&random(N, 81));
    let owned = [0..777, 20_000..N];
    for lamb in [false, true] {
        let (mut all, mut kept) = (State::new(&wide, &start, &owned), State::new(&narrow, &start, &owned));
        let norm_sq = &poisoned(&wide, &[9000.0]);
        for step in 1..=3 {
            let g = random(N, 90 + step);
            let (g1, g2) = (&mut poisoned(&wide, &g), &mut poisoned(&wide, &g));
            if lamb {
                all.lamb(&wide, step, norm_sq, g1);
                kept.lamb(&narrow, step, norm_sq, g2);
            } else {
                all.adamw(&wide, step, norm_sq, g1);
                kept.adamw(&narrow, step, norm_sq, g2);
            }
            assert_eq!(taken(&wide, g1, N), taken(&narrow, g2, N));
        }
        let expected = taken(&wide, &all.weights, N);
        let own = [&expected[..777], &expected[20_000..]].concat();
        assert_eq!(taken(&narrow, &kept.master, own.len()), own);
        assert_eq!(taken(&narrow, &kept.weights, N), held::<half::bf16>(&expected));
        assert_ne!(held::<half::bf16>(&expected), expected, "the master keeps more than the weights");
    }
}
