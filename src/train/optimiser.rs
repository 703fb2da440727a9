//! What turns a step's gradients into new weights: the sum over ranks, the global norm, clipping,
//! AdamW or LAMB, and (ZeRO stage 1, Rajbhandari et al. 2020) the division of the optimiser's state
//! over ranks.
//!
//! A bucket of the arena (heads, a layer, the embeddings) is cut into a share a rank. With sharding, rank r
//! gets only the sum of its own shares (reduce-scatter), keeps moments and master weights only for them,
//! updates them and hands out the new weights (all-gather): the bytes on the wire are an all-reduce's, the
//! state's memory is divided by the ranks. Without sharding every rank has all of it. In both cases a rank
//! measures only its own shares for the global norm, so that both add the same numbers in the same order:
//! AdamW gives the same bits either way. LAMB's norms of single tensors are summed over the shares with
//! sharding and in one go without, which differs in the last digit.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::config::{Optimizer, Sharding, Train};
use crate::engine::op::{self, ParamGroup, UpdateRule, slices};
use crate::engine::{Engine, Fetch, Floats};
use crate::model::Bert;
use crate::model::layout::Layout;
use crate::model::trained::Rates;
use crate::ranks::{Collective, pieces};
use crate::{Error, Result};

/// What an optimiser remembers from update to update. A checkpoint of it and of the weights is enough
/// to go on.
pub struct OptimiserState<E: Engine> {
    /// Ranges of the arena that this rank updates, ascending: what learns, or this rank's share of it.
    pub owned: Vec<Range<usize>>,
    /// Weights in f32 where `Real` is narrower, the owned ranges end to end; else empty.
    pub master: Floats<E>,
    /// Mean of the gradients, the owned ranges end to end.
    pub moment1: Floats<E>,
    /// Mean of their squares, likewise.
    pub moment2: Floats<E>,
    /// Updates made, skipped ones included.
    pub updates: u64,
}

impl<E: Engine> OptimiserState<E> {
    /// Elements of each moment.
    pub fn len(&self) -> usize {
        self.owned.iter().map(ExactSizeIterator::len).sum()
    }

    /// Whether this rank updates nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A range of gradients that becomes complete at once, and each rank's share of it.
struct Bucket {
    /// As `Bert::backward` names it.
    range: Range<usize>,
    /// Of what learns in it, a share a rank; empty where nothing learns.
    shares: Vec<Range<usize>>,
    /// Its sum over ranks was started in this step.
    reduced: bool,
}

impl Bucket {
    /// All that learns in it.
    fn whole(&self) -> Range<usize> {
        match (self.shares.first(), self.shares.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => self.range.start..self.range.start,
        }
    }

