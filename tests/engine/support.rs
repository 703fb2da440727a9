//! Batches, random values and the error rule.

use super::naive::Num;
use ctune_dist::engine::op::{Dropout, LossScale};
use ctune_dist::engine::{Device, DeviceBatch, Elem, Real, Words};
use ctune_dist::random::philox;

/// Elements after those that an operation may touch.
pub const BEHIND: usize = 70;
/// Their value: a NaN that no arithmetic makes, in f32 or cut to bf16, so that reading it shows as well
/// as writing it.
pub const POISON: u32 = 0x7FC5_DEAD;

/// Runs a case on the engines of both types; bf16 with dot products of pairs, where the machine has
/// them, and without.
macro_rules! on_engines {
    ($case:ident) => {{
        use ctune_dist::engine::cpu::Cpu;
        $case(&Cpu::<f32>::default());
        $case(&Cpu::<half::bf16>::default());
        $case(&Cpu::<half::bf16>::default().widening());
    }};
}
pub(crate) use on_engines;

/// Values in -1..1, a pure function of `seed`.
pub fn random(len: usize, seed: u32) -> Vec<f32> {
    (0..len as u32).map(|i| philox([seed, 99], [i, 0, 0, 0])[0] as f32 / 2f32.powi(31) - 1.0).collect()
}

/// A loss's gradient times `value`.
pub fn by(value: f32) -> LossScale {
    LossScale { weight: 1.0, value }
}

pub fn to64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// `values` as R keeps them.
pub fn held<R: Real>(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&x| R::from_f32(x).to_f32()).collect()
}

/// `values` followed by poison.
pub fn poisoned<T: Real, D: Device>(device: &D, values: &[f32]) -> D::Buf<T> {
    let mut all: Vec<T> = values.iter().map(|&x| T::from_f32(x)).collect();
    all.resize(values.len() + BEHIND, T::from_f32(f32::from_bits(POISON)));
    on_device(device, &all)
}

fn on_device<T: Elem, D: Device>(device: &D, values: &[T]) -> D::Buf<T> {
    let mut buffer = device.zeros(values.len()).unwrap();
    device.upload(values, &mut buffer, 0).unwrap();
    buffer
}

/// Overwrites the first values.
pub fn write<T: Real, D: Device>(device: &D, buffer: &mut D::Buf<T>, values: &[f32]) {
    let values: Vec<T> = values.iter().map(|&x| T::from_f32(x)).collect();
    device.upload(&values, buffer, 0).unwrap();
}

/// `len` poisoned values (to be overwritten) followed by poison.
pub fn unwritten<T: Real, D: Device>(device: &D, len: usize) -> D::Buf<T> {
    poisoned(device, &vec![f32::from_bits(POISON); len])
}

/// Indices followed by garbage.
pub fn indices<D: Device>(device: &D, values: &[u32]) -> Words<D> {
    on_device(device, &[values, &[u32::MAX; BEHIND]].concat())
}

/// The values of a buffer of `len`; fails when something after them was written.
#[track_caller]
pub fn taken<T: Real, D: Device>(device: &D, buffer: &D::Buf<T>, len: usize) -> Vec<f32> {
    let bits = |x: T| x.to_f32().to_bits();
    let poison = bits(T::from_f32(f32::from_bits(POISON)));
    let mut values = device.download(buffer, 0..len + BEHIND).unwrap();
    assert!(values[len..].iter().all(|&x| bits(x) == poison), "values after row {len} were written");
    values.truncate(len);
    values.iter().map(|x| x.to_f32()).collect()
}

/// The error rule: `got` is at most twice as far from `exact` as `naive` is, plus one rounding of
/// the largest value to f32.
#[track_caller]
pub fn close(what: &str, got: &[f32], naive: &[f32], exact: &[f64]) {
    assert_eq!((got.len(), naive.len()), (exact.len(), exact.len()), "{what}: lengths");
    let worst = |values: &[f32]| {
        values
            .iter()
            .zip(exact)
            .map(|(&x, &y)| (f64::from(x) - y).abs())
            .fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) })
    };
    let size = exact.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    let (error, yardstick) = (worst(got), worst(naive));
    let allowed = 2.0 * yardstick + size * f64::from(f32::EPSILON);
    assert!(error <= allowed, "{what}: error {error:.3e}, naive {yardstick:.3e}, size {size:.3e}");
}

