//! Safetensors files written as a stream: straight from the arena, with a checksum taken on the way
//! and synced at the end. The crate's own writers either build the whole file in memory a second time
//! or leave files that only their owner may read; the header is the crate's.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::{Error, Result};

/// Bytes between two writes to the file.
const CHUNK: usize = 1 << 20;

/// Tensors by Hugging Face name: shape and f32 values in row-major order.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// One tensor to write.
pub struct Entry<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Little-endian, row-major.
    pub bytes: &'a [u8],
}

/// What a file holds, to find damage later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Written {
    pub bytes: u64,
    pub crc32: u32,
}

/// Writes and syncs a safetensors file; `facts` become its `__metadata__`.
///
/// # Errors
/// `Error::Data` with the path and the cause.
pub fn write_tensors(path: &Path, entries: &[Entry], facts: HashMap<String, String>) -> Result<Written> {
    let header = header(entries, facts)
        .map_err(|cause| Error::data(format!("{}: cannot be written: {cause}", path.display())))?;
    let mut parts = vec![&header[..]];
    parts.extend(entries.iter().map(|entry| entry.bytes));
    write_synced(path, &parts)
}

/// Length of the JSON, the JSON, and spaces up to a multiple of 8 bytes.
fn header(
    entries: &[Entry],
    facts: HashMap<String, String>,
) -> std::result::Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut at = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in entries {
        let end = at + entry.bytes.len();
        let info = TensorInfo { dtype: entry.dtype, shape: entry.shape.clone(), data_offsets: (at, end) };
        tensors.push((entry.name.to_owned(), info));
        at = end;
    }
    let mut json = serde_json::to_vec(&Metadata::new(Some(facts), tensors)?)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok(header)
}

/// Writes `parts` one after another and syncs the file.
///
/// # Errors
/// `Error::Data` with the path and the cause.
pub fn write_synced(path: &Path, parts: &[&[u8]]) -> Result<Written> {
    let mut checksum = crc32fast::Hasher::new();
    let mut bytes = 0;
    let mut write = || {
        let mut file = BufWriter::with_capacity(CHUNK, File::create(path)?);
        for chunk in parts.iter().flat_map(|part| part.chunks(CHUNK)) {
            checksum.update(chunk);
            bytes += chunk.len() as u64;
            file.write_all(chunk)?;
        }
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(|e| Error::io("written", path, e))?;
    Ok(Written { bytes, crc32: checksum.finalize() })
}
