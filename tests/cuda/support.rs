//! Packs and buffers on the software device, poisoned after what an operation may touch, for tests of single
//! kernels against plain double-precision arithmetic (`engine::naive`).

use crate::engine::support::Pack;
use crate::softgpu;
use ctune_dist::engine::cuda::{Cuda, CudaBuf, Settings};
use ctune_dist::engine::{Device, DeviceBatch, PackCounts, Real};

/// Rows that packs may have beyond the one under test.
pub const ROOM: usize = 37;

/// An engine for packs of at most `counts` and `ROOM` more of everything, with this pack begun.
pub fn gpu<R: Real>(counts: PackCounts) -> Cuda<R> {
    softgpu::load();
    let settings = Settings { graph: false, ..Settings::default() };
    let more = |n: u32| n + ROOM as u32;
    let most = PackCounts {
        tokens: more(counts.tokens),
        sequences: more(counts.sequences),
        masked: more(counts.masked),
        ..counts
    };
    let gpu = Cuda::new(0, settings).unwrap().for_packs(&most).unwrap();
    gpu.begin_pack(&counts).unwrap();
    gpu
}

/// Rows that launches cover: `grain` is that of `Cuda::capacity` (tokens 256, sequences 64, masked 128).
pub fn capacity(rows: usize, grain: usize) -> usize {
    rows.next_multiple_of(grain).min(rows + ROOM)
}

/// `x` as type R holds it.
pub fn held<R: Real>(x: f32) -> f32 {
    R::from_f32(x).to_f32()
}

/// All of `values` as R holds them.
pub fn all_held<R: Real>(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&x| held::<R>(x)).collect()
}

/// `values` followed by `behind` NaNs.
pub fn reals<R: Real>(gpu: &Cuda<R>, values: &[f32], behind: usize) -> CudaBuf<R> {
    let mut buffer = gpu.zeros(values.len() + behind).unwrap();
    gpu.upload_weights(&[values, &vec![f32::NAN; behind]].concat(), &mut buffer, 0).unwrap();
    buffer
}

/// The same in f32.
pub fn floats<R: Real>(gpu: &Cuda<R>, values: &[f32], behind: usize) -> CudaBuf<f32> {
    let mut buffer = gpu.zeros(values.len() + behind).unwrap();
    gpu.upload(&[values, &vec![f32::NAN; behind]].concat(), &mut buffer, 0).unwrap();
    buffer
}

/// Room for `len` values, all NaN.
pub fn unwritten<R: Real>(gpu: &Cuda<R>, len: usize) -> CudaBuf<R> {
    reals(gpu, &[], len)
}

/// Indices followed by garbage.
pub fn words<R: Real>(gpu: &Cuda<R>, values: &[u32]) -> CudaBuf<u32> {
    let mut buffer = gpu.zeros(values.len() + ROOM).unwrap();
    gpu.upload(&[values, &[u32::MAX; ROOM]].concat(), &mut buffer, 0).unwrap();
    buffer
}

/// The first `len` values; fails unless the next `zeros` values are zero and the rest is as it was.
#[track_caller]
pub fn taken<R: Real>(gpu: &Cuda<R>, buffer: &CudaBuf<R>, len: usize, zeros: usize) -> Vec<f32> {
    split(gpu.download_weights(buffer, 0..buffer.len()).unwrap(), len, zeros)
}

/// The same of an f32 buffer.
#[track_caller]
pub fn taken_floats<R: Real>(gpu: &Cuda<R>, buffer: &CudaBuf<f32>, len: usize) -> Vec<f32> {
    split(gpu.download(buffer, 0..buffer.len()).unwrap(), len, 0)
}

#[track_caller]
fn split(mut values: Vec<f32>, len: usize, zeros: usize) -> Vec<f32> {
    let behind = values.split_off(len);
    assert!(behind[..zeros].iter().all(|&x| x == 0.0), "rows after the pack are not zeros up to capacity");
    assert!(behind[zeros..].iter().all(|x| x.is_nan()), "values after capacity were written");
    values
}

/// Counts of a pack without masks or groups.
pub fn counts(pack: &Pack) -> PackCounts {
    PackCounts {
        tokens: pack.tokens() as u32,
        sequences: pack.samples.len() as u32,
        epoch: pack.epoch,
        step_pairs: 7,
        ..PackCounts::default()
    }
}

/// The pack on the device, with garbage after every list.
pub fn device<R: Real>(gpu: &Cuda<R>, pack: &Pack) -> DeviceBatch<Cuda<R>> {
    let batch = DeviceBatch {
        tokens: pack.tokens(),
        sequences: pack.samples.len(),
        masked: 0,
        groups: 0,
        documents: 0,
        attended: pack.attended(),
        epoch: pack.epoch,
        ids: words(gpu, &pack.ids),
        positions: words(gpu, &pack.positions),
        segments: words(gpu, &pack.segments),
        row_sample: words(gpu, &pack.row_sample),
        cu_seqlens: words(gpu, &pack.cu_seqlens),
        samples: words(gpu, &pack.samples),
        pair_labels: words(gpu, &[]),
        pair_weights: floats(gpu, &[], ROOM),
        cu_documents: words(gpu, &[]),
        cu_groups: words(gpu, &[]),
        targets: floats(gpu, &[], ROOM),
        masked_rows: words(gpu, &[]),
        masked_labels: words(gpu, &[]),
    };
    // Uploads wait for the next operation; a test may put another list in a list's place before it.
    gpu.download(&batch.ids, 0..0).unwrap();
    batch
}

/// The error rule: `got` is at most twice as far from `exact` as the plain computation that stores in R
/// (`stored`), plus one rounding of the largest value to f32.
#[track_caller]
pub fn close(what: &str, got: &[f32], stored: &[f32], exact: &[f64]) {
    crate::engine::support::close(what, got, stored, exact);
}
