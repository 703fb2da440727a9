//! AdamW and the gradient norm.

use super::support::*;
use ctune_dist::engine::cpu::Cpu;
use ctune_dist::engine::{AdamW, Backend, ParamGroup};

const N: usize = 40_000;

fn groups() -> Vec<ParamGroup> {
    vec![
        ParamGroup { range: 0..17_001, decay: true, lr_scale: 1.0 },
        ParamGroup { range: 17_001..17_010, decay: false, lr_scale: 1.0 },
        ParamGroup { range: 17_010..30_000, decay: true, lr_scale: 0.5 },
        ParamGroup { range: 30_000..N, decay: true, lr_scale: 0.0 },
    ]
}

fn update(step: u32) -> AdamW {
    AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step, clip_norm: 50.0 }
}

/// Plain state of one run, in f64 or (every value rounded after each statement) in f32.
struct Plain {
    round: fn(f64) -> f64,
    w: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
}

impl Plain {
    fn new(w: &[f32], round: fn(f64) -> f64) -> Self {
        Self { round, w: to64(w), m: vec![0.0; w.len()], v: vec![0.0; w.len()] }
    }

    /// As the documentation of torch.optim.AdamW states it.
    fn step(&mut self, u: AdamW, g: &[f32], norm: f64) {
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
        cpu.sum_squares(&grads, 0..N, &mut norm_sq, 0).unwrap();
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
        cpu.sum_squares(&grads, 0..N, &mut norm_sq, 0).unwrap();
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
        assert!(taken(&grads, N).iter().chain(&taken(&m, N)).chain(&taken(&v, N)).all(|&x| x == 0.0));
    }
}

#[test]
fn sums_of_squares() {
    let cpu = Cpu::new();
    let x = random(100_003, 83);
    let mut out = poisoned(&cpu, &[7.0; 3]);
    for range in [0..0, 5..6, 1..100_003, 30_000..46_384] {
        cpu.sum_squares(&poisoned(&cpu, &x), range.clone(), &mut out, 1).unwrap();
        let exact: f64 = to64(&x[range]).iter().map(|x| x * x).sum();
        assert!((f64::from(out[1]) - exact).abs() <= exact * 6e-8, "{} {exact}", out[1]);
    }
    assert_eq!((out[0], out[2]), (7.0, 7.0));
}
