//! One fine-tuning of a study: a cross-encoder trained on the training topics of one fold, the weights that
//! are best on the validation fold, and their run on the topics to rank.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::folds::{drawn_folds, folds_from_file};
use super::inputs::{fingerprint, hard_negatives, read_teacher};
use super::rerank::rerank;
use super::validator::Validator;
use crate::config::{Config, Data, Fine, Source, Train, need};
use crate::data::collection::{Collection, CollectionInputs, TopicUse};
use crate::data::groups::{GroupInputs, GroupOptions, GroupSource};
use crate::data::loader::{Cursor, Loader, LoaderOptions, packs_per_epoch};
use crate::ir::folds::Fold;
use crate::ir::qrels::Qrels;
use crate::ir::run::Run;
use crate::model::activations::Capacity;
use crate::model::bert::Options;
use crate::model::checkpoint::{Checkpoint, Fill, HeadStart};
use crate::model::{Bert, HeadSet, Tuning};
use crate::random::{Purpose, philox};
use crate::ranks::{Distributed, World};
use crate::run::{directory, finite, resume, signals};
use crate::text::Tokenizer;
use crate::train::counted;
use crate::train::memory::Needs;
use crate::train::metrics::Meter;
use crate::train::schedule::steps;
use crate::train::settings;
use crate::train::trainer::{Flow, NON_FINITE_LIMIT, Progress, Trainer};
use crate::{Error, Result};

/// What the plan says of a study.
#[derive(Clone, Copy, Debug)]
pub struct StudySettings<'a> {
    pub seed: u32,
    pub data: &'a Data,
    /// Files of documents.
    pub sources: &'a [Source],
    pub train: &'a Train,
    pub fine: &'a Fine,
    /// `run.check`
    pub check: u64,
}

impl<'a> StudySettings<'a> {
    /// The sections of `config`; `sources` are its documents.
    pub fn new(config: &'a Config, sources: &'a [Source]) -> Self {
        let Config { seed, data, train, fine, run, .. } = config;
        Self { seed: *seed, data, sources, train, fine, check: run.check }
    }
}

/// What all folds and arms of one study share.
pub struct Study<'a> {
    pub settings: StudySettings<'a>,
    pub collection: Arc<Collection>,
    /// V of the tokenizer of all models.
    pieces: usize,
    pub qrels: Qrels,
    /// Topic -> documents of `fine.negatives_run`.
    hard: Option<HashMap<String, Vec<String>>>,
    teacher: Option<Run>,
    pub folds: Vec<Fold>,
    /// CRC-32 of everything that is read besides weights and folds.
    pub inputs: u32,
}

/// A model and how its ranking head starts.
#[derive(Clone, Copy, Debug)]
pub struct BaseModel<'a> {
    pub path: &'a Path,
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
    /// Seeds the head's initial weights, the draws and the dropout. Folds and sets of training topics keep to
    /// the plan's seed.
    pub seed: u32,
}

