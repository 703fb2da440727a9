//! AdamW, LAMB and the gradient norm.

use super::support::*;
use ctune_dist::engine::cpu::{Buffer, Cpu};
use ctune_dist::engine::{AdamW, Backend, ParamGroup};

pub const N: usize = 40_000;

pub fn groups() -> Vec<ParamGroup> {
    vec![
        ParamGroup { range: 0..17_001, decay: true, lr_scale: 1.0 },
        ParamGroup { range: 17_001..17_010, decay: false, lr_scale: 1.0 },
        ParamGroup { range: 17_010..30_000, decay: true, lr_scale: 0.5 },
        ParamGroup { range: 30_000..N, decay: true, lr_scale: 0.0 },
    ]
}

pub fn update(step: u32) -> AdamW {
    AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step, clip_norm: 50.0 }
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
    pub fn step(&mut self, u: AdamW, g: &[f32], norm: f64) {
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

#[test]
fn adamw_for_ten_steps() {
    let cpu = Cpu::new();
    let start = random(N, 81);
    let mut weights = poisoned(&cpu, &start);
    let (mut m, mut v) = (poisoned(&cpu, &vec![0.0; N]), poisoned(&cpu, &vec![0.0; N]));
    let mut norm_sq = poisoned(&cpu, &[0.0, 0.0]);
    let (owned, mut master) = (vec![0..N; 1], cpu.zeros(0).unwrap());
    let (mut plain, mut exact) = (Plain::new(&start, |x| f64::from(x as f32)), Plain::new(&start, |x| x));
    for step in 1..=10 {
        // Norms of about 12 to 120: the first steps are not clipped.
        let g: Vec<f32> = random(N, 90 + step).iter().map(|x| x * step as f32 * 0.1).collect();
        let mut grads = poisoned(&cpu, &g);
        cpu.sum_squares(&grads, std::slice::from_ref(&(0..N)), &mut norm_sq, 0).unwrap();
        cpu.adamw(
            update(step),
            &groups(),
            &owned,
            &norm_sq,
            &mut weights,
            &mut master,
            &mut grads,
            &mut m,
            &mut v,
        )
        .unwrap();
        assert!(taken(&grads, N).iter().all(|&x| x == 0.0), "gradients end as zeros");
        let norm = to64(&g).iter().map(|x| x * x).sum::<f64>().sqrt();
        plain.step(update(step), &g, norm);
        exact.step(update(step), &g, norm);
    }
    let f32s = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<_>>();
    close("weights", &taken(&weights, N), &f32s(&plain.w), &exact.w);
    close("moment1", &taken(&m, N), &f32s(&plain.m), &exact.m);
    close("moment2", &taken(&v, N), &f32s(&plain.v), &exact.v);
    assert_eq!(weights[30_000..N], start[30_000..], "a frozen range stays");
    assert!(weights[..30_000].iter().zip(&start).all(|(a, b)| a != b));
}

/// LAMB as the paper states it, in f64: one group is one tensor.
pub fn plain_lamb(u: AdamW, g: &[f32], norm: f64, state: &mut [Vec<f64>; 3]) {
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
    let shares = [vec![0..777, 20_000..31_000], vec![777..20_000, 31_000..N]];
    let len = |own: &[std::ops::Range<usize>]| own.iter().map(ExactSizeIterator::len).sum::<usize>();
    let mut weights = poisoned(&cpu, &start);
    let mut moments = shares.clone().map(|own| {
        let zeros = vec![0.0; len(&own)];
        (poisoned(&cpu, &zeros), poisoned(&cpu, &zeros))
    });
    let norm_sq = |g: &[f32]| to64(g).iter().map(|x| x * x).sum::<f64>();
    let mut master = cpu.zeros(0).unwrap();
    for step in 1..=10 {
        let g: Vec<f32> = random(N, 90 + step).iter().map(|x| x * step as f32 * 0.1).collect();
        let sum = poisoned(&cpu, &[norm_sq(&g) as f32]);
        let mut total = vec![0.0f32; 8];
        let mut directions = Vec::new();
        for (own, (m, v)) in shares.iter().zip(&mut moments) {
            let (mut grads, mut norms) = (poisoned(&cpu, &g), poisoned(&cpu, &[1.0; 8]));
            let (u, w) = (update(step), &weights);
            cpu.lamb_direction(u, &groups(), own, &sum, w, &master, &mut grads, m, v, &mut norms).unwrap();
            total.iter_mut().zip(taken(&norms, 8)).for_each(|(sum, x)| *sum += x);
            directions.push(grads);
        }
        let total = poisoned(&cpu, &total);
        for (own, mut grads) in shares.iter().zip(directions) {
            let (u, w) = (update(step), &mut weights);
            cpu.lamb_apply(u, &groups(), own, &total, w, &mut master, &mut grads).unwrap();
            assert!(taken(&grads, N).iter().all(|&x| x == 0.0), "gradients end as zeros, owned or not");
        }
        plain_lamb(update(step), &g, norm_sq(&g).sqrt(), &mut exact);
    }
    // ten updates of f32: a handful of roundings each
    for (i, (&w, e)) in taken(&weights, N).iter().zip(&exact[0]).enumerate() {
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
    let run = |owned: &[std::ops::Range<usize>]| {
        let own: usize = owned.iter().map(ExactSizeIterator::len).sum();
        let (mut weights, mut grads) = (poisoned(&cpu, &start), poisoned(&cpu, &g));
        let (mut m, mut v) = (poisoned(&cpu, &vec![0.0; own]), poisoned(&cpu, &vec![0.0; own]));
        let norm_sq = poisoned(&cpu, &[4.0]);
        let mut master = cpu.zeros(0).unwrap();
        let (w, g) = (&mut weights, &mut grads);
        cpu.adamw(update(1), &groups(), owned, &norm_sq, w, &mut master, g, &mut m, &mut v).unwrap();
        assert!(taken(&grads, N).iter().all(|&x| x == 0.0), "gradients end as zeros, owned or not");
        (taken(&weights, N), taken(&m, own), taken(&v, own))
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
    let start = random(N, 81);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut g = random(N, 82);
        g[20_000] = bad;
        let (mut weights, mut grads) = (poisoned(&cpu, &start), poisoned(&cpu, &g));
        let (mut m, mut v) = (poisoned(&cpu, &vec![0.0; N]), poisoned(&cpu, &vec![0.0; N]));
        let mut norm_sq = poisoned(&cpu, &[0.0]);
        let (owned, mut master) = (vec![0..N; 1], cpu.zeros(0).unwrap());
        cpu.sum_squares(&grads, std::slice::from_ref(&(0..N)), &mut norm_sq, 0).unwrap();
        assert!(!norm_sq[0].is_finite());
        cpu.adamw(
            update(1),
            &groups(),
            &owned,
            &norm_sq,
            &mut weights,
            &mut master,
            &mut grads,
            &mut m,
            &mut v,
        )
        .unwrap();
        assert_eq!(taken(&weights, N), start);
        let (mut again, mut norms) = (poisoned(&cpu, &g), poisoned(&cpu, &[1.0; 8]));
        let (u, w) = (update(1), &mut weights);
        let (m1, v1) = (&mut m, &mut v);
        cpu.lamb_direction(u, &groups(), &owned, &norm_sq, w, &master, &mut again, m1, v1, &mut norms)
            .unwrap();
        cpu.lamb_apply(u, &groups(), &owned, &norms, w, &mut master, &mut again).unwrap();
        assert_eq!(taken(&weights, N), start);
        assert!(taken(&grads, N).iter().chain(&taken(&m, N)).chain(&taken(&v, N)).all(|&x| x == 0.0));
    }
}

#[test]
fn sums_of_squares() {
    let cpu = Cpu::new();
    let x = random(100_003, 83);
    let mut out = poisoned(&cpu, &[7.0; 3]);
    for range in [0..0, 5..6, 1..100_003, 30_000..46_384] {
        cpu.sum_squares(&poisoned(&cpu, &x), std::slice::from_ref(&range), &mut out, 1).unwrap();
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
    let own = 777 + N - 20_000;
    let zeros = vec![0.0; own];
    for lamb in [false, true] {
        let mut weights: Buffer<f32> = poisoned(&wide, &start);
        let mut kept: Buffer<half::bf16> = poisoned(&narrow, &start);
        let mut master = poisoned(&narrow, &[&start[..777], &start[20_000..]].concat());
        let mut none = wide.zeros(0).unwrap();
        let [mut m1, mut v1, mut m2, mut v2] = [(); 4].map(|()| poisoned(&wide, &zeros));
        for step in 1..=3 {
            let (u, groups) = (update(step), groups());
            let (mut g1, mut g2) =
                (poisoned(&wide, &random(N, 90 + step)), poisoned(&wide, &random(N, 90 + step)));
            let norm: Buffer<f32> = poisoned(&wide, &[9000.0]);
            if lamb {
                let (mut n1, mut n2) = (poisoned(&wide, &[0.0; 8]), poisoned(&wide, &[0.0; 8]));
                wide.lamb_direction(
                    u, &groups, &owned, &norm, &weights, &none, &mut g1, &mut m1, &mut v1, &mut n1,
                )
                .unwrap();
                narrow
                    .lamb_direction(
                        u, &groups, &owned, &norm, &kept, &master, &mut g2, &mut m2, &mut v2, &mut n2,
                    )
                    .unwrap();
                wide.lamb_apply(u, &groups, &owned, &n1, &mut weights, &mut none, &mut g1).unwrap();
                narrow.lamb_apply(u, &groups, &owned, &n2, &mut kept, &mut master, &mut g2).unwrap();
            } else {
                wide.adamw(u, &groups, &owned, &norm, &mut weights, &mut none, &mut g1, &mut m1, &mut v1)
                    .unwrap();
                narrow
                    .adamw(u, &groups, &owned, &norm, &mut kept, &mut master, &mut g2, &mut m2, &mut v2)
                    .unwrap();
            }
            assert_eq!(taken(&g1, N), taken(&g2, N));
        }
        let expected = taken(&weights, N);
        assert_eq!(taken(&master, own), [&expected[..777], &expected[20_000..]].concat());
        assert_eq!(taken(&kept, N), held::<half::bf16>(&expected));
        assert_ne!(held::<half::bf16>(&expected), expected, "the master keeps more than the weights");
    }
}
