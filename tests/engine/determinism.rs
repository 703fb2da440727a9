//! The same call gives the same bits: twice, and on any number of threads. One small encoder layer
//! with every operation that sums over rows goes through the whole sequence.

use super::support::*;
use ctune_dist::engine::cpu::{Buffer, Cpu, Operand};
use ctune_dist::engine::*;

const H: usize = 96;
const I: usize = 400;
const V: usize = 700;

/// Offsets of a tiny model: norm, embedding tables, QKV, FFN, decoder.
fn places() -> (NormAt, EmbedAt, [LinearAt; 3], usize) {
    let norm = NormAt { gamma: 0, beta: H, hidden: H, eps: 1e-12 };
    let mut at = 2 * H;
    let mut take = |n: usize| {
        at += n;
        at - n
    };
    let embed = EmbedAt { word: take(V * H), position: take(512 * H), segment: take(2 * H), norm, vocab: V };
    let linears = [(3 * H, H), (I, H), (V, H)].map(|(n, k)| LinearAt { w: take(n * k), b: take(n), n, k });
    (norm, embed, linears, at)
}

/// Everything that came out, as bits.
fn run<R: Operand>(cpu: &Cpu<R>) -> Vec<u32> {
    let (norm, embed, [qkv_at, ffn_at, decoder], size) = places();
    let pack = Pack::new(&[1, 200, 63, 65, 2, 300], V as u32);
    let (batch, t) = (pack.device(cpu), pack.tokens());
    let start: Vec<f32> = random(size, 1).iter().map(|x| x * 0.1).collect();
    let mut weights: Buffer<R> = poisoned(cpu, &start);
    let mut grads = poisoned(cpu, &vec![0.0; size]);
    let buffer = |width: usize| -> Buffer<R> { unwritten(cpu, t * width) };
    let floats = |width: usize| -> Buffer<f32> { unwritten(cpu, t * width) };
    let (mut sum, mut row_stats, mut x) = (buffer(H), floats(2), buffer(H));
    let (heads, drop) = (Heads { heads: 3, size: 32 }, |site| Dropout::new(0.1, 3, site));
    cpu.embed(&batch, &weights, embed, drop(0), &mut sum, &mut row_stats, &mut x).unwrap();
    let (mut qkv, mut lse, mut attended) = (buffer(3 * H), floats(3), buffer(H));
    cpu.linear(&x, &weights, qkv_at, Rows::Tokens(t), Epilogue::Bias, &mut qkv).unwrap();
    cpu.attention(&batch, heads, drop(1), &qkv, &mut lse, &mut attended).unwrap();
    let (mut stats2, mut normed) = (floats(2), buffer(H));
    cpu.residual_norm(&batch, &weights, 0, norm, drop(2), &x, &mut attended, &mut stats2, &mut normed)
        .unwrap();
    let (mut pre, mut act) = (buffer(I), buffer(I));
    cpu.linear_gelu(&normed, &weights, ffn_at, Rows::Tokens(t), &mut pre, &mut act).unwrap();
    let labels = indices(cpu, &(0..t as u32).map(|i| i * 7 % V as u32).collect::<Vec<_>>());
    let (mut logits, mut sums) = (buffer(V), cpu.zeros(stats::SLOTS).unwrap());
    cpu.linear(&normed, &weights, decoder, Rows::Tokens(t), Epilogue::None, &mut logits).unwrap();
    cpu.mlm_loss(
        &weights,
        decoder.b,
        V,
        &labels,
        Rows::Masked(t),
        LossScale { weight: 1.0, value: 0.01 },
        &mut logits,
        &mut grads,
        &mut sums,
    )
    .unwrap();

    let (mut d, mut dresidual, mut dy, mut dqkv) = (buffer(H), buffer(H), buffer(H), buffer(3 * H));
    cpu.linear_backward_input(&logits, &weights, decoder, Rows::Tokens(t), false, &mut d).unwrap();
    cpu.linear_backward_weight(&logits, &normed, decoder, Rows::Tokens(t), &mut grads).unwrap();
    cpu.linear_backward_weight(&act, &normed, ffn_at, Rows::Tokens(t), &mut grads).unwrap();
    cpu.residual_norm_backward(
        &batch,
        &weights,
        0,
        norm,
        drop(2),
        &attended,
        &stats2,
        &d,
        &mut dresidual,
        &mut dy,
        &mut grads,
    )
    .unwrap();
    let bias = Some(qkv_at.b);
    cpu.attention_backward(&batch, heads, drop(1), &qkv, &lse, &x, &dy, &mut dqkv, bias, &mut grads).unwrap();
    cpu.linear_backward_input(&dqkv, &weights, qkv_at, Rows::Tokens(t), true, &mut dresidual).unwrap();
    cpu.embed_backward(&batch, &weights, embed, drop(0), &sum, &row_stats, &mut dresidual, &mut grads)
        .unwrap();
    let mut norm_sq: Buffer<f32> = cpu.zeros(1).unwrap();
    cpu.sum_squares(&grads, std::slice::from_ref(&(0..size)), &mut norm_sq, 0).unwrap();
    let gradients = taken(&grads, size);
    let (mut m, mut v) = (cpu.zeros(size).unwrap(), cpu.zeros(size).unwrap());
    let update =
        AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 1, clip_norm: 1.0 };
    let owned = vec![0..size; 1];
    let mut master = poisoned(cpu, if R::NARROW { &start } else { &[] });
    let groups = [ParamGroup { range: 0..size, decay: true, lr_scale: 1.0 }];
    cpu.adamw(update, &groups, &owned, &norm_sq, &mut weights, &mut master, &mut grads, &mut m, &mut v)
        .unwrap();
    let kept = [taken(&act, t * I), taken(&logits, t * V), taken(&dqkv, 3 * t * H), taken(&weights, size)];
    let all = [kept.concat(), gradients, sums.to_vec(), norm_sq.to_vec()].concat();
    all.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn same_bits_on_any_number_of_threads() {
    on_engines!(threads_case);
}