impl<'a> Study<'a> {
    /// Reads the collection and the folds. Folds come from `data.folds`, or are drawn over the usable topics
    /// and written to `dir/folds.json`. Unusable topics are named on the terminal and in `dir/run.json`.
    pub fn read(settings: StudySettings<'a>, model: &Path, dir: &Path, world: &World) -> Result<Self> {
        let StudySettings { data, fine, .. } = settings;
        let tokenizer = Tokenizer::load(model)?;
        let hard = fine.negatives_run.as_ref().map(|path| hard_negatives(path, fine.depth)).transpose()?;
        let teacher = fine.teacher.as_ref().map(|path| read_teacher(path)).transpose()?;
        let more = hard.clone().unwrap_or_default();
        let inputs = CollectionInputs { data, sources: settings.sources, fine, warns: world.leads() };
        let collection = Collection::read(inputs, &tokenizer, &more)?;
        let qrels_path = need("data.qrels", &data.qrels)?;
        let qrels = Qrels::read(qrels_path)?;
        let topics = TopicUse::of(&collection, &qrels);
        let usable = &topics.usable;
        if usable.len() < 2 {
            return Err(Error::data(format!(
                "{}: {} topic(s) have both relevant and other candidates among the first {}: raise fine.depth \
                 or check that run and qrels belong together",
                qrels_path.display(),
                usable.len(),
                fine.depth
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
            tell_raw!("{}", topics.lines(fine.depth));
        }
        world.agree(world.leads().then(|| directory::add_fact(dir, "topics", &json!(topics))))?;
        let folds = match &data.folds {
            Some(path) => {
                let (folds, lines) = folds_from_file(path, &topics, fine.validate_every > 0)?;
                if world.leads() {
                    tell_raw!("{lines}");
                }
                folds
            }
            None => drawn_folds(fine.folds, settings.seed, usable, dir, world)?,
        };
        let inputs = fingerprint(fine, qrels_path, &collection)?;
        let read = ("what was read of topics, runs, qrels and documents".into(), format!("{inputs:08x}"));
        world.same(|| Ok(vec![read, ("the folds".into(), format!("{folds:?}"))]))?;
        let (collection, pieces) = (Arc::new(collection), tokenizer.vocab());
        Ok(Self { settings, collection, pieces, qrels, hard, teacher, folds, inputs })
    }

    /// Fine-tunes `base` as `task` says and ranks the task's topics. Without training topics the model ranks
    /// untrained.
    pub fn run_fold<E: Distributed>(
        &self,
        engine: E,
        base: BaseModel,
        task: &FoldTask,
        world: &World,
    ) -> Result<(Bert<E>, Run)> {
        let FoldTask { fold, topics, ranked, seed, .. } = *task;
        let training = self.training_topics(fold, topics);
        let mut model = self.load(engine, base, !training.is_empty(), seed, world)?;
        if !training.is_empty() {
            model = self.train(model, &training, task, world)?;
        }
        let aggregate = self.settings.fine.aggregate.into();
        let run = rerank(&mut model, &self.collection, ranked, aggregate, world)?;
        if run.topics().len() == 0 {
            return Err(Error::data(format!(
                "a fold tests {} topics and none has candidates in {:?}",
                ranked.len(),
                self.settings.data.run
            )));
        }
        Ok((model, run))
    }

    /// The first n in an order that depends on the seed and the topic alone, so that a smaller set
    /// lies within a larger one.
    fn training_topics(&self, fold: &Fold, n: Option<usize>) -> Vec<String> {
        let key = |topic: &String| {
            let hash = crc32fast::hash(topic.as_bytes());
            philox(Purpose::Folds.key(self.settings.seed), [hash, 0, 0, 1])
        };
        let mut topics = fold.train.clone();
        topics.sort_by_key(key);
        topics.truncate(n.unwrap_or(usize::MAX));
        topics
    }

    fn load<E: Distributed>(
        &self,
        engine: E,
        base: BaseModel,
        learns: bool,
        seed: u32,
        world: &World,
    ) -> Result<Bert<E>> {
        let StudySettings { data, train, fine, .. } = self.settings;
        let checkpoint = Checkpoint::read(base.path)?;
        checkpoint.check_fits(self.pieces, data.max_tokens)?;
        let capacity = |tokens| Capacity::of_pack(tokens, 0.0, false);
        let options = Options {
            objective: settings::ranking(fine),
            heads: HeadSet::RANKING,
            capacity: capacity(train.pack_tokens),
            train: learns,
            dropout: train.dropout,
            seed,
            rule: None,
            continues: Vec::new(),
        };
        let tuning = match learns {
            true => settings::tuning(train, fine.lora.as_ref()),
            false => Tuning::default(),
        };
        if learns {
            let layout = &tuning.layout(&checkpoint.shape, HeadSet::RANKING)?;
            let least_tokens = data.max_tokens * (1 + fine.negatives);
            let (options, rank, ranks) = (options.clone(), world.rank(), world.size());
            let run = counted::Setup { layout, options, train, rank, ranks };
            Needs { run, capacity: &capacity, least_tokens }.forecast(&engine)?;
        }
        let mut model = Bert::tuned(engine, &checkpoint.shape, options, &tuning)?;
        checkpoint.fill(&mut model, Fill::Head(base.head), seed)?.warn(base.path);
        Ok(model)
    }

    /// The groups of some topics; topics without anything to contrast are named.
    fn groups(&self, topics: &[String], seed: u32, world: &World) -> Result<GroupSource> {
        let StudySettings { train, fine, .. } = self.settings;
        let options = GroupOptions {
            seed,
            negatives: fine.negatives,
            positives_per_topic: fine.positives_per_topic,
            from: fine.negatives_from,
            aggregate: fine.aggregate.into(),
            passages: fine.train_passages,
        };
        let inputs =
            GroupInputs { qrels: &self.qrels, hard: self.hard.as_ref(), teacher: self.teacher.as_ref() };
        let source = GroupSource::new(self.collection.clone(), inputs, topics, options)?;
        if world.leads() && !source.left_out.is_empty() {
            let names = source.left_out.join(" ");
            tell!("{} training topics left out, nothing to contrast: {names}", source.left_out.len());
        }
        source.check_fits(train.pack_tokens)?;
        Ok(source)
    }

    fn train<E: Distributed>(
        &self,
        model: Bert<E>,
        topics: &[String],
        task: &FoldTask,
        world: &World,
    ) -> Result<Bert<E>> {
        let FoldTask { fold, dir, seed, .. } = *task;
        let StudySettings { train, fine, check, .. } = self.settings;
        let source = Arc::new(self.groups(topics, seed, world)?);
        let options = LoaderOptions {
            seed,
            pack_tokens: train.pack_tokens,
            packs_per_step: train.packs_per_step,
            rank: world.rank(),
            world: world.size(),
            rule: None,
            continues: Arc::new(Vec::new()),
            start: Cursor::default(),
        };
        let steps = steps(train, || packs_per_epoch(source.as_ref(), &options))?;
        let mut loader = Loader::new(source, options)?;
        let mut trainer = Trainer::new(model, world, train, steps)?.check_every(check);
        let metrics = world.leads().then(|| dir.join("metrics.jsonl"));
        if let Some(metrics) = &metrics {
            resume::cut_metrics(metrics, Progress::default())?; // left by an interrupted attempt
        }
        let mut validator = Validator {
            collection: &self.collection,
            qrels: &self.qrels,
            fine,
            topics: &fold.validation,
            measure: fine.measure.parse()?,
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
        finite::check(&model, &dir.display().to_string(), world)?;
        Ok(model)
    }
}

/// The error when fine-tuning was asked to stop.
fn preempted() -> Error {
    let signal = signals::asked().unwrap_or("a signal to another rank");
    Error::Preempted(format!(
        "{signal}: stopped; what is finished is kept, and the same command continues from there"
    ))
}
