//! Fine-tuning: a cross-encoder on the training topics of one fold, its best weights by the
//! validation fold, its run on the test fold; and the `fine` command, which does so for all folds.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use statrs::statistics::Statistics;

use super::folds::{drawn_folds, folds_from_file};
use super::inputs::{fingerprint, hard_negatives, identity, read_teacher};
use super::rerank::rerank;
use crate::config::Config;
use crate::data::collection::{Collection, TopicUse};
use crate::data::groups::{GroupOptions, GroupSource, Sources};
use crate::data::loader::{Cursor, Loader, LoaderOptions, packs_per_epoch};
use crate::files;
use crate::ir::folds::Fold;
use crate::ir::measures::{self, Measure, evaluate};
use crate::ir::qrels::Qrels;
use crate::ir::run::Run;
use crate::model::activations::Capacity;
use crate::model::bert::Options;
use crate::model::checkpoint::{self, Checkpoint, Fill, HeadStart};
use crate::model::{Bert, HeadSet, Tuning};
use crate::random::{Purpose, philox};
use crate::ranks::{Distributed, World};
use crate::run::directory;
use crate::run::engine::{announce, on_engine};
use crate::run::resume;
use crate::run::signals;
use crate::text::Tokenizer;
use crate::train::counted;
use crate::train::memory::Needs;
use crate::train::metrics::Meter;
use crate::train::schedule::steps;
use crate::train::settings;
use crate::train::trainer::{Flow, NON_FINITE_LIMIT, Progress, Trainer, Watcher};
use crate::train::update::{Update, Word};
use crate::{Error, Result};

/// What all folds and arms of one study share.
pub struct Study<'a> {
    pub config: &'a Config,
    pub collection: Arc<Collection>,
    pub qrels: Qrels,
    /// Topic -> documents of `fine.negatives_run`.
    hard: Option<HashMap<String, Vec<String>>>,
    teacher: Option<Run>,
    pub folds: Vec<Fold>,
    /// CRC-32 of all that is read besides weights and folds.
    pub inputs: u32,
}

/// A model and how its ranking head starts.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    pub model: &'a Path,
    pub head: HeadStart,
}

/// One fine-tuning.
#[derive(Clone, Copy, Debug)]
pub struct FoldTask<'a> {
    pub fold: &'a Fold,
    /// Training topics of the fold to use; `None` uses all.
    pub topics: Option<usize>,
    /// Topics to rank afterwards.
    pub ranked: &'a [String],
    /// Folder for its metrics.
    pub dir: &'a Path,
    /// Keys the head's initial weights, the draws and the dropout; folds and sets of training topics
    /// stay those of the plan's seed.
    pub seed: u32,
}

impl<'a> Study<'a> {
    /// Reads the collection and the folds. Folds are those of `data.folds`, or drawn over the usable
    /// topics and written to `dir/folds.json`; topics that cannot be used are named, on the
    /// terminal and in `dir/run.json`.
    pub fn read(config: &'a Config, model: &Path, dir: &Path, world: &World) -> Result<Self> {
        let tokenizer = Tokenizer::load(model)?;
        let hard = config.fine.negatives_run.as_ref().map(|path| hard_negatives(path, config.fine.depth));
        let hard = hard.transpose()?;
        let teacher = config.fine.teacher.as_ref().map(|path| read_teacher(path)).transpose()?;
        let more = hard.clone().unwrap_or_default();
        let collection = Collection::read(config, &tokenizer, config.fine.depth, &more)?;
        let qrels_path = Config::need("data.qrels", &config.data.qrels)?;
        let qrels = Qrels::read(qrels_path)?;
        let topics = TopicUse::of(&collection, &qrels);
        let usable = &topics.usable;
        if usable.len() < 2 {
            return Err(Error::data(format!(
                "{}: {} topic(s) have both relevant and other candidates among the first {}: raise fine.depth \
                 or check that run and qrels belong together",
                qrels_path.display(),
                usable.len(),
                config.fine.depth
            )));
        }
        if world.leads() {
            let truncated = collection.truncated();
            tell!(
                "{} usable topics; {} passages of their candidates, {} of them cut to fit",
                usable.len(),
                truncated.all,
                truncated.cut
            );
            tell_raw!("{}", topics.lines(config.fine.depth));
        }
        world.agree(world.leads().then(|| directory::add_fact(dir, "topics", &json!(topics))))?;
        let folds = match &config.data.folds {
            Some(path) => {
                let (folds, lines) = folds_from_file(path, &topics, config.fine.validate_every > 0)?;
                if world.leads() {
                    tell_raw!("{lines}");
                }
                folds
            }
            None => drawn_folds(config, usable, dir, world)?,
        };
        let inputs = fingerprint(config, qrels_path, &collection)?;
        Ok(Self { config, collection: Arc::new(collection), qrels, hard, teacher, folds, inputs })
    }

