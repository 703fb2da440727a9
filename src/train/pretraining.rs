//! `pretrain` and `coarse`: from shards and a plan to a trained model folder. They differ in the
//! samples alone: documents by themselves, or the query log's pairs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::coarse::{Flow, Trainer, Update, Watcher};
use super::metrics::{Meter, duration};
use super::run_dir;
use super::schedule::steps;
use crate::config::{Config, Model};
use crate::corpus::shard::Shards;
use crate::corpus::tokenise::Tokenizer;
use crate::data::loader::{Cursor, Loader, LoaderOptions, packs_per_epoch};
use crate::data::source::{ClickLog, ClickOptions, ClickSource, DocumentSource, PairUse, SampleSource};
use crate::dist::World;
use crate::engine::{Backend, MaskRule};
use crate::model::activations::Capacity;
use crate::model::bert::Options;
use crate::model::checkpoint::{self, Checkpoint, Fill, HeadStart};
use crate::model::{Bert, HeadSet, Objective, Shape};
use crate::{Error, Result};

/// Which of the two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// MLM on documents alone.
    Pretrain,
    /// MLM and QDPP on the query log.
    Coarse,
}

impl Stage {
    /// The command's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Coarse => "coarse",
        }
    }
}

/// Everything that a run needs before its first step.
struct Prepared {
    source: Arc<dyn SampleSource>,
    tokenizer: Tokenizer,
    shards: Arc<Shards>,
    objective: Objective,
    rule: Option<MaskRule>,
}

/// Runs `pretrain` or `coarse` on every rank of `world`.
pub fn run(config: &Config, stage: Stage, world: &World) -> Result<()> {
    let backend = run_dir::engine(config)?;
    run_dir::announce(world);
    let prepared = prepare(config, stage)?;
    let options = loader_options(config, &prepared, world);
    let steps = steps(&config.train, || packs_per_epoch(prepared.source.as_ref(), &options))?;
    let shards = prepared.shards.fingerprint();
    let facts = [
        ("shards", json!(shards)),
        ("steps", json!(steps)),
        ("samples_per_epoch", json!(prepared.source.samples())),
    ];
    let dir = run_dir::create(config, stage.name(), &facts, world)?;
    let model = make_model(backend, config, &prepared, world)?;
    if world.leads() {
        println!("{} parameters, {steps} steps", model.layout.parameters());
    }
    let mut loader = Loader::new(prepared.source.clone(), options)?;
    let mut trainer = Trainer::new(model, world, &config.train, steps)?;
    let mut watcher = Saver::new(config, &dir, prepared.shards.dir(), steps, world)?;
    let start = std::time::Instant::now();
    trainer.train(&mut loader, &mut watcher)?;
    let speed = watcher.meter.tokens_per_s();
    let saved =
        world.leads().then(|| checkpoint::save(&trainer.model, &dir.join("model"), Some(&watcher.tokenizer)));
    world.agree(saved)?;
    if world.leads() {
        let took = duration(start.elapsed().as_secs_f64());
        println!(
            "{} done in {took}, {speed:.0} tokens/s; model: {}",
            stage.name(),
            dir.join("model").display()
        );
    }
    Ok(())
}

fn prepare(config: &Config, stage: Stage) -> Result<Prepared> {
    let shards = Arc::new(Shards::open(Config::need("data.shards", &config.data.shards)?)?);
    shards.verify()?;
    let tokenizer = shards.tokenizer()?;
    let log: Arc<dyn ClickLog> = shards.clone();
    let qdpp = if stage == Stage::Pretrain { 0.0 } else { config.objective.qdpp };
    let objective = Objective::Pretraining { mlm: config.objective.mlm, qdpp };
    if config.objective.mlm == 0.0 && qdpp == 0.0 {
        return Err(Error::config(
            "objective.mlm and objective.qdpp are both 0: there is nothing to learn (pretrain uses MLM alone)",
        ));
    }
    let source: Arc<dyn SampleSource> = match stage {
        Stage::Pretrain => Arc::new(DocumentSource::new(log, config.data.max_tokens)?),
        Stage::Coarse => Arc::new(ClickSource::new(log, click_options(config))?),
    };
    let rule = config.objective.mask_rule(config.seed, tokenizer.vocab(), tokenizer.special());
    Ok(Prepared { source, tokenizer, shards, objective, rule })
}

