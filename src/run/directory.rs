//! A run's folder: the plan that was run, where it ran, and files that are complete or absent.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::checkpoints::Identity;
use crate::config::Config;
use crate::files::{self, Held, Lock};
use crate::ranks::World;
use crate::{Error, Result, journal};

/// Held while a run writes to its directory.
pub const LOCK: &str = ".lock";

/// Makes the run directory and writes the resolved plan and the facts that results depend on.
/// Only the leading rank writes; the others learn of its failure.
pub fn create(
    config: &Config,
    identity: &Identity,
    facts: &[(&str, Value)],
    world: &World,
) -> Result<PathBuf> {
    let dir = config.run.out.clone();
    world.agree(world.leads().then(|| describe(&dir, config, identity, facts, world.size())))?;
    world.agree_all(journal::open(&dir, world.rank()))?;
    Ok(dir)
}

fn describe(
    dir: &Path,
    config: &Config,
    identity: &Identity,
    facts: &[(&str, Value)],
    ranks: usize,
) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("created", dir, e))?;
    let plan = config.to_toml()?;
    let command = &identity.command;
    tell!("plan of {command}, kept in {}:\n{plan}", dir.join("config.toml").display());
    files::write(&dir.join("config.toml"), plan.as_bytes())?;
    let mut about = json!({
        "command": command,
        "program": concat!("ctune-dist ", env!("CARGO_PKG_VERSION")),
        "code": env!("CTUNE_CODE_VERSION"),
        "ranks": ranks,
        "identity": identity,
    });
    for (key, value) in facts {
        about[*key] = value.clone();
    }
    files::write(&dir.join("run.json"), format!("{about:#}\n").as_bytes())
}

/// Adds what became known after the start to `run.json`.
pub fn add_fact(dir: &Path, key: &str, value: &Value) -> Result<()> {
    let path = dir.join("run.json");
    let text = files::read(&path)?;
    let bad = |e| Error::data(format!("{}: not a description of a run: {e}", path.display()));
    let mut about: Value = serde_json::from_slice(&text).map_err(bad)?;
    about[key] = value.clone();
    files::write(&path, format!("{about:#}\n").as_bytes())
}

/// What the run in `dir` was started as.
///
/// # Errors
/// `Error::Data` when `run.json` cannot be read.
pub fn read_identity(dir: &Path) -> Result<Identity> {
    let path = dir.join("run.json");
    let text = files::read(&path)?;
    let bad = |e| Error::data(format!("{}: not a description of a run: {e}", path.display()));
    let mut value: Value = serde_json::from_slice(&text).map_err(bad)?;
    serde_json::from_value(value["identity"].take()).map_err(bad)
}

/// Makes the run directory and keeps other processes out of it for as long as the lock lives: a requeued job
/// may start while its predecessor is still ending. On a file system without locks, nobody is kept out.
///
/// # Errors
/// `Error::Data` when another process is in the directory, or it cannot be written.
pub fn lock(dir: &Path, world: &World) -> Result<Option<Held>> {
    let take = || {
        fs::create_dir_all(dir).map_err(|e| Error::io("created", dir, e))?;
        match files::lock(&dir.join(LOCK))? {
            Lock::Held(held) | Lock::Unknown(held) => Ok(held),
            Lock::Busy(who) => Err(Error::data(format!(
                "{}: another process is working there ({who}): wait for it, or choose another --out",
                dir.display()
            ))),
        }
    };
    world.agree(world.leads().then(take))
}
