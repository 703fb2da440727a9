//! Raw files to shards: everything between a query log as its publisher ships it and the memory-mapped token
//! files that training reads. Nothing here knows a model or a device.
//!
//! `read` turns files of every format into rows, `prepare` turns rows into shards (the join of log and
//! collection, the leak guard, the filters), `shard` is the directory that comes out, `hard_negatives` lays
//! lists beside it, `inspect` says what is in one. `sample` makes corpora to try things on. `ordered` shares
//! work among the cores, `ids` numbers external ids, `progress` says how far a long reading is.

pub mod hard_negatives;
mod ids;
pub mod inspect;
mod ordered;
pub mod prepare;
mod progress;
pub mod read;
pub mod sample;
pub mod shard;

pub use hard_negatives::HardNegatives;
pub use prepare::Filter;
pub use read::{Format, Role, Source};
pub use shard::{Manifest, Shards, Tokens};

// Shard files are little-endian and mapped without conversion.
#[cfg(target_endian = "big")]
compile_error!("shards are read without byte swapping, which needs a little-endian machine");
