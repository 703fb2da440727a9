//! Re-ranking: a model scores the candidates of topics, and the order of the scores is the run. Scores are
//! logits.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::json;

use super::inputs::facts;
use super::unfinished::Unfinished;
use crate::config::{Config, need};
use crate::data::batch::Batch;
use crate::data::collection::{Candidates, Collection, CollectionInputs};
use crate::engine::Engine;
use crate::engine::op::{Aggregate, RankLoss};
use crate::files;
use crate::ir::run::{Hit, Run};
use crate::model::activations::Capacity;
use crate::model::bert::Options;
use crate::model::checkpoint::{self, Checkpoint, Fill};
use crate::model::{Bert, HeadSet, Objective};
use crate::ranks::World;
use crate::run::engine::on_engine;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Topics scored between two writes to the file from which a stopped run continues.
const TOPICS_AT_ONCE: usize = 16;

/// One passage to score beside its query.
struct Pair<'a> {
    query: &'a [u32],
    document: &'a [u32],
    /// Place in the list of all passages.
    at: usize,
}

impl Pair<'_> {
    fn len(&self) -> usize {
        3 + self.query.len() + self.document.len()
    }
}

/// Scores every candidate of `topics`; ranks share the work. Pairs of similar length share a pack.
/// `aggregate` says how a document's score follows from its passages'. Topics without candidates are left
/// out.
pub fn rerank<E: Engine>(
    model: &mut Bert<E>,
    collection: &Collection,
    topics: &[String],
    aggregate: Aggregate,
    world: &World,
) -> Result<Run> {
    let known: Vec<(&String, &Candidates)> =
        topics.iter().filter_map(|id| collection.topics.get_key_value(id)).collect();
    let mut pairs: Vec<Pair> = Vec::new();
    for (_, topic) in &known {
        for id in &topic.documents {
            for passage in 0..collection.passages(id) {
                let document = collection.passage(id, passage, &topic.query);
                pairs.push(Pair { query: &topic.query, document, at: pairs.len() });
            }
        }
    }
    pairs.sort_by_key(|pair| (pair.len(), pair.at));
    let mut scores = vec![0.0f64; pairs.len()];
    for (i, pack) in packs(&pairs, model.options.capacity).into_iter().enumerate() {
        if i % world.size() == world.rank() {
            score_pack(model, collection, pack, &mut scores)?;
        }
    }
    // one rank sets each score; it is 0 on the others
    world.sum_f64(&mut scores);
    let mut run = Run::default();
    let mut rest = &scores[..];
    for (id, topic) in known {
        let hits = topic.documents.iter().map(|doc| {
            let (passages, after) = rest.split_at(collection.passages(doc));
            rest = after;
            Hit { doc: doc.as_str().into(), score: aggregate.score(passages) }
        });
        run.insert(id.clone(), hits.collect())?;
    }
    Ok(run)
}

/// Cuts the list into packs that fit.
fn packs<'a, 'p>(mut pairs: &'p [Pair<'a>], capacity: Capacity) -> Vec<&'p [Pair<'a>]> {
    let mut packs = Vec::new();
    while !pairs.is_empty() {
        let mut tokens = 0;
        let fits = pairs.iter().take(capacity.sequences).take_while(|pair| {
            tokens += pair.len();
            tokens <= capacity.tokens
        });
        let (pack, rest) = pairs.split_at(fits.count().max(1));
        packs.push(pack);
        pairs = rest;
    }
    packs
}

fn score_pack<E: Engine>(
    model: &mut Bert<E>,
    collection: &Collection,
    pack: &[Pair],
    scores: &mut [f64],
) -> Result<()> {
    let mut batch = Batch::default();
    for pair in pack {
        batch.push(collection.special, pair.at as u32, pair.query, Some(pair.document));
    }
    for (pair, score) in pack.iter().zip(model.scores(&batch)?) {
        scores[pair.at] = f64::from(score);
    }
    Ok(())
}

