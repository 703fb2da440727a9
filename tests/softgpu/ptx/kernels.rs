//! The project's own kernels as NVRTC compiled them, on small shapes, against the CPU engine. Rows after the
//! true count hold NaN on the way in, and are checked on the way out.

use super::{Arg, Device, Launch, Module, asset};
use crate::gates::launch_key;
use ctune_dist::engine::cpu::{Buffer, Cpu};
use ctune_dist::engine::cuda::dq_sums;
use ctune_dist::engine::op::{self, Dropout, Heads, MaskRule};
use ctune_dist::engine::{Device as _, DeviceBatch, Engine, PackCounts, Rows};
use ctune_dist::model::activations::{Capacity, device_batch};
use ctune_dist::random::philox;
use half::bf16;

/// Rows that buffers and launches have room for.
const CAPACITY: usize = 256;
/// Sequences that launches have room for.
const SEQUENCES: usize = 6;
const LENGTHS: [usize; 3] = [70, 1, 130];
const EPOCH: u32 = 3;
const VOCAB: usize = 50;

fn tokens() -> usize {
    LENGTHS.iter().sum()
}

fn random(len: usize, seed: u32) -> Vec<bf16> {
    let value = |i| philox([seed, 99], [i, 0, 0, 0])[0] as f32 / 2f32.powi(31) - 1.0;
    (0..len as u32).map(|i| bf16::from_f32(value(i))).collect()
}

/// `values`, followed by rows of NaN up to the capacity.
fn padded(values: &[bf16], width: usize) -> Vec<bf16> {
    let mut all = values.to_vec();
    all.resize(CAPACITY * width, bf16::NAN);
    all
}

fn counts(device: &mut Device) -> Arg {
    let counts = PackCounts {
        tokens: tokens() as u32,
        sequences: LENGTHS.len() as u32,
        epoch: EPOCH,
        ..PackCounts::default()
    };
    Arg::Pointer(device.upload(&[counts]))
}

/// The pack in the CPU engine's form.
fn batch(cpu: &Cpu) -> DeviceBatch<Cpu> {
    let capacity = Capacity { tokens: tokens(), sequences: LENGTHS.len(), masked: tokens() };
    let mut batch = device_batch(cpu, capacity).unwrap();
    (batch.tokens, batch.sequences, batch.epoch) = (tokens(), LENGTHS.len(), EPOCH);
    let mut at = 0;
    for (s, &length) in LENGTHS.iter().enumerate() {
        batch.samples[s] = 900 + 7 * s as u32;
        for position in 0..length {
            let row = at + position;
            batch.positions[row] = position as u32;
            batch.row_sample[row] = 900 + 7 * s as u32;
            batch.segments[row] = u32::from(position > length / 3);
            let word = 5 + (row * 7919 % (VOCAB - 5)) as u32;
            batch.ids[row] = if position == 0 {
                2
            } else if position + 1 == length {
                3
            } else {
                word
            };
        }
        at += length;
        batch.cu_seqlens[s + 1] = at as u32;
    }
    batch
}

fn list(device: &mut Device, values: &[u32]) -> Arg {
    Arg::Pointer(device.upload(values))
}

#[track_caller]
fn run(module: &Module, name: &str, grid: [u32; 3], block: u32, args: &[Arg], device: &mut Device) {
    let launch = Launch {
        kernel: module.kernel(name),
        grid,
        block,
        dynamic_shared: launch_key(name, "dynamic_shared"),
        args,
    };
    launch.run(device).unwrap_or_else(|fault| panic!("{fault}"));
}

fn drop_args(drop: Dropout) -> [Arg; 4] {
    [Arg::U32(drop.threshold), Arg::F32(drop.scale), Arg::U32(drop.seed), Arg::U32(drop.site)]
}

fn single(cpu: &Cpu, values: &[bf16]) -> Buffer<f32> {
    let values: Vec<f32> = values.iter().map(|x| x.to_f32()).collect();
    let mut buffer = cpu.zeros(values.len()).unwrap();
    cpu.upload(&values, &mut buffer, 0).unwrap();
    buffer
}