    /// Fine-tunes `start` as `task` says and ranks the task's topics. Without training topics the
    /// model ranks as it is.
    pub fn run_fold<E: Distributed>(
        &self,
        engine: E,
        start: Start,
        task: &FoldTask,
        world: &World,
    ) -> Result<(Bert<E>, Run)> {
        let config = self.config;
        let FoldTask { fold, topics, ranked, seed, .. } = *task;
        let train = self.training_topics(fold, topics);
        let mut model = self.load(engine, start, !train.is_empty(), seed, world)?;
        if !train.is_empty() {
            model = self.train(model, &train, task, world)?;
        }
        let run = rerank(&mut model, &self.collection, ranked, config.fine.aggregate.into(), world)?;
        if run.topics().len() == 0 {
            return Err(Error::data(format!(
                "a fold tests {} topics and none has candidates in {:?}",
                ranked.len(),
                config.data.run
            )));
        }
        Ok((model, run))
    }

    /// The first n in an order that depends on the seed and the topic alone, so that a smaller set
    /// lies within a larger one.
    fn training_topics(&self, fold: &Fold, n: Option<usize>) -> Vec<String> {
        let key = |topic: &String| {
            let hash = crc32fast::hash(topic.as_bytes());
            philox(Purpose::Folds.key(self.config.seed), [hash, 0, 0, 1])
        };
        let mut topics = fold.train.clone();
        topics.sort_by_key(key);
        topics.truncate(n.unwrap_or(usize::MAX));
        topics
    }

    fn load<E: Distributed>(
        &self,
        engine: E,
        start: Start,
        train: bool,
        seed: u32,
        world: &World,
    ) -> Result<Bert<E>> {
        let config = self.config;
        let checkpoint = Checkpoint::read(start.model)?;
        checkpoint.check_fits(checkpoint.shape.vocab, config.data.max_tokens)?;
        let capacity = |tokens| Capacity::of_pack(tokens, 0.0, false);
        let options = Options {
            objective: settings::ranking(&config.fine),
            heads: HeadSet::RANKING,
            capacity: capacity(config.train.pack_tokens),
            train,
            dropout: config.train.dropout,
            seed,
            rule: None,
            continues: Vec::new(),
        };
        let tuning = match train {
            true => settings::tuning(&config.train, config.fine.lora.as_ref()),
            false => Tuning::default(),
        };
        if train {
            let layout = &tuning.layout(&checkpoint.shape, HeadSet::RANKING)?;
            let least_tokens = config.data.max_tokens * (1 + config.fine.negatives);
            let (options, train) = (options.clone(), &config.train);
            let run = counted::Run { layout, options, train, rank: world.rank(), ranks: world.size() };
            Needs { run, capacity: &capacity, least_tokens }.forecast(&engine)?;
        }
        let mut model = Bert::tuned(engine, &checkpoint.shape, options, &tuning)?;
        let report = checkpoint.fill(&mut model, Fill::Head(start.head), seed)?;
        let pooler = report.missing.iter().filter(|name| !name.starts_with("classifier"));
        for name in pooler {
            tracing::warn!("{}: has no {name}; drawn anew", start.model.display());
        }
        Ok(model)
    }

