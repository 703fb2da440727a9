//! Device buffers of any type followed by poison, and packs, for the row operations and the optimiser.

use super::support::{counts, gpu};
use crate::engine::support::{POISON, Pack};
use ctune_dist::engine::cuda::{Cuda, CudaBuf};
use ctune_dist::engine::{Device, PackCounts, Real};

/// An engine in `R` that has been told the counts of `pack` and of `masked` tokens, with room for
/// `ROOM` more of each.
pub fn engine<R: Real>(pack: &Pack, masked: usize) -> Cuda<R> {
    gpu(PackCounts { masked: masked as u32, ..counts(pack) })
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

/// A buffer to be written: `len` values of poison, with room after them.
pub fn unwritten<R: Real, B: Real>(gpu: &Cuda<B>, len: usize, behind: usize) -> CudaBuf<R> {
    put(gpu, &[], len + behind)
}

/// The first `len` values; `cleared` more are zeros, and what follows them is still poison.
#[track_caller]
pub fn get<R: Real, B: Real>(gpu: &Cuda<B>, buffer: &CudaBuf<R>, len: usize, cleared: usize) -> Vec<f32> {
    let all: Vec<R> = gpu.download(buffer, 0..buffer.len()).unwrap();
    let zeros = all[len..len + cleared].iter().all(|x| x.to_f32() == 0.0);
    assert!(zeros, "values after the count are not zeros");
    let behind: &[u8] = bytemuck::cast_slice(&all[len + cleared..]);
    let same = behind.chunks(size_of::<R>()).all(|x| x == bytemuck::bytes_of(&poison::<R>()));
    assert!(same, "values after row {len} were written");
    all[..len].iter().map(|x| x.to_f32()).collect()
}

/// Packs of the row operations: one token, odd numbers, ragged lengths around the tiles' sizes, many.
pub fn packs(vocab: u32) -> Vec<Pack> {
    let many = (0..40).map(|i| 3 + i * 5 % 17).collect();
    [vec![1], vec![2], vec![63, 64, 65], vec![511, 1, 512, 2], many]
        .iter()
        .map(|lengths: &Vec<usize>| Pack::new(lengths, vocab))
        .collect()
}
