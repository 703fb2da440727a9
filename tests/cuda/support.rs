//! Device buffers with poison behind them, and packs on the software device.

use crate::engine::support::{BEHIND, POISON, Pack};
use crate::softgpu;
use ctune_dist::engine::cuda::{Cuda, CudaBuf, Real, Settings};
use ctune_dist::engine::{Backend, DeviceBatch, PackCounts};

/// Rows that launches cover behind the true count: backward passes clear them.
pub const SLACK: usize = 7;

/// An engine in `R` that has been told the counts of `pack` and of `masked` tokens, with room for
/// `SLACK` more of each.
pub fn engine<R: Real>(pack: &Pack, masked: usize) -> Cuda<R> {
    softgpu::load();
    let kernel_cache = Some(softgpu::library_path().join("images"));
    let settings = Settings { graph: false, narrow_sums: false, kernel_cache };
    let count = |n: usize| n as u32;
    let (tokens, sequences, masked) = (count(pack.tokens()), count(pack.samples.len()), count(masked));
    let slack = count(SLACK);
    let (most_tokens, most_sequences, most_masked) = (tokens + slack, sequences + slack, masked + slack);
    let most = PackCounts {
        tokens: most_tokens,
        sequences: most_sequences,
        masked: most_masked,
        ..PackCounts::default()
    };
    let counts = PackCounts { tokens, sequences, masked, epoch: pack.epoch, ..PackCounts::default() };
    let engine = Cuda::<R>::new(0, settings).unwrap().for_packs(&most).unwrap();
    engine.begin_pack(&counts).unwrap();
    engine
}

/// `values` as the device rounds them.
pub fn rounded<R: Real>(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&x| R::from_f32(x).to_f32()).collect()
}

fn poison<R: Real>() -> R {
    R::from_f32(f32::from_bits(POISON))
}

/// `values`, then poison.
pub fn put<R: Real, B: Real>(gpu: &Cuda<B>, values: &[f32], behind: usize) -> CudaBuf<R> {
    let mut all: Vec<R> = values.iter().map(|&x| R::from_f32(x)).collect();
    all.resize(values.len() + behind, poison());
    let mut buffer = gpu.zeros(all.len()).unwrap();
    gpu.upload(&all, &mut buffer, 0).unwrap();
    buffer
}

/// A buffer to be written: `len` values of poison, with room behind them.
pub fn unwritten<R: Real, B: Real>(gpu: &Cuda<B>, len: usize, behind: usize) -> CudaBuf<R> {
    put(gpu, &[], len + behind)
}

/// `values`, then numbers that no list may be read to.
pub fn list<B: Real>(gpu: &Cuda<B>, values: &[u32]) -> CudaBuf<u32> {
    let mut all = values.to_vec();
    all.resize(values.len() + BEHIND, u32::MAX);
    let mut buffer = gpu.zeros(all.len()).unwrap();
    gpu.upload(&all, &mut buffer, 0).unwrap();
    buffer
}

/// The first `len` values; `cleared` more are zeros, and what is behind them is still poison.
#[track_caller]
pub fn get<R: Real, B: Real>(gpu: &Cuda<B>, buffer: &CudaBuf<R>, len: usize, cleared: usize) -> Vec<f32> {
    let all: Vec<R> = gpu.download(buffer, 0..buffer.len()).unwrap();
    let zeros = all[len..len + cleared].iter().all(|x| x.to_f32() == 0.0);
    assert!(zeros, "values behind the count are not zeros");
    let behind: &[u8] = bytemuck::cast_slice(&all[len + cleared..]);
    let same = behind.chunks(size_of::<R>()).all(|x| x == bytemuck::bytes_of(&poison::<R>()));
    assert!(same, "values behind row {len} were written");
    all[..len].iter().map(|x| x.to_f32()).collect()
}

/// `pack` on the device.
pub fn batch<B: Real>(gpu: &Cuda<B>, pack: &Pack) -> DeviceBatch<Cuda<B>> {
    DeviceBatch {
        tokens: pack.tokens(),
        sequences: pack.samples.len(),
        masked: 0,
        groups: 0,
        epoch: pack.epoch,
        ids: list(gpu, &pack.ids),
        positions: list(gpu, &pack.positions),
        segments: list(gpu, &pack.segments),
        row_sample: list(gpu, &pack.row_sample),
        cu_seqlens: list(gpu, &pack.cu_seqlens),
        samples: list(gpu, &pack.samples),
        pair_labels: list(gpu, &[]),
        cu_groups: list(gpu, &[]),
        targets: put(gpu, &[], BEHIND),
        masked_rows: list(gpu, &[]),
        masked_labels: list(gpu, &[]),
    }
}

/// Packs of the row operations: one token, odd numbers, ragged lengths around the tiles' sizes, many.
pub fn packs(vocab: u32) -> Vec<Pack> {
    let many = (0..40).map(|i| 3 + i * 5 % 17).collect();
    [vec![1], vec![2], vec![63, 64, 65], vec![511, 1, 512, 2], many]
        .iter()
        .map(|lengths: &Vec<usize>| Pack::new(lengths, vocab))
        .collect()
}
