//! LayerNorm, the fused residual, the embedding, gather and scatter.

use super::naive::{self, Norm, Num};
use super::support::*;
use ctune_dist::engine::cpu::{Buffer, Cpu, Operand};
use ctune_dist::engine::{Backend, Dropout, EmbedAt, NormAt, Real, Rows};

const WIDTHS: [usize; 4] = [8, 40, 128, 200];

/// gamma near 1, beta near 0, then `more` values.
fn arena<R: Real>(h: usize, more: usize) -> (Vec<f32>, NormAt) {
    let mut weights = random(2 * h + more, 11);
    weights[..h].iter_mut().for_each(|x| *x = 1.0 + 0.3 * *x);
    (held::<R>(&weights), NormAt { gamma: 0, beta: h, hidden: h, eps: 1e-12 })
}

fn of<F: Num>(values: &[f32]) -> Vec<F> {
    values.iter().map(|&x| F::of(f64::from(x))).collect()
}

fn norm_of<F: Num>(weights: &[f32], at: NormAt) -> Norm<F> {
    let part = |at: usize, n: usize| of(&weights[at..at + n]);
    Norm { gamma: part(at.gamma, at.hidden), beta: part(at.beta, at.hidden), eps: F::of(f64::from(at.eps)) }
}

fn check_stats(what: &str, got: &[f32], x: &[f32], h: usize) {
    let both = |row: &[f32]| naive::moments(row, 1e-12);
    let exact: Vec<(f64, f64)> = to64(x).chunks(h).map(|row| naive::moments(row, 1e-12)).collect();
    let plain: Vec<(f32, f32)> = x.chunks(h).map(both).collect();
    let pick = |i: usize| got.iter().skip(i).step_by(2).copied().collect::<Vec<_>>();
    let (means, rstds): (Vec<f64>, Vec<f64>) = exact.into_iter().unzip();
    let (plain_means, plain_rstds): (Vec<f32>, Vec<f32>) = plain.into_iter().unzip();
    close(&format!("{what} means"), &pick(0), &plain_means, &means);
    close(&format!("{what} rstd"), &pick(1), &plain_rstds, &rstds);
}

#[test]
fn layer_norm() {
    on_engines!(norm_case);
}

fn norm_case<R: Operand>(cpu: &Cpu<R>) {
    for h in WIDTHS {
        for rows in [1, 2, 31, 32, 33, 200] {
            let what = format!("norm {} {rows}x{h}", R::NAME);
            let (weights, at) = arena::<R>(h, 0);
            let (x, dout) = (held::<R>(&random(rows * h, 1)), held::<R>(&random(rows * h, 2)));
            let (xb, wb) = (poisoned(cpu, &x), poisoned(cpu, &weights));
            let (mut stats, mut out) = (unwritten(cpu, 2 * rows), unwritten(cpu, rows * h));
            cpu.norm(&xb, &wb, at, Rows::Tokens(rows), &mut stats, &mut out).unwrap();
            let (n32, n64) = (norm_of::<f32>(&weights, at), norm_of::<f64>(&weights, at));
            let plain = held::<R>(&naive::norm(&x, &n32));
            close(&what, &taken(&out, rows * h), &plain, &naive::norm(&to64(&x), &n64));
            check_stats(&what, &taken(&stats, 2 * rows), &x, h);

            let (mut d, mut grads) = (poisoned(cpu, &dout), poisoned(cpu, &vec![0.0; 2 * h]));
            cpu.norm_backward(&xb, &wb, at, Rows::Tokens(rows), &stats, &mut d, &mut grads).unwrap();
            let plain = naive::norm_backward(&x, &n32, &dout);
            let exact = naive::norm_backward(&to64(&x), &n64, &to64(&dout));
            close(&format!("{what} dx"), &taken(&d, rows * h), &held::<R>(&plain.0), &exact.0);
            let got = taken(&grads, 2 * h);
            close(&format!("{what} dgamma"), &got[..h], &plain.1, &exact.1);
            close(&format!("{what} dbeta"), &got[h..], &plain.2, &exact.2);
        }
    }
}