fn threads_case<R: Operand>(engine: &Cpu<R>) {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(engine))
    };
    let first = on(1);
    assert!(first.iter().all(|&bits| f32::from_bits(bits).is_finite()));
    for threads in [1, 2, 3] {
        assert!(on(threads) == first, "{threads} threads");
    }
    // The first run had fresh scratch, the others find old values in it.
}

/// Without AVX-512, and without any vectors at all.
#[test]
fn same_bits_with_any_instruction_set() {
    instructions_case(&Cpu::<f32>::default());
    instructions_case(&Cpu::<half::bf16>::default().widening());
}

fn instructions_case<R: Operand>(engine: &Cpu<R>) {
    let best = run(engine);
    assert!(run(&Cpu::<R>::with(pulp::Arch::Scalar)) == best, "scalar");
    #[cfg(target_arch = "x86_64")]
    if let Some(v3) = pulp::x86::V3::try_new() {
        assert!(run(&Cpu::<R>::with(pulp::Arch::V3(v3))) == best, "AVX2");
    }
}

/// A sequence's result does not depend on what it is packed with.
#[test]
fn packed_equals_alone() {
    on_engines!(packed_case);
}

fn packed_case<R: Operand>(cpu: &Cpu<R>) {
    let (heads, drop) = (Heads { heads: 3, size: 32 }, Dropout::new(0.1, 3, 1));
    let together = Pack::new(&[65, 64, 200], 50);
    let qkv = random(3 * together.tokens() * H, 5);
    let attend = |pack: &Pack, qkv: &[f32]| {
        let t = pack.tokens();
        let (mut lse, mut out) = (unwritten(cpu, t * 3), unwritten(cpu, t * H));
        cpu.attention(&pack.device(cpu), heads, drop, &poisoned(cpu, qkv), &mut lse, &mut out).unwrap();
        taken(&out, t * H)
    };
    let all = attend(&together, &qkv);
    for i in 0..3 {
        let rows = together.cu_seqlens[i] as usize..together.cu_seqlens[i + 1] as usize;
        let mut alone = Pack::new(&[rows.len()], 50);
        alone.samples = vec![together.samples[i]];
        let got = attend(&alone, &qkv[3 * rows.start * H..3 * rows.end * H]);
        assert!(got == all[rows.start * H..rows.end * H], "sequence {i}");
    }
}
