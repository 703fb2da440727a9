//! What the reading and the writing side of a shard directory agree on: names of files, the header of binary
//! ones, and the width of a token.

/// First bytes of every binary file, and `magic` of the manifest.
pub const MAGIC: &str = "CTUNESHD";
/// Version that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;
/// Bytes before the first element; a multiple of every element size and of a cache line.
pub const HEADER: usize = 64;
/// Name of the file that makes a directory a shard directory.
pub const MANIFEST: &str = "manifest.json";
/// Name of the file with the manifest's own checksum.
pub const MANIFEST_CRC: &str = "manifest.crc32";
/// File of the numbers of times that clicks happened.
pub(crate) const CLICK_TIMES: &str = "click_times.bin";

/// Bytes of one token for a vocabulary of this size.
pub(crate) fn token_width(vocab: usize) -> usize {
    if vocab <= 1 << 16 { 2 } else { 4 }
}

/// The name of a part of the tokens of `kind`.
pub(crate) fn part_name(kind: &str, part: usize) -> String {
    format!("{kind}-{part:05}.tok")
}
