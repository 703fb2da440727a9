//! LayerNorm, the fused residual, the embedding, gather and scatter.

use super::naive::{self, Norm, Num};
use super::support::*;
use ctune_dist::engine::cases::Sizes;
use ctune_dist::engine::cpu::Cpu;
use ctune_dist::engine::op::{self, Dropout, EmbedAt, NormAt};
use ctune_dist::engine::{Device, Engine, Real, Rows};

/// Odd ones; real models' are those of the cases.
const WIDTHS: [usize; 4] = [8, 40, 128, 200];

fn widths() -> Vec<usize> {
    WIDTHS.into_iter().chain(Sizes::widths().map(|sizes| sizes.hidden)).collect()
}

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

fn norm_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    for h in widths() {
        for count in [1, 2, 31, 32, 33, 200] {
            let rows = Rows::Tokens(count);
            let what = format!("norm {} {count}x{h}", R::NAME);
            let (weights, at) = arena::<R>(h, 0);
            let (x, dout) = (held::<R>(&random(count * h, 1)), held::<R>(&random(count * h, 2)));
            let (xb, wb) = (&poisoned(cpu, &x), &poisoned(cpu, &weights));
            let (row_stats, out) = (&mut unwritten(cpu, 2 * count), &mut unwritten(cpu, count * h));
            cpu.run(op::Norm { x: xb, weights: wb, at, rows, row_stats, out }).unwrap();
            let (n32, n64) = (norm_of::<f32>(&weights, at), norm_of::<f64>(&weights, at));
            let plain = held::<R>(&naive::norm(&x, &n32));
            close(&what, &taken(cpu, out, count * h), &plain, &naive::norm(&to64(&x), &n64));
            check_stats(&what, &taken(cpu, row_stats, 2 * count), &x, h);

            let (d, grads) = (&mut poisoned(cpu, &dout), &mut poisoned(cpu, &vec![0.0; 2 * h]));
            cpu.run(op::NormBackward { x: xb, weights: wb, at, rows, row_stats, d, grads }).unwrap();
            let plain = naive::norm_backward(&x, &n32, &dout);
            let exact = naive::norm_backward(&to64(&x), &n64, &to64(&dout));
            close(&format!("{what} dx"), &taken(cpu, d, count * h), &held::<R>(&plain.0), &exact.0);
            let got = taken(cpu, grads, 2 * h);
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

fn residual_norm_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    for h in WIDTHS {
        for pack in packs(50) {
            for drop in [Dropout::OFF, Dropout::new(0.3, 17, 4)] {
                residual_case(cpu, h, &pack, drop);
            }
        }
    }
}

fn residual_case<R: Real, E: Engine<Real = R>>(cpu: &E, h: usize, pack: &Pack, drop: Dropout) {
    let what = format!("residual_norm {} {:?} {h} {drop:?}", R::NAME, pack.lengths);
    let (t, batch) = (pack.tokens(), &pack.device(cpu));
    let (weights, norm) = arena::<R>(h, h);
    let bias = &weights[2 * h..];
    let input = |seed: u32| held::<R>(&random(t * h, seed));
    let (residual, product, dout) = (input(1), input(2), input(3));
    let wb = &poisoned(cpu, &weights);
    let (y, row_stats) = (&mut poisoned(cpu, &product), &mut unwritten(cpu, 2 * t));
    let out = &mut unwritten(cpu, t * h);
    cpu.run(op::ResidualNorm {
        batch,
        weights: wb,
        bias: 2 * h,
        norm,
        drop,
        residual: &poisoned(cpu, &residual),
        y,
        row_stats,
        out,
    })
    .unwrap();
    let sum32 = held::<R>(&residual_sum::<f32>(pack, drop, bias, &residual, &product));
    let sum64 = residual_sum::<f64>(pack, drop, bias, &residual, &product);
    let (n32, n64) = (norm_of::<f32>(&weights, norm), norm_of::<f64>(&weights, norm));
    close(&format!("{what} y"), &taken(cpu, y, t * h), &sum32, &sum64);
    let plain = held::<R>(&naive::norm(&sum32, &n32));
    close(&what, &taken(cpu, out, t * h), &plain, &naive::norm(&sum64, &n64));
    check_stats(&what, &taken(cpu, row_stats, 2 * t), &taken(cpu, y, t * h), h);

    let (dresidual, dy) = (&mut unwritten(cpu, t * h), &mut unwritten(cpu, t * h));
    let grads = &mut poisoned(cpu, &vec![0.0; 3 * h]);
    cpu.run(op::ResidualNormBackward {
        batch,
        weights: wb,
        bias: 2 * h,
        norm,
        drop,
        y,
        row_stats,
        dout: &poisoned(cpu, &dout),
        dresidual,
        dy,
        grads,
    })
    .unwrap();
    let plain = naive::norm_backward(&sum32, &n32, &dout);
    let exact = naive::norm_backward(&sum64, &n64, &to64(&dout));
    close(&format!("{what} dresidual"), &taken(cpu, dresidual, t * h), &held::<R>(&plain.0), &exact.0);
    let plain_dy = naive::times(&plain.0, &pack.factors(drop, h));
    let exact_dy = naive::times(&exact.0, &pack.factors(drop, h));
    close(&format!("{what} dy"), &taken(cpu, dy, t * h), &held::<R>(&plain_dy), &exact_dy);
    let got = taken(cpu, grads, 3 * h);
    close(&format!("{what} dgamma"), &got[..h], &plain.1, &exact.1);
    close(&format!("{what} dbeta"), &got[h..2 * h], &plain.2, &exact.2);
    let (db32, db64) = (naive::columns(&plain_dy, h), naive::columns(&exact_dy, h));
    close(&format!("{what} dbias"), &got[2 * h..], &db32, &db64);
}

const VOCAB: usize = 50;
const POSITIONS: usize = 256;

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

fn embed_sum<F: Num>(pack: &Pack, weights: &[f32], at: EmbedAt) -> Vec<F> {
    let (h, w) = (at.norm.hidden, of::<F>(weights));
    (0..pack.tokens() * h)
        .map(|i| {
            let (row, c) = (i / h, i % h);
            w[at.word + pack.ids[row] as usize * h + c]
                + w[at.position + pack.positions[row] as usize * h + c]
                + w[segment_row(pack, at, row) + c]
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
        grads[segment_row(pack, at, row) + c] += d;
    }
    grads
}

#[test]
fn embedding() {
    on_engines!(embed_case);
}

fn embed_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    for h in WIDTHS {
        for pack in packs(VOCAB as u32) {
            for (drop, segments) in [(Dropout::OFF, 2), (Dropout::new(0.1, 3, 0), 2), (Dropout::OFF, 1)] {
                one_embed_case(cpu, &pack, embed_at(h, segments), drop);
            }
        }
    }
}

fn one_embed_case<R: Real, E: Engine<Real = R>>(cpu: &E, pack: &Pack, at: EmbedAt, drop: Dropout) {
    let (t, h) = (pack.tokens(), at.norm.hidden);
    let what = format!("embed {} {:?} {h} {drop:?} {}", R::NAME, pack.lengths, at.segments);
    let batch = &pack.device(cpu);
    let values = held::<R>(&random(at.segment + at.segments * h, 21));
    let weights = &poisoned(cpu, &values);
    let (sum, row_stats) = (&mut unwritten(cpu, t * h), &mut unwritten(cpu, 2 * t));
    let out = &mut unwritten(cpu, t * h);
    cpu.run(op::Embed { batch, weights, at, drop, sum, row_stats, out }).unwrap();
    let sum32 = held::<R>(&embed_sum::<f32>(pack, &values, at));
    let sum64 = embed_sum::<f64>(pack, &values, at);
    close(&format!("{what} sum"), &taken(cpu, sum, t * h), &sum32, &sum64);
    let plain = naive::times(&naive::norm(&sum32, &norm_of(&values, at.norm)), &pack.factors(drop, h));
    let exact = naive::times(&naive::norm(&sum64, &norm_of(&values, at.norm)), &pack.factors(drop, h));
    close(&what, &taken(cpu, out, t * h), &held::<R>(&plain), &exact);

    let gradient = held::<R>(&random(t * h, 22));
    let (dout, grads) = (&mut poisoned(cpu, &gradient), &mut poisoned(cpu, &vec![0.0; values.len()]));
    cpu.run(op::EmbedBackward { batch, weights, at, drop, sum, row_stats, dout, grads }).unwrap();
    taken(cpu, dout, t * h);
    let got = taken(cpu, grads, values.len());
    let keep = |x: Vec<f32>| held::<R>(&x);
    let plain = embed_gradients(pack, &values, at, drop, &gradient, keep);
    let exact = embed_gradients(pack, &values, at, drop, &gradient, |x: Vec<f64>| x);
    let ends = [0, h, 2 * h, at.position, at.segment, values.len()];
    for (name, ends) in ["gamma", "beta", "word", "position", "segment"].iter().zip(ends.windows(2)) {
        let range = ends[0]..ends[1];
        let name = format!("{what} d{name}");
        close(&name, &got[range.clone()], &plain[range.clone()], &exact[range]);
    }
}

#[test]
fn what_is_outside_its_table_is_an_error() {
    let cpu = Cpu::new();
    let whole = Pack::new(&[5], VOCAB as u32);
    let refused = |pack: &Pack, segments: usize, says: &str| {
        let at = embed_at(8, segments);
        let (batch, drop) = (&pack.device(&cpu), Dropout::OFF);
        let weights = &cpu.zeros(at.segment + 16).unwrap();
        let (sum, row_stats) = (&mut cpu.zeros(40).unwrap(), &mut cpu.zeros(10).unwrap());
        let (out, grads) = (&mut cpu.zeros(40).unwrap(), &mut cpu.zeros(at.segment + 16).unwrap());
        let error = cpu.run(op::Embed { batch, weights, at, drop, sum, row_stats, out }).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        let dout = out;
        let back = op::EmbedBackward { batch, weights, at, drop, sum, row_stats, dout, grads };
        assert!(cpu.run(back).unwrap_err().to_string().contains(says), "{says}: backward");
    };
    let mut pack = whole.clone();
    pack.ids[2] = VOCAB as u32;
    refused(&pack, 2, "token id 50 is outside its table of 50 rows");
    let mut pack = whole.clone();
    pack.positions[4] = POSITIONS as u32; // the first row of the next table
    refused(&pack, 2, "position 256 is outside its table of 256 rows");
    let mut pack = whole;
    pack.segments[4] = 2;
    refused(&pack, 2, "segment 2 is outside");
    refused(&pack, 1, "segment 2 is outside");
}

#[test]
fn gather_and_scatter() {
    on_engines!(gather_case);
}

fn gather_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    let hidden = 40;
    let values = held::<R>(&random(30 * hidden, 1));
    let list = [29, 0, 7, 8, 3];
    let (rows, picked) = (Rows::Tokens(list.len()), &indices(cpu, &list));
    let (x, out) = (&mut poisoned(cpu, &values), &mut unwritten(cpu, list.len() * hidden));
    cpu.run(op::GatherRows { x, picked, rows, hidden, out }).unwrap();
    let got = taken(cpu, out, list.len() * hidden);
    for (got, &row) in got.chunks(hidden).zip(&list) {
        assert_eq!(got, &values[row as usize * hidden..][..hidden]);
    }
    cpu.run(op::ScatterAddRows { src: out, picked, rows, hidden, x }).unwrap();
    for (row, (got, x)) in taken(cpu, x, values.len()).chunks(hidden).zip(values.chunks(hidden)).enumerate() {
        let factor = if list.contains(&(row as u32)) { 2.0 } else { 1.0 };
        assert!(got.iter().zip(x).all(|(got, x)| *got == factor * x), "row {row}");
    }
    let (picked, rows) = (&indices(cpu, &[31]), Rows::Tokens(1));
    assert!(cpu.run(op::GatherRows { x, picked, rows, hidden, out }).is_err());
}
