//! `pretrain` and `coarse`: from shards and a plan to a trained model folder. They differ in the
//! samples alone: documents by themselves, or the query log's pairs.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::checkpoints::Identity;
use super::checkpoints::saver::Saver;
use super::directory;
use super::engine::{announce, on_engine};
use super::resume;
use super::session::Session;
use super::signals;
use crate::config::{Config, Model};
use crate::corpus::HardNegatives;
use crate::corpus::shard::Shards;
use crate::data::held_out;
use crate::data::loader::{Cursor, LoaderOptions, packs_per_epoch};
use crate::data::mask::mask_rule;
use crate::data::negatives::Negatives;
use crate::data::source::{
    ClickLog, ClickOptions, ClickSource, DocumentSource, Grades, PairUse, SampleSource,
};
use crate::engine::{Backend, MaskRule};
use crate::model::activations::Capacity;
use crate::model::bert::Options;
use crate::model::checkpoint::{self, Checkpoint, Fill, HeadStart};
use crate::model::{Bert, HeadSet, Objective, Shape};
use crate::ranks::{Distributed, World};
use crate::text::Tokenizer;
use crate::train::memory::{Forecast, Needs};
use crate::train::schedule::steps;
use crate::train::settings;
use crate::train::speed::product_speed;
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

/// Everything that a run needs before its first step.
struct Prepared {
    source: Arc<dyn SampleSource>,
    /// Held-out pairs.
    measured: Option<ClickSource>,
    tokenizer: Tokenizer,
    shards: Arc<Shards>,
    objective: Objective,
    rule: Option<MaskRule>,
    hard: Option<Hard>,
}

/// Hard negatives, and how many clicks have some.
struct Hard {
    lists: Arc<HardNegatives>,
    clicks: u32,
    without: u32,
}

/// Runs `pretrain` or `coarse` on every rank of `world`.
pub fn run(config: &Config, stage: Stage, world: &World) -> Result<()> {
    on_engine!(config, world, backend => run_on(backend, config, stage, world))
}

fn run_on<B: Distributed>(backend: B, config: &Config, stage: Stage, world: &World) -> Result<()> {
    announce(&backend, world);
    let prepared = prepare(config, stage, world)?;
    let mut options = loader_options(config, &prepared, world);
    let steps = steps(&config.train, || packs_per_epoch(prepared.source.as_ref(), &options))?;
    let identity = identity(config, stage, &prepared)?;
    let dir = &config.run.out;
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
    let _lock = directory::lock(dir, world)?;
    let from = if let resume::Start::From(path) = &start { Some(path.as_path()) } else { None };
    let product_speed = product_speed(&backend, world)?;
    let (model, forecast) = make_model(backend, config, &prepared, from, world)?;
    if world.leads() {
        tell!("{} parameters, {steps} steps", model.layout.parameters());
    }
    if let Some(hard) = prepared.hard.as_ref().filter(|_| world.leads()) {
        hard.print(config);
    }
    let mut trainer = Trainer::new(model, world, &config.train, steps)?.check_every(config.run.check);
    let memory = forecast.map(|forecast| forecast.report(&trainer.model.backend, world)).transpose()?;
    let facts = [
        ("steps", json!(steps)),
        ("samples_per_epoch", json!(prepared.source.samples())),
        ("hard_negatives", prepared.hard.as_ref().map_or(json!(null), Hard::facts)),
        ("memory", json!(memory)),
    ];
    directory::create(config, &identity, &facts, world)?; // what can be wrong with the plan has been seen
    signals::listen()?; // until here a signal ends the process as any other
    let tokenizer = prepared.shards.dir().to_owned();
    let saver = Saver::new(dir.join("checkpoints"), &config.checkpoint, identity, steps, tokenizer, world);
    let validation = prepared.validation(config, world)?;
    let mut session = Session::new(config, saver, steps, (validation, product_speed), world)?;
    if let Some(from) = from {
        session.go_back(from, &mut trainer)?;
    } else {
        session.cut_metrics(&trainer)?;
    }
    options.start = trainer.progress().cursor;
    session.train(&mut trainer, prepared.source.clone(), options)?;
    forecast.map_or(Ok(()), |forecast| forecast.confirm(&trainer.model.backend))?;
    session.finish(&mut trainer, stage)
}

impl Prepared {
    fn validation(&self, config: &Config, world: &World) -> Result<Option<Validation>> {
        let masks = (self.rule, self.tokenizer.continues());
        let pack = |source| Validation::new(config, source, masks, world);
        self.measured.as_ref().map(|source| pack(source)).transpose()
    }
}

/// What the run is: from the plan without what these commands do not read.
fn identity(config: &Config, stage: Stage, prepared: &Prepared) -> Result<Identity> {
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
    let mut data = prepared.shards.fingerprint();
    if let Some(hard) = &prepared.hard {
        data = format!("{data}-{}", hard.lists.fingerprint());
    }
    Ok(Identity { command: stage.name().into(), data, plan: resume::plan_of(config, &unused)? })
}

