//! Matrix products and GELU.

use super::naive;
use super::support::*;
use ctune_dist::engine::cases::Sizes;
use ctune_dist::engine::cpu::Cpu;
use ctune_dist::engine::op::{self, Epilogue, LinearAt};
use ctune_dist::engine::{Device, Engine, Floats, Real, Rows};

/// (rows, N, K): tile edges, one block and several of each of m, n and k.
const SIZES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (2, 33, 17),
    (63, 96, 64),
    (64, 384, 130),
    (65, 400, 40),
    (200, 32, 600),
    (12, 31, 1100),
    (2100, 20, 24),
    (300, 1000, 48),
];

/// Those, and the products of real models on some rows.
fn sizes() -> Vec<(usize, usize, usize)> {
    let real = Sizes::widths().map(|sizes| (5, sizes.intermediate, sizes.hidden));
    SIZES.into_iter().chain(real).collect()
}

struct Case {
    at: LinearAt,
    rows: usize,
    x: Vec<f32>,
    weights: Vec<f32>,
    dy: Vec<f32>,
}

impl Case {
    fn new<R: Real>((rows, n, k): (usize, usize, usize)) -> Self {
        // An offset that is no multiple of a vector, as arenas have.
        let at = LinearAt { w: 5, b: 5 + n * k, n, k };
        let mut x = random(rows * k, 1);
        x.iter_mut().for_each(|x| *x *= 1.7);
        let drawn = |len: usize, seed: u32| held::<R>(&random(len, seed));
        Self { at, rows, x: held::<R>(&x), weights: drawn(5 + n * k + n, 2), dy: drawn(rows * n, 3) }
    }

    fn w(&self) -> &[f32] {
        &self.weights[self.at.w..self.at.b]
    }

    fn b(&self) -> &[f32] {
        &self.weights[self.at.b..]
    }
}

#[test]
fn linear_forward() {
    on_engines!(linear_forward_case);
}

fn linear_forward_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    for size in sizes() {
        let case = Case::new::<R>(size);
        let (at, len, rows) = (case.at, case.rows * case.at.n, Rows::Tokens(case.rows));
        let (x, weights) = (&poisoned(cpu, &case.x), &poisoned(cpu, &case.weights));
        for (epilogue, bias) in [(Epilogue::Bias, case.b().to_vec()), (Epilogue::None, vec![0.0; at.n])] {
            let out = &mut unwritten(cpu, len);
            cpu.run(op::Linear { x, weights, at, rows, epilogue, out }).unwrap();
            let exact = naive::linear(&to64(&case.x), &to64(case.w()), &to64(&bias), at.k);
            let plain = held::<R>(&naive::linear(&case.x, case.w(), &bias, at.k));
            close(
                &format!("linear {} {size:?} {epilogue:?}", R::NAME),
                &taken(cpu, out, len),
                &plain,
                &exact,
            );
        }
    }
}

#[test]
fn linear_gelu_forward() {
    on_engines!(linear_gelu_forward_case);
}

fn linear_gelu_forward_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    for size in sizes() {
        let case = Case::new::<R>(size);
        let (at, len, rows) = (case.at, case.rows * case.at.n, Rows::Tokens(case.rows));
        let (x, weights) = (&poisoned(cpu, &case.x), &poisoned(cpu, &case.weights));
        let (pre, act) = (&mut unwritten(cpu, len), &mut unwritten(cpu, len));
        cpu.run(op::LinearGelu { x, weights, at, rows, pre, act }).unwrap();
        let exact = naive::linear(&to64(&case.x), &to64(case.w()), &to64(case.b()), at.k);
        let plain = held::<R>(&naive::linear(&case.x, case.w(), case.b(), at.k));
        close(&format!("pre {size:?}"), &taken(cpu, pre, len), &plain, &exact);
        let exact: Vec<f64> = exact.into_iter().map(naive::gelu).collect();
        let plain: Vec<f32> = held::<R>(&plain.into_iter().map(naive::gelu).collect::<Vec<_>>());
        close(&format!("gelu {size:?}"), &taken(cpu, act, len), &plain, &exact);
    }
}

#[test]
fn linear_backward() {
    on_engines!(linear_backward_case);
}

