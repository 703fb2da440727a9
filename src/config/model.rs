//! `[model]`: weights to start from, or sizes of a model made from scratch.

use std::path::PathBuf;

use super::data::MOST_TOKENS;
use super::keys::{keys, section};

section! {
    /// Weights to start from, or sizes of a model that is made from scratch.
    pub struct Model {
        /// Folder of the model to start from (`config.json`, `model.safetensors`). Without it, a model of the sizes
        /// below is made.
        pub path: Option<PathBuf> = None;
        /// Encoder layers.
        pub layers: Option<usize> = None, within 1..=1024;
        /// Width of the hidden states. A multiple of `heads`.
        pub hidden: Option<usize> = None, within 1..=65_536;
        /// Attention heads.
        pub heads: Option<usize> = None, within 1..=1024;
        /// Width of the feed-forward layers. Without it, 4 x `hidden`.
        pub intermediate: Option<usize> = None, within 1..=262_144;
        /// Rows of the position table. Without it, `data.max_tokens`.
        pub positions: Option<usize> = None, within 1..=MOST_TOKENS;
    }
}