#[test]
fn layer_norm_gradient_is_the_slope() {
    let (weights, at) = arena::<f32>(40, 0);
    let p = norm_of::<f64>(&weights, at);
    let (x, dout) = (to64(&random(120, 1)), to64(&random(120, 2)));
    let loss = |x: &[f64], p: &Norm<f64>| naive::times(&naive::norm(x, p), &dout).into_iter().sum::<f64>();
    let (dx, dgamma, dbeta) = naive::norm_backward(&x, &p, &dout);
    differences("norm dx", &x, &dx, |x| loss(x, &p));
    differences("dgamma", &p.gamma, &dgamma, |g| loss(&x, &Norm { gamma: g.to_vec(), ..p.clone() }));
    differences("dbeta", &p.beta, &dbeta, |b| loss(&x, &Norm { beta: b.to_vec(), ..p.clone() }));
}

/// residual + factors (y + bias).
fn residual_sum<F: Num>(pack: &Pack, drop: Dropout, bias: &[f32], residual: &[f32], y: &[f32]) -> Vec<F> {
    let h = bias.len();
    let factors = pack.factors::<F>(drop, h);
    let (residual, y, bias) = (of::<F>(residual), of::<F>(y), of::<F>(bias));
    (0..y.len()).map(|i| residual[i] + factors[i] * (y[i] + bias[i % h])).collect()
}

#[test]
fn residual_norm() {
    on_engines!(residual_norm_case);
}

fn residual_norm_case<R: Operand>(cpu: &Cpu<R>) {
    for h in WIDTHS {
        for pack in packs(50) {
            for drop in [Dropout::OFF, Dropout::new(0.3, 17, 4)] {
                residual_case(cpu, h, &pack, drop);
            }
        }
    }
}

fn residual_case<R: Operand>(cpu: &Cpu<R>, h: usize, pack: &Pack, drop: Dropout) {
    let what = format!("residual_norm {} {:?} {h} {drop:?}", R::NAME, pack.lengths);
    let t = pack.tokens();
    let batch = pack.device(cpu);
    let (weights, at) = arena::<R>(h, h);
    let bias = &weights[2 * h..];
    let input = |seed: u32| held::<R>(&random(t * h, seed));
    let (residual, product, dout) = (input(1), input(2), input(3));
    let wb = poisoned(cpu, &weights);
    let (mut y, mut stats, mut out) = (poisoned(cpu, &product), unwritten(cpu, 2 * t), unwritten(cpu, t * h));
    cpu.residual_norm(&batch, &wb, 2 * h, at, drop, &poisoned(cpu, &residual), &mut y, &mut stats, &mut out)
        .unwrap();
    let sum32 = held::<R>(&residual_sum::<f32>(pack, drop, bias, &residual, &product));
    let sum64 = residual_sum::<f64>(pack, drop, bias, &residual, &product);
    let (n32, n64) = (norm_of::<f32>(&weights, at), norm_of::<f64>(&weights, at));
    close(&format!("{what} y"), &taken(&y, t * h), &sum32, &sum64);
    let plain = held::<R>(&naive::norm(&sum32, &n32));
    close(&what, &taken(&out, t * h), &plain, &naive::norm(&sum64, &n64));
    check_stats(&what, &taken(&stats, 2 * t), &taken(&y, t * h), h);

    let (mut dresidual, mut dy) = (unwritten(cpu, t * h), unwritten(cpu, t * h));
    let mut grads = poisoned(cpu, &vec![0.0; 3 * h]);
    let dout_b = poisoned(cpu, &dout);
    cpu.residual_norm_backward(
        &batch,
        &wb,
        2 * h,
        at,
        drop,
        &y,
        &stats,
        &dout_b,
        &mut dresidual,
        &mut dy,
        &mut grads,
    )
    .unwrap();
    let plain = naive::norm_backward(&sum32, &n32, &dout);
    let exact = naive::norm_backward(&sum64, &n64, &to64(&dout));
    close(&format!("{what} dresidual"), &taken(&dresidual, t * h), &held::<R>(&plain.0), &exact.0);
    let plain_dy = naive::times(&plain.0, &pack.factors(drop, h));
    let exact_dy = naive::times(&exact.0, &pack.factors(drop, h));
    close(&format!("{what} dy"), &taken(&dy, t * h), &held::<R>(&plain_dy), &exact_dy);
    let got = taken(&grads, 3 * h);
    close(&format!("{what} dgamma"), &got[..h], &plain.1, &exact.1);
    close(&format!("{what} dbeta"), &got[h..2 * h], &plain.2, &exact.2);
    let (db32, db64) = (naive::columns(&plain_dy, h), naive::columns(&exact_dy, h));
    close(&format!("{what} dbias"), &got[2 * h..], &db32, &db64);
}

