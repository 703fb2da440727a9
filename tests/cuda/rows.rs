//! Row operations on the device against float64. The yardstick is the plain computation in the same
//! precision: every operation's result rounded to it, sums in f32, as a framework without fused
//! operations would have it. A kernel may be twice as far from the truth.

use std::ops::Range;

use super::buffers::*;
use super::support::{ROOM, all_held, capacity, device, words};
use crate::engine::naive::{self, Norm, Num};
use crate::engine::support::{Pack, close, random, to64};
use ctune_dist::engine::cuda::Cuda;
use ctune_dist::engine::op::{self, Dropout, EmbedAt, NormAt};
use ctune_dist::engine::{Device, Engine, Real, Rows};
use half::bf16;

/// Widths of every instantiation, whole and partly filled.
const WIDTHS: [usize; 7] = [8, 128, 200, 384, 768, 1024, 1560];

fn of<F: Num>(values: &[f32]) -> Vec<F> {
    values.iter().map(|&x| F::of(f64::from(x))).collect()
}

/// gamma near 1, beta near 0, then `more` values.
fn arena<R: Real>(h: usize, more: usize) -> (Vec<f32>, NormAt) {
    let mut weights = random(2 * h + more, 11);
    weights[..h].iter_mut().for_each(|x| *x = 1.0 + 0.3 * *x);
    (all_held::<R>(&weights), NormAt { gamma: 0, beta: h, hidden: h, eps: 1e-12 })
}

fn norm_of<F: Num>(weights: &[f32], at: NormAt) -> Norm<F> {
    let part = |from: usize| of(&weights[from..from + at.hidden]);
    Norm { gamma: part(at.gamma), beta: part(at.beta), eps: F::of(f64::from(at.eps)) }
}

/// The widths of a pack: all of them for the small, two for the large.
fn widths(pack: &Pack) -> &'static [usize] {
    if pack.tokens() > 200 { &WIDTHS[1..3] } else { &WIDTHS }
}

fn drops() -> [Dropout; 2] {
    [Dropout::OFF, Dropout::new(0.3, 17, 4)]
}

fn each_case(mut case: impl FnMut(&Pack, usize, Dropout)) {
    for pack in packs(50) {
        for &h in widths(&pack) {
            drops().into_iter().for_each(|drop| case(&pack, h, drop));
        }
    }
}

#[test]
fn residual_norm() {
    each_case(|pack, h, drop| {
        residual_case::<f32>(pack, h, drop);
        residual_case::<bf16>(pack, h, drop);
    });
}

fn residual_case<R: Real>(pack: &Pack, h: usize, drop: Dropout) {
    let what = format!("residual_norm {} {:?} {h} {}", R::NAME, pack.lengths, drop.threshold);
    let (t, gpu) = (pack.tokens(), engine::<R>(pack, 0));
    let batch = &device(&gpu, pack);
    let (weights, norm) = arena::<R>(h, h);
    let input = |seed: u32| all_held::<R>(&random(t * h, seed));
    let (residual, product, dout) = (input(1), input(2), input(3));
    let (wb, behind) = (&put(&gpu, &weights, 8), ROOM * h + 8);
    let (y, out) = (&mut put(&gpu, &product, behind), &mut unwritten(&gpu, t * h, behind));
    let row_stats = &mut unwritten(&gpu, 2 * t, behind);
    gpu.run(op::ResidualNorm {
        batch,
        weights: wb,
        bias: 2 * h,
        norm,
        drop,
        residual: &put(&gpu, &residual, behind),
        y,
        row_stats,
        out,
    })
    .unwrap();
    get::<f32, R>(&gpu, row_stats, 2 * t, 0);

    let bias = &weights[2 * h..];
    let factors = pack.factors::<f64>(drop, h);
    let biased = |i: usize| f64::from(product[i]) + f64::from(bias[i % h]);
    let exact_y: Vec<f64> = (0..t * h).map(|i| f64::from(residual[i]) + factors[i] * biased(i)).collect();
    let r = |x: f32| R::from_f32(x).to_f32();
    let plain_y: Vec<f32> =
        (0..t * h).map(|i| r(residual[i] + r(factors[i] as f32 * r(product[i] + bias[i % h])))).collect();
    close(&format!("{what} y"), &get(&gpu, y, t * h, 0), &plain_y, &exact_y);
    let (n32, n64) = (norm_of::<f32>(&weights, norm), norm_of::<f64>(&weights, norm));
    let plain_out = all_held::<R>(&naive::norm(&plain_y, &n32));
    close(&what, &get(&gpu, out, t * h, 0), &plain_out, &naive::norm(&exact_y, &n64));

    let (dresidual, dy) = (&mut unwritten(&gpu, t * h, behind), &mut unwritten(&gpu, t * h, behind));
    let grads = &mut put(&gpu, &vec![0.5; 3 * h], 8);
    gpu.run(op::ResidualNormBackward {
        batch,
        weights: wb,
        bias: 2 * h,
        norm,
        drop,
        y,
        row_stats,
        dout: &put(&gpu, &dout, behind),
        dresidual,
        dy,
        grads,
    })
    .unwrap();
    let (dx, dgamma, dbeta) = naive::norm_backward(&plain_y, &n32, &dout);
    let exact = naive::norm_backward(&exact_y, &n64, &to64(&dout));
    let dx = all_held::<R>(&dx);
    let cleared = (gpu_rows(t) - t) * h;
    close(&format!("{what} dresidual"), &get(&gpu, dresidual, t * h, cleared), &dx, &exact.0);
    let plain_dy = all_held::<R>(&naive::times(&dx, &pack.factors(drop, h)));
    let exact_dy = naive::times(&exact.0, &factors);
    close(&format!("{what} dy"), &get(&gpu, dy, t * h, cleared), &plain_dy, &exact_dy);
    let got = get::<f32, R>(&gpu, grads, 3 * h, 0);
    let names = ["gamma", "beta", "bias"];
    let plain = [dgamma, dbeta, naive::columns(&plain_dy, h)];
    let exact = [exact.1, exact.2, naive::columns(&exact_dy, h)];
    for (i, ((name, plain), exact)) in names.iter().zip(&plain).zip(&exact).enumerate() {
        accumulated(&format!("{what} d{name}"), &got[i * h..(i + 1) * h], 0.5, plain, exact);
    }
}

