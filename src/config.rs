//! The plan of a run: one TOML file plus `--set` overrides, checked whole before anything starts and
//! printed whole at start and into the run directory. The same names mean the same in every command.
//!
//! A `[stage.NAME]` table holds what differs for one command: `[stage.fine.train] lr = 1e-4` replaces
//! `[train] lr` when `fine` (or `experiment`) runs, so that one file describes a whole study.

mod experiment;
mod fine;
mod layers;
mod objective;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::corpus::prepare::PrepareTable;
use crate::corpus::read::documents::Field;
use crate::corpus::{Role, Source};
use crate::data::source::Truncate;
use crate::ir::measures::Measure;
use crate::model::lora::Lora;
use crate::model::{Recompute, Tuning};
pub use experiment::{Arm, Experiment, Split};
pub use fine::{Fine, FineLoss, NegativesFrom, TrainPassages};
use layers::{merge, one_line, read_table, set};
pub use objective::{MaskIn, Objective};

use crate::{Error, Result};

/// A validated plan.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Keys every random decision of the run.
    pub seed: u32,
    /// `[[source]]`: the files of `prepare`; those of documents also serve `fine` and `rerank`.
    #[serde(rename = "source", skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    pub prepare: PrepareTable,
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

/// What to do with a run directory that holds a run already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    pub from: ResumeFrom,
    /// Keys that do not touch what was learnt may differ from the plan of before.
    pub with_changes: bool,
}

/// `--resume auto|never|PATH`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ResumeFrom {
    /// Goes on where the run stopped.
    #[default]
    Auto,
    /// Starts a new run; refused where there is one.
    Never,
    /// A checkpoint, or a run directory whose last checkpoint is meant.
    Path(PathBuf),
}

impl std::str::FromStr for ResumeFrom {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "never" => Self::Never,
            path => Self::Path(path.into()),
        })
    }
}

/// `[data]`: what is read.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Shard directory of `prepare`.
    pub shards: Option<PathBuf>,
    /// About how many pairs of the log are kept out of training and measured instead; 0 holds out none.
    pub validation_pairs: u32,
    /// Longest sequence, special tokens included.
    pub max_tokens: usize,
    pub truncate: Truncate,
    /// Documents for fine-tuning and re-ranking, in any format that `prepare` reads; without them, those of the
    /// `[[source]]` tables.
    pub documents: Option<PathBuf>,
    /// Fields of a document that make its text.
    pub fields: Vec<Field>,
    pub topics: Option<PathBuf>,
    pub qrels: Option<PathBuf>,
    /// First-stage TREC run whose documents are re-ranked.
    pub run: Option<PathBuf>,
    /// Fold file (Capreolus json); without one, folds are drawn and saved in the run directory.
    pub folds: Option<PathBuf>,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            shards: None,
            validation_pairs: 0,
            max_tokens: 512,
            truncate: Truncate::Document,
            documents: None,
            fields: vec![Field::Title, Field::Body],
            topics: None,
            qrels: None,
            run: None,
            folds: None,
        }
    }
}

/// `[model]`: weights to start from, or sizes of a model made from scratch.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Model folder (config.json, model.safetensors).
    pub path: Option<PathBuf>,
    pub layers: Option<usize>,
    pub hidden: Option<usize>,
    pub heads: Option<usize>,
    pub intermediate: Option<usize>,
    /// Rows of the position table; `data.max_tokens` when absent.
    pub positions: Option<usize>,
}

/// `[train]`: the optimisation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Updates to make; exclusive with `epochs`.
    pub steps: Option<u64>,
    /// Passes over the samples; exclusive with `steps`.
    pub epochs: Option<f64>,
    /// Token budget of a pack.
    pub pack_tokens: usize,
    /// Packs of a step over all ranks: the global batch.
    pub packs_per_step: usize,
    pub lr: f64,
    /// Learning rate of a fresh ranking head; `lr` when absent.
    pub head_lr: Option<f64>,
    /// Share of the steps in which the learning rate rises.
    pub warmup: f64,
    /// Steps in which the learning rate rises; overrides `warmup`.
    pub warmup_steps: Option<u64>,
    pub schedule: Schedule,
    /// Where linear and cosine end.
    pub min_lr: f64,
    pub optimizer: Optimizer,
    /// Whether each rank keeps the optimiser's whole state or its share.
    pub sharding: Sharding,
    /// What backward computes again instead of keeping it.
    pub recompute: Recompute,
    /// Multiplies the learning rate of a layer for every layer above it; 1 treats all alike.
    pub layer_decay: f64,
    /// Parts that keep their weights: "embeddings", "layer.3", "layer.0-3".
    pub freeze: Vec<String>,
    /// Updates between two validations on `data.validation_pairs`; 0 validates at the end alone.
    pub validate_every: u64,
    pub weight_decay: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// Global norm at which gradients are clipped; 0 never clips.
    pub clip_norm: f32,
    pub dropout: f32,
    /// Weights and activations; bf16 on a GPU and f32 on a CPU when absent. Gradients, moments and
    /// master weights are f32.
    pub precision: Option<Precision>,
    /// In which precision GPUs sum gradients over ranks.
    pub reduce: Precision,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            steps: None,
            epochs: None,
            pack_tokens: 4096,
            packs_per_step: 1,
            lr: 5e-5,
            head_lr: None,
            warmup: 0.1,
            warmup_steps: None,
            schedule: Schedule::Linear,
            min_lr: 0.0,
            optimizer: Optimizer::Adamw,
            sharding: Sharding::None,
            recompute: Recompute::None,
            layer_decay: 1.0,
            freeze: Vec::new(),
            validate_every: 0,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            clip_norm: 1.0,
            dropout: 0.1,
            precision: None,
            reduce: Precision::F32,
        }
    }
}