const VOCAB: usize = 50;
const POSITIONS: usize = 256;

fn embed_at(h: usize) -> EmbedAt {
    let word = 2 * h;
    let position = word + VOCAB * h;
    let norm = NormAt { gamma: 0, beta: h, hidden: h, eps: 1e-12 };
    EmbedAt { word, position, segment: position + POSITIONS * h, norm, vocab: VOCAB }
}

fn embed_sum<F: Num>(pack: &Pack, weights: &[f32], at: EmbedAt) -> Vec<F> {
    let (h, w) = (at.norm.hidden, of::<F>(weights));
    (0..pack.tokens() * h)
        .map(|i| {
            let (row, c) = (i / h, i % h);
            w[at.word + pack.ids[row] as usize * h + c]
                + w[at.position + pack.positions[row] as usize * h + c]
                + w[at.segment + pack.segments[row] as usize * h + c]
        })
        .collect()
}

/// Gradients of the whole arena; rows are kept as `keep` leaves them.
fn embed_gradients<F: Num>(
    pack: &Pack,
    weights: &[f32],
    at: EmbedAt,
    drop: Dropout,
    dout: &[f32],
    keep: impl Fn(Vec<F>) -> Vec<F>,
) -> Vec<F> {
    let h = at.norm.hidden;
    let sum = keep(embed_sum::<F>(pack, weights, at));
    let through = naive::times(&of::<F>(dout), &pack.factors(drop, h));
    let (dx, dgamma, dbeta) = naive::norm_backward(&sum, &norm_of(weights, at.norm), &through);
    let mut grads = [dgamma, dbeta, vec![F::of(0.0); weights.len() - 2 * h]].concat();
    for (i, d) in keep(dx).into_iter().enumerate() {
        let (row, c) = (i / h, i % h);
        grads[at.word + pack.ids[row] as usize * h + c] += d;
        grads[at.position + pack.positions[row] as usize * h + c] += d;
        grads[at.segment + pack.segments[row] as usize * h + c] += d;
    }
    grads
}

#[test]
fn embedding() {
    on_engines!(embed_case);
}

