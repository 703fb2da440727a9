//! BERT over flat arenas.

pub mod shape;
