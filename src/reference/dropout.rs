//! Dropout as constant tensors of 0 and 1 / (1 - rate), so that gradients can be compared with dropout on.
//! Each element follows the rule that `engine::op::Dropout` documents. The engine draws eight elements at
//! once; here each element computes its own block.

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::data::batch::Batch;
use crate::engine::op::Dropout;
use crate::random::philox;

/// The dropout of one pack; off if there is no rate.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Of n elements a share of `rate` is dropped, within five standard deviations of the binomial
    /// (one chance in two million), and the others carry the scale that keeps the mean.
    fn check_share(mask: &Tensor, rate: f64) {
        let values: Vec<f32> = mask.flatten_all().unwrap().to_vec1().unwrap();
        let n = values.len() as f64;
        let dropped = values.iter().filter(|x| **x == 0.0).count() as f64;
        assert!((dropped - n * rate).abs() < 5.0 * (n * rate * (1.0 - rate)).sqrt(), "{dropped} of {n}");
        let scale = Dropout::new(rate as f32, 0, 0).scale;
        assert!(values.iter().all(|x| *x == 0.0 || *x == scale));
    }

    #[test]
    fn shares_and_scale() {
        let mut batch = Batch { epoch: 2, ..Batch::default() };
        let special = crate::text::Special { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 };
        batch.push(special, 5, &[7; 90], None);
        batch.push(special, 6, &[7; 91], Some(&[8; 100]));
        for rate in [0.1, 0.5] {
            let masks = DropoutMasks::new(&batch, Some((rate, 9)), DType::F32);
            let ones = |dims: &[usize]| Tensor::ones(dims, DType::F32, &Device::Cpu).unwrap();
            let rows = masks.rows(&ones(&[194, 64]), 1, 3).unwrap();
            check_share(&rows, f64::from(rate));
            check_share(&masks.attention(&ones(&[4, 92, 92]), 0, 1).unwrap(), f64::from(rate));
            check_share(&masks.pooled(&ones(&[2, 4096]), 4).unwrap(), f64::from(rate));
            // Sites, samples and heads draw independently.
            let flat = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_ne!(flat(rows), flat(masks.rows(&ones(&[194, 64]), 1, 2).unwrap()));
            let pooled = masks.pooled(&ones(&[2, 4096]), 4).unwrap();
            assert_ne!(flat(pooled.get(0).unwrap()), flat(pooled.get(1).unwrap()));
            let heads = masks.attention(&ones(&[2, 92, 92]), 0, 1).unwrap();
            assert_ne!(flat(heads.get(0).unwrap()), flat(heads.get(1).unwrap()));
        }
    }
}
