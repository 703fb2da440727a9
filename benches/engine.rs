//! Speed of the CPU engine's operations at the sizes of the small models that run on it, in f32 and
//! in bf16. FLOP/s and elements/s are criterion's "throughput". `RAYON_NUM_THREADS=1` measures one
//! thread.
//!
//! `cargo bench --bench engine`, or one group: `cargo bench --bench engine -- 'attention bf16'`.

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use ctune_dist::engine::cpu::{Buffer, Cpu, Operand};
use ctune_dist::engine::*;
use half::bf16;
use std::time::Duration;

fn values<T: Real, R: Operand>(cpu: &Cpu<R>, len: usize) -> Buffer<T> {
    let mut buffer: Buffer<T> = cpu.zeros(len).expect("host memory");
    for (i, x) in buffer.iter_mut().enumerate() {
        *x = T::from_f32((i as u32).wrapping_mul(2_654_435_761) as f32 / 2f32.powi(31) - 1.0);
    }
    buffer
}

fn list<R: Operand>(cpu: &Cpu<R>, values: impl Iterator<Item = usize>) -> Buffer<u32> {
    let values: Vec<u32> = values.map(|x| x as u32).collect();
    let mut buffer = cpu.zeros(values.len()).expect("host memory");
    buffer.copy_from_slice(&values);
    buffer
}

/// `sequences` of `length` tokens.
fn pack<R: Operand>(cpu: &Cpu<R>, sequences: usize, length: usize, vocab: usize) -> DeviceBatch<Cpu<R>> {
    let t = sequences * length;
    let none = || list(cpu, std::iter::empty());
    DeviceBatch {
        tokens: t,
        sequences,
        masked: 0,
        groups: 0,
        documents: 0,
        epoch: 0,
        ids: list(cpu, (0..t).map(|i| i * 7919 % vocab)),
        positions: list(cpu, (0..t).map(|i| i % length)),
        segments: list(cpu, (0..t).map(|i| usize::from(i % length > 9))),
        row_sample: list(cpu, (0..t).map(|i| i / length)),
        cu_seqlens: list(cpu, (0..=sequences).map(|i| i * length)),
        samples: list(cpu, 0..sequences),
        pair_labels: none(),
        pair_weights: cpu.zeros(0).expect("host memory"),
        cu_documents: none(),
        cu_groups: none(),
        targets: cpu.zeros(0).expect("host memory"),
        masked_rows: none(),
        masked_labels: none(),
    }
}

fn group<'a, R: Real>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(format!("{name} {}", R::NAME));
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group
}

fn products<R: Operand>(c: &mut Criterion) {
    let cpu = Cpu::<R>::default();
    let mut group = group::<R>(c, "linear");
    for (m, n, k) in
        [(2048, 1536, 384), (2048, 384, 1536), (2048, 1152, 384), (2048, 384, 128), (300, 30522, 384)]
    {
        let at = LinearAt { w: 0, b: n * k, n, k };
        let (x, weights) = (values(&cpu, m * k), values(&cpu, n * k + n));
        let (mut y, mut dx, mut grads) = (values(&cpu, m * n), values(&cpu, m * k), values(&cpu, n * k + n));
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        let name = |what: &str| format!("{what} {m}x{n}x{k}");
        group.bench_function(name("forward"), |b| {
            b.iter(|| cpu.linear(&x, &weights, at, Rows::Tokens(m), Epilogue::Bias, &mut y));
        });
        group.bench_function(name("input"), |b| {
            b.iter(|| cpu.linear_backward_input(&y, &weights, at, Rows::Tokens(m), false, &mut dx));
        });
        group.bench_function(name("weight"), |b| {
            b.iter(|| cpu.linear_backward_weight(&y, &x, at, Rows::Tokens(m), &mut grads));
        });
        if n == 1536 {
            let mut act = values(&cpu, m * n);
            group.bench_function(name("gelu"), |b| {
                b.iter(|| cpu.linear_gelu(&x, &weights, at, Rows::Tokens(m), &mut y, &mut act));
            });
        }
    }
}

fn attention<R: Operand>(c: &mut Criterion) {
    let cpu = Cpu::<R>::default();
    let mut group = group::<R>(c, "attention");
    for (sequences, length, heads) in [(27, 75, 4), (8, 256, 12)] {
        let heads = Heads { heads, size: 32 };
        let (t, h) = (sequences * length, heads.heads * heads.size);
        let batch = pack(&cpu, sequences, length, 100);
        let qkv = values(&cpu, 3 * t * h);
        let (mut lse, mut out) = (values(&cpu, t * heads.heads), values(&cpu, t * h));
        let (dout, mut dqkv, mut grads) = (values(&cpu, t * h), values(&cpu, 3 * t * h), values(&cpu, 3 * h));
        let flops = 4 * t * length * h;
        for drop in [Dropout::OFF, Dropout::new(0.1, 1, 1)] {
            let name = |what: &str| {
                format!("{what} {sequences}x{length} A={} drop={}", heads.heads, drop.threshold > 0)
            };
            group.throughput(Throughput::Elements(flops as u64));
            group.bench_function(name("forward"), |b| {
                b.iter(|| cpu.attention(&batch, heads, drop, &qkv, &mut lse, &mut out));
            });
            group.throughput(Throughput::Elements((flops * 5 / 2) as u64));
            group.bench_function(name("backward"), |b| {
                b.iter(|| {
                    let bias = Some(0);
                    cpu.attention_backward(
                        &batch, heads, drop, &qkv, &lse, &out, &dout, &mut dqkv, bias, &mut grads,
                    )
                });
            });
        }
    }
}