/// A gradient against central differences of `loss`, at a few places spread over `x`.
#[track_caller]
pub fn differences(what: &str, x: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    let size = gradient.iter().fold(1e-3f64, |a, b| a.max(b.abs()));
    for i in (0..x.len()).step_by((x.len() / 37).max(1)) {
        let step = 1e-5;
        let at = |delta: f64| {
            let mut x = x.to_vec();
            x[i] += delta;
            loss(&x)
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        assert!((slope - gradient[i]).abs() < 1e-6 * size, "{what}[{i}]: {} but {slope}", gradient[i]);
    }
}

/// Host copy of a pack's keys.
#[derive(Clone, Debug)]
pub struct Pack {
    pub lengths: Vec<usize>,
    pub ids: Vec<u32>,
    pub positions: Vec<u32>,
    pub segments: Vec<u32>,
    pub row_sample: Vec<u32>,
    pub cu_seqlens: Vec<u32>,
    pub samples: Vec<u32>,
    pub epoch: u32,
}

impl Pack {
    /// Sequences `[CLS] .. [SEP] .. [SEP]` with ids 0 ([CLS]), 1 ([SEP]) and 3..vocab.
    pub fn new(lengths: &[usize], vocab: u32) -> Self {
        let mut pack = Self {
            lengths: lengths.to_vec(),
            ids: vec![],
            positions: vec![],
            segments: vec![],
            row_sample: vec![],
            cu_seqlens: vec![0],
            samples: vec![],
            epoch: 3,
        };
        for (i, &length) in lengths.iter().enumerate() {
            let sample = 1000 + 7 * i as u32;
            let boundary = length / 3;
            for at in 0..length {
                let draw = philox([sample, 5], [at as u32, 0, 0, 0])[0] % (vocab - 3) + 3;
                pack.ids.push(match at {
                    0 => 0,
                    _ if at == boundary || at + 1 == length => 1,
                    _ => draw,
                });
                pack.positions.push(at as u32);
                pack.segments.push(u32::from(at > boundary));
                pack.row_sample.push(sample);
            }
            pack.samples.push(sample);
            pack.cu_seqlens.push(pack.ids.len() as u32);
        }
        pack
    }

    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Pairs of tokens that attend to each other.
    pub fn attended(&self) -> u64 {
        self.lengths.iter().map(|&length| (length * length) as u64).sum()
    }

    /// The pack on the device, with garbage after every list.
    pub fn device<D: Device>(&self, device: &D) -> DeviceBatch<D> {
        DeviceBatch {
            tokens: self.tokens(),
            sequences: self.samples.len(),
            masked: 0,
            groups: 0,
            documents: 0,
            attended: self.attended(),
            epoch: self.epoch,
            ids: indices(device, &self.ids),
            positions: indices(device, &self.positions),
            segments: indices(device, &self.segments),
            row_sample: indices(device, &self.row_sample),
            cu_seqlens: indices(device, &self.cu_seqlens),
            samples: indices(device, &self.samples),
            pair_labels: indices(device, &[]),
            pair_weights: poisoned(device, &[]),
            cu_documents: indices(device, &[]),
            cu_groups: indices(device, &[]),
            targets: poisoned(device, &[]),
            masked_rows: indices(device, &[]),
            masked_labels: indices(device, &[]),
        }
    }

    /// Dropout factors of a [T, H] site, from the definition in `op::Dropout`.
    pub fn factors<F: Num>(&self, drop: Dropout, hidden: usize) -> Vec<F> {
        (0..self.tokens() * hidden)
            .map(|i| {
                let (row, column) = (i / hidden, (i % hidden) as u32);
                let counter = [self.row_sample[row], self.positions[row], self.epoch, column / 8];
                factor(drop, counter, column)
            })
            .collect()
    }
}

/// One element's factor: 16 bits of its Philox block against the threshold.
pub fn factor<F: Num>(drop: Dropout, counter: [u32; 4], element: u32) -> F {
    let word = philox(drop.key(), counter)[(element % 8 / 2) as usize];
    let bits = if element.is_multiple_of(2) { word & 0xFFFF } else { word >> 16 };
    F::of(if bits < drop.threshold { 0.0 } else { f64::from(drop.scale) })
}

/// The packs that every packed operation is tried on.
pub fn packs(vocab: u32) -> Vec<Pack> {
    let ragged = vec![1, 2, 63, 64, 65, 200];
    let many = (0..40).map(|i| 3 + i * 5 % 17).collect();
    [vec![1], vec![2], vec![65], ragged, many]
        .iter()
        .map(|lengths: &Vec<usize>| Pack::new(lengths, vocab))
        .collect()
}