fn embed_case<R: Operand>(cpu: &Cpu<R>) {
    for h in WIDTHS {
        for pack in packs(VOCAB as u32) {
            for drop in [Dropout::OFF, Dropout::new(0.1, 3, 0)] {
                let what = format!("embed {} {:?} {h} {drop:?}", R::NAME, pack.lengths);
                let (t, at) = (pack.tokens(), embed_at(h));
                let batch = pack.device(cpu);
                let weights = held::<R>(&random(at.segment + 2 * h, 21));
                let wb = poisoned(cpu, &weights);
                let (mut sum, mut stats) = (unwritten(cpu, t * h), unwritten(cpu, 2 * t));
                let mut out = unwritten(cpu, t * h);
                cpu.embed(&batch, &wb, at, drop, &mut sum, &mut stats, &mut out).unwrap();
                let sum32 = held::<R>(&embed_sum::<f32>(&pack, &weights, at));
                let sum64 = embed_sum::<f64>(&pack, &weights, at);
                close(&format!("{what} sum"), &taken(&sum, t * h), &sum32, &sum64);
                let plain =
                    naive::times(&naive::norm(&sum32, &norm_of(&weights, at.norm)), &pack.factors(drop, h));
                let exact =
                    naive::times(&naive::norm(&sum64, &norm_of(&weights, at.norm)), &pack.factors(drop, h));
                close(&what, &taken(&out, t * h), &held::<R>(&plain), &exact);

                let dout = held::<R>(&random(t * h, 22));
                let (mut d, mut grads) = (poisoned(cpu, &dout), poisoned(cpu, &vec![0.0; weights.len()]));
                cpu.embed_backward(&batch, &wb, at, drop, &sum, &stats, &mut d, &mut grads).unwrap();
                taken(&d, t * h);
                let got = taken(&grads, weights.len());
                let keep = |x: Vec<f32>| held::<R>(&x);
                let plain = embed_gradients(&pack, &weights, at, drop, &dout, keep);
                let exact = embed_gradients(&pack, &weights, at, drop, &dout, |x: Vec<f64>| x);
                let ends = [0, h, 2 * h, at.position, at.segment, weights.len()];
                for (name, ends) in
                    ["gamma", "beta", "word", "position", "segment"].iter().zip(ends.windows(2))
                {
                    let range = ends[0]..ends[1];
                    let name = format!("{what} d{name}");
                    close(&name, &got[range.clone()], &plain[range.clone()], &exact[range]);
                }
            }
        }
    }
}

#[test]
fn ids_outside_their_table_are_errors() {
    let cpu = Cpu::new();
    let mut pack = Pack::new(&[5], VOCAB as u32);
    pack.ids[2] = VOCAB as u32;
    let at = embed_at(8);
    let weights: Buffer<f32> = cpu.zeros(at.segment + 16).unwrap();
    let (mut sum, mut stats, mut out) =
        (cpu.zeros(40).unwrap(), cpu.zeros(10).unwrap(), cpu.zeros(40).unwrap());
    let error = cpu
        .embed(&pack.device(&cpu), &weights, at, Dropout::OFF, &mut sum, &mut stats, &mut out)
        .unwrap_err();
    assert!(error.to_string().contains("token id 50"), "{error}");
}

#[test]
fn gather_and_scatter() {
    on_engines!(gather_case);
}

fn gather_case<R: Operand>(cpu: &Cpu<R>) {
    let h = 40;
    let x = held::<R>(&random(30 * h, 1));
    let rows = [29, 0, 7, 8, 3];
    let mut out = unwritten(cpu, rows.len() * h);
    let list = indices(cpu, &rows);
    let mut xb = poisoned(cpu, &x);
    cpu.gather_rows(&xb, &list, Rows::Tokens(rows.len()), h, &mut out).unwrap();
    let got = taken(&out, rows.len() * h);
    for (got, &row) in got.chunks(h).zip(&rows) {
        assert_eq!(got, &x[row as usize * h..][..h]);
    }
    cpu.scatter_add_rows(&out, &list, Rows::Tokens(rows.len()), h, &mut xb).unwrap();
    for (row, (got, x)) in taken(&xb, x.len()).chunks(h).zip(x.chunks(h)).enumerate() {
        let factor = if rows.contains(&(row as u32)) { 2.0 } else { 1.0 };
        assert!(got.iter().zip(x).all(|(got, x)| *got == factor * x), "row {row}");
    }
    assert!(cpu.gather_rows(&xb, &indices(cpu, &[31]), Rows::Tokens(1), h, &mut out).is_err());
}
