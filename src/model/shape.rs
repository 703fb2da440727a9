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

/// A `config.json` with sizes beyond is damaged: sums of them would overflow before memory runs out.
const MOST_WEIGHTS: f64 = 1e12;

/// The sizes of one encoder.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    /// Rows of the segment table (2 for every BERT).
    pub segments: usize,
}

impl Shape {
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
