//! The shard directory: a tokenised query log that every rank of a node maps into memory and shares
//! through the page cache. `shards` reads it, `verify` checks it to the last byte, `write` writes it in the
//! hidden folder of a `workplace`. `binary` and `mapped` are one file, written and read.
//!
//! | file | element | content |
//! |---|---|---|
//! | `documents-NNNNN.tok`, `queries-NNNNN.tok` | u16, or u32 where V > 65,536 | tokens end to end, whole texts a part |
//! | `documents.offsets`, `queries.offsets` | u64 | first token of each text over all parts, and the end |
//! | `documents.ids`, `queries.ids` | u8 | external ids end to end, UTF-8 |
//! | `documents.ids.offsets`, `queries.ids.offsets` | u64 | first byte of each id, and the end |
//! | `clicks.bin` | u32 | query, document; in the order of the log |
//! | `click_times.bin` | u32 | how often each click happened; only where some happened more than once |
//! | `clicks_by_query.offsets` | u64 | first entry of each query in the next file, and the end |
//! | `clicks_by_query.bin` | u32 | clicked documents of each query, ascending, each once |
//! | `tokenizer.json`, `vocab.txt`, `tokenizer_config.json` | | as transformers reads them |
//! | `manifest.json`, `manifest.crc32` | | counts, sources, options, checksum of every file |
//!
//! Binary files are little-endian and begin with a header of 64 bytes: magic (8 bytes), version (u32),
//! element size in bytes (u32), number of elements (u64), zeros. `open` looks at headers and lengths alone, so
//! it costs the same whatever the size; `verify`, which training calls once before it starts, reads every byte:
//! checksums, offsets, indices, tokens. Reading a directory that was not verified gives empty texts where its
//! numbers lie, and never leaves the files.

pub(crate) mod binary;
mod format;
mod manifest;
pub(crate) mod mapped;
pub(crate) mod parts;
mod shards;
mod verify;
mod workplace;
pub mod write;

pub use format::{HEADER, MAGIC, MANIFEST, MANIFEST_CRC, VERSION};
pub use manifest::{FileEntry, Manifest, SourceFile, fingerprint, read_manifest};
pub use shards::{Shards, Tokens};
pub use workplace::{Workplace, check_free, tidy};