/// How numbers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    F32,
    Bf16,
}

/// Learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Falls linearly to `min_lr` behind the last step.
    Linear,
    /// Falls to `min_lr` in half a cosine.
    Cosine,
    Constant,
}

/// The rule that turns a gradient into an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// Loshchilov & Hutter 2019.
    Adamw,
    /// You et al. 2020: AdamW's direction, scaled by a trust ratio a tensor; for very large batches.
    Lamb,
}

/// What is divided over the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharding {
    None,
    /// The optimiser's state (ZeRO stage 1, Rajbhandari et al. 2020).
    Optimizer,
}

/// `[checkpoint]`: when a run's state is kept; see `train::checkpoints`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Minutes between two checkpoints; 0 leaves it to `every_steps`.
    pub every_minutes: f64,
    /// Steps between two checkpoints; 0 leaves it to `every_minutes`.
    pub every_steps: u64,
    /// Checkpoints kept besides the best one.
    pub keep: usize,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every_minutes: 15.0, every_steps: 0, keep: 2 }
    }
}

/// `[run]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Run directory.
    pub out: PathBuf,
    pub device: Device,
    /// Steps between two lines on the terminal.
    pub log_every: u64,
    /// Seconds without progress after which the job is ended with the name of the rank that is late.
    pub hang_limit_s: f64,
    /// GPU: record the segments of a step once and replay them.
    pub graph: bool,
    /// Debug mode: steps between two in which the first NaN is traced to the operation that made it
    /// and the gradient of the step's first pack is compared with the reference model's; 0 is off.
    pub check: u64,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            out: "runs/run".into(),
            device: Device::Auto,
            log_every: 10,
            hang_limit_s: 600.0,
            graph: true,
            check: 0,
        }
    }
}

/// Where the arithmetic is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// A GPU where there is an engine for one, else the CPU.
    Auto,
    Cpu,
    Cuda,
}

