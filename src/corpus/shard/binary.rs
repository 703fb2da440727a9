//! One binary file of a shard directory as it is written: a header whose count is filled in at the end, then
//! elements.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use super::format::{HEADER, MAGIC, VERSION};
use super::manifest::FileEntry;
use crate::{Error, Result};

/// A binary file under a temporary name until `finish`.
pub(crate) struct BinaryWriter {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    width: usize,
    /// Elements written.
    pub(crate) count: u64,
    crc: crc32fast::Hasher,
}

impl BinaryWriter {
    pub(crate) fn create(dir: &Path, name: &str, width: usize) -> Result<Self> {
        let (path, temporary) = (dir.join(name), dir.join(format!("{name}.part")));
        let failed = |cause| Error::io("written", &temporary, cause);
        let mut file = BufWriter::with_capacity(1 << 18, File::create(&temporary).map_err(failed)?);
        file.write_all(&[0; HEADER]).map_err(failed)?;
        Ok(Self { file, width, count: 0, crc: crc32fast::Hasher::new(), path, temporary })
    }

    pub(crate) fn write<T: bytemuck::Pod>(&mut self, elements: &[T]) -> Result<()> {
        debug_assert_eq!(size_of::<T>(), self.width);
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        self.crc.update(bytes);
        self.count += elements.len() as u64;
        self.file.write_all(bytes).map_err(|cause| Error::io("written", &self.temporary, cause))
    }

    /// Fills in the header, syncs and gives the file its name.
    pub(crate) fn finish(mut self) -> Result<FileEntry> {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC.as_bytes());
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(self.width as u32).to_le_bytes());
        header[16..24].copy_from_slice(&self.count.to_le_bytes());
        let failed = |cause| Error::io("written", &self.temporary, cause);
        self.file.flush().map_err(failed)?;
        self.file.rewind().map_err(failed)?;
        self.file.write_all(&header).map_err(failed)?;
        self.file.flush().map_err(failed)?;
        self.file.get_ref().sync_all().map_err(failed)?;
        std::fs::rename(&self.temporary, &self.path).map_err(failed)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header);
        crc.combine(&self.crc);
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(FileEntry { name, bytes: HEADER as u64 + self.count * self.width as u64, crc32: crc.finalize() })
    }
}
