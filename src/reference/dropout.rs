//! Dropout as constant tensors of 0 and 1 / (1 - rate), element by element from the rule that
//! `engine::random::Dropout` documents, so that gradients can be compared with dropout on. The
//! engine draws eight elements at once; here each element asks for its own block.

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::data::batch::Batch;
use crate::engine::random::{Dropout, philox};

/// The dropout of one pack; off without a rate.
pub(super) struct DropoutMasks<'a> {
    batch: &'a Batch,
    /// (rate, seed)
    rule: Option<(f32, u32)>,
    dtype: DType,
}

impl<'a> DropoutMasks<'a> {
    pub fn new(batch: &'a Batch, rule: Option<(f32, u32)>, dtype: DType) -> Self {
        Self { batch, rule: rule.filter(|(rate, _)| *rate > 0.0), dtype }
    }

    /// x [n, H], the rows of one sequence.
    pub fn rows(&self, x: &Tensor, sequence: usize, site: u32) -> Result<Tensor> {
        let first = self.batch.cu_seqlens[sequence] as usize;
        self.apply(x, site, |drop, index, columns| {
            let (row, column) = (first + index / columns, (index % columns) as u32);
            row_element(drop, self.batch.row_sample[row], self.batch.positions[row], self.batch.epoch, column)
        })
    }

    /// x [S, H], one row a sequence, keyed by its sample and position 0.
    pub fn pooled(&self, x: &Tensor, site: u32) -> Result<Tensor> {
        self.apply(x, site, |drop, index, columns| {
            let (sequence, column) = (index / columns, (index % columns) as u32);
            row_element(drop, self.batch.samples[sequence], 0, self.batch.epoch, column)
        })
    }

    /// x [A, n, n], the attention weights of one sequence.
    pub fn attention(&self, x: &Tensor, sequence: usize, site: u32) -> Result<Tensor> {
        let sample = self.batch.samples[sequence];
        self.apply(x, site, |drop, index, n| {
            let (head, query, key) = (index / (n * n), index / n % n, (index % n) as u32);
            let counter = [sample, query as u32 | (key / 8) << 16, self.batch.epoch, head as u32];
            kept(drop, counter, key)
        })
    }

    /// x times the mask that `keeps(drop, flat index, last dimension)` describes.
    fn apply(&self, x: &Tensor, site: u32, keeps: impl Fn(&Dropout, usize, usize) -> bool) -> Result<Tensor> {
        let Some((rate, seed)) = self.rule else { return Ok(x.clone()) };
        let drop = Dropout::new(rate, seed, site);
        let last = x.dims().last().copied().unwrap_or(1);
        let factor = |index| if keeps(&drop, index, last) { drop.scale } else { 0.0 };
        let mask: Vec<f32> = (0..x.elem_count()).map(factor).collect();
        let mask = Tensor::from_vec(mask, x.dims(), &Device::Cpu)?.to_dtype(self.dtype)?;
        Ok((x * mask)?)
    }
}

/// Element (row, column) of a [rows, H] site.
fn row_element(drop: &Dropout, sample: u32, position: u32, epoch: u32, column: u32) -> bool {
    kept(drop, [sample, position, epoch, column / 8], column)
}

/// Whether the element whose block is `counter` and whose place in it is `lane % 8` is kept.
fn kept(drop: &Dropout, counter: [u32; 4], lane: u32) -> bool {
    let word = philox(drop.key(), counter)[(lane % 8 / 2) as usize];
    let half = if lane.is_multiple_of(2) { word & 0xFFFF } else { word >> 16 };
    half >= drop.threshold
}
