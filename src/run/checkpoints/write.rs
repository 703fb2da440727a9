//! One rank's share of a checkpoint, and what rank 0 does when all shares are there. Works only on host
//! copies, so that another thread can do it while training continues.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;

use super::{DONE, Files, State, folder, optimiser_file, partial, sync_folder};
use crate::engine::Elem;
use crate::files;
use crate::model::checkpoint::Image;
use crate::model::tensor_file::{Entry, write_synced, write_tensors};
use crate::train::state::SavedOptimiser;
use crate::{Error, Result};

/// What one rank writes.
pub struct Share<R: Elem> {
    pub rank: usize,
    /// From rank 0.
    pub model: Option<Image<R>>,
    /// From every rank when the arrays are sharded, else from rank 0.
    pub optimiser: Option<SavedOptimiser>,
    pub state: State,
    /// Folder with the tokenizer's files.
    pub tokenizer: PathBuf,
}

impl<R: Elem> Share<R> {
    /// Writes and syncs the share below `root`.
    ///
    /// # Errors
    /// `Error::Data` with the file that cannot be written. The part that was written is removed, so that a
    /// full disk gets its space back.
    pub fn write(&self, root: &Path) -> Result<()> {
        let dir = partial(root, self.state.progress.updates);
        self.write_in(&dir).inspect_err(|_| {
            let _ = fs::remove_dir_all(&dir); // the error to report is the earlier one
        })
    }

    fn write_in(&self, dir: &Path) -> Result<()> {
        let state_dir = dir.join("state");
        fs::create_dir_all(&state_dir).map_err(|e| Error::io("created", &state_dir, e))?;
        let mut files = Files::new();
        if let Some(model) = &self.model {
            let model_dir = dir.join("model");
            fs::create_dir_all(&model_dir).map_err(|e| Error::io("created", &model_dir, e))?;
            let written = model.write(&model_dir, Some(&self.tokenizer))?;
            files.extend(written.into_iter().map(|(name, written)| (format!("model/{name}"), written)));
            sync_folder(&model_dir)?;
            let json = to_json(&self.state)?;
            files.insert("state/state.json".into(), write_synced(&dir.join("state/state.json"), &[&json])?);
        }
        if let Some(optimiser) = &self.optimiser {
            let name = optimiser_file(self.rank, self.state.parts);
            files.insert(name.clone(), write_optimiser(&dir.join(&name), optimiser)?);
        }
        let list = dir.join(list_name(self.rank));
        write_synced(&list, &[&to_json(&files)?])?;
        sync_folder(&state_dir)?;
        sync_folder(dir)
    }
}

fn list_name(rank: usize) -> String {
    format!("state/files-{rank:03}.json")
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::data(format!("a checkpoint's description cannot be written: {e}")))?;
    text.push(b'\n');
    Ok(text)
}

fn write_optimiser(path: &Path, state: &SavedOptimiser) -> Result<crate::model::tensor_file::Written> {
    let arrays = [("master", &state.master), ("moment1", &state.moment1), ("moment2", &state.moment2)];
    let entries: Vec<Entry> = arrays
        .iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(name, values)| Entry {
            name,
            dtype: Dtype::F32,
            shape: vec![values.len()],
            bytes: bytemuck::cast_slice(values),
        })
        .collect();
    let ranges: Vec<[usize; 2]> = state.owned.iter().map(|range| [range.start, range.end]).collect();
    let facts = HashMap::from([("ranges".to_owned(), serde_json::json!(ranges).to_string())]);
    write_tensors(path, &entries, facts)
}

/// Gives a checkpoint its name and its `DONE`, once all shares are written.
///
/// # Errors
/// `Error::Data` with the file that is missing or cannot be written.
pub fn publish(root: &Path, step: u64, ranks: usize) -> Result<()> {
    let (from, to) = (partial(root, step), folder(root, step));
    let mut lists = Files::new();
    for rank in 0..ranks {
        let name = list_name(rank);
        let path = from.join(&name);
        let bytes = files::read(&path)?;
        let written =
            crate::model::tensor_file::Written { bytes: bytes.len() as u64, crc32: crc32fast::hash(&bytes) };
        lists.insert(name, written);
    }
    if to.exists() {
        // An earlier attempt at the same step, damaged or made before training went back.
        fs::remove_dir_all(&to).map_err(|e| Error::io("replaced", &to, e))?;
    }
    fs::rename(&from, &to).map_err(|e| Error::io("written", &to, e))?;
    sync_folder(root)?;
    write_synced(&to.join(".DONE"), &[&to_json(&lists)?])?;
    fs::rename(to.join(".DONE"), to.join(DONE)).map_err(|e| Error::io("written", &to.join(DONE), e))?;
    sync_folder(&to)
}