fn click_options(config: &Config) -> ClickOptions {
    ClickOptions {
        seed: config.seed,
        max_tokens: config.data.max_tokens,
        truncate: config.data.truncate,
        negatives: config.objective.negatives,
        negatives_per_positive: config.objective.negatives_per_positive,
        // MLM alone sees the very tokens that MLM + QDPP sees, so that arms compare
        pairs: if config.objective.qdpp > 0.0 { PairUse::Labelled } else { PairUse::Unlabelled },
    }
}

fn loader_options(config: &Config, prepared: &Prepared, world: &World) -> LoaderOptions {
    LoaderOptions {
        seed: config.seed,
        pack_tokens: config.train.pack_tokens,
        packs_per_step: config.train.packs_per_step,
        rank: world.rank(),
        world: world.size(),
        rule: prepared.rule,
        continues: Arc::new(prepared.tokenizer.continues()),
        start: Cursor::default(),
    }
}

fn make_model<B: Backend>(
    backend: B,
    config: &Config,
    prepared: &Prepared,
    world: &World,
) -> Result<Bert<B>> {
    let rate = if prepared.rule.is_some() { config.objective.mask_rate } else { 0.0 };
    let options = Options {
        objective: prepared.objective,
        heads: HeadSet::PRETRAINING,
        capacity: Capacity::of_pack(config.train.pack_tokens, rate, config.objective.whole_word),
        train: true,
        dropout: config.train.dropout,
        seed: config.seed,
        rule: prepared.rule,
        continues: prepared.tokenizer.continues(),
    };
    let vocab = prepared.tokenizer.vocab();
    match &config.model.path {
        Some(path) => {
            let checkpoint = Checkpoint::read(path)?;
            checkpoint.check_fits(vocab, config.data.max_tokens)?;
            let mut model = Bert::new(backend, &checkpoint.shape, options)?;
            let report = checkpoint.fill(&mut model, Fill::Head(HeadStart::NewHead), config.seed)?;
            if world.leads() {
                report.print(path);
            }
            Ok(model)
        }
        None => {
            let mut model =
                Bert::new(backend, &fresh_shape(&config.model, vocab, config.data.max_tokens)?, options)?;
            checkpoint::fill_fresh(&mut model, config.seed)?;
            Ok(model)
        }
    }
}

fn fresh_shape(model: &Model, vocab: usize, max_tokens: usize) -> Result<Shape> {
    let size = |key: &str, value: &Option<usize>| {
        value.ok_or_else(|| {
            Error::config(format!("set model.path, or model.{key} for a model made from scratch"))
        })
    };
    let hidden = size("hidden", &model.hidden)?;
    Ok(Shape {
        vocab,
        hidden,
        layers: size("layers", &model.layers)?,
        heads: size("heads", &model.heads)?,
        intermediate: model.intermediate.unwrap_or(4 * hidden),
        positions: model.positions.unwrap_or(max_tokens).max(max_tokens),
        segments: 2,
    })
}

/// Logs every step and saves a model every so many.
struct Saver {
    meter: Meter,
    every: u64,
    dir: PathBuf,
    tokenizer: PathBuf,
    leads: bool,
}

impl Saver {
    fn new(config: &Config, dir: &Path, shards: &Path, steps: u64, world: &World) -> Result<Self> {
        let metrics = world.leads().then(|| dir.join("metrics.jsonl"));
        let every = if world.leads() { config.run.log_every } else { 0 };
        Ok(Self {
            meter: Meter::new(metrics.as_deref(), every, steps)?,
            every: config.checkpoint.every_steps,
            dir: dir.join("checkpoints"),
            tokenizer: shards.to_owned(),
            leads: world.leads(),
        })
    }
}

impl<B: Backend> Watcher<B> for Saver {
    fn after(&mut self, update: &Update, model: &mut Bert<B>) -> Result<Flow> {
        self.meter.record(update)?;
        if self.leads && self.every > 0 && update.step.is_multiple_of(self.every) {
            let dir = self.dir.join(format!("step-{:07}", update.step)).join("model");
            checkpoint::save(model, &dir, Some(&self.tokenizer))?;
        }
        Ok(Flow::Continue)
    }
}