    fn learns(&self) -> bool {
        !self.shares.is_empty()
    }
}

/// The buckets of `layout`, in the order of backward, as `ranks` share them.
fn buckets(layout: &Layout, ranks: usize) -> Vec<Bucket> {
    let bucket = |range: Range<usize>| {
        let shares = layout.span(&range).map(|span| pieces(&span, ranks)).unwrap_or_default();
        Bucket { range, shares, reduced: false }
    };
    layout.buckets().into_iter().map(bucket).collect()
}

/// The ranges of the arena that rank `rank` of `ranks` updates, ascending.
pub fn owned(layout: &Layout, rank: usize, ranks: usize, sharding: Sharding) -> Vec<Range<usize>> {
    let share = |b: Bucket| match sharding {
        Sharding::Optimizer => b.shares[rank].clone(),
        Sharding::None => b.whole(),
    };
    ascending(buckets(layout, ranks).into_iter().filter(Bucket::learns).map(share))
}

/// The optimiser of one rank.
pub struct Optimiser<E: Engine> {
    pub state: OptimiserState<E>,
    settings: Train,
    ranks: usize,
    groups: Vec<ParamGroup>,
    /// In the order of backward.
    buckets: Vec<Bucket>,
    /// What this rank measures for the global norm.
    measured: Vec<Range<usize>>,
    /// Squared global norm, [1]
    norm_sq: Floats<E>,
    /// LAMB: squared norms of tensor and direction, [groups, 2]; else empty
    norms: Floats<E>,
    /// Time that the host spent in exchanges.
    exchanged: Duration,
}

impl<E: Engine> Optimiser<E> {
    /// The optimiser of rank `rank` of `ranks`, with zeroed moments, for what learns in `model`.
    pub fn new(model: &Bert<E>, rank: usize, ranks: usize, settings: &Train) -> Result<Self> {
        let (engine, layout) = (&model.engine, &model.layout);
        let head = settings.head_lr.map_or(1.0, |lr| (lr / settings.lr) as f32);
        let rates = Rates { head, layer_decay: settings.layer_decay };
        let lamb = settings.optimizer == Optimizer::Lamb;
        let groups = layout.groups(rates, lamb);
        let buckets = buckets(layout, ranks);
        let share = owned(layout, rank, ranks, Sharding::Optimizer);
        let measured = ascending(slices(&groups, &share).into_iter().map(|slice| slice.range));
        let owned = owned(layout, rank, ranks, settings.sharding);
        let len = owned.iter().map(ExactSizeIterator::len).sum();
        let state = OptimiserState {
            master: master(model, &owned)?,
            moment1: engine.zeros(len)?,
            moment2: engine.zeros(len)?,
            updates: 0,
            owned,
        };
        let norms = engine.zeros(if lamb { 2 * groups.len() } else { 0 })?;
        let norm_sq = engine.zeros(1)?;
        Ok(Self {
            state,
            settings: settings.clone(),
            ranks,
            groups,
            buckets,
            measured,
            norm_sq,
            norms,
            exchanged: Duration::ZERO,
        })
    }

    /// Whether each rank keeps only its own share of the state.
    pub fn sharded(&self) -> bool {
        self.settings.sharding == Sharding::Optimizer
    }

    /// Starts the sum over ranks of a bucket that backward has completed.
    ///
    /// # Errors
    /// `Error::Device` for a range that is no bucket, and for a bucket that was summed in this step
    /// already: gradients would differ between ranks, which nothing later would notice.
    pub fn reduce(
        &mut self,
        reducer: &mut dyn Collective<E>,
        engine: &E,
        grads: &mut Floats<E>,
        range: &Range<usize>,
    ) -> Result<()> {
        let sharded = self.sharded();
        let wrong =
            |what: &str| Err(Error::device(format!("a fault of this program: gradients {range:?} {what}")));
        let Some(bucket) = self.buckets.iter_mut().find(|b| b.range == *range) else {
            return wrong("are no bucket of the optimiser");
        };
        if !bucket.learns() {
            return Ok(());
        }
        if std::mem::replace(&mut bucket.reduced, true) {
            return wrong("are summed over ranks twice in one step");
        }
        let start = Instant::now();
        if sharded {
            reducer.reduce_scatter(engine, grads, &bucket.shares)?;
        } else {
            reducer.all_reduce(engine, grads, bucket.whole())?;
        }
        self.exchanged += start.elapsed();
        Ok(())
    }

    /// Whether every bucket that learns was summed; a single rank may leave all of them out. The next step
    /// starts afresh.
    fn check_reduced(&mut self) -> Result<()> {
        let none = self.buckets.iter().all(|b| !b.reduced);
        let missing = self.buckets.iter().find(|b| b.learns() && !b.reduced).map(|b| b.range.clone());
        self.buckets.iter_mut().for_each(|b| b.reduced = false);
        match missing {
            Some(range) if !(none && self.ranks == 1) => Err(Error::device(format!(
                "a fault of this program: gradients {range:?} were not summed over ranks before the update"
            ))),
            _ => Ok(()),
        }
    }

    /// Milliseconds that the host has spent in exchanges since the last call.
    pub fn take_exchange_ms(&mut self) -> f64 {
        std::mem::take(&mut self.exchanged).as_secs_f64() * 1e3
    }

