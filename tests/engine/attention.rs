//! Attention, forward and backward, over ragged packs and head sizes.

use super::naive::Attention;
use super::stored::{Stored, pick};
use super::support::*;
use ctune_dist::engine::cases::Sizes;
use ctune_dist::engine::cpu::Cpu;
use ctune_dist::engine::op::{self, Dropout, Heads};
use ctune_dist::engine::{Engine, Real, Reals};

fn case<R: Real, E: Engine<Real = R>>(cpu: &E, pack: &Pack, heads: usize, size: usize, drop: Dropout) {
    let what = format!("attention {} {:?} A={heads} D={size} {drop:?}", R::NAME, pack.lengths);
    let (t, h) = (pack.tokens(), heads * size);
    let (batch, sizes) = (&pack.device(cpu), Heads { heads, size });
    let qkv = held::<R>(&random(3 * t * h, 31).iter().map(|x| 2.0 * x).collect::<Vec<_>>());
    let dout = held::<R>(&random(t * h, 32));
    let inputs: &Reals<E> = &poisoned(cpu, &qkv);
    let (lse, out) = (&mut unwritten(cpu, t * heads), &mut unwritten(cpu, t * h));
    cpu.run(op::Attention { batch, heads: sizes, drop, qkv: inputs, lse, out }).unwrap();
    let naive = Attention { pack, heads, size, drop };
    let (mut plain, plain_lse) = naive.forward::<f32>(&qkv);
    let (exact, exact_lse) = naive.forward::<f64>(&to64(&qkv));
    let mut plain_dqkv = naive.backward::<f32>(&qkv, &dout);
    if R::NARROW {
        (plain, plain_dqkv) = Stored { pack, heads, size, drop }.both::<R>(&qkv, &dout);
    }
    close(&what, &taken(cpu, out, t * h), &plain, &exact);
    close(&format!("{what} lse"), &taken(cpu, lse, t * heads), &plain_lse, &exact_lse);

    let (dqkv, grads) = (&mut unwritten(cpu, 3 * t * h), &mut poisoned(cpu, &vec![0.5; 3 * h]));
    cpu.run(op::AttentionBackward {
        batch,
        heads: sizes,
        drop,
        qkv: inputs,
        lse,
        out,
        dout: &poisoned(cpu, &dout),
        dqkv,
        bias: Some(0),
        grads,
    })
    .unwrap();
    let got = taken(cpu, dqkv, 3 * t * h);
    let exact = naive.backward::<f64>(&to64(&qkv), &to64(&dout));
    for (which, name) in ["dq", "dk", "dv"].iter().enumerate() {
        let name = format!("{what} {name}");
        let (got, exact) = (pick(&got, which, h), pick(&exact, which, h));
        if t == 1 && which < 2 {
            // Exactly 0. The engine has the difference of two dot products of D terms below 1 in size, summed
            // in different orders.
            assert!(got.iter().all(|x| x.abs() < 4.0 * f32::EPSILON), "{name}: {got:?}");
            continue;
        }
        close(&name, &got, &pick(&plain_dqkv, which, h), &exact);
    }
    // against the rows that came out: sums of large terms of both signs, whose own errors add up in each
    let plain: Vec<f32> = super::naive::columns(&got, 3 * h).iter().map(|x| 0.5 + x).collect();
    let exact: Vec<f64> = super::naive::columns(&to64(&got), 3 * h).iter().map(|x| 0.5 + x).collect();
    close(&format!("{what} bias"), &taken(cpu, grads, 3 * h), &plain, &exact);
}

#[test]
fn ragged_packs() {
    on_engines!(ragged_case);
}

fn ragged_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    // In bf16 the largest error of a handful of values is luck: packs of one and two tokens stand among the
    // others of a ragged pack.
    for pack in packs(50).into_iter().filter(|pack| !R::NARROW || pack.tokens() > 60) {
        for drop in [Dropout::OFF, Dropout::new(0.2, 9, 7)] {
            case(cpu, &pack, 2, 32, drop);
        }
    }
}

#[test]
fn head_sizes() {
    on_engines!(head_sizes_case);
}

fn head_sizes_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    let pack = Pack::new(&[17, 100], 50);
    for size in [1, 8, 20, 24, 26, 64, 80] {
        case(cpu, &pack, 3, size, Dropout::new(0.1, 9, 7));
    }
}

/// Several query blocks, and a row of keys longer than one batch of dropout numbers.
#[test]
fn long_sequence() {
    on_engines!(long_case);
}

fn long_case<R: Real, E: Engine<Real = R>>(cpu: &E) {
    case(cpu, &Pack::new(&Sizes::long().lengths, 50), 1, 64, Dropout::new(0.1, 9, 7));
}

#[test]
fn gradient_is_the_slope() {
    let pack = Pack::new(&[1, 9], 50);
    let naive = Attention { pack: &pack, heads: 2, size: 8, drop: Dropout::new(0.3, 9, 7) };
    let (qkv, dout) = (to64(&random(480, 31)), to64(&random(160, 32)));
    let loss = |qkv: &[f64]| naive.forward(qkv).0.iter().zip(&dout).map(|(a, b)| a * b).sum::<f64>();
    differences("attention", &qkv, &naive.backward(&qkv, &dout), loss);
}

/// Scores of hundreds must neither overflow nor lose the largest.
#[test]
fn large_scores_stay_finite() {
    let cpu = Cpu::new();
    let pack = Pack::new(&[70], 50);
    let qkv: Vec<f32> = random(3 * 70 * 32, 31).iter().map(|x| 60.0 * x).collect();
    let (batch, heads, drop) = (&pack.device(&cpu), Heads { heads: 1, size: 32 }, Dropout::OFF);
    let (qkv, lse, out) = (&poisoned(&cpu, &qkv), &mut unwritten(&cpu, 70), &mut unwritten(&cpu, 70 * 32));
    cpu.run(op::Attention { batch, heads, drop, qkv, lse, out }).unwrap();
    assert!(
        taken(&cpu, out, 70 * 32).iter().chain(&taken(&cpu, lse, 70)).all(|x| x.is_finite() && x.abs() < 1e5)
    );
}
