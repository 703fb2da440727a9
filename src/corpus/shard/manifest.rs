//! What a shard directory says of itself: `manifest.json`, the one file that is read before any other.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::format::{MAGIC, MANIFEST, MANIFEST_CRC, VERSION};
use crate::files;
use crate::text::Special;
use crate::{Error, Result};

/// What a shard directory says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub magic: String,
    pub version: u32,
    pub documents: u32,
    pub queries: u32,
    pub clicks: u32,
    /// V of the tokenizer; every token is below it.
    pub vocab: usize,
    pub special: Special,
    /// Documents were cut to this many tokens; queries never are.
    pub max_tokens: usize,
    pub document_tokens: u64,
    pub query_tokens: u64,
    /// Documents that were longer than `max_tokens`.
    pub documents_cut: u64,
    /// What `prepare` was told, as text.
    pub options: BTreeMap<String, String>,
    pub sources: Vec<SourceFile>,
    /// Every other file of the directory, by name.
    pub files: Vec<FileEntry>,
    /// Rows that did not enter, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// A file that the shards were made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    pub path: String,
    pub bytes: u64,
    /// Of its size and its first, middle and last megabyte.
    pub fingerprint: String,
}

impl SourceFile {
    /// Looks at the file, not at all of it: 22 GB need not be read twice to know them again.
    ///
    /// # Errors
    /// `Error::Data` where it cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        const SAMPLE: u64 = 1 << 20;
        let failed = |cause| Error::io("read", path, cause);
        files::refuse_pipe(path)?;
        let (mut file, bytes) = files::open(path)?;
        let mut crc = crc32fast::Hasher::new();
        for start in [0, bytes / 2, bytes.saturating_sub(SAMPLE)] {
            let mut sample = Vec::new();
            file.seek(SeekFrom::Start(start)).map_err(failed)?;
            file.by_ref().take(SAMPLE).read_to_end(&mut sample).map_err(failed)?;
            crc.update(&sample);
        }
        let fingerprint = format!("{bytes:x}-{:08x}", crc.finalize());
        Ok(Self { path: path.display().to_string(), bytes, fingerprint })
    }
}

/// A file of the shard directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub name: String,
    pub bytes: u64,
    pub crc32: u32,
}

/// FNV-1a over names, sizes and checksums, in 64 bits.
pub fn fingerprint(manifest: &Manifest) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in &manifest.files {
        add(file.name.as_bytes());
        add(&file.bytes.to_le_bytes());
        add(&file.crc32.to_le_bytes());
    }
    format!("{hash:016x}")
}

/// Reads and checks the manifest alone.
///
/// # Errors
/// `Error::Data` where the directory holds none, or a damaged, foreign or newer one.
pub fn read_manifest(dir: &Path) -> Result<Manifest> {
    #[derive(Deserialize)]
    struct Head {
        magic: Option<String>,
        version: Option<u32>,
    }
    let path = dir.join(MANIFEST);
    let wrong = |what: String| Error::data(format!("{}: {what}", path.display()));
    let text = std::fs::read(&path).map_err(|cause| match cause.kind() {
        std::io::ErrorKind::NotFound => Error::data(format!(
            "{}: not a shard directory (it has no {MANIFEST}); make one with prepare",
            dir.display()
        )),
        _ => Error::io("read", &path, cause),
    })?;
    let head: Head = serde_json::from_slice(&text).map_err(|cause| wrong(format!("damaged: {cause}")))?;
    if head.magic.as_deref() != Some(MAGIC) {
        return Err(wrong("not the manifest of a shard directory (wrong magic)".into()));
    }
    match head.version {
        Some(version) if version > VERSION => {
            return Err(wrong(format!(
                "shards of version {version}; this program reads up to {VERSION}: use a newer one or prepare again"
            )));
        }
        Some(VERSION) => {}
        other => return Err(wrong(format!("shards of version {other:?}, which this program cannot read"))),
    }
    let crc_path = dir.join(MANIFEST_CRC);
    let crc = files::read_text(&crc_path)?;
    if crc != format!("{:08x}\n", crc32fast::hash(&text)) {
        return Err(wrong(format!("damaged: its checksum is not the one in {MANIFEST_CRC}")));
    }
    serde_json::from_slice(&text).map_err(|cause| wrong(format!("damaged: {cause}")))
}