    /// Takes part in the sums with this rank's gradients as they are (zero): for a rank without packs.
    pub fn join(&mut self, reducer: &mut dyn Collective<E>, model: &mut Bert<E>) -> Result<()> {
        for range in self.buckets.iter().map(|b| b.range.clone()).collect::<Vec<_>>() {
            self.reduce(reducer, &model.engine, &mut model.grads, &range)?;
        }
        Ok(())
    }

    /// Applies the summed gradients at learning rate `lr`, and sets them to zero. Returns the squared
    /// norm before clipping, [1], on its way; where it is not finite (on all ranks alike), nothing has
    /// changed. The device decides that: the host waits for nothing here.
    pub fn step(&mut self, reducer: &mut dyn Collective<E>, model: &mut Bert<E>, lr: f64) -> Result<Fetch> {
        self.check_reduced()?;
        let engine = &model.engine;
        reducer.finish(engine)?; // the device waits, not the host
        let (src, ranges, out) = (&model.grads, &self.measured[..], &mut self.norm_sq);
        engine.run(op::SumSquares { src, ranges, out, slot: 0 })?;
        let start = Instant::now();
        reducer.all_reduce(engine, &mut self.norm_sq, 0..1)?;
        reducer.finish(engine)?;
        self.exchanged += start.elapsed();
        self.update(reducer, model, lr)?;
        if self.sharded() {
            let start = Instant::now();
            for bucket in self.buckets.iter().filter(|b| b.learns()) {
                reducer.all_gather(&model.engine, &mut model.weights, &bucket.shares)?;
            }
            reducer.finish(&model.engine)?;
            self.exchanged += start.elapsed();
        }
        model.forget(&self.norm_sq)?;
        self.state.updates += 1;
        model.engine.fetch(&self.norm_sq, 0..1)
    }

    fn update(&mut self, reducer: &mut dyn Collective<E>, model: &mut Bert<E>, lr: f64) -> Result<()> {
        let s = &self.settings;
        let rule = UpdateRule {
            lr: lr as f32,
            beta1: s.beta1,
            beta2: s.beta2,
            eps: s.eps,
            weight_decay: s.weight_decay,
            step: self.state.updates as u32 + 1,
            clip_norm: s.clip_norm,
        };
        let (engine, groups, norm_sq) = (&model.engine, &self.groups[..], &self.norm_sq);
        let (weights, grads) = (&mut model.weights, &mut model.grads);
        let OptimiserState { owned, master, moment1, moment2, .. } = &mut self.state;
        let owned = &owned[..];
        if s.optimizer == Optimizer::Adamw {
            return engine.run(op::AdamWUpdate {
                rule,
                groups,
                owned,
                norm_sq,
                weights,
                master,
                grads,
                moment1,
                moment2,
            });
        }
        let norms = &mut self.norms;
        engine.run(op::LambDirection {
            rule,
            groups,
            owned,
            norm_sq,
            weights,
            master,
            grads,
            moment1,
            moment2,
            norms,
        })?;
        if s.sharding == Sharding::Optimizer {
            reducer.all_reduce(engine, norms, 0..2 * groups.len())?;
            reducer.finish(engine)?;
        }
        engine.run(op::LambApply { rule, groups, owned, norms, weights, master, grads })
    }
}

/// The ranges in ascending order, empty ones left out and neighbours joined.
fn ascending(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut sorted: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
    sorted.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

/// The f32 copy of weights that are kept narrower, the owned ranges end to end; empty where they are
/// f32.
fn master<E: Engine>(model: &Bert<E>, owned: &[Range<usize>]) -> Result<Floats<E>> {
    if size_of::<E::Real>() == size_of::<f32>() {
        return model.engine.zeros(0);
    }
    let mut master = model.engine.zeros(owned.iter().map(ExactSizeIterator::len).sum())?;
    let mut at = 0;
    for range in owned {
        let weights = model.engine.download_weights(&model.weights, range.clone())?;
        model.engine.upload(&weights, &mut master, at)?;
        at += range.len();
    }
    Ok(master)
}
