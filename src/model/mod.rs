//! BERT over flat arenas: shape, parameter table, activations, explicit forward and backward,
//! heads, and Hugging Face checkpoints in and out. Written once, generic over `engine::Backend`;
//! it knows no ranks and no training loop (backward calls back when a range of gradients is ready).

pub mod activations;
pub mod bert;
pub mod checkpoint;
pub mod init;
pub mod layout;
pub mod shape;
pub mod tensor_file;

pub use bert::{Bert, Mode, Objective};
pub use layout::{HeadSet, Layout};
pub use shape::Shape;
