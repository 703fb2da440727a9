//! Files in memory without a copy, and the checksum of a file of any size. All maps are read-only; this is the
//! one place that makes them.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result};

/// The file and its length in bytes.
///
/// # Errors
/// `Error::Data` if it cannot be opened.
pub fn open(path: &Path) -> Result<(File, u64)> {
    let failed = |cause| Error::io("read", path, cause);
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    Ok((file, bytes))
}

/// The bytes of a file, not empty, that nobody changes in place: this program writes such files once, under a
/// temporary name.
///
/// # Errors
/// `Error::Data` if it cannot be mapped.
pub fn map(file: &File, path: &Path) -> Result<Mmap> {
    // SAFETY: mapped read-only; the documentation asks of every caller that the file does not change in place.
    unsafe { Mmap::map(file) }.map_err(|cause| Error::io("mapped", path, cause))
}

/// `length > 0` bytes of an input file from byte `start` on. The system is told to fetch them now, ahead of
/// the threads that will read them.
///
/// # Errors
/// `Error::Data` if it cannot be mapped.
pub fn map_range(file: &File, path: &Path, start: u64, length: usize) -> Result<Mmap> {
    // SAFETY: mapped read-only and viewed as bytes alone. If a user shortens an input file while it is read,
    // a signal ends the program; no finished part is lost.
    let map = unsafe { memmap2::MmapOptions::new().offset(start).len(length).map(file) };
    let map = map.map_err(|cause| Error::io("mapped", path, cause))?;
    // Only advice: if it is refused, the pages come one by one.
    let _ = map.advise(memmap2::Advice::WillNeed);
    Ok(map)
}

/// The CRC-32 of a file. It is mapped and released piece by piece, so that checking gigabytes takes little
/// memory.
///
/// # Errors
/// `Error::Data` if it cannot be read.
pub fn crc32(path: &Path) -> Result<u32> {
    const PIECE: u64 = 16 << 20;
    let (file, length) = open(path)?;
    let mut crc = crc32fast::Hasher::new();
    for start in (0..length).step_by(PIECE as usize) {
        crc.update(&map_range(&file, path, start, (length - start).min(PIECE) as usize)?);
    }
    Ok(crc.finalize())
}