/// `got` is within a few roundings to bf16 (2^-9 of the largest value each) of `expected`.
#[track_caller]
fn close(what: &str, got: &[bf16], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    let size = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
    for (i, (x, y)) in got.iter().zip(expected).enumerate() {
        let error = (x.to_f32() - y).abs();
        assert!(error <= 4.0 * size / 512.0, "{what}[{i}]: {x} and {y} of {size}");
    }
}

/// Forward and backward of heads of 64 on tensor cores, with dropout.
#[test]
fn attention_on_tensor_cores() {
    let heads = Heads { heads: 2, size: 64 };
    let (t, h) = (tokens(), heads.heads * heads.size);
    let (qkv, dout) = (random(t * 3 * h, 1), random(t * h, 2));
    let drop = Dropout::new(0.1, 11, 4);

    let cpu = Cpu::new();
    let pack = &batch(&cpu);
    let lse = &mut cpu.zeros(t * heads.heads).unwrap();
    let out = &mut cpu.zeros(t * h).unwrap();
    let inputs = &single(&cpu, &qkv);
    cpu.run(op::Attention { batch: pack, heads, drop, qkv: inputs, lse, out }).unwrap();
    let dqkv = &mut cpu.zeros(t * 3 * h).unwrap();
    let bias = &mut cpu.zeros(3 * h).unwrap();
    cpu.run(op::AttentionBackward {
        batch: pack,
        heads,
        drop,
        qkv: inputs,
        lse,
        out,
        dout: &single(&cpu, &dout),
        dqkv,
        bias: Some(0),
        grads: bias,
    })
    .unwrap();

    let mut device = Device::default();
    let d = &mut device;
    let head = [counts(d), list(d, &pack.cu_seqlens), list(d, &pack.samples)];
    let at_qkv = d.upload(&padded(&qkv, 3 * h));
    let (at_lse, at_out) = (d.unwritten::<f32>(CAPACITY * heads.heads), d.unwritten::<bf16>(CAPACITY * h));
    // slots for tiles of 64 rows: kernels with larger tiles find the last ones empty
    let slots = (CAPACITY / 64 + SEQUENCES) as u32;
    let grid = [slots, heads.heads as u32, 1];
    let own =
        [Arg::Pointer(at_qkv), Arg::Pointer(at_lse), Arg::Pointer(at_out), Arg::U32(heads.heads as u32)];
    let args = [&head[..], &own, &drop_args(drop)].concat();
    run(&asset("kernels/attention.cu"), "attention_d64_bf16", grid, 128, &args, d);
    let got = d.read::<bf16>(at_out);
    close("out", &got[..t * h], out);
    assert!(got[t * h..].iter().all(|x| x.to_bits() == 0xFFFF), "rows after the pack were written");
    let rows = d.read::<f32>(at_lse);
    for (i, (x, y)) in rows.iter().zip(lse.iter()).enumerate() {
        assert!((x - y).abs() < 2e-3, "log-sum-exp[{i}]: {x} and {y}");
    }

    let module = asset("kernels/attention_backward.cu");
    let pitch = 64 * slots;
    let at_dout = Arg::Pointer(d.upload(&padded(&dout, h)));
    let rows = Arg::Pointer(d.unwritten::<f32>(2 * heads.heads * pitch as usize));
    let sums = Arg::Pointer(d.unwritten::<f32>(dq_sums(CAPACITY, heads)));
    let at_dqkv = d.unwritten::<bf16>(CAPACITY * 3 * h);
    let partials = d.unwritten::<f32>(SEQUENCES * 3 * h);
    let own = [
        Arg::Pointer(at_qkv),
        Arg::Pointer(at_lse),
        Arg::Pointer(at_out),
        at_dout,
        rows,
        sums,
        Arg::Pointer(at_dqkv),
        Arg::Pointer(partials),
        Arg::U32(heads.heads as u32),
        Arg::U32(pitch),
        Arg::U32(CAPACITY as u32),
    ];
    let args = [&head[..], &own, &drop_args(drop)].concat();
    // blocks after the pack's sequences leave zeros
    let grid = [SEQUENCES as u32, heads.heads as u32, 1];
    run(&module, "attention_backward_d64_bf16", grid, 256, &args, d);
    let got = d.read::<bf16>(at_dqkv);
    close("dqkv", &got[..t * 3 * h], dqkv);
    assert!(got[t * 3 * h..].iter().all(|x| x.to_bits() == 0), "rows after the pack must be zeros");
    let got = d.read::<f32>(partials);
    let size = bias.iter().fold(0f32, |a, b| a.max(b.abs()));
    for (column, expected) in bias.iter().enumerate() {
        let sum: f32 = got[column..].iter().step_by(3 * h).sum();
        assert!((sum - expected).abs() <= size / 64.0, "bias[{column}]: {sum} and {expected} of {size}");
    }
}