    fn train<E: Distributed>(
        &self,
        model: Bert<E>,
        train: &[String],
        task: &FoldTask,
        world: &World,
    ) -> Result<Bert<E>> {
        let FoldTask { fold, dir, seed, .. } = *task;
        let config = self.config;
        let options = GroupOptions {
            seed,
            negatives: config.fine.negatives,
            positives_per_topic: config.fine.positives_per_topic,
            from: config.fine.negatives_from,
            aggregate: config.fine.aggregate.into(),
            passages: config.fine.train_passages,
        };
        let sources =
            Sources { qrels: &self.qrels, hard: self.hard.as_ref(), teacher: self.teacher.as_ref() };
        let source = GroupSource::new(self.collection.clone(), sources, train, options)?;
        if world.leads() && !source.left_out.is_empty() {
            let names = source.left_out.join(" ");
            tell!("{} training topics left out, nothing to contrast: {names}", source.left_out.len());
        }
        source.check_fits(&config.train)?;
        let source = Arc::new(source);
        let options = LoaderOptions {
            seed,
            pack_tokens: config.train.pack_tokens,
            packs_per_step: config.train.packs_per_step,
            rank: world.rank(),
            world: world.size(),
            rule: None,
            continues: Arc::new(Vec::new()),
            start: Cursor::default(),
        };
        let steps = steps(&config.train, || packs_per_epoch(source.as_ref(), &options))?;
        let mut loader = Loader::new(source, options)?;
        let mut trainer = Trainer::new(model, world, &config.train, steps)?.check_every(config.run.check);
        let metrics = world.leads().then(|| dir.join("metrics.jsonl"));
        if let Some(metrics) = &metrics {
            resume::cut_metrics(metrics, Progress::default())?; // of a try that was cut off
        }
        let mut validator = Validator {
            study: self,
            topics: &fold.validation,
            measure: config.fine.measure.parse()?,
            meter: Meter::new(metrics.as_deref(), 0, steps)?,
            world,
            best: None,
            worse: 0,
        };
        match trainer.train(&mut loader, &mut validator)? {
            Flow::Continue | Flow::Stop => {}
            Flow::Preempted => return Err(preempted()),
            Flow::Diverged => {
                return Err(Error::data(format!(
                    "{}: {NON_FINITE_LIMIT} gradients in a row were not finite: lower train.lr or check the \
                     weights of model.path",
                    dir.display()
                )));
            }
        }
        let mut model = trainer.model;
        if let Some((_, weights)) = &validator.best {
            model.engine.upload_weights(weights, &mut model.weights, 0)?;
        }
        Ok(model)
    }
}

/// Measures the validation fold every so many updates and keeps the best weights.
struct Validator<'a> {
    study: &'a Study<'a>,
    topics: &'a [String],
    measure: Measure,
    meter: Meter,
    world: &'a World,
    /// Value and weights.
    best: Option<(f64, Vec<f32>)>,
    /// Validations since the best.
    worse: usize,
}

impl<E: Distributed> Watcher<E> for Validator<'_> {
    fn word(&mut self) -> Result<Word> {
        Ok(Word { stop: signals::asked().is_some(), ..Word::default() })
    }

    fn holds(&self, step: u64) -> bool {
        let every = self.study.config.fine.validate_every;
        every > 0 && step.is_multiple_of(every)
    }

    fn after(&mut self, update: &Update, trainer: &mut Trainer<'_, E>) -> Result<Flow> {
        self.meter.record(update)?;
        if update.agreed.stop {
            return Ok(Flow::Preempted);
        }
        if update.skipped_in_row >= NON_FINITE_LIMIT {
            return Ok(Flow::Diverged);
        }
        let model = &mut trainer.model;
        let fine = &self.study.config.fine;
        if !Watcher::<E>::holds(self, update.step) {
            return Ok(Flow::Continue);
        }
        let run = rerank(model, &self.study.collection, self.topics, fine.aggregate.into(), self.world)?;
        let value = mean(&self.study.qrels, &run, self.measure)?;
        if self.best.as_ref().is_none_or(|(best, _)| value > *best) {
            let weights = model.engine.download_weights(&model.weights, 0..model.layout.len)?;
            self.best = Some((value, weights));
            self.worse = 0;
            return Ok(Flow::Continue);
        }
        self.worse += 1;
        Ok(if fine.patience > 0 && self.worse >= fine.patience { Flow::Stop } else { Flow::Continue })
    }
}

fn mean(qrels: &Qrels, run: &Run, measure: Measure) -> Result<f64> {
    Ok(evaluate(qrels, run, &[measure], &measures::Options::default())?.means[0])
}

/// The `fine` command: all folds of `model.path` one after the other, each data-parallel over the
/// ranks; test runs joined into `run.txt`, the measures of all topics in `results.txt`.
pub fn run(config: &Config, world: &World) -> Result<()> {
    on_engine!(config, world, engine => run_on(&engine, config, world))
}

fn run_on<E: Distributed>(engine: &E, config: &Config, world: &World) -> Result<()> {
    let path = Config::need("model.path", &config.model.path)?;
    announce(engine, world);
    let dir = &config.run.out;
    let identity = identity(config, path)?;
    if let resume::Start::Finished(text) = resume::decide(dir, &config.resume, &identity, world)? {
        if world.leads() {
            tell!("{text}");
        }
        return Ok(());
    }
    let _lock = directory::lock(dir, world)?;
    let facts = [("model", json!(path)), ("folds", json!(config.data.folds))];
    directory::create(config, &identity, &facts, world)?;
    let study = Study::read(config, path, dir, world)?;
    signals::listen()?;
    let mut repeats = Vec::new();
    for repeat in 0..config.fine.seeds {
        let folder = if repeat == 0 { dir.clone() } else { dir.join(format!("repeat-{}", repeat + 1)) };
        let seed = config.seed.wrapping_add(repeat);
        let mut joined = Run::default();
        for i in 0..study.folds.len() {
            joined.merge(study.finish_fold(engine, path, i, &folder, seed, world)?)?;
        }
        repeats.extend(world.agree(world.leads().then(|| finish(config, &study, &joined, &folder)))?);
    }
    let conclude = || {
        if repeats.len() > 1 {
            summarise(&repeats, dir)?;
        }
        files::write(&dir.join(resume::FINISHED), b"all folds\n")
    };
    world.agree(world.leads().then(conclude))?;
    Ok(())
}

