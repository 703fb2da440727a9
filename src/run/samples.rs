//! What `pretrain` and `coarse` train on: shards, what the plan makes of them, and what a user should know
//! about it before spending hours on it.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::config::{Data, Objective, need};
use crate::corpus::HardNegatives;
use crate::corpus::shard::Shards;
use crate::data::held_out;
use crate::data::mask::mask_rule;
use crate::data::{
    ClickLog, ClickOptions, ClickSource, DocumentSource, Grades, Negatives, PairUse, SampleSource,
};
use crate::engine::op::MaskRule;
use crate::model;
use crate::ranks::World;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Everything that a stage reads.
pub struct Samples {
    pub source: Arc<dyn SampleSource>,
    /// Held-out pairs.
    pub measured: Option<ClickSource>,
    pub tokenizer: Tokenizer,
    pub shards: Arc<Shards>,
    pub objective: model::Objective,
    pub rule: Option<MaskRule>,
    cut: Option<CutQueries>,
    hard: Option<Hard>,
}

/// Queries that are too long for `data.max_query_tokens` or `data.max_tokens`.
struct CutQueries {
    cut: u32,
    queries: u32,
    /// Tokens that they keep.
    kept: usize,
}

/// Hard negatives, and how many clicks have any.
struct Hard {
    lists: Arc<HardNegatives>,
    run: PathBuf,
    /// First and last rank to draw from.
    depth: [u32; 2],
    clicks: u32,
    without: u32,
}

impl Samples {
    /// Documents on their own.
    pub fn of_documents(seed: u32, data: &Data, objective: &Objective, world: &World) -> Result<Self> {
        let shards = open_shards(data, world)?;
        let source = Arc::new(DocumentSource::new(shards.clone(), data.max_tokens)?);
        Self::new(seed, objective, 0.0, shards, source)
    }

    /// The pairs of the query log.
    pub fn of_clicks(seed: u32, data: &Data, objective: &Objective, world: &World) -> Result<Self> {
        let shards = open_shards(data, world)?;
        let lists = hard_negatives(objective, &shards, world)?;
        let options = ClickOptions { hard: lists.clone(), ..click_options(seed, data, objective) };
        let (mut log, mut measured): (Arc<dyn ClickLog>, _) = (shards.clone(), None);
        if data.validation_pairs > 0 {
            let [train, held] = held_out::divide(&log, data.validation_pairs)?;
            // unweighted, so that runs with and without grades have comparable losses
            let options = ClickOptions { grades: Grades::None, ..options.clone() };
            measured = Some(ClickSource::new(Arc::new(held), options)?);
            log = Arc::new(train);
        }
        let source = Arc::new(ClickSource::new(log, options)?);
        let (cut, kept) = source.cut_queries();
        let hard = lists.map(|lists| Hard {
            lists,
            run: objective.negatives_run.clone().unwrap_or_default(),
            depth: objective.negatives_depth,
            clicks: source.clicks(),
            without: source.without_hard(),
        });
        let cut = Some(CutQueries { cut, queries: shards.queries(), kept });
        let samples = Self::new(seed, objective, objective.qdpp, shards, source)?;
        Ok(Self { measured, cut, hard, ..samples })
    }

    fn new(
        seed: u32,
        objective: &Objective,
        qdpp: f32,
        shards: Arc<Shards>,
        source: Arc<dyn SampleSource>,
    ) -> Result<Self> {
        let tokenizer = shards.tokenizer()?;
        if objective.mlm == 0.0 && qdpp == 0.0 {
            return Err(Error::config(
                "objective.mlm and objective.qdpp are both 0: there is nothing to learn (pretrain uses MLM alone)",
            ));
        }
        let rule = mask_rule(objective, seed, tokenizer.vocab(), tokenizer.special());
        let objective = model::Objective::Pretraining { mlm: objective.mlm, qdpp };
        let (measured, cut, hard) = (None, None, None);
        Ok(Self { source, measured, tokenizer, shards, objective, rule, cut, hard })
    }

    /// Fingerprint of the shards and of everything else that is read.
    pub fn fingerprint(&self) -> String {
        let shards = self.shards.fingerprint();
        match &self.hard {
            Some(hard) => format!("{shards}-{}", hard.lists.fingerprint()),
            None => shards,
        }
    }

    /// What `run.json` keeps.
    pub fn facts(&self) -> [(&'static str, Value); 3] {
        [
            ("samples_per_epoch", json!(self.source.samples())),
            ("queries_cut", self.cut.as_ref().map_or(Value::Null, CutQueries::facts)),
            ("hard_negatives", self.hard.as_ref().map_or(Value::Null, Hard::facts)),
        ]
    }

    /// Prints what a user should know.
    pub fn print(&self) {
        if let Some(cut) = self.cut.as_ref().filter(|queries| queries.cut > 0) {
            cut.print();
        }
        if let Some(hard) = &self.hard {
            hard.print();
        }
    }
}

/// Opens the shards and checks every byte of them, once per node: the node's other ranks wait for the
/// verdict.
fn open_shards(data: &Data, world: &World) -> Result<Arc<Shards>> {
    let shards = Shards::open(need("data.shards", &data.shards)?)?;
    world.once_a_node(|| {
        shards.verify()?;
        tracing::info!("{}: {} files verified", shards.dir().display(), shards.manifest().files.len());
        Ok(())
    })?;
    Ok(Arc::new(shards))
}

/// The lists of `objective.negatives_run`. One rank of each node reads the run, the others use what it wrote.
fn hard_negatives(
    objective: &Objective,
    shards: &Shards,
    world: &World,
) -> Result<Option<Arc<HardNegatives>>> {
    if objective.negatives != Negatives::RunFile {
        return Ok(None);
    }
    let run = need("objective.negatives_run", &objective.negatives_run)?;
    let open = || HardNegatives::open(shards, run, objective.negatives_depth);
    let first = world.once_a_node(open)?;
    let lists = world.agree_all(first.map_or_else(open, Ok))?;
    Ok(Some(Arc::new(lists)))
}

impl CutQueries {
    fn facts(&self) -> Value {
        json!({ "cut": self.cut, "queries": self.queries, "kept_tokens": self.kept })
    }

    fn print(&self) {
        tell!(
            "{} of {} queries ({:.2} %) are longer than {} tokens, which is what data.max_query_tokens or \
             data.max_tokens leaves them beside a long document: they are cut",
            self.cut,
            self.queries,
            100.0 * f64::from(self.cut) / f64::from(self.queries.max(1)),
            self.kept
        );
    }
}

impl Hard {
    fn facts(&self) -> Value {
        json!({ "run": self.lists.counts(), "clicks": self.clicks, "clicks_without": self.without })
    }

    fn print(&self) {
        let [first, last] = self.depth;
        let counts = self.lists.counts();
        tell!(
            "hard negatives, ranks {first} to {last} of {}: {} documents for {} queries; left out: {} that their \
             query clicked, {} that the shards do not hold, {} rows of other topics",
            self.run.display(),
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

/// How the log's clicks become samples.
pub fn click_options(seed: u32, data: &Data, objective: &Objective) -> ClickOptions {
    ClickOptions {
        seed,
        max_tokens: data.max_tokens,
        max_query_tokens: data.max_query_tokens,
        truncate: data.truncate,
        negatives: objective.negatives,
        negatives_per_positive: objective.negatives_per_positive,
        hard: None,
        grades: objective.grades,
        // MLM alone sees the same tokens as MLM + QDPP, so that arms are comparable
        pairs: if objective.qdpp > 0.0 { PairUse::Labelled } else { PairUse::Unlabelled },
    }
}