#[test]
fn gelu_and_its_gradient() {
    let (t, width) = (tokens(), 64);
    let (pre, dact) = (random(t * width, 3), random(t * width, 4));
    let cpu = Cpu::new();
    let (x, mut d) = (single(&cpu, &pre), single(&cpu, &dact));
    let mut bias = cpu.zeros(width).unwrap();
    cpu.run(op::GeluBackward {
        pre: &x,
        dact: &mut d,
        rows: Rows::Tokens(t),
        width,
        bias: Some(0),
        grads: &mut bias,
    })
    .unwrap();

    let (module, mut device) = (asset("kernels/gelu.cu"), Device::default());
    let counts = counts(&mut device);
    let at_pre = Arg::Pointer(device.upload(&padded(&pre, width)));
    let (act, at) = (device.unwritten::<bf16>(CAPACITY * width), device.upload(&padded(&dact, width)));
    let grid = [(CAPACITY * width / 8).div_ceil(256) as u32, 1, 1];
    let (rows, columns) = (Arg::U32(0), Arg::U32(width as u32));
    run(&module, "gelu_bf16", grid, 256, &[counts, rows, at_pre, Arg::Pointer(act), columns], &mut device);
    let capacity = Arg::U32(CAPACITY as u32);
    let chunks = CAPACITY.div_ceil(128);
    let partials = device.unwritten::<f32>(chunks * width);
    let args = [counts, rows, at_pre, Arg::Pointer(at), Arg::Pointer(partials), capacity, columns];
    let grid = [width.div_ceil(32 * 8) as u32, chunks as u32, 1];
    run(&module, "gelu_backward_bf16", grid, 256, &args, &mut device);

    let exact = |x: &bf16| {
        let x = f64::from(x.to_f32());
        (0.5 * x * (1.0 + candle_core::cpu::erf::erf_f64(x / 2f64.sqrt()))) as f32
    };
    let got = device.read::<bf16>(act);
    close("GELU", &got[..t * width], &pre.iter().map(exact).collect::<Vec<f32>>());
    assert!(got[t * width..].iter().all(|x| x.to_bits() == 0xFFFF), "rows after the pack were written");
    let got = device.read::<bf16>(at);
    close("its gradient", &got[..t * width], &d);
    assert!(got[t * width..].iter().all(|x| x.to_bits() == 0), "rows after the pack must be zeros");
    let got = device.read::<f32>(partials);
    for (column, expected) in bias.iter().enumerate() {
        let sum: f32 = got[column..].iter().step_by(width).sum();
        assert!((sum - expected).abs() < 1e-3, "bias[{column}]: {sum} and {expected}");
    }
}

