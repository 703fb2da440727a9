//! What a run finds in its directory (nothing, itself unfinished, itself finished, or something else), and
//! whether it may continue. Nothing that is there is ever overwritten.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use toml::Table;

use super::checkpoints::{Identity, State, find, folder, steps_in, sweep};
use super::directory;
use crate::config::{Config, Resume, ResumeFrom};
use crate::files;
use crate::model::checkpoint::{Checkpoint, Fill, HeadStart};
use crate::ranks::{Distributed, World};
use crate::train::state::has_master;
use crate::train::trainer::{Progress, Trainer};
use crate::{Error, Result, allow_list};

/// Written into the run directory when the run has ended well.
pub const FINISHED: &str = "DONE";

/// Keys that can change without touching what was learnt so far; `--resume-with-changes` allows them.
const SAFE: [&str; 8] = [
    "train.steps",
    "train.epochs",
    "train.recompute",
    "train.sharding",
    "train.validate_every",
    "checkpoint.",
    "run.",
    "model.path",
];

/// Keys that say where things are, not what they are; the data has its own fingerprint.
const PLACES: [&str; 2] = ["run.out", "data.shards"];

/// How a run starts.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    Fresh,
    /// The directory holds this run, unfinished.
    Again,
    /// From this checkpoint.
    From(PathBuf),
    /// Nothing is left to do; the text says so.
    Finished(String),
}

/// Decides on rank 0 how the run in `dir` starts and tells every rank.
///
/// # Errors
/// `Error::Config` when the directory holds another run or other files, with every difference;
/// `Error::Data` when it cannot be read.
pub fn decide(dir: &Path, resume: &Resume, identity: &Identity, world: &World) -> Result<Start> {
    let decided = world.agree(world.leads().then(|| decide_alone(dir, resume, identity)))?;
    let mut text = match &decided {
        Some(Start::From(path)) => format!("F{}", path.display()),
        Some(Start::Finished(text)) => format!("D{text}"),
        Some(Start::Again) => "A".into(),
        _ => "-".into(),
    };
    world.broadcast_text(&mut text);
    Ok(match text.split_at(1) {
        ("F", path) => Start::From(path.into()),
        ("D", text) => Start::Finished(text.to_owned()),
        ("A", _) => Start::Again,
        _ => Start::Fresh,
    })
}

fn decide_alone(dir: &Path, resume: &Resume, identity: &Identity) -> Result<Start> {
    let root = dir.join("checkpoints");
    let named = |own| match &resume.from {
        ResumeFrom::Path(path) => from_path(path, own, resume, identity).map(Some),
        _ => Ok(None),
    };
    match holds(dir)? {
        Held::Nothing => return Ok(named(None)?.unwrap_or(Start::Fresh)),
        Held::Other => return Err(refused(dir, "holds files but no run")),
        Held::Run if resume.from == ResumeFrom::Never => {
            return Err(refused(dir, "holds a run already, which `--resume never` does not continue"));
        }
        Held::Run => {}
    }
    let was = directory::read_identity(dir)?;
    check_same(dir, &was, identity, resume.with_changes)?;
    sweep(&root)?;
    if let Some(start) = named(Some(&root))? {
        return Ok(start);
    }
    if dir.join(FINISHED).exists() && flat(&was.plan)? == flat(&identity.plan)? {
        return Ok(Start::Finished(format!("{}: this run is finished; nothing to do", dir.display())));
    }
    let (found, skipped) = find::latest(&root, u64::MAX)?;
    skipped.iter().for_each(|line| tell!("{line}"));
    let Some(found) = found else { return Ok(Start::Again) };
    check_same(&found, &find::read_state(&found)?.identity, identity, resume.with_changes)?;
    Ok(Start::From(found))
}

fn refused(dir: &Path, why: &str) -> Error {
    Error::config(format!(
        "{}: {why}; nothing there is overwritten: choose another --out or remove it",
        dir.display()
    ))
}

/// Keeps other processes out of `dir`, before anything there is looked at or tidied. A directory that is not
/// a run's stays as it is and gets no lock.
///
/// # Errors
/// `Error::Config` when the directory holds other files; as `directory::lock`.
pub fn lock(dir: &Path, world: &World) -> Result<Option<files::Held>> {
    let own = || match holds(dir)? {
        Held::Other => Err(refused(dir, "holds files but no run")),
        _ => Ok(()),
    };
    world.agree(world.leads().then(own))?;
    directory::lock(dir, world)
}