/// Options of a model that only scores.
pub fn scoring_options(pack_tokens: usize, seed: u32) -> Options {
    Options {
        objective: Objective::Ranking(RankLoss::Lce, None),
        heads: HeadSet::RANKING,
        capacity: Capacity::of_pack(pack_tokens, 0.0, false),
        train: false,
        dropout: 0.0,
        seed,
        rule: None,
        continues: Vec::new(),
    }
}

/// The `rerank` command: `model` re-scores `data.run`, written to `out`.
pub fn run(config: &Config, out: &Path, world: &World) -> Result<()> {
    on_engine!(config, world, engine => run_on(engine, config, out, world))
}

/// Topics, candidates and documents, the same on every rank.
fn read_collection(config: &Config, tokenizer: &Tokenizer, world: &World) -> Result<Collection> {
    let Config { data, fine, model, .. } = config;
    let documents = config.documents()?;
    let named = [("data.topics", &data.topics), ("data.run", &data.run), ("model.path", &model.path)];
    world.same(|| facts(&named, &documents))?;
    let inputs = CollectionInputs { data, sources: &documents, fine, warns: world.leads() };
    let collection = Collection::read(inputs, tokenizer, &HashMap::new())?;
    let read = format!("{:08x}", collection.fingerprint());
    world.same(|| Ok(vec![("what was read of topics, run and documents".into(), read)]))?;
    Ok(collection)
}

fn run_on<E: Engine>(engine: E, config: &Config, out: &Path, world: &World) -> Result<()> {
    let path = need("model.path", &config.model.path)?;
    let (data, fine) = (&config.data, &config.fine);
    let sources = config.sources.iter().flat_map(|source| &source.path);
    let read = [&data.topics, &data.run, &data.documents].into_iter().flatten().chain(sources);
    world.agree(world.leads().then(|| files::refuse_input(out, read)))?;
    let _lock = world.agree(world.leads().then(|| Unfinished::lock(out)))?;
    let tokenizer = Tokenizer::load(path)?;
    let collection = read_collection(config, &tokenizer, world)?;
    let checkpoint = Checkpoint::read(path)?;
    checkpoint.check_fits(tokenizer.vocab(), config.data.max_tokens)?;
    let options = scoring_options(config.train.pack_tokens, config.seed);
    let mut model = Bert::new(engine, &checkpoint.shape, options)?;
    let report = checkpoint.fill(&mut model, Fill::AsSaved, config.seed)?;
    if report.missing.iter().any(|name| name.starts_with("classifier")) {
        return Err(Error::config(format!(
            "{}: has neither a ranking nor a QDPP head: fine-tune or coarse-tune it first",
            path.display()
        )));
    }
    let topics: Vec<String> = collection.topics.keys().cloned().collect();
    let identity = json!({
        "model": checkpoint::fingerprint(path)?,
        "collection": collection.fingerprint(),
        "max_tokens": data.max_tokens,
        "aggregate": fine.aggregate,
        "pack_tokens": config.train.pack_tokens,
        "precision": config.train.precision,
    });
    let mut part = world.agree(world.leads().then(|| Unfinished::open(out, &identity.to_string())))?;
    let mut done = part.as_ref().map(|part| part.done.join("\n")).unwrap_or_default();
    world.broadcast_text(&mut done);
    let done: HashSet<&str> = done.lines().collect();
    let left: Vec<String> = topics.iter().filter(|topic| !done.contains(topic.as_str())).cloned().collect();
    if world.leads() && !done.is_empty() {
        tell!("{} topics are scored already in {}", done.len(), Unfinished::path(out).display());
    }
    for block in left.chunks(TOPICS_AT_ONCE) {
        let run = rerank(&mut model, &collection, block, fine.aggregate.into(), world)?;
        world.agree(part.as_mut().map(|part| part.add(&run)))?;
    }
    world.agree(part.map(|part| part.finish(out)))?;
    if world.leads() {
        tell_raw!("{}", collection.unmatched());
        let truncated = collection.truncated();
        tell!(
            "{} topics, {} passages scored (logits), {} cut to fit beside their query",
            topics.len(),
            truncated.all,
            truncated.cut
        );
        report.print(path);
    }
    Ok(())
}
