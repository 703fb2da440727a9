//! The stages `pretrain` and `coarse`: from shards and a plan to a trained model folder. They differ only in
//! their samples: documents on their own, or the query log's pairs.

use std::sync::Arc;

use serde_json::json;

use super::agreement;
use super::checkpoints::Identity;
use super::checkpoints::saver::Saver;
use super::directory;
use super::engine::{announce, on_engine};
use super::model::ModelSettings;
use super::resume;
use super::samples::Samples;
use super::session::Session;
use super::signals;
use crate::config::Config;
use crate::data::loader::{Cursor, LoaderOptions, packs_per_epoch};
use crate::ranks::{Distributed, World};
use crate::train::schedule::steps;
use crate::train::speed::Ceiling;
use crate::train::trainer::Trainer;
use crate::train::validation::Validation;
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

/// Runs `pretrain` or `coarse` on every rank of `world`.
pub fn run(config: &Config, stage: Stage, world: &World) -> Result<()> {
    on_engine!(config, world, engine => run_on(engine, config, stage, world))
}

fn run_on<E: Distributed>(engine: E, config: &Config, stage: Stage, world: &World) -> Result<()> {
    announce(&engine, world);
    let samples = open_samples(config, stage, world)?;
    world.same(|| {
        let mut facts = vec![("the fingerprint of data.shards".into(), samples.fingerprint())];
        let model = config.model.path.as_ref().map(|path| agreement::contents("model.path", path));
        facts.extend(model.transpose()?);
        Ok(facts)
    })?;
    let mut options = loader_options(config, &samples, world);
    let steps = steps(&config.train, || packs_per_epoch(samples.source.as_ref(), &options))?;
    let identity = identity(config, stage, &samples)?;
    let dir = &config.run.out;
    let _lock = resume::lock(dir, world)?;
    let start = resume::decide(dir, &config.resume, &identity, world)?;
    match &start {
        resume::Start::Finished(text) => {
            if world.leads() {
                tell!("{text}");
            }
            return Ok(());
        }
        resume::Start::Again if world.leads() => {
            tell!("{}: has no checkpoint to continue from: starting from the beginning", dir.display());
        }
        _ => {}
    }
    let from = if let resume::Start::From(path) = &start { Some(path.as_path()) } else { None };
    let ceiling = Ceiling::measure(&engine, world)?;
    let (model, forecast) = model_settings(config).make(engine, &samples, from, world)?;
    if world.leads() {
        tell!("{} parameters, {steps} steps", model.layout.parameters());
        samples.print();
    }
    let mut trainer = Trainer::new(model, world, &config.train, steps)?.check_every(config.run.check);
    let memory = forecast.map(|forecast| forecast.report(&trainer.model.engine, world)).transpose()?;
    let mut facts = vec![("steps", json!(steps)), ("memory", json!(memory))];
    facts.extend(samples.facts());
    directory::create(config, &identity, &facts, world)?; // by now the plan has passed every check
    signals::listen()?; // until here a signal kills the process as usual
    let tokenizer = samples.shards.dir().to_owned();
    let saver = Saver::new(dir.join("checkpoints"), &config.checkpoint, identity, steps, tokenizer, world);
    let validation = validation(config.train.pack_tokens, &samples, world)?;
    let mut session = Session::new(&config.run, saver, steps, world)
        .validating(validation, config.train.validate_every)
        .against(ceiling);
    match from {
        Some(from) => session.go_back(from, &mut trainer)?,
        None => session.cut_metrics(&trainer)?,
    }
    options.start = trainer.progress().cursor;
    session.train(&mut trainer, samples.source.clone(), options)?;
    forecast.map_or(Ok(()), |forecast| forecast.confirm(&trainer.model.engine))?;
    session.finish(&mut trainer, stage.name())
}

fn open_samples(config: &Config, stage: Stage, world: &World) -> Result<Samples> {
    let pairs = config.data.validation_pairs;
    if config.train.validate_every > 0 && (pairs == 0 || stage == Stage::Pretrain) {
        return Err(Error::config(
            "train.validate_every: coarse validates on data.validation_pairs; set that, and leave this out of \
             pretrain, which reads documents alone",
        ));
    }
    match stage {
        Stage::Pretrain => Samples::of_documents(config.seed, &config.data, &config.objective, world),
        Stage::Coarse => Samples::of_clicks(config.seed, &config.data, &config.objective, world),
    }
}

/// What identifies the run: the plan without what these commands do not read.
fn identity(config: &Config, stage: Stage, samples: &Samples) -> Result<Identity> {
    let unused = [
        "fine",
        "experiment",
        "data.documents",
        "data.fields",
        "data.topics",
        "data.qrels",
        "data.run",
        "data.folds",
    ];
    let plan = resume::plan_of(config, &unused)?;
    Ok(Identity { command: stage.name().into(), data: samples.fingerprint(), plan })
}

fn loader_options(config: &Config, samples: &Samples, world: &World) -> LoaderOptions {
    LoaderOptions {
        seed: config.seed,
        pack_tokens: config.train.pack_tokens,
        packs_per_step: config.train.packs_per_step,
        rank: world.rank(),
        world: world.size(),
        rule: samples.rule,
        continues: Arc::new(samples.tokenizer.continues()),
        start: Cursor::default(),
    }
}

fn model_settings(config: &Config) -> ModelSettings<'_> {
    ModelSettings {
        seed: config.seed,
        model: &config.model,
        train: &config.train,
        objective: &config.objective,
        max_tokens: config.data.max_tokens,
    }
}

fn validation(pack_tokens: usize, samples: &Samples, world: &World) -> Result<Option<Validation>> {
    let masks = (samples.rule, samples.tokenizer.continues());
    let pack = |source| Validation::new(pack_tokens, source, masks, world);
    samples.measured.as_ref().map(|source| pack(source)).transpose()
}