/// For commands that sort out what they find by themselves: `dir` must be theirs, or empty.
///
/// # Errors
/// `Error::Config` when it holds another command's run or other files.
pub fn check_command(dir: &Path, command: &str) -> Result<()> {
    match holds(dir)? {
        Held::Nothing => Ok(()),
        Held::Other => Err(refused(dir, "holds files but no run")),
        Held::Run => {
            let was = directory::read_identity(dir)?.command;
            if was == command { Ok(()) } else { Err(refused(dir, &format!("holds a run of {was}"))) }
        }
    }
}

/// What a run directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    Run,
    Other,
}

fn holds(dir: &Path) -> Result<Held> {
    if dir.join("run.json").exists() {
        let begun = ["metrics.jsonl", "checkpoints", "model", FINISHED, "fold-1", "tasks", "probe.json"];
        let begun = begun.iter().any(|name| dir.join(name).exists());
        return Ok(if begun { Held::Run } else { Held::Nothing });
    }
    if !dir.exists() {
        return Ok(Held::Nothing);
    }
    let bad = |e| Error::io("read", dir, e);
    for entry in fs::read_dir(dir).map_err(bad)? {
        let name = entry.map_err(bad)?.file_name();
        // config.toml is written before run.json: a run may be killed between the two
        if !["logs", "config.toml", directory::LOCK].iter().any(|own| name == *own) {
            return Ok(Held::Other);
        }
    }
    Ok(Held::Nothing)
}

/// A checkpoint that the user named: its folder, or a run directory, which stands for its last checkpoint.
fn from_path(path: &Path, own: Option<&Path>, resume: &Resume, identity: &Identity) -> Result<Start> {
    let nested = path.join("checkpoints");
    let found = if nested.exists() {
        let (found, skipped) = find::latest(&nested, u64::MAX)?;
        skipped.iter().for_each(|line| tell!("{line}"));
        found.ok_or_else(|| Error::data(format!("{}: has no complete checkpoint", nested.display())))?
    } else {
        find::verify(path)?;
        path.to_owned()
    };
    let state = find::read_state(&found)?;
    check_same(&found, &state.identity, identity, resume.with_changes)?;
    if let Some(root) = own {
        set_aside(root, state.progress.updates)?;
    }
    Ok(Start::From(found))
}

/// Sets aside checkpoints after the one to continue from; otherwise they would later be taken for the last.
fn set_aside(root: &Path, step: u64) -> Result<()> {
    for later in steps_in(root)?.into_iter().filter(|later| *later > step) {
        let (from, to) = (folder(root, later), root.join(format!("superseded-{later:07}")));
        tell!("{} is after step {step}: set aside as {}", from.display(), to.display());
        if to.exists() {
            fs::remove_dir_all(&to).map_err(|e| Error::io("replaced", &to, e))?;
        }
        fs::rename(&from, &to).map_err(|e| Error::io("renamed", &from, e))?;
    }
    Ok(())
}

/// # Errors
/// `Error::Config` with every difference that matters, as `key: was, is`.
fn check_same(what: &Path, was: &Identity, is: &Identity, with_changes: bool) -> Result<()> {
    let mut differences = Vec::new();
    if was.command != is.command {
        differences.push(format!("command: was {}, is {}", was.command, is.command));
    }
    if was.data != is.data {
        let of = if is.command == "fine" {
            "topics, judgements, runs, folds, documents and model"
        } else {
            "data.shards"
        };
        differences.push(format!("fingerprint of {of}: was {}, is {}", was.data, is.data));
    }
    let mut only_safe = differences.is_empty();
    let (old, new) = (flat(&was.plan)?, flat(&is.plan)?);
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys.into_iter().filter(|key| old.get(*key) != new.get(*key)) {
        let show = |value: Option<&String>| value.map_or("not set".into(), String::clone);
        let safe = SAFE.iter().any(|prefix| key.starts_with(prefix));
        if !(safe && with_changes) {
            differences.push(format!("{key}: was {}, is {}", show(old.get(key)), show(new.get(key))));
            only_safe &= safe;
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let advice = if only_safe {
        "add --resume-with-changes, or choose another --out"
    } else {
        "undo the changes, or choose another --out"
    };
    Err(Error::config(format!(
        "{}: was made with another plan: {}: {advice}",
        what.display(),
        differences.join("; ")
    )))
}

/// The keys of a plan, `a.b` by `a.b`, without those that only say where things are. Keys that an older
/// program did not know have their defaults.
fn flat(plan: &str) -> Result<BTreeMap<String, String>> {
    let bad = |e: toml::de::Error| Error::data(format!("the plan of a checkpoint is damaged: {e}"));
    let mut keys = BTreeMap::new();
    for text in [&Config::default().to_toml()?, plan] {
        flatten("", &text.parse::<Table>().map_err(bad)?, &mut keys);
    }
    keys.retain(|key, _| !PLACES.contains(&key.as_str()));
    Ok(keys)
}

/// The keys of nested tables, `a.b` by `a.b`.
pub(super) fn flatten(prefix: &str, table: &Table, keys: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&name, inner, keys),
            _ => drop(keys.insert(name, value.to_string())),
        }
    }
}