fn rows<R: Operand>(c: &mut Criterion) {
    let cpu = Cpu::<R>::default();
    let mut group = group::<R>(c, "rows");
    let (h, v, length) = (384, 30522, 256);
    let batch = pack(&cpu, 8, length, v);
    let t = batch.tokens;
    let norm = NormAt { gamma: 0, beta: h, hidden: h, eps: 1e-12 };
    let at = EmbedAt { word: 3 * h, position: (3 + v) * h, segment: (3 + v + length) * h, norm, vocab: v };
    let weights: Buffer<R> = values(&cpu, at.segment + 2 * h);
    let mut grads = values(&cpu, weights.len());
    let buffer = || values(&cpu, t * h);
    let (residual, mut y, mut out, mut row_stats) = (buffer(), buffer(), buffer(), values(&cpu, 2 * t));
    let (dout, mut dresidual, mut dy) = (buffer(), buffer(), buffer());
    let drop = Dropout::new(0.1, 1, 1);
    group.throughput(Throughput::Elements((t * h) as u64));
    group.bench_function("residual_norm", |b| {
        b.iter(|| {
            cpu.residual_norm(
                &batch,
                &weights,
                2 * h,
                norm,
                drop,
                &residual,
                &mut y,
                &mut row_stats,
                &mut out,
            )
        });
    });
    group.bench_function("residual_norm backward", |b| {
        b.iter(|| {
            cpu.residual_norm_backward(
                &batch,
                &weights,
                2 * h,
                norm,
                drop,
                &y,
                &row_stats,
                &dout,
                &mut dresidual,
                &mut dy,
                &mut grads,
            )
        });
    });
    group.bench_function("embed", |b| {
        b.iter(|| cpu.embed(&batch, &weights, at, drop, &mut y, &mut row_stats, &mut out));
    });
    group.bench_function("embed backward", |b| {
        b.iter(|| cpu.embed_backward(&batch, &weights, at, drop, &y, &row_stats, &mut dresidual, &mut grads));
    });
    let (pre, mut dact) = (values(&cpu, 4 * t * h), values(&cpu, 4 * t * h));
    group.throughput(Throughput::Elements(4 * (t * h) as u64));
    group.bench_function("gelu backward", |b| {
        b.iter(|| cpu.gelu_backward(&pre, &mut dact, Rows::Tokens(t), 4 * h, Some(0), &mut grads))
    });
}

fn losses<R: Operand>(c: &mut Criterion) {
    let cpu = Cpu::<R>::default();
    let mut group = group::<R>(c, "mlm_loss");
    for (m, v) in [(300, 30522), (300, 8000)] {
        let (bias, labels) = (values(&cpu, v), list(&cpu, (0..m).map(|i| i * 7919 % v)));
        let (mut logits, mut grads) = (values(&cpu, m * v), values(&cpu, v));
        let mut sums = cpu.zeros(stats::SLOTS).expect("host memory");
        group.throughput(Throughput::Elements((m * v) as u64));
        group.bench_function(format!("{m}x{v}"), |b| {
            b.iter(|| {
                cpu.mlm_loss(
                    &bias,
                    0,
                    v,
                    &labels,
                    Rows::Masked(m),
                    LossScale { weight: 1.0, value: 1e-3 },
                    &mut logits,
                    &mut grads,
                    &mut sums,
                )
            });
        });
    }
}

fn optimiser<R: Operand>(c: &mut Criterion) {
    let cpu = Cpu::<R>::default();
    let mut group = group::<R>(c, "optimiser");
    let n = 20_000_000;
    let (mut w, mut g, mut m) = (values(&cpu, n), values(&cpu, n), values(&cpu, n));
    let mut v: Buffer<f32> = values(&cpu, n);
    v.iter_mut().for_each(|x| *x = x.abs());
    let mut norm_sq = cpu.zeros(1).expect("host memory");
    group.throughput(Throughput::Elements(n as u64));
    group.bench_function("sum_squares 20M", |b| {
        b.iter(|| cpu.sum_squares(&g, std::slice::from_ref(&(0..n)), &mut norm_sq, 0))
    });
    let update =
        AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 9, clip_norm: 1.0 };
    let (owned, mut master) = (vec![0..n; 1], values(&cpu, if R::NARROW { n } else { 0 }));
    let groups = [ParamGroup { range: 0..n, decay: true, lr_scale: 1.0 }];
    group.bench_function("adamw 20M", |b| {
        b.iter(|| cpu.adamw(update, &groups, &owned, &norm_sq, &mut w, &mut master, &mut g, &mut m, &mut v));
    });
}

criterion_group!(wide, products::<f32>, attention::<f32>, rows::<f32>, losses::<f32>, optimiser::<f32>);
criterion_group!(
    narrow,
    products::<bf16>,
    attention::<bf16>,
    rows::<bf16>,
    losses::<bf16>,
    optimiser::<bf16>
);
criterion_main!(wide, narrow);