/// Rows that launches cover: the engine has room for `ROOM` more than the count.
fn gpu_rows(count: usize) -> usize {
    capacity(count, 256)
}

/// A gradient that began at `start`.
#[track_caller]
fn accumulated(what: &str, got: &[f32], start: f32, plain: &[f32], exact: &[f64]) {
    let plain: Vec<f32> = plain.iter().map(|x| start + x).collect();
    let exact: Vec<f64> = exact.iter().map(|x| f64::from(start) + x).collect();
    close(what, got, &plain, &exact);
}

#[test]
fn norm_and_gelu_over_masked_rows() {
    for pack in packs(50) {
        for &h in widths(&pack) {
            masked_rows_case::<f32>(&pack, h);
            masked_rows_case::<bf16>(&pack, h);
        }
    }
}

/// The operations of the MLM head: their rows are the masked ones.
fn masked_rows_case<R: Real>(pack: &Pack, h: usize) {
    let what = format!("{} {:?} {h}", R::NAME, pack.lengths);
    let m = pack.tokens() / 2 + 1;
    let gpu = engine::<R>(pack, m);
    let rows = Rows::Masked(m);
    let (weights, at) = arena::<R>(h, 0);
    let input =
        |seed: u32, by: f32| all_held::<R>(&random(m * h, seed).iter().map(|x| by * x).collect::<Vec<_>>());
    let (x, dout) = (input(1, 4.0), input(2, 1.0));
    let (xb, wb, behind) = (&put(&gpu, &x, 8), &put(&gpu, &weights, 8), ROOM * h + 8);
    let cleared = (capacity(m, 128) - m) * h;

    let (row_stats, out) = (&mut unwritten(&gpu, 2 * m, 8), &mut unwritten(&gpu, m * h, behind));
    gpu.run(op::Norm { x: xb, weights: wb, at, rows, row_stats, out }).unwrap();
    let (n32, n64) = (norm_of::<f32>(&weights, at), norm_of::<f64>(&weights, at));
    let plain = all_held::<R>(&naive::norm(&x, &n32));
    close(&format!("norm {what}"), &get(&gpu, out, m * h, 0), &plain, &naive::norm(&to64(&x), &n64));
    let (d, grads) = (&mut put(&gpu, &dout, behind), &mut put(&gpu, &vec![0.5; 2 * h], 8));
    gpu.run(op::NormBackward { x: xb, weights: wb, at, rows, row_stats, d, grads }).unwrap();
    let plain = naive::norm_backward(&x, &n32, &dout);
    let exact = naive::norm_backward(&to64(&x), &n64, &to64(&dout));
    let got = get(&gpu, d, m * h, cleared);
    close(&format!("norm dx {what}"), &got, &all_held::<R>(&plain.0), &exact.0);
    let got = get::<f32, R>(&gpu, grads, 2 * h, 0);
    accumulated(&format!("norm dgamma {what}"), &got[..h], 0.5, &plain.1, &exact.1);
    accumulated(&format!("norm dbeta {what}"), &got[h..], 0.5, &plain.2, &exact.2);

    let act = &mut unwritten(&gpu, m * h, behind);
    gpu.run(op::Gelu { pre: xb, rows, width: h, act }).unwrap();
    let plain = all_held::<R>(&x.iter().map(|&x| naive::gelu(x)).collect::<Vec<_>>());
    let exact: Vec<f64> = x.iter().map(|&x| naive::gelu(f64::from(x))).collect();
    close(&format!("gelu {what}"), &get(&gpu, act, m * h, 0), &plain, &exact);
    let (dact, grads) = (&mut put(&gpu, &dout, behind), &mut put(&gpu, &vec![0.5; h], 8));
    let (width, bias) = (h, Some(0));
    gpu.run(op::GeluBackward { pre: xb, rows, width, bias, dact, grads }).unwrap();
    let both = || x.iter().zip(&dout);
    let plain = all_held::<R>(&both().map(|(&x, &d)| d * naive::gelu_slope(x)).collect::<Vec<_>>());
    let exact: Vec<f64> = both().map(|(&x, &d)| f64::from(d) * naive::gelu_slope(f64::from(x))).collect();
    close(&format!("gelu' {what}"), &get(&gpu, dact, m * h, cleared), &plain, &exact);
    let got = get::<f32, R>(&gpu, grads, h, 0);
    accumulated(
        &format!("gelu' bias {what}"),
        &got,
        0.5,
        &naive::columns(&plain, h),
        &naive::columns(&exact, h),
    );
}