/// The plan as a checkpoint keeps it: without the keys and tables that the command does not read.
///
/// # Errors
/// `Error::Config` when the plan cannot be written as TOML.
pub fn plan_of(config: &Config, unused: &[&str]) -> Result<String> {
    let mut plan: Table = config
        .to_toml()?
        .parse()
        .map_err(|e: toml::de::Error| Error::config(format!("the plan cannot be read back: {e}")))?;
    for path in unused {
        match path.split_once('.') {
            None => drop(plan.remove(*path)),
            Some((table, key)) => {
                drop(plan.get_mut(table).and_then(|table| table.as_table_mut()?.remove(key)));
            }
        }
    }
    Ok(plan.to_string())
}

/// Loads a checkpoint's weights, optimiser and position into `trainer`.
///
/// # Errors
/// `Error::Data` with every tensor that is missing or unexpected, or that says what else does not fit.
pub fn load<E: Distributed>(dir: &Path, trainer: &mut Trainer<E>) -> Result<State> {
    let state = find::read_state(dir)?;
    let arena = trainer.model.layout.len;
    if state.arena != arena {
        return Err(Error::data(format!(
            "{}: made for an arena of {} values, but this model has {arena}: it belongs to another model",
            dir.display(),
            state.arena
        )));
    }
    let folder = dir.join("model");
    let seed = trainer.model.options.seed;
    let report = Checkpoint::read(&folder)?.fill(&mut trainer.model, Fill::Head(HeadStart::NewHead), seed)?;
    if !(report.missing.is_empty() && report.unexpected.is_empty()) {
        return Err(Error::data(format!(
            "{}: not this model's weights: missing: {}; unexpected: {}",
            folder.display(),
            list(&report.missing),
            list(&report.unexpected)
        )));
    }
    let owned = trainer.optimiser.state.owned.clone();
    let mut optimiser = find::read_optimiser(dir, &state, &owned)?;
    if !has_master::<E>() && !optimiser.master.is_empty() {
        // From a device with 16-bit weights to one with f32: the optimiser's f32 weights are exact.
        let all = find::read_optimiser(dir, &state, &find::held(dir, &state)?)?;
        let model = &mut trainer.model;
        let mut at = 0;
        for range in &all.owned {
            let values = &all.master[at..at + range.len()];
            model.engine.upload_weights(values, &mut model.weights, range.start)?;
            at += range.len();
        }
        optimiser.master.clear();
    } else if has_master::<E>() && optimiser.master.is_empty() {
        let model = &trainer.model;
        for range in &owned {
            optimiser.master.extend(model.engine.download_weights(&model.weights, range.clone())?);
        }
    }
    trainer.restore(state.progress, &optimiser)?;
    Ok(state)
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { allow_list::list(names) }
}

/// Cuts the metrics back to the steps that the weights have seen, so that no step appears twice. A line left
/// half written by a kill goes too.
///
/// # Errors
/// `Error::Data` when the file cannot be read or written.
pub fn cut_metrics(path: &Path, progress: Progress) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let text = files::read(path)?;
    let kept = |line: &&[u8]| {
        let object: Option<Value> = serde_json::from_slice(line).ok();
        let step = object.as_ref().map(|object| object["step"].as_u64().unwrap_or(0));
        step.is_some_and(|step| step <= progress.updates)
    };
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(kept).collect();
    let mut cut = lines.join(&b'\n');
    if !cut.is_empty() {
        cut.push(b'\n');
    }
    files::write(path, &cut)
}
