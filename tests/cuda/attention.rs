//! Attention kernels against double precision: ragged packs, both types, every kind of head size,
//! with and without dropout, forward and backward.

use super::support::*;
use crate::engine::naive;
use crate::engine::stored::{Stored, pick};
use crate::engine::support::{Pack, random, to64};
use ctune_dist::engine::op::{self, Dropout, Heads};
use ctune_dist::engine::{Device, Engine, Real};

fn case<R: Real>(lengths: &[usize], heads: usize, size: usize, drop: Dropout) {
    let what = format!("attention {} {lengths:?} A={heads} D={size} rate {}", R::NAME, drop.threshold);
    let pack = Pack::new(lengths, 50);
    let (t, h) = (pack.tokens(), heads * size);
    let gpu = gpu::<R>(counts(&pack));
    let (batch, rows) = (&device(&gpu, &pack), capacity(t, 256));
    let behind = rows - t + 3;
    let qkv: Vec<f32> = random(3 * t * h, 31).iter().map(|x| held::<R>(2.0 * x)).collect();
    let dout = all_held::<R>(&random(t * h, 32));
    let (sizes, inputs) = (Heads { heads, size }, &reals(&gpu, &qkv, 3 * h * behind));
    let (lse, out) = (&mut floats(&gpu, &[], (t + behind) * heads), &mut unwritten(&gpu, (t + behind) * h));
    gpu.run(op::Attention { batch, heads: sizes, drop, qkv: inputs, lse, out }).unwrap();
    let dqkv = &mut unwritten(&gpu, 3 * (t + behind) * h);
    let grads = &mut floats(&gpu, &vec![0.5; 3 * h], 8);
    gpu.run(op::AttentionBackward {
        batch,
        heads: sizes,
        drop,
        qkv: inputs,
        lse,
        out,
        dout: &reals(&gpu, &dout, h * behind),
        dqkv,
        bias: Some(0),
        grads,
    })
    .unwrap();

    let exact = naive::Attention { pack: &pack, heads, size, drop };
    let (exact_out, exact_lse) = exact.forward::<f64>(&to64(&qkv));
    let (stored_out, stored_dqkv) = Stored { pack: &pack, heads, size, drop }.both::<R>(&qkv, &dout);
    close(&what, &taken(&gpu, out, t * h, 0), &stored_out, &exact_out);
    let (_, plain_lse) = exact.forward::<f32>(&qkv); // kept in f32 for either type
    close(&format!("{what} lse"), &taken_floats(&gpu, lse, t * heads), &plain_lse, &exact_lse);
    let got = taken(&gpu, dqkv, 3 * t * h, 3 * (rows - t) * h);
    let exact_dqkv = exact.backward::<f64>(&to64(&qkv), &to64(&dout));
    for (which, name) in ["dq", "dk", "dv"].iter().enumerate() {
        let (got, exact) = (pick(&got, which, h), pick(&exact_dqkv, which, h));
        if t == 1 && which < 2 {
            // Exactly 0. The kernel has the difference of dout . out and dout . v, and out is rounded to R.
            let unit = if R::NAME == "f32" { f32::EPSILON } else { 1.0 / 256.0 };
            let most = drop.scale * unit * size as f32;
            assert!(got.iter().all(|x| x.abs() <= most), "{what} {name}: {got:?}");
            continue;
        }
        close(&format!("{what} {name}"), &got, &pick(&stored_dqkv, which, h), &exact);
    }
    let sums = taken_floats(&gpu, grads, 3 * h);
    let plain: Vec<f32> = naive::columns(&stored_dqkv, 3 * h).iter().map(|x| 0.5 + x).collect();
    let exact: Vec<f64> = naive::columns(&exact_dqkv, 3 * h).iter().map(|x| 0.5 + x).collect();
    for (which, name) in ["q", "k", "v"].iter().enumerate() {
        let part = which * h..(which + 1) * h;
        if t == 1 && which < 2 {
            continue; // exactly 0 again
        }
        let what = format!("{what} bias of {name}");
        close(&what, &sums[part.clone()], &plain[part.clone()], &exact[part]);
    }
}

const RAGGED: [usize; 5] = [1, 2, 63, 64, 65];

fn drops() -> [Dropout; 2] {
    [Dropout::OFF, Dropout::new(0.1, 9, 7)]
}

#[test]
fn tensor_cores_take_heads_of_32_and_64() {
    for size in [32, 64] {
        for drop in drops() {
            case::<half::bf16>(&RAGGED, 2, size, drop);
            case::<half::bf16>(&[1], 1, size, drop);
            case::<half::bf16>(&[127, 129], 3, size, drop);
        }
    }
}

#[test]
fn long_sequences() {
    case::<half::bf16>(&[511, 512], 1, 64, Dropout::new(0.1, 9, 7));
    for size in [32, 64] {
        case::<half::bf16>(&[700, 3], 1, size, Dropout::new(0.1, 9, 7));
    }
    case::<half::bf16>(&[512], 1, 32, Dropout::OFF);
    case::<f32>(&[5, 512], 1, 32, Dropout::new(0.1, 9, 7));
}