#[test]
fn gather_and_scatter() {
    gather_case::<f32>();
    gather_case::<bf16>();
}

fn gather_case<R: Real>() {
    let list = [29, 0, 7, 8, 3];
    for hidden in WIDTHS {
        let gpu = engine::<R>(&Pack::new(&[30], 50), list.len());
        let values = all_held::<R>(&random(30 * hidden, 1));
        let (x, picked, rows) = (&mut put(&gpu, &values, 8), &words(&gpu, &list), Rows::Masked(list.len()));
        let out = &mut unwritten(&gpu, list.len() * hidden, ROOM * hidden);
        gpu.run(op::GatherRows { x, picked, rows, hidden, out }).unwrap();
        let got = get(&gpu, out, list.len() * hidden, 0);
        for (got, &row) in got.chunks(hidden).zip(&list) {
            assert_eq!(got, &values[row as usize * hidden..][..hidden]);
        }
        gpu.run(op::ScatterAddRows { src: out, picked, rows, hidden, x }).unwrap();
        let got = get(&gpu, x, 30 * hidden, 0);
        for (row, (got, x)) in got.chunks(hidden).zip(values.chunks(hidden)).enumerate() {
            let factor = if list.contains(&(row as u32)) { 2.0 } else { 1.0 };
            assert!(got.iter().zip(x).all(|(got, x)| *got == factor * x), "row {row}");
        }
    }
}

const VOCAB: usize = 50;
const POSITIONS: usize = 512;

fn embed_at(h: usize, segments: usize) -> EmbedAt {
    let word = 2 * h;
    let position = word + VOCAB * h;
    let norm = NormAt { gamma: 0, beta: h, hidden: h, eps: 1e-12 };
    let segment = position + POSITIONS * h;
    EmbedAt { word, position, segment, norm, vocab: VOCAB, positions: POSITIONS, segments }
}

/// Place of the row of the segment table that a token reads.
fn segment_row(pack: &Pack, at: EmbedAt, row: usize) -> usize {
    at.segment + if at.segments == 1 { 0 } else { pack.segments[row] as usize * at.norm.hidden }
}

/// Adds rows `d` to their three tables.
fn add_to_tables<F: Num>(pack: &Pack, at: EmbedAt, d: &[F], grads: &mut [F]) {
    let h = at.norm.hidden;
    for (i, &d) in d.iter().enumerate() {
        let (row, c) = (i / h, i % h);
        grads[at.word + pack.ids[row] as usize * h + c] += d;
        grads[at.position + pack.positions[row] as usize * h + c] += d;
        grads[segment_row(pack, at, row) + c] += d;
    }
}

#[test]
fn embedding() {
    each_case(|pack, h, drop| {
        embed_case::<f32>(pack, embed_at(h, 2), drop);
        embed_case::<bf16>(pack, embed_at(h, 2), drop);
        embed_case::<f32>(pack, embed_at(h, 1), drop);
    });
}