/// A measure's name and mean.
type Mean = (String, f64);

/// Mean and standard deviation (n - 1) of every measure over repetitions, printed and kept.
fn summarise(repeats: &[Vec<Mean>], dir: &Path) -> Result<()> {
    let mut text = String::new();
    for (m, (name, _)) in repeats[0].iter().enumerate() {
        let values = || repeats.iter().map(|means| means[m].1);
        let (mean, deviation) = (values().mean(), values().std_dev());
        text.push_str(&format!("{name:<22}\tall\t{mean:6.4}\t{deviation:6.4}\n"));
    }
    tell_raw!("mean and standard deviation over {} seeds:\n{text}", repeats.len());
    files::write(&dir.join("seeds.txt"), text.as_bytes())
}

impl Study<'_> {
    /// One fold of the `fine` command. A fold that is finished is kept, one that was cut off starts at
    /// its beginning: folds take minutes, and early stopping has state of its own.
    fn finish_fold<E: Distributed>(
        &self,
        engine: &E,
        path: &Path,
        i: usize,
        dir: &Path,
        seed: u32,
        world: &World,
    ) -> Result<Run> {
        let config = self.config;
        let fold = &self.folds[i];
        let folder = dir.join(format!("fold-{}", i + 1));
        let (run_path, done) = (folder.join("run.txt"), folder.join(resume::FINISHED));
        let topics = format!("{:#}\n", json!([fold.train, fold.validation, fold.test]));
        // rank 0 looks: all ranks must take the same way
        let kept =
            world.agree(world.leads().then(|| Ok(fs::read_to_string(&done).is_ok_and(|t| t == topics))))?;
        let mut word = String::from(if kept == Some(true) { "kept" } else { "" });
        world.broadcast_text(&mut word);
        if !word.is_empty() {
            if world.leads() {
                tell!("fold {}: finished before, kept", i + 1);
            }
            return Run::read(&run_path);
        }
        make_folder(&folder)?;
        let start = Start { model: path, head: config.fine.start };
        let n = (config.fine.train_topics > 0).then_some(config.fine.train_topics);
        let task = FoldTask { fold, topics: n, ranked: &fold.test, dir: &folder, seed };
        let (model, run) = self.run_fold(engine.clone(), start, &task, world)?;
        let conclude = || {
            checkpoint::save(&model, &folder.join("model"), Some(path))?;
            run.write(&run_path, "ctune-dist")?;
            files::write(&done, topics.as_bytes())?;
            let measure: Measure = config.fine.measure.parse()?;
            tell!("fold {}: {measure} {:.4} on its test topics", i + 1, mean(&self.qrels, &run, measure)?);
            Ok(())
        };
        world.agree(world.leads().then(conclude))?;
        Ok(run)
    }
}

/// Fine-tuning was asked to end.
fn preempted() -> Error {
    let signal = signals::asked().unwrap_or("a signal to another rank");
    Error::Preempted(format!(
        "{signal}: stopped; what is finished is kept, and the same command continues from there"
    ))
}

fn finish(config: &Config, study: &Study, joined: &Run, dir: &Path) -> Result<Vec<Mean>> {
    let path: PathBuf = dir.join("run.txt");
    joined.write(&path, "ctune-dist")?;
    let mut names = config.experiment.measures.clone();
    if !names.contains(&config.fine.measure) {
        names.push(config.fine.measure.clone());
    }
    let list = names.iter().map(|name| name.parse()).collect::<Result<Vec<Measure>>>()?;
    let result = evaluate(&study.qrels, joined, &list, &measures::Options::default())?;
    let mut text = String::new();
    for (measure, value) in list.iter().zip(&result.means) {
        text.push_str(&format!("{:<22}\tall\t{value:6.4}\n", measure.to_string()));
    }
    tell_raw!("all folds joined, {} topics: {}\n{text}", result.topics.len(), path.display());
    files::write(&dir.join("results.txt"), text.as_bytes())?;
    Ok(names.into_iter().zip(result.means).collect())
}

/// Makes a folder with its parents.
pub fn make_folder(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("created", dir, e))
}