/// More sequences than one probe of the search for a block's tile tells apart.
#[test]
fn many_sequences() {
    let lengths: Vec<usize> = (0..150).map(|i| 1 + i * 5 % 17).collect();
    for size in [32, 64] {
        case::<half::bf16>(&lengths, 1, size, Dropout::new(0.3, 9, 7));
    }
    case::<f32>(&lengths, 1, 8, Dropout::new(0.3, 9, 7));
}

#[test]
fn plain_arithmetic_takes_the_other_head_sizes() {
    for drop in drops() {
        for size in [8, 24, 64, 128] {
            case::<f32>(&RAGGED, 2, size, drop);
        }
        case::<f32>(&[1], 2, 32, drop);
        case::<half::bf16>(&[17, 100], 3, 16, drop);
        case::<half::bf16>(&[17, 40], 1, 80, drop);
    }
}

#[test]
fn other_head_sizes_are_refused() {
    let pack = Pack::new(&[3], 50);
    let gpu = gpu::<f32>(counts(&pack));
    let (lse, out) = (&mut floats(&gpu, &[], 3), &mut unwritten(&gpu, 3 * 20));
    let (batch, qkv) = (&device(&gpu, &pack), &reals(&gpu, &[0.0; 180], 0));
    let (heads, drop) = (Heads { heads: 1, size: 20 }, Dropout::OFF);
    let refused = gpu.run(op::Attention { batch, heads, drop, qkv, lse, out });
    assert!(refused.unwrap_err().to_string().contains("not 20"));
}

/// Scores of hundreds must neither overflow nor lose the largest, in either direction.
#[test]
fn large_scores_stay_finite() {
    let pack = Pack::new(&[70], 50);
    let gpu = gpu::<half::bf16>(counts(&pack));
    let (batch, heads, drop) = (&device(&gpu, &pack), Heads { heads: 1, size: 32 }, Dropout::OFF);
    // Keys all point away from the queries: every score is far below 0, so that a key after the sequence,
    // whose score is 0, would outweigh all others.
    let value = |i: usize| match i / 32 % 3 {
        0 => 40.0,
        1 => -40.0 - (i % 7) as f32,
        _ => (i % 11) as f32,
    };
    let qkv = &reals(&gpu, &(0..3 * 70 * 32).map(value).collect::<Vec<_>>(), 3 * 32 * ROOM);
    let (lse, out) = (&mut floats(&gpu, &[], 70 + ROOM), &mut unwritten(&gpu, (70 + ROOM) * 32));
    gpu.run(op::Attention { batch, heads, drop, qkv, lse, out }).unwrap();
    assert!(taken_floats(&gpu, lse, 70).iter().all(|x| x.is_finite() && *x < -1000.0));
    assert!(taken(&gpu, out, 70 * 32, 0).iter().all(|x| (0.0..=10.0).contains(x)));
    let (dqkv, grads) = (&mut unwritten(&gpu, 3 * (70 + ROOM) * 32), &mut gpu.zeros(0).unwrap());
    gpu.run(op::AttentionBackward {
        batch,
        heads,
        drop,
        qkv,
        lse,
        out,
        dout: &reals(&gpu, &random(70 * 32, 32), ROOM * 32),
        dqkv,
        bias: None,
        grads,
    })
    .unwrap();
    let got = gpu.download_weights(dqkv, 0..3 * 70 * 32).unwrap();
    assert!(got.iter().all(|x| x.is_finite()));
}

/// The same bits every time: fixed orders of summation, no atomics.
#[test]
fn the_same_bits_again() {
    let pack = Pack::new(&[130, 9], 50);
    let heads = Heads { heads: 2, size: 64 };
    let run = || {
        let gpu = gpu::<half::bf16>(counts(&pack));
        let (t, batch, drop) = (pack.tokens(), &device(&gpu, &pack), Dropout::new(0.2, 3, 4));
        let room = t + ROOM;
        let (lse, out) = (&mut floats(&gpu, &[], room * 2), &mut unwritten(&gpu, room * 128));
        let qkv = &reals(&gpu, &random(t * 3 * 128, 1), ROOM * 3 * 128);
        gpu.run(op::Attention { batch, heads, drop, qkv, lse, out }).unwrap();
        let (dqkv, grads) = (&mut unwritten(&gpu, 3 * room * 128), &mut gpu.zeros(384).unwrap());
        gpu.run(op::AttentionBackward {
            batch,
            heads,
            drop,
            qkv,
            lse,
            out,
            dout: &reals(&gpu, &random(t * 128, 2), ROOM * 128),
            dqkv,
            bias: Some(0),
            grads,
        })
        .unwrap();
        let mut values = taken(&gpu, dqkv, t * 3 * 128, (capacity(t, 256) - t) * 3 * 128);
        values.extend(gpu.download(grads, 0..384).unwrap());
        values.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    assert!(run() == run());
}