impl Config {
    /// Reads `path` (defaults without one), applies `[stage.<stage>]` and then `--set` overrides.
    ///
    /// # Errors
    /// `Error::Config` with file and key.
    pub fn load(path: Option<&Path>, stage: &str, overrides: &[String]) -> Result<Self> {
        let mut table = match path {
            Some(path) => read_table(path)?,
            None => Table::new(),
        };
        let source = path.map_or("--set".into(), |p| p.display().to_string());
        let stages = match table.remove("stage") {
            None => Table::new(),
            Some(Value::Table(stages)) => stages,
            Some(_) => return Err(Error::config(format!("{source}: stage must be a table"))),
        };
        if let Some(name) = stages.keys().find(|name| !STAGES.contains(&name.as_str())) {
            return Err(Error::config(format!(
                "{source}: unknown key stage.{name}: stages are {}",
                STAGES.join(", ")
            )));
        }
        if let Some(Value::Table(over)) = stages.get(stage) {
            merge(&mut table, over);
        }
        for text in overrides {
            set(&mut table, text)?;
        }
        let config: Self = Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| Error::config(format!("{source}: {}", one_line(&e.to_string()))))?;
        config.check()?;
        Ok(config)
    }

    /// The plan as TOML, as it is printed and kept in the run directory.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::config(format!("the plan cannot be written as TOML: {e}")))
    }

    fn check(&self) -> Result<()> {
        let t = &self.train;
        positive("train.lr", t.lr)?;
        if let Some(lr) = t.head_lr {
            positive("train.head_lr", lr)?;
        }
        positive("train.layer_decay", t.layer_decay)?;
        if !(0.0..=t.lr).contains(&t.min_lr) {
            return Err(Error::config(format!("train.min_lr = {}: must be in [0, train.lr]", t.min_lr)));
        }
        if let Some(lora) = &self.fine.lora {
            lora.check()?;
            if t.optimizer == Optimizer::Lamb {
                return Err(Error::config(
                    "fine.lora with train.optimizer = \"lamb\": adapters are trained with \"adamw\"",
                ));
            }
        }
        if let Some(epochs) = t.epochs {
            positive("train.epochs", epochs)?;
        }
        self.check_measures()?;
        if t.steps.is_some() && t.epochs.is_some() {
            return Err(Error::config("train.steps and train.epochs are both set: keep one"));
        }
        for (key, value) in [
            ("train.warmup", t.warmup),
            ("train.dropout", f64::from(t.dropout)),
            ("train.beta1", f64::from(t.beta1)),
            ("train.beta2", f64::from(t.beta2)),
            ("objective.mask_rate", f64::from(self.objective.mask_rate)),
        ] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::config(format!("{key} = {value}: must be in [0, 1)")));
            }
        }
        for (key, value) in [
            ("train.weight_decay", t.weight_decay),
            ("train.clip_norm", t.clip_norm),
            ("objective.mlm", self.objective.mlm),
            ("objective.qdpp", self.objective.qdpp),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::config(format!("{key} = {value}: must be a number of at least 0")));
            }
        }
        positive("run.hang_limit_s", self.run.hang_limit_s)?;
        let minutes = self.checkpoint.every_minutes;
        if !(minutes.is_finite() && minutes >= 0.0) {
            return Err(Error::config(format!("checkpoint.every_minutes = {minutes}: must be at least 0")));
        }
        for (key, value) in [
            ("fine.seeds", self.fine.seeds as usize),
            ("checkpoint.keep", self.checkpoint.keep),
            ("train.pack_tokens", t.pack_tokens),
            ("train.packs_per_step", t.packs_per_step),
            ("fine.negatives", self.fine.negatives),
            ("fine.positives_per_topic", self.fine.positives_per_topic),
            ("fine.depth", self.fine.depth),
            ("fine.passages", self.fine.passages),
            ("fine.passage_stride", self.fine.passage_stride),
            ("objective.negatives_per_positive", self.objective.negatives_per_positive as usize),
        ] {
            if value == 0 {
                return Err(Error::config(format!("{key} = 0: must be at least 1")));
            }
        }
        self.fine.check()?;
        self.objective.check()?;
        if self.data.max_tokens < 8 {
            return Err(Error::config(format!(
                "data.max_tokens = {}: a pair needs at least 8 tokens",
                self.data.max_tokens
            )));
        }
        if self.data.max_tokens > t.pack_tokens {
            return Err(Error::config(format!(
                "data.max_tokens = {} does not fit train.pack_tokens = {}",
                self.data.max_tokens, t.pack_tokens
            )));
        }
        Ok(())
    }

    /// Measures by name, before hours are spent on what they are to measure.
    fn check_measures(&self) -> Result<()> {
        let wrong = |key: &str, cause: Error| Error::config(format!("{key}: {cause}"));
        self.fine.measure.parse::<Measure>().map_err(|cause| wrong("fine.measure", cause))?;
        if self.experiment.measures.is_empty() {
            return Err(Error::config("experiment.measures is empty: name one, as \"ndcg_cut_5\""));
        }
        for name in &self.experiment.measures {
            name.parse::<Measure>().map_err(|cause| wrong("experiment.measures", cause))?;
        }
        if self.fine.patience > 0 && self.fine.validate_every == 0 {
            return Err(Error::config(
                "fine.patience without fine.validate_every: nothing is validated, so nothing can end early",
            ));
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
            Self::need("data.documents", &self.data.documents)?;
        }
        Ok(sources)
    }

    /// The value of an optional key that this command needs.
    pub fn need<'a, T>(key: &str, value: &'a Option<T>) -> Result<&'a T> {
        value.as_ref().ok_or_else(|| {
            Error::config(format!(
                "{key} is not set: this command needs it (in the config or --set {key}=...)"
            ))
        })
    }
}

impl Train {
    /// What training freezes and computes twice.
    pub fn tuning(&self, lora: Option<&Lora>) -> Tuning {
        Tuning { lora: lora.cloned(), freeze: self.freeze.clone(), recompute: self.recompute }
    }
}

/// Commands that may have a `[stage.NAME]` table.
const STAGES: [&str; 5] = ["prepare", "pretrain", "coarse", "fine", "experiment"];

fn positive(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::config(format!("{key} = {value}: must be a positive number")))
}
