//! Reads checkpoints back: which is the last complete one, what it says, and its arrays for whatever ranges
//! of the arena the reading rank owns.

use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use safetensors::SafeTensors;

use super::{DONE, FORMAT, Files, State, folder, optimiser_file, steps_in};
use crate::files;
use crate::train::state::SavedOptimiser;
use crate::{Error, Result};

/// The last complete checkpoint below `root` that is not after step `last`; and, for each one passed over, a
/// line on what is wrong with it.
///
/// # Errors
/// `Error::Data` when the folder cannot be read.
pub fn latest(root: &Path, last: u64) -> Result<(Option<PathBuf>, Vec<String>)> {
    let mut skipped = Vec::new();
    for step in steps_in(root)?.into_iter().filter(|step| *step <= last) {
        let dir = folder(root, step);
        match verify(&dir) {
            Ok(()) => return Ok((Some(dir), skipped)),
            Err(reason) => skipped.push(format!("skipped: {reason}")),
        }
    }
    Ok((None, skipped))
}

/// Checks that `DONE` is there and that every file has the size and checksum it was written with.
///
/// # Errors
/// `Error::Data` with the first file that is missing or damaged.
pub fn verify(dir: &Path) -> Result<()> {
    if !dir.join(DONE).exists() {
        return Err(Error::data(format!("{}: has no DONE: it was not finished", dir.display())));
    }
    let lists = read_list(&dir.join(DONE))?;
    check(dir, &lists)?;
    for name in lists.keys() {
        check(dir, &read_list(&dir.join(name))?)?;
    }
    Ok(())
}

fn read_list(path: &Path) -> Result<Files> {
    let text = files::read(path)?;
    serde_json::from_slice(&text).map_err(|e| Error::data(format!("{}: damaged: {e}", path.display())))
}

fn check(dir: &Path, files: &Files) -> Result<()> {
    for (name, written) in files {
        if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::data(format!(
                "{}: damaged: it lists {name:?}, which lies outside the checkpoint",
                dir.display()
            )));
        }
        let path = dir.join(name);
        let (bytes, crc32) = checksum(&path).map_err(|e| Error::io("read", &path, e))?;
        if bytes != written.bytes {
            return Err(Error::data(format!(
                "{}: damaged: {bytes} bytes, {} were written",
                path.display(),
                written.bytes
            )));
        }
        if crc32 != written.crc32 {
            return Err(Error::data(format!("{}: damaged: its checksum differs", path.display())));
        }
    }
    Ok(())
}

fn checksum(path: &Path) -> std::io::Result<(u64, u32)> {
    let mut file = fs::File::open(path)?;
    let mut chunk = vec![0; 1 << 20];
    let (mut bytes, mut checksum) = (0, crc32fast::Hasher::new());
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            return Ok((bytes, checksum.finalize()));
        }
        bytes += n as u64;
        checksum.update(&chunk[..n]);
    }
}

/// What a checkpoint says of itself.
///
/// # Errors
/// `Error::Data` naming the file and what is wrong with it.
pub fn read_state(dir: &Path) -> Result<State> {
    let path = dir.join("state/state.json");
    let text = files::read(&path)?;
    let bad = |e| Error::data(format!("{}: not the state of a checkpoint: {e}", path.display()));
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(bad)?;
    if value["format"] != FORMAT {
        return Err(Error::data(format!(
            "{}: format {}, this program reads {FORMAT}: continue with the program that wrote it",
            path.display(),
            value["format"]
        )));
    }
    serde_json::from_value(value).map_err(bad)
}