fn linear_backward_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    for size in sizes() {
        let case = Case::new::<R>(size);
        let (at, count, rows) = (case.at, case.rows, Rows::Tokens(case.rows));
        let LinearAt { w, b, n, k } = at;
        let (x, dy) = (&poisoned(cpu, &case.x), &poisoned(cpu, &case.dy));
        let weights = &poisoned(cpu, &case.weights);
        let (x64, dy64, w64) = (to64(&case.x), to64(&case.dy), to64(case.w()));
        let plain = naive::product((count, k, n), |i, p| case.dy[i * n + p], |p, j| case.w()[p * k + j]);
        let exact = naive::product((count, k, n), |i, p| dy64[i * n + p], |p, j| w64[p * k + j]);
        let dx = &mut unwritten(cpu, count * k);
        cpu.run(op::LinearBackwardInput { dy, weights, at, rows, accumulate: false, dx }).unwrap();
        let once = held::<R>(&plain);
        close(&format!("dx {size:?}"), &taken(cpu, dx, count * k), &once, &exact);
        cpu.run(op::LinearBackwardInput { dy, weights, at, rows, accumulate: true, dx }).unwrap();
        let twice: Vec<f32> = once.iter().zip(&plain).map(|(once, x)| once + x).collect();
        let exact: Vec<f64> = exact.iter().map(|x| 2.0 * x).collect();
        close(&format!("dx twice {size:?}"), &taken(cpu, dx, count * k), &held::<R>(&twice), &exact);

        let start = random(case.weights.len(), 7);
        let grads: &mut Floats<E> = &mut poisoned(cpu, &start);
        cpu.run(op::LinearBackwardWeight { dy, x, at, rows, grads }).unwrap();
        let got = taken(cpu, grads, start.len());
        let mut plain = naive::product((n, k, count), |i, p| case.dy[p * n + i], |p, j| case.x[p * k + j]);
        let mut exact = naive::product((n, k, count), |i, p| dy64[p * n + i], |p, j| x64[p * k + j]);
        for (i, (plain, exact)) in plain.iter_mut().zip(&mut exact).enumerate() {
            *plain += start[w + i];
            *exact += f64::from(start[w + i]);
        }
        close(&format!("dw {size:?}"), &got[w..b], &plain, &exact);
        assert_eq!(got[..w], start[..w], "gradients of other parameters");
        assert_eq!(got[b..], start[b..], "the bias gradient is not this operation's");
    }
}

#[test]
fn gelu_backward() {
    on_engines!(gelu_backward_case);
}

fn gelu_backward_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    let pre = held::<R>(&random(20_001, 4).iter().map(|x| x * 9.0).collect::<Vec<_>>());
    let d = held::<R>(&random(pre.len(), 5));
    let (before, grads) = (&poisoned(cpu, &pre), &mut poisoned(cpu, &[0.5; 6667]));
    let (rows, width) = (Rows::Tokens(3), pre.len() / 3);
    let mut run = |bias| {
        let mut dact = poisoned(cpu, &d);
        cpu.run(op::GeluBackward { pre: before, rows, width, bias, dact: &mut dact, grads }).unwrap();
        (dact, taken(cpu, grads, width))
    };
    assert!(run(None).1.iter().all(|&x| x == 0.5), "no bias gradient was asked for");
    let (dact, bias) = run(Some(0));
    let plain: Vec<f32> = pre.iter().zip(&d).map(|(&x, &d)| d * naive::gelu_slope(x)).collect();
    let plain = held::<R>(&plain);
    let exact: Vec<f64> =
        to64(&pre).into_iter().zip(to64(&d)).map(|(x, d)| d * naive::gelu_slope(x)).collect();
    close("gelu_backward", &taken(cpu, &dact, pre.len()), &plain, &exact);
    let plain: Vec<f32> = naive::columns(&plain, width).iter().map(|x| 0.5 + x).collect();
    let exact: Vec<f64> = naive::columns(&exact, width).iter().map(|x| 0.5 + x).collect();
    close("gelu_backward: bias", &bias, &plain, &exact);
}

#[test]
fn gelu_gradient_is_the_slope() {
    let x = [0.3, -1.2, 2.5, -4.0];
    let slopes: Vec<f64> = x.iter().map(|&x| naive::gelu_slope(x)).collect();
    differences("gelu", &x, &slopes, |x| x.iter().map(|&x| naive::gelu(x)).sum());
}

#[test]
fn short_buffers_are_errors() {
    let cpu = Cpu::new();
    let at = LinearAt { w: 0, b: 12, n: 3, k: 4 };
    let (x, weights) = (&cpu.zeros(8).unwrap(), &cpu.zeros(15).unwrap());
    let (rows, epilogue, out) = (Rows::Tokens(2), Epilogue::Bias, &mut cpu.zeros(5).unwrap());
    let error = cpu.run(op::Linear { x, weights, at, rows, epilogue, out }).unwrap_err().to_string();
    assert!(error.contains("linear out") && error.contains("5 elements"), "{error}");
    assert!(cpu.download(x, 4..9).is_err());
    assert_eq!(cpu.download(x, 4..8).unwrap(), [0.0; 4]);
    assert!(x.as_ptr().cast::<u8>().align_offset(64) == 0);
}
