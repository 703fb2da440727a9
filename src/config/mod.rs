//! The plan of a run: one TOML file plus `--set` overrides, checked whole before anything starts and
//! printed whole at start and into the run directory. The same names mean the same in every command.
//!
//! A `[stage.NAME]` table holds what differs for one command: `[stage.fine.train] lr = 1e-4` replaces
//! `[train] lr` when `fine` (or `experiment`) runs, so that one file describes a whole study.
//!
//! Each section has a file, where its keys are stated once (`keys`). `layers` puts file and flags together,
//! `check` holds the result against the keys. docs/config.md is made from the same statements
//! (`tests/config/reference.rs`).

mod check;
mod checkpoint;
mod data;
mod experiment;
mod fine;
pub mod keys;
mod layers;
mod model;
mod objective;
mod prepare;
mod resume;
mod run;
mod source;
mod train;

use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use check::{Check, Fault, one_line};
pub use checkpoint::Checkpoint;
pub use data::{DOCUMENT_LEAST, Data, Field, Truncate};
pub use experiment::{Arm, Experiment, Split};
pub use fine::{Aggregate, Fine, FineLoss, HeadStart, Lora, NegativesFrom, Target, TrainPassages};
use keys::{Described, Key, Section};
use layers::Layers;
pub use model::Model;
pub use objective::{Grades, MaskIn, Negatives, Objective};
pub use prepare::{Filter, PART_TOKENS, Prepare};
pub use resume::{Resume, ResumeFrom};
pub use run::{Device, Run};
pub use source::{Format, Role, Source};
pub use train::{Optimizer, Precision, Recompute, Schedule, Sharding, Train};

use crate::ir::measures::Measure;
use crate::{Error, Result};

/// The value of an optional key that this command needs.
pub fn need<'a, T>(key: &str, value: &'a Option<T>) -> Result<&'a T> {
    value.as_ref().ok_or_else(|| {
        Error::config(format!("{key} is not set: this command needs it (in the config or --set {key}=...)"))
    })
}

/// Commands that may have a `[stage.NAME]` table.
pub const STAGES: [&str; 5] = ["prepare", "pretrain", "coarse", "fine", "experiment"];

/// A validated plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u32,
    #[serde(rename = "source", skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    pub prepare: Prepare,
    pub data: Data,
    pub model: Model,
    pub objective: Objective,
    pub train: Train,
    pub fine: Fine,
    pub checkpoint: Checkpoint,
    pub run: Run,
    pub experiment: Experiment,
    /// `--resume` and `--resume-with-changes`: how to start, not what to run.
    #[serde(skip)]
    pub resume: Resume,
}

/// Every key that a plan may have, section by section.
pub fn plan() -> Section {
    fn key<T: Described>(name: &'static str, text: &'static str) -> Key {
        Key { name, text, kind: T::kind(), optional: true }
    }
    let keys = vec![
        key::<u32>("seed", "Keys every random decision of the run."),
        // What a section is for, its type says.
        key::<Vec<Source>>("source", ""),
        key::<Prepare>("prepare", ""),
        key::<Data>("data", ""),
        key::<Model>("model", ""),
        key::<Objective>("objective", ""),
        key::<Train>("train", ""),
        key::<Fine>("fine", ""),
        key::<Checkpoint>("checkpoint", ""),
        key::<Run>("run", ""),
        key::<Experiment>("experiment", ""),
    ];
    Section { text: "The plan of a run.", keys }
}

impl Config {
    /// Reads `path` (defaults without one), applies `[stage.<stage>]` and then `--set` overrides.
    ///
    /// # Errors
    /// `Error::Config` with the key, its value, and the flag or the file and line where it was written.
    pub fn load(path: Option<&Path>, stage: &str, overrides: &[String]) -> Result<Self> {
        let layers = Layers::read(path, stage, overrides)?;
        let plan = plan();
        let at_fault = |fault: Fault| layers.error(&fault);
        check_stages(&plan, stage, layers.stages()).map_err(at_fault)?;
        let table = layers.merged()?;
        Check::of(&plan).table(&plan, &table).map_err(at_fault)?;
        let config: Self = Value::Table(table).try_into().map_err(|e: toml::de::Error| {
            let source = path.map_or("--set".into(), |path| path.display().to_string());
            Error::config(format!("{source}: {}", one_line(&e.to_string())))
        })?;
        config.check().map_err(at_fault)?;
        Ok(config)
    }

    /// The plan as TOML, as it is printed and kept in the run directory.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::config(format!("the plan cannot be written as TOML: {e}")))
    }

    /// Rules between keys.
    fn check(&self) -> std::result::Result<(), Fault> {
        self.train.check()?;
        self.objective.check()?;
        self.fine.check()?;
        self.experiment.check()?;
        if self.fine.lora.is_some() && self.train.optimizer == Optimizer::Lamb {
            return Err(Fault::about(
                ["fine.lora", "train.optimizer"],
                "fine.lora with train.optimizer = \"lamb\": adapters are trained with \"adamw\"",
            ));
        }
        let (longest, pack) = (self.data.max_tokens, self.train.pack_tokens);
        if longest > pack {
            let text = format!("data.max_tokens = {longest} does not fit train.pack_tokens = {pack}");
            return Err(Fault::about(["data.max_tokens", "train.pack_tokens"], text));
        }
        Ok(())
    }

    /// Where documents are read from: `data.documents`, else every `[[source]]` of that role.
    pub fn documents(&self) -> Result<Vec<Source>> {
        if let Some(path) = &self.data.documents {
            return Ok(vec![Source::documents(path)]);
        }
        let sources: Vec<Source> =
            self.sources.iter().filter(|source| source.role == Role::Documents).cloned().collect();
        if sources.is_empty() {
            need("data.documents", &self.data.documents)?;
        }
        Ok(sources)
    }
}

/// Looks at the tables of the other commands too: a slip in one would else be told hours later.
fn check_stages(plan: &Section, own: &str, stages: &Table) -> std::result::Result<(), Fault> {
    for (name, table) in stages {
        let at = format!("stage.{name}");
        match table {
            _ if !STAGES.contains(&name.as_str()) => {
                let text = format!("{at}: unknown stage; stages are {}", STAGES.join(", "));
                return Err(Fault::about([at.as_str()], text));
            }
            Value::Table(table) if name != own => {
                Check::of_part(plan, &["stage", name]).table(plan, table)?
            }
            Value::Table(_) => {}
            _ => return Err(Fault::about([at.as_str()], format!("{at}: must be a table"))),
        }
    }
    Ok(())
}

/// Holds `name` against the measures that there are.
fn measure(key: &str, name: &str) -> std::result::Result<(), Fault> {
    name.parse::<Measure>().map(drop).map_err(|cause| Fault::about([key], format!("{key}: {cause}")))
}