fn embed_case<R: Real>(pack: &Pack, at: EmbedAt, drop: Dropout) {
    let (t, h, gpu) = (pack.tokens(), at.norm.hidden, engine::<R>(pack, 0));
    let what = format!("embed {} {:?} {h} {} {}", R::NAME, pack.lengths, drop.threshold, at.segments);
    let batch = &device(&gpu, pack);
    let weights = all_held::<R>(&random(at.segment + at.segments * h, 21));
    let (wb, behind) = (&put(&gpu, &weights, 8), ROOM * h + 8);
    let (sum, out) = (&mut unwritten(&gpu, t * h, behind), &mut unwritten(&gpu, t * h, behind));
    let row_stats = &mut unwritten(&gpu, 2 * t, behind);
    gpu.run(op::Embed { batch, weights: wb, at, drop, sum, row_stats, out }).unwrap();
    let rows = |row: usize| {
        [
            at.word + pack.ids[row] as usize * h,
            at.position + pack.positions[row] as usize * h,
            segment_row(pack, at, row),
        ]
    };
    let r = |x: f32| R::from_f32(x).to_f32();
    let parts = |i: usize| rows(i / h).map(|from| weights[from + i % h]);
    let exact_sum: Vec<f64> = (0..t * h).map(|i| parts(i).map(f64::from).iter().sum()).collect();
    let plain_sum: Vec<f32> = (0..t * h)
        .map(|i| {
            let [w, p, s] = parts(i);
            r(r(w + p) + s)
        })
        .collect();
    close(&format!("{what} sum"), &get(&gpu, sum, t * h, 0), &plain_sum, &exact_sum);
    let (n32, n64) = (norm_of::<f32>(&weights, at.norm), norm_of::<f64>(&weights, at.norm));
    let (f32s, f64s) = (pack.factors::<f32>(drop, h), pack.factors::<f64>(drop, h));
    let plain = all_held::<R>(&naive::times(&all_held::<R>(&naive::norm(&plain_sum, &n32)), &f32s));
    let exact = naive::times(&naive::norm(&exact_sum, &n64), &f64s);
    close(&what, &get(&gpu, out, t * h, 0), &plain, &exact);

    let gradient = all_held::<R>(&random(t * h, 22));
    let run = || {
        let dout = &mut put(&gpu, &gradient, behind);
        let grads = &mut put(&gpu, &vec![0.5; weights.len()], 8);
        gpu.run(op::EmbedBackward { batch, weights: wb, at, drop, sum, row_stats, dout, grads }).unwrap();
        get::<R, R>(&gpu, dout, t * h, 0);
        get::<f32, R>(&gpu, grads, weights.len(), 0)
    };
    let got = run();
    assert!(got.iter().zip(run()).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}: other bits");
    let through = all_held::<R>(&naive::times(&gradient, &f32s));
    let (dx, dgamma, dbeta) = naive::norm_backward(&plain_sum, &n32, &through);
    let mut plain = [dgamma, dbeta, vec![0.0; weights.len() - 2 * h]].concat();
    add_to_tables(pack, at, &all_held::<R>(&dx), &mut plain);
    let (dx, dgamma, dbeta) = naive::norm_backward(&exact_sum, &n64, &naive::times(&to64(&gradient), &f64s));
    let mut exact = [dgamma, dbeta, vec![0.0; weights.len() - 2 * h]].concat();
    add_to_tables(pack, at, &dx, &mut exact);
    let ends = [0, h, 2 * h, at.position, at.segment, weights.len()];
    for (name, ends) in ["gamma", "beta", "word", "position", "segment"].iter().zip(ends.windows(2)) {
        let range: Range<usize> = ends[0]..ends[1];
        let name = format!("{what} d{name}");
        accumulated(&name, &got[range.clone()], 0.5, &plain[range.clone()], &exact[range]);
    }
}

/// Sizes that no kernel takes are errors that say so.
#[test]
fn widths_that_no_kernel_takes_are_errors() {
    let gpu: Cuda<f32> = engine(&Pack::new(&[3], 50), 3);
    for (h, text) in [(12, "multiples of 8"), (4104, "at most 4096")] {
        let at = NormAt { gamma: 0, beta: h, hidden: h, eps: 1e-12 };
        let buffer = |n: usize| gpu.zeros::<f32>(n).unwrap();
        let (x, weights, rows) = (&buffer(3 * h), &buffer(2 * h), Rows::Masked(3));
        let (row_stats, out) = (&mut buffer(6), &mut buffer(3 * h));
        let refused = gpu.run(op::Norm { x, weights, at, rows, row_stats, out });
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}
