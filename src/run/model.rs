//! The model that a stage trains: a folder's weights, a checkpoint's, or fresh ones.

use std::path::Path;

use super::samples::Samples;
use crate::config::{Model, Objective, Train};
use crate::engine::Engine;
use crate::model::activations::Capacity;
use crate::model::bert::Options;
use crate::model::checkpoint::{self, Checkpoint, Fill, HeadStart};
use crate::model::{Bert, HeadSet, Shape};
use crate::ranks::World;
use crate::text::{Tokenizer, given};
use crate::train::counted::Setup;
use crate::train::memory::{Forecast, Needs};
use crate::train::settings;
use crate::{Error, Result};

/// What the plan says of a stage's model.
pub struct ModelSettings<'a> {
    pub seed: u32,
    pub model: &'a Model,
    pub train: &'a Train,
    pub objective: &'a Objective,
    pub max_tokens: usize,
}

impl ModelSettings<'_> {
    /// The model on `engine`, with the weights of the checkpoint `resumed`, of `model.path`, or fresh
    /// ones; and what memory was predicted for its training.
    pub fn make<E: Engine>(
        &self,
        engine: E,
        samples: &Samples,
        resumed: Option<&Path>,
        world: &World,
    ) -> Result<(Bert<E>, Option<Forecast>)> {
        let rate = if samples.rule.is_some() { self.objective.mask_rate } else { 0.0 };
        let capacity = |tokens| Capacity::of_pack(tokens, rate, self.objective.whole_word);
        let options = Options {
            objective: samples.objective,
            heads: HeadSet::PRETRAINING,
            capacity: capacity(self.train.pack_tokens),
            train: true,
            dropout: self.train.dropout,
            seed: self.seed,
            rule: samples.rule,
            continues: samples.tokenizer.continues(),
        };
        let vocab = samples.tokenizer.vocab();
        let tuning = settings::tuning(self.train, None);
        let forecast = |engine: &E, shape: &Shape| {
            let layout = &tuning.layout(shape, HeadSet::PRETRAINING)?;
            let least_tokens = self.max_tokens;
            let (options, train) = (options.clone(), self.train);
            let run = Setup { layout, options, train, rank: world.rank(), ranks: world.size() };
            Needs { run, capacity: &capacity, least_tokens }.forecast(engine)
        };
        let resumed = resumed.map(|checkpoint| checkpoint.join("model"));
        match resumed.as_ref().or(self.model.path.as_ref()) {
            Some(path) => {
                check_tokenizer(path, samples)?;
                let checkpoint = Checkpoint::read(path)?;
                checkpoint.check_fits(vocab, self.max_tokens)?;
                let forecast = forecast(&engine, &checkpoint.shape)?;
                let mut model = Bert::tuned(engine, &checkpoint.shape, options, &tuning)?;
                let report = checkpoint.fill(&mut model, Fill::Head(HeadStart::NewHead), self.seed)?;
                if world.leads() {
                    report.print(path);
                }
                Ok((model, forecast))
            }
            None => {
                let shape = fresh_shape(self.model, vocab, self.max_tokens)?;
                let forecast = forecast(&engine, &shape)?;
                let mut model = Bert::tuned(engine, &shape, options, &tuning)?;
                checkpoint::fill_fresh(&mut model, self.seed)?;
                Ok((model, forecast))
            }
        }
    }
}

/// Refuses a model whose own tokenizer gives a text different ids from the shards'. A folder without a
/// tokenizer is trusted, as far as its word table reaches.
fn check_tokenizer(model: &Path, samples: &Samples) -> Result<()> {
    if given::find(model).is_err() || Tokenizer::load(model)?.same_tokens(&samples.tokenizer) {
        return Ok(());
    }
    let (model, shards) = (model.display(), samples.shards.dir().display());
    Err(Error::config(format!(
        "{model}: its tokenizer is not the one that {shards} was made with, so the same words have other ids: make \
         shards with prepare --tokenizer {model}"
    )))
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
        norm_eps: Shape::NORM_EPS,
    })
}
