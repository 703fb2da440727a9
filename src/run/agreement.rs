//! What the ranks of one command must have in common, as keys and values that `World::same` compares: the
//! program, the whole plan, and the files that it names.

use std::fs;
use std::path::{Path, PathBuf};

use toml::Table;

use super::resume::flatten;
use crate::config::Config;
use crate::ranks::Facts;
use crate::{Error, Result, files};

/// The program, its command with the flags that are not keys, and every key of the plan.
///
/// # Errors
/// `Error::Config` when the plan cannot be written as TOML.
pub fn plan(command: &str, flags: &[(&str, String)], config: &Config) -> Result<Facts> {
    let mut facts = program(command);
    facts.extend(flags.iter().map(|(flag, value)| ((*flag).to_owned(), value.clone())));
    let table: Table = config
        .to_toml()?
        .parse()
        .map_err(|e: toml::de::Error| Error::config(format!("the plan cannot be read back: {e}")))?;
    let mut keys = Default::default();
    flatten("", &table, &mut keys);
    facts.extend(keys);
    facts.push(("--resume".into(), format!("{:?}", config.resume)));
    Ok(facts)
}

/// The program and its command.
pub fn program(command: &str) -> Facts {
    let version = concat!(env!("CARGO_PKG_VERSION"), " ", env!("CTUNE_CODE_VERSION"));
    [("program version", version), ("command", command)].map(|(key, value)| (key.into(), value.into())).into()
}

/// The contents of a file, or of the files of a folder. A pipe stands for its name: it can be read only once.
///
/// # Errors
/// `Error::Data` when it cannot be read.
pub fn contents(key: &str, path: &Path) -> Result<(String, String)> {
    let mut sum = crc32fast::Hasher::new();
    for file in files_of(path)? {
        sum.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        if file.is_file() {
            sum.update(&files::crc32(&file)?.to_le_bytes());
        }
    }
    Ok((format!("the fingerprint of {key}"), format!("{:08x}", sum.finalize())))
}

/// The path itself, or the files of a folder that make a model or a list of folds.
fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    let failed = |cause| Error::io("read", path, cause);
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).map_err(failed)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = entries.collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
    // other frameworks' copies of the weights are gigabytes that nobody reads
    let foreign = ["bin", "h5", "msgpack", "onnx", "ot", "pt"];
    let own = |file: &PathBuf| file.extension().is_none_or(|end| foreign.iter().all(|other| end != *other));
    files.retain(|file| file.is_file() && own(file));
    files.sort();
    Ok(files)
}
