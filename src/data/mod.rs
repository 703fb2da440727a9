//! Shards to packed batches: order, negatives, packing, mask counts, prefetch.
//!
//! `source` says what a sample is; `clicks`, `documents` and `groups` are sources of them. `order` and `pack`
//! say which samples make the packs of an epoch, `loader` which packs make a step and which rank gets
//! them. All of it is pure functions of (seed, epoch, sample id) and of lengths, so every rank computes
//! the same without a message.

pub mod batch;
pub mod click_log;
pub mod clicks;
pub mod collection;
pub mod documents;
pub mod groups;
pub mod held_out;
pub mod loader;
pub mod mask;
pub mod negatives;
pub mod order;
pub mod pack;
pub mod passages;
pub mod source;

pub use batch::Batch;
pub use click_log::ClickLog;
pub use clicks::{ClickOptions, ClickSource, Grades, PairUse, Truncate};
pub use documents::DocumentSource;
pub use loader::{Cursor, Loader, LoaderOptions, Step, packs_per_epoch};
pub use negatives::Negatives;
pub use source::SampleSource;
