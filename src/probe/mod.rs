//! The query prediction task: does a model know what people ask? For each (query, document) pair every query
//! word is masked in turn, all its pieces at once, and predicted from the rest of the query alone and with
//! the document beside it. Several models are compared side by side.

mod page;
mod pairs;
mod predict;
pub mod tally;

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::config::Config;
use crate::data::collection::CollectionInputs;
use crate::engine::Engine;
use crate::files;
use crate::model::Bert;
use crate::model::bert::Options;
use crate::model::checkpoint::{Checkpoint, Fill, HeadStart};
use crate::ranks::World;
use crate::run::agreement;
use crate::run::checkpoints::Identity;
use crate::run::directory;
use crate::run::engine::{announce, on_engine};
use crate::run::resume;
use crate::text::Tokenizer;
use crate::{Error, Result};
use pairs::Pairs;
use predict::{Prediction, predict};
use tally::{ModelTally, Probe};

/// What `probe` reads.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Name and folder of each model.
    pub models: Vec<(String, PathBuf)>,
    /// Lends its MLM head to models without one (fine-tuned ones).
    pub heads_from: Option<PathBuf>,
    /// Pairs to draw.
    pub pairs: usize,
}

/// Runs the task on every rank of `world`; writes probe.json and probe.html in the run directory and
/// prints the table.
///
/// # Errors
/// `Error::Config` for no model, a name twice, models of different vocabularies, or a model without
/// MLM head where `heads_from` names none.
pub fn run(config: &Config, options: &ProbeOptions, world: &World) -> Result<()> {
    on_engine!(config, world, engine => run_on(&engine, config, options, world))
}

fn run_on<E: Engine>(engine: &E, config: &Config, options: &ProbeOptions, world: &World) -> Result<()> {
    if options.pairs == 0 {
        return Err(Error::config("--pairs 0: there is nothing to probe"));
    }
    let Some((_, first)) = options.models.first() else {
        return Err(Error::config("probe: name at least one --model NAME=FOLDER"));
    };
    let tokenizer = Tokenizer::load(first)?;
    check(&options.models, &tokenizer)?;
    let pairs = read_pairs(config, &tokenizer, options.pairs, world)?;
    world.same(|| {
        let folders = options.models.iter().map(|(name, path)| (format!("model {name}"), path));
        let lender = options.heads_from.iter().map(|path| ("--heads-from".to_owned(), path));
        let models = folders.chain(lender).map(|(key, path)| agreement::contents(&key, path));
        let drawn = [Ok(("the pairs that are probed".to_owned(), pairs.fingerprint()))];
        drawn.into_iter().chain(models).collect()
    })?;
    if pairs.cut > 0 && world.leads() {
        tell!("the queries of {} pairs are cut to {} tokens", pairs.cut, config.data.longest_query());
    }
    announce(engine, world);
    let data = pairs.source.clone();
    let identity = Identity { command: "probe".into(), data, plan: resume::plan_of(config, &[])? };
    let _lock = resume::lock(&config.run.out, world)?;
    world.agree(world.leads().then(|| check_free(&config.run.out)))?;
    let dir = directory::create(config, &identity, &[("pairs", json!(pairs.list.len()))], world)?;
    let mut models = Vec::new();
    for (name, path) in &options.models {
        let lender = options.heads_from.as_deref();
        let model_options = predict::options(config.train.pack_tokens, config.seed);
        let (mut model, borrowed) =
            load(engine.clone(), path, lender, (tokenizer.vocab(), config.data.max_tokens), model_options)?;
        let predictions: Vec<Prediction> = predict(&mut model, &pairs, world)?;
        let head = borrowed.then(|| options.heads_from.clone()).flatten();
        models.push(ModelTally::new(name, path, head, &pairs, &predictions));
    }
    let probe = Probe { source: pairs.source.clone(), pairs: pairs.list.len(), words: pairs.words(), models };
    world.agree(world.leads().then(|| conclude(&probe, &dir)))?;
    Ok(())
}

/// Pairs from the shards or, if there are none, from topics, qrels, run and documents.
fn read_pairs(config: &Config, tokenizer: &Tokenizer, n: usize, world: &World) -> Result<Pairs> {
    let Config { seed, data, fine, .. } = config;
    if data.shards.is_some() {
        return Pairs::of_log(*seed, data, tokenizer, n);
    }
    let inputs = CollectionInputs { data, sources: &config.documents()?, fine, warns: world.leads() };
    Pairs::of_topics(*seed, inputs, tokenizer, n)
}

/// A probe runs in one go: there is nothing to continue, and a finished one is kept.
fn check_free(out: &Path) -> Result<()> {
    resume::check_command(out, "probe")?;
    if out.join("probe.json").exists() {
        return Err(Error::config(format!("{}: holds a probe already: choose another --out", out.display())));
    }
    Ok(())
}

fn check(models: &[(String, PathBuf)], tokenizer: &Tokenizer) -> Result<()> {
    for (i, (name, path)) in models.iter().enumerate() {
        if models[..i].iter().any(|(other, _)| other == name) {
            return Err(Error::config(format!("probe: two models are named {name:?}")));
        }
        if !Tokenizer::load(path)?.same_tokens(tokenizer) {
            return Err(Error::config(format!(
                "probe: {} has another tokenizer than {}: compare models of one vocabulary",
                path.display(),
                models[0].1.display()
            )));
        }
    }
    Ok(())
}

/// The model with an MLM head, its own or that of `heads_from`; and whether the head is borrowed.
fn load<E: Engine>(
    engine: E,
    path: &Path,
    heads_from: Option<&Path>,
    (pieces, max_tokens): (usize, usize),
    options: Options,
) -> Result<(Bert<E>, bool)> {
    const HEAD: &str = "cls.predictions";
    let mut found = Checkpoint::read(path)?;
    found.check_fits(pieces, max_tokens)?;
    let borrowed = !found.tensors.keys().any(|name| name.starts_with(HEAD));
    if borrowed {
        let Some(other) = heads_from else {
            return Err(Error::config(format!(
                "{}: has no MLM head: name with --heads-from the model that it was fine-tuned from",
                path.display()
            )));
        };
        let lender = Checkpoint::read(other)?;
        found.tensors.extend(lender.tensors.into_iter().filter(|(name, _)| name.starts_with(HEAD)));
    }
    let seed = options.seed;
    let mut model = Bert::new(engine, &found.shape, options)?;
    let report = found.fill(&mut model, Fill::Head(HeadStart::NewHead), seed)?;
    match report.missing.iter().find(|name| name.starts_with(HEAD)) {
        Some(name) => Err(Error::data(format!("{}: the MLM head lacks {name}", path.display()))),
        None => Ok((model, borrowed)),
    }
}

fn conclude(probe: &Probe, dir: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(probe)
        .map_err(|e| Error::data(format!("probe.json cannot be written: {e}")))?;
    files::write(&dir.join("probe.json"), text.as_bytes())?;
    let path = dir.join("probe.html");
    files::write(&path, page::html(probe)?.as_bytes())?;
    tell_raw!("{}", page::table_text(probe));
    tell!("report: {}", path.display());
    Ok(())
}