/// The optimiser's arrays of `owned`, whoever wrote them; `master` is empty if the checkpoint has none.
///
/// # Errors
/// `Error::Data` naming the file and what is wrong with it, or the part of the arena that is missing.
pub fn read_optimiser(dir: &Path, state: &State, owned: &[Range<usize>]) -> Result<SavedOptimiser> {
    let mut out = SavedOptimiser::zeros(owned.to_vec());
    let mut filled = 0;
    for part in 0..state.parts {
        let path = dir.join(optimiser_file(part, state.parts));
        filled += copy_part(&path, &mut out)?;
    }
    if filled != out.len() {
        return Err(Error::data(format!(
            "{}: its optimiser files hold {filled} of the {} values needed here: it belongs to another model",
            dir.display(),
            out.len()
        )));
    }
    Ok(out)
}

/// The ranges of the arena that the optimiser's files hold.
///
/// # Errors
/// As [`read_optimiser`].
pub fn held(dir: &Path, state: &State) -> Result<Vec<Range<usize>>> {
    let mut all = Vec::new();
    for part in 0..state.parts {
        let path = dir.join(optimiser_file(part, state.parts));
        let bytes = files::read(&path)?;
        all.extend(ranges(&path, &bytes)?.into_iter().map(|[start, end]| start..end));
    }
    Ok(all)
}

fn no_optimiser(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::data(format!("{}: no optimiser file: {cause}", path.display()))
}

/// The ranges that a file says it holds.
fn ranges(path: &Path, bytes: &[u8]) -> Result<Vec<[usize; 2]>> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| no_optimiser(path, e))?;
    let text = header.metadata().as_ref().and_then(|facts| facts.get("ranges"));
    let ranges: Option<Vec<[usize; 2]>> = text.and_then(|text| serde_json::from_str(text).ok());
    let ranges = ranges.ok_or_else(|| no_optimiser(path, "its header has no ranges"))?;
    // Ascending and disjoint, as they are written: then their sum cannot overflow, and no value comes twice.
    let mut before = 0;
    for range in &ranges {
        if range[0] < before || range[1] < range[0] {
            return Err(no_optimiser(path, format!("the range {range:?} does not follow {before}")));
        }
        before = range[1];
    }
    Ok(ranges)
}

/// Copies what one file holds of `out.owned`; returns the number of elements copied of each array.
fn copy_part(path: &Path, out: &mut SavedOptimiser) -> Result<usize> {
    let bad = |cause: String| no_optimiser(path, cause);
    let bytes = files::read(path)?;
    let ranges = ranges(path, &bytes)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
    let held: usize = ranges.iter().map(|[start, end]| end - start).sum();
    let array = |name: &str| {
        let tensor = file.tensor(name).map_err(|e| bad(format!("{name}: {e}")))?;
        if Some(tensor.data().len()) != held.checked_mul(4) {
            return Err(bad(format!("{name} has {} bytes for {held} values", tensor.data().len())));
        }
        Ok(tensor.data())
    };
    let has_master = file.names().contains(&"master");
    if has_master && out.master.is_empty() {
        out.master = vec![0.0; out.len()];
    }
    let mut copied = 0;
    for (name, target) in
        [("moment1", &mut out.moment1), ("moment2", &mut out.moment2), ("master", &mut out.master)]
    {
        if name != "master" || has_master {
            copied = copy_ranges(array(name)?, &ranges, &out.owned, target);
        }
    }
    Ok(copied)
}

/// Copies where `from` (ranges of `source`, end to end) and `to` (ranges of `target`, end to end) meet.
fn copy_ranges(source: &[u8], from: &[[usize; 2]], to: &[Range<usize>], target: &mut [f32]) -> usize {
    let mut copied = 0;
    let mut source_at = 0;
    for &[start, end] in from {
        let mut target_at = 0;
        for range in to {
            let (low, high) = (start.max(range.start), end.min(range.end));
            if low < high {
                let bytes = &source[4 * (source_at + low - start)..4 * (source_at + high - start)];
                let values = &mut target[target_at + low - range.start..target_at + high - range.start];
                for (value, word) in values.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                }
                copied += high - low;
            }
            target_at += range.len();
        }
        source_at += end - start;
    }
    copied
}
