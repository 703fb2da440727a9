//! BERT over flat arenas: shape, parameter table, activations, explicit forward and backward,
//! heads, and Hugging Face checkpoints in and out. Written once, generic over `engine::Engine`;
//! it knows no ranks and no training loop (backward calls back when a range of gradients is ready).

pub mod activations;
mod adapter;
pub mod bert;
mod capacity;
pub mod checkpoint;
pub mod config_file;
pub mod config_keys;
mod encoder;
mod heads;
pub mod init;
pub mod layout;
pub mod lora;
mod options;
mod save;
pub mod shape;
pub mod tensor_file;
pub mod trained;

pub use activations::Recompute;
pub use bert::{Bert, Mode, Objective, Tuning};
pub use layout::{HeadSet, Layout};
pub use shape::Shape;