fn prepare(config: &Config, stage: Stage, world: &World) -> Result<Prepared> {
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
    let pairs = config.data.validation_pairs;
    if config.train.validate_every > 0 && (pairs == 0 || stage == Stage::Pretrain) {
        return Err(Error::config(
            "train.validate_every: coarse validates on data.validation_pairs; set that, and leave this out of \
             pretrain, which reads documents alone",
        ));
    }
    let rule = mask_rule(&config.objective, config.seed, tokenizer.vocab(), tokenizer.special());
    if stage == Stage::Pretrain {
        let source = Arc::new(DocumentSource::new(log, config.data.max_tokens)?);
        return Ok(Prepared { source, measured: None, tokenizer, shards, objective, rule, hard: None });
    }
    let lists = hard_negatives(config, &shards, world)?;
    let options = ClickOptions { hard: lists.clone(), ..click_options(config) };
    let (mut log, mut measured) = (log, None);
    if pairs > 0 {
        let [train, held] = held_out::divide(&log, pairs)?;
        // unweighted, so that losses of runs with and without grades compare
        let options = ClickOptions { grades: Grades::None, ..options.clone() };
        measured = Some(ClickSource::new(Arc::new(held), options)?);
        log = Arc::new(train);
    }
    let source = ClickSource::new(log, options)?;
    let count = |lists| Hard { lists, clicks: source.clicks(), without: source.without_hard() };
    let hard = lists.map(count);
    Ok(Prepared { source: Arc::new(source), measured, tokenizer, shards, objective, rule, hard })
}

/// The lists of `objective.negatives_run`. One rank of each node reads the run, the others find what it wrote.
fn hard_negatives(config: &Config, shards: &Shards, world: &World) -> Result<Option<Arc<HardNegatives>>> {
    let objective = &config.objective;
    if objective.negatives != Negatives::RunFile {
        return Ok(None);
    }
    let run = Config::need("objective.negatives_run", &objective.negatives_run)?;
    let open = || HardNegatives::open(shards, run, objective.negatives_depth);
    let first = world.agree_all((world.local_rank() == 0).then(open).transpose())?;
    let lists = world.agree_all(first.map_or_else(open, Ok))?;
    Ok(Some(Arc::new(lists)))
}

impl Hard {
    fn facts(&self) -> serde_json::Value {
        json!({ "run": self.lists.counts(), "clicks": self.clicks, "clicks_without": self.without })
    }

    fn print(&self, config: &Config) {
        let [first, last] = config.objective.negatives_depth;
        let counts = self.lists.counts();
        tell!(
            "hard negatives, ranks {first} to {last} of {}: {} documents for {} queries; left out: {} that their \
             query clicked, {} that the shards do not hold, {} rows of other topics",
            config.objective.negatives_run.as_deref().unwrap_or(Path::new("")).display(),
            counts.kept,
            counts.queries,
            counts.clicked,
            counts.missing,
            counts.foreign
        );
        tell!(
            "{} of {} clicks ({:.1} %) have none and get random documents",
            self.without,
            self.clicks,
            100.0 * f64::from(self.without) / f64::from(self.clicks.max(1))
        );
    }
}

/// How the log's clicks become samples under this plan.
pub fn click_options(config: &Config) -> ClickOptions {
    ClickOptions {
        seed: config.seed,
        max_tokens: config.data.max_tokens,
        truncate: config.data.truncate,
        negatives: config.objective.negatives,
        negatives_per_positive: config.objective.negatives_per_positive,
        hard: None,
        grades: config.objective.grades,
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
    resumed: Option<&Path>,
    world: &World,
) -> Result<(Bert<B>, Option<Forecast>)> {
    let rate = if prepared.rule.is_some() { config.objective.mask_rate } else { 0.0 };
    let capacity = |tokens| Capacity::of_pack(tokens, rate, config.objective.whole_word);
    let options = Options {
        objective: prepared.objective,
        heads: HeadSet::PRETRAINING,
        capacity: capacity(config.train.pack_tokens),
        train: true,
        dropout: config.train.dropout,
        seed: config.seed,
        rule: prepared.rule,
        continues: prepared.tokenizer.continues(),
    };
    let vocab = prepared.tokenizer.vocab();
    let tuning = settings::tuning(&config.train, None);
    let forecast = |backend: &B, shape: &Shape| {
        let layout = &tuning.layout(shape, HeadSet::PRETRAINING)?;
        let least_tokens = config.data.max_tokens;
        Needs { layout, train: &config.train, capacity: &capacity, least_tokens }.forecast(backend, world)
    };
    let resumed = resumed.map(|checkpoint| checkpoint.join("model"));
    match resumed.as_ref().or(config.model.path.as_ref()) {
        Some(path) => {
            let checkpoint = Checkpoint::read(path)?;
            checkpoint.check_fits(vocab, config.data.max_tokens)?;
            let forecast = forecast(&backend, &checkpoint.shape)?;
            let mut model = Bert::tuned(backend, &checkpoint.shape, options, &tuning)?;
            let report = checkpoint.fill(&mut model, Fill::Head(HeadStart::NewHead), config.seed)?;
            if world.leads() {
                report.print(path);
            }
            Ok((model, forecast))
        }
        None => {
            let shape = fresh_shape(&config.model, vocab, config.data.max_tokens)?;
            let forecast = forecast(&backend, &shape)?;
            let mut model = Bert::tuned(backend, &shape, options, &tuning)?;
            checkpoint::fill_fresh(&mut model, config.seed)?;
            Ok((model, forecast))
        }
    }
}

/// The sizes of a model made from scratch.
pub fn fresh_shape(model: &Model, vocab: usize, max_tokens: usize) -> Result<Shape> {
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
