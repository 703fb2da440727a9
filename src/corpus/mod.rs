//! Raw files to shards: everything between a query log as its publisher ships it and the
//! memory-mapped token files that training reads. Nothing here knows a model or a device.
//!
//! Reading: `input` opens and decompresses, `blocks` cuts at record ends, `format` decides, `columns` and
//! `sgml` parse, `source` makes one sequence of it all, `ordered` shares the work among the cores.
//! Preparing: `prepare` says what, `preparation` in which order, `log` and `texts` are its stages, `leak`,
//! `filter` and `repair` what is left out or mended, `parts` how it survives a kill. `tokenise` (with
//! `wordpiece` and `vocabulary`) turns text into pieces. `shard` is the directory that comes out of
//! it, `inspect` says what is in one, `hard` lays hard negatives beside it. `debian` and `synthetic` make corpora to try things on.

mod binary;
mod blocks;
mod columns;
pub mod debian;
pub mod documents;
mod filter;
mod format;
pub mod hard;
mod ids;
pub(crate) mod input;
pub mod inspect;
mod leak;
mod log;
mod lookup;
mod manifest;
mod mapped;
mod ordered;
mod parts;
mod preparation;
pub mod prepare;
mod progress;
mod repair;
mod rows;
mod sgml;
pub mod shard;
pub mod shard_write;
mod source;
pub mod synthetic;
mod texts;
pub mod tokenise;
mod unlzw;
mod vocabulary;
mod wordpiece;

pub use filter::Filter;
pub use format::Format;
pub use hard::HardNegatives;
pub use rows::Role;
pub use shard::{Manifest, Shards, Tokens};
pub use source::Source;
pub use tokenise::Tokenizer;

// Shard files are little-endian and mapped without conversion.
#[cfg(target_endian = "big")]
compile_error!("shards are read without byte swapping, which needs a little-endian machine");
