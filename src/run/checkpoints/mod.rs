//! Checkpoints, from which a run continues as if nothing had happened: the model as a Hugging Face folder
//! and, beside it, what only training needs.
//!
//! ```text
//! checkpoints/step-0001000/
//!   model/                              config.json, model.safetensors, tokenizer
//!   state/state.json                    step, place in the data, plan, fingerprint of the data
//!   state/optimiser-000-of-001.safetensors   moments, f32 weights; one file per rank when sharded
//!   state/files-000.json                size and CRC-32 of every file that rank 0 wrote, ...
//!   DONE                                size and CRC-32 of the files-*.json: there when all is
//! ```
//!
//! Every rank writes and syncs its share in `checkpoints/.step-0001000.partial`; once all have, rank 0
//! renames the folder and writes `DONE`. So a kill at any moment leaves earlier checkpoints as they were.
//! `write` makes the shares, `find` reads and verifies, `saver` decides when to save and removes old
//! checkpoints.

pub mod find;
pub mod saver;
pub mod write;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::tensor_file::Written;
use crate::train::trainer::Progress;
use crate::{Error, Result};

/// Version of the folder's format; another one is refused.
pub const FORMAT: u32 = 1;

/// Name of the file that makes a checkpoint count.
pub const DONE: &str = "DONE";

/// What a checkpoint belongs to: a run resumes only if all of it is the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub command: String,
    /// Fingerprint of the shards.
    pub data: String,
    /// What the command reads of the resolved plan, as TOML: numbers come back exactly, which JSON's reader
    /// does not promise.
    pub plan: String,
}

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub format: u32,
    pub identity: Identity,
    pub progress: Progress,
    /// Updates of the whole run, at the end of which the learning rate's schedule ends.
    pub steps: u64,
    /// How good the weights are, lower is better: the loss on validation data or, without any, the mean
    /// training loss since the previous checkpoint.
    pub value: Option<f64>,
    /// Elements of the arena.
    pub arena: usize,
    /// Ranks that made it; any number may continue.
    pub ranks: usize,
    /// Optimiser files.
    pub parts: usize,
    pub program: String,
    pub code: String,
}

/// Size and checksum of files, by path below the checkpoint's folder.
pub type Files = BTreeMap<String, Written>;

/// The folder of a step's checkpoint.
pub fn folder(root: &Path, step: u64) -> PathBuf {
    root.join(format!("step-{step:07}"))
}

/// The folder while it is being written.
pub fn partial(root: &Path, step: u64) -> PathBuf {
    root.join(format!(".step-{step:07}.partial"))
}

/// The optimiser's file `part` of `parts`.
fn optimiser_file(part: usize, parts: usize) -> String {
    format!("state/optimiser-{part:03}-of-{parts:03}.safetensors")
}

/// Steps of the folders named as checkpoints, finished or not, the last first.
///
/// # Errors
/// `Error::Data` when the folder is there and cannot be read.
pub fn steps_in(root: &Path) -> Result<Vec<u64>> {
    if !root.exists() {
        return Ok(Vec::new());
    }
    let bad = |e| Error::io("read", root, e);
    let mut steps = Vec::new();
    for entry in fs::read_dir(root).map_err(bad)? {
        let name = entry.map_err(bad)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("step-")?.parse().ok());
        steps.extend(number.filter(|step: &u64| folder(root, *step).file_name() == Some(&name)));
    }
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

/// Removes checkpoints that a killed run left half written.
///
/// # Errors
/// `Error::Data` with what cannot be removed.
pub fn sweep(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    let bad = |e| Error::io("read", root, e);
    for entry in fs::read_dir(root).map_err(bad)? {
        let path = entry.map_err(bad)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(".step-") {
            fs::remove_dir_all(&path).map_err(|e| Error::io("removed", &path, e))?;
        }
    }
    Ok(())
}

/// Makes names in a folder survive a power cut.
fn sync_folder(dir: &Path) -> Result<()> {
    fs::File::open(dir).and_then(|folder| folder.sync_all()).map_err(|e| Error::io("synced", dir, e))
}
