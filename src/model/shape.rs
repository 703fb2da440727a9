//! The sizes of a BERT encoder, and the only definition of the symbols that shape comments use.
//!
//! | symbol | meaning |
//! |---|---|
//! | T | packed tokens of one pack (all its sequences end to end, no padding) |
//! | S | sequences of one pack |
//! | M | masked tokens of one pack |
//! | H | hidden size |
//! | I | intermediate (FFN) size |
//! | A | attention heads |
//! | D | head size, H / A |
//! | V | vocabulary size |
//! | L | layers |

use crate::{Error, Result};

/// A `config.json` with more weights is damaged: sums of its sizes would overflow before memory runs out.
const MOST_WEIGHTS: f64 = 1e12;

/// The sizes of one encoder.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    /// V
    pub vocab: usize,
    /// H
    pub hidden: usize,
    /// L
    pub layers: usize,
    /// A
    pub heads: usize,
    /// I
    pub intermediate: usize,
    /// Rows of the position table: the longest sequence, in tokens.
    pub positions: usize,
    /// Rows of the segment table: 2, or 1 in models that do not tell the texts of a pair apart.
    pub segments: usize,
    /// Added to the variance by every LayerNorm.
    pub norm_eps: f64,
}

impl Shape {
    /// BERT's own `norm_eps`.
    pub const NORM_EPS: f64 = 1e-12;

    /// D, the size of one attention head.
    pub fn head_size(&self) -> usize {
        self.hidden / self.heads
    }

    /// Refuses sizes that no BERT can have.
    ///
    /// # Errors
    /// `Error::Config` that names the offending size.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab", self.vocab),
            ("hidden", self.hidden),
            ("heads", self.heads),
            ("intermediate", self.intermediate),
            ("positions", self.positions),
            ("segments", self.segments),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::config(format!("[model] {name} = 0: must be at least 1")));
        }
        if self.segments > 2 {
            return Err(Error::config(format!(
                "[model] segments = {}: a pair has two texts, so at most 2",
                self.segments
            )));
        }
        let eps = self.norm_eps as f32;
        if !(eps > 0.0 && eps.is_finite()) {
            return Err(Error::config(format!(
                "[model] norm_eps = {:e}: must be above 0 and finite in 32 bits",
                self.norm_eps
            )));
        }
        if !self.hidden.is_multiple_of(self.heads) {
            return Err(Error::config(format!(
                "[model] hidden = {} is not a multiple of heads = {}",
                self.hidden, self.heads
            )));
        }
        let [v, h, l, i] = [self.vocab, self.hidden, self.layers, self.intermediate].map(|size| size as f64);
        let weights =
            h * (v + self.positions as f64 + self.segments as f64) + l * (4.0 * h * h + 2.0 * h * i);
        if weights > MOST_WEIGHTS {
            return Err(Error::config(format!(
                "[model] vocab = {v}, hidden = {h}, layers = {l}, intermediate = {i}, positions = {}: {weights:.0} \
                 weights are more than any machine holds",
                self.positions
            )));
        }
        Ok(())
    }
}
