//! Raw files to shards: everything between a query log as its publisher ships it and the
//! memory-mapped token files that training reads. Nothing here knows a model or a device.
//!
//! `debian` makes such files from a package index, `documents` and `clicks` read them, `tokenise`
//! (with `wordpiece` and `vocabulary`) turns text into pieces, `prepare` drives it all into a
//! `shard` directory, `inspect` says what is in one.

pub mod clicks;
pub mod debian;
pub mod documents;
pub mod inspect;
mod join;
mod leak;
mod lines;
mod manifest;
mod mapped;
mod pipeline;
mod preparation;
pub mod prepare;
mod progress;
pub mod shard;
pub mod shard_write;
pub mod tokenise;
mod vocabulary;
mod wordpiece;

pub use shard::{Manifest, Shards, Tokens};
pub use tokenise::Tokenizer;

// Shard files are little-endian and mapped without conversion.
#[cfg(target_endian = "big")]
compile_error!("shards are read without byte swapping, which needs a little-endian machine");
