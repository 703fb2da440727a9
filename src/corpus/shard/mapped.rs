//! A binary shard file in memory: the header and the length are checked once, then it is a slice.

use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;

use super::format::{HEADER, MAGIC, MANIFEST, VERSION};
use super::manifest::FileEntry;
use crate::files;
use crate::{Error, Result};

/// One binary file, mapped, its header and length checked.
pub(crate) struct Mapped {
    path: PathBuf,
    map: Mmap,
    width: usize,
    pub(crate) count: usize,
}

impl Mapped {
    /// `files` says how long the file was when it was written.
    pub(crate) fn open(dir: &Path, name: &str, width: usize, files: &[FileEntry]) -> Result<Self> {
        let path = dir.join(name);
        let wrong = |what: String| Error::data(format!("{}: {what}", path.display()));
        let Some(entry) = files.iter().find(|entry| entry.name == name) else {
            return Err(wrong(format!("not listed in {MANIFEST}")));
        };
        let (file, bytes) = files::open(&path)?;
        if bytes != entry.bytes || bytes < HEADER as u64 {
            let kind = if bytes < entry.bytes { "truncated" } else { "not the file that was written" };
            return Err(wrong(format!(
                "{kind}: {bytes} bytes, {} when written; prepare the shards again",
                entry.bytes
            )));
        }
        let map = files::map(&file, &path)?;
        let number = |at: usize| u32::from_le_bytes([map[at], map[at + 1], map[at + 2], map[at + 3]]);
        if &map[..8] != MAGIC.as_bytes() {
            return Err(wrong("not a shard file (wrong magic)".into()));
        }
        if number(8) != VERSION {
            return Err(wrong(format!("shard file of version {}; this program reads {VERSION}", number(8))));
        }
        if number(12) as usize != width {
            return Err(wrong(format!("elements of {} bytes, expected {width}", number(12))));
        }
        let count = u64::from(number(16)) | u64::from(number(20)) << 32;
        if count.checked_mul(width as u64).and_then(|n| n.checked_add(HEADER as u64)) != Some(bytes) {
            return Err(wrong(format!("{count} elements of {width} bytes do not make {bytes} bytes")));
        }
        Ok(Self { path, map, width, count: count as usize })
    }

    /// The elements. `T` must have the size that `open` was given.
    pub(crate) fn of<T: bytemuck::Pod>(&self) -> &[T] {
        debug_assert!(size_of::<T>().is_multiple_of(self.width));
        // Cannot fail: maps begin at a page, the header keeps every alignment, `open` checked the length.
        bytemuck::cast_slice(&self.map[HEADER..])
    }

    pub(crate) fn wrong(&self, what: String) -> Error {
        Error::data(format!("{}: damaged: {what}; prepare the shards again", self.path.display()))
    }

    /// Checks that there are `count + 1` offsets.
    pub(crate) fn check_count(&self, count: usize) -> Result<()> {
        if self.count != count + 1 {
            return Err(self.wrong(format!("{} offsets, expected {}", self.count, count + 1)));
        }
        Ok(())
    }

    /// The part of `all` between offsets `i` and `i + 1`; empty where the numbers lie.
    pub(crate) fn slice<'a, T>(&self, i: usize, all: &'a [T]) -> &'a [T] {
        match self.of::<u64>().get(i..i + 2) {
            Some(&[from, to]) => all.get(from as usize..to as usize).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Checks `count + 1` ascending u64 offsets from 0 to `end`.
    pub(crate) fn check_offsets(&self, count: usize, end: usize) -> Result<()> {
        self.check_count(count)?;
        let offsets = self.of::<u64>();
        if offsets[0] != 0 || offsets[count] != end as u64 {
            return Err(self.wrong(format!(
                "offsets go from {} to {}, not from 0 to {end}",
                offsets[0], offsets[count]
            )));
        }
        match offsets.par_windows(2).position_first(|pair| pair[0] > pair[1]) {
            Some(i) => Err(self.wrong(format!("offset {} is smaller than the one before it", i + 1))),
            None => Ok(()),
        }
    }
}