#[test]
fn column_sums_are_added() {
    let (t, width) = (tokens(), 264);
    let x = random(t * width, 5);
    let (module, mut device) = (asset("kernels/column_sum.cu"), Device::default());
    let chunks = CAPACITY.div_ceil(256) as u32;
    let counts = counts(&mut device);
    let partials = Arg::Pointer(device.unwritten::<f32>(chunks as usize * width));
    let at = Arg::Pointer(device.upload(&padded(&x, width)));
    let grads = device.upload(&vec![2f32; width]);
    let columns = Arg::U32(width as u32);
    let grid = [width.div_ceil(32 * 8) as u32, chunks, 1];
    run(
        &module,
        "column_partials_bf16",
        grid,
        256,
        &[counts, Arg::U32(0), at, partials, columns],
        &mut device,
    );
    let to = Arg::Pointer(grads);
    let args = [partials, Arg::U32(chunks), columns, to, to, to];
    run(&module, "add_partials_bf16", [width.div_ceil(32) as u32, 1, 1], 256, &args, &mut device);
    for (column, got) in device.read::<f32>(grads).into_iter().enumerate() {
        let sum: f64 = (0..t).map(|row| f64::from(x[row * width + column].to_f32())).sum();
        assert!((f64::from(got) - 2.0 - sum).abs() < 1e-4, "column {column}: {got} and {sum} + 2");
    }
}

/// The same tokens, the same replacements, the same list as the CPU's: to the bit.
#[test]
fn masks_are_the_cpus() {
    for whole_word in [false, true] {
        let rule = MaskRule {
            seed: 5,
            threshold: 1 << 30,
            segments: 3,
            whole_word,
            vocab: VOCAB as u32,
            cls: 2,
            sep: 3,
            mask: 4,
        };
        let continues: Vec<u32> = (0..VOCAB as u32).map(|id| u32::from(id > 4 && id % 3 == 0)).collect();
        let cpu = Cpu::new();
        let mut pack = batch(&cpu);
        let before: Vec<u32> = pack.ids.to_vec();

        let (module, mut device) = (asset("kernels/mask_tokens.cu"), Device::default());
        let d = &mut device;
        let blocks = CAPACITY.div_ceil(256);
        let pad = |values: &[u32]| [values, &vec![u32::MAX; CAPACITY - values.len()]].concat();
        let (ids, positions) = (d.upload(&pad(&before)), list(d, &pad(&pack.positions)));
        let (segments, samples) = (list(d, &pad(&pack.segments)), list(d, &pad(&pack.row_sample)));
        let (flags, chosen) = (list(d, &continues), Arg::Pointer(d.unwritten::<u32>(8 * blocks)));
        let (rows, labels) = (d.unwritten::<u32>(CAPACITY), d.unwritten::<u32>(CAPACITY));
        let found = d.unwritten::<u32>(4);
        let number = Arg::U32;
        let choose = [
            counts(d),
            Arg::Pointer(ids),
            positions,
            segments,
            samples,
            flags,
            chosen,
            number(rule.seed),
            number(rule.threshold),
            number(rule.segments),
            number(u32::from(whole_word)),
            number(VOCAB as u32),
            number(rule.cls),
            number(rule.sep),
        ];
        run(&module, "mask_choose_f32", [blocks as u32, 1, 1], 256, &choose, d);
        let compact = [
            choose[0],
            chosen,
            Arg::Pointer(ids),
            positions,
            samples,
            Arg::Pointer(rows),
            Arg::Pointer(labels),
            Arg::Pointer(found),
            number(CAPACITY as u32),
            number(rule.seed),
            number(rule.vocab),
            number(rule.mask),
        ];
        run(&module, "mask_compact_f32", [blocks as u32, 1, 1], 256, &compact, d);

        let masked = d.read::<u32>(found)[0] as usize;
        pack.masked = masked;
        cpu.run(op::MaskTokens {
            batch: &mut pack,
            rule: &rule,
            continues: &{
                let mut buffer = cpu.zeros(VOCAB).unwrap();
                cpu.upload(&continues, &mut buffer, 0).unwrap();
                buffer
            },
        })
        .unwrap();
        assert!(masked > 20, "{masked} masked");
        assert_eq!(d.read::<u32>(rows)[..masked], pack.masked_rows[..masked]);
        assert_eq!(d.read::<u32>(labels)[..masked], pack.masked_labels[..masked]);
        assert_eq!(d.read::<u32>(ids)[..tokens()], pack.ids[..tokens()]);
    }
}
