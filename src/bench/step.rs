//! Whole training steps through the real loop, the loader by itself, and the sum of gradients.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clock::{Fence, median};
use super::report::{Peaks, ReduceSpeed, StepSpeed, Workload};
use crate::Result;
use crate::config::Config;
use crate::data::batch::Batch;
use crate::data::loader::{Cursor, Loader, LoaderOptions};
use crate::data::source::SampleSource;
use crate::engine::op::MaskRule;
use crate::model::activations::Capacity;
use crate::model::bert::Options;
use crate::model::layout::Layout;
use crate::model::{Bert, HeadSet, Objective, checkpoint};
use crate::random::philox;
use crate::ranks::{Distributed, World};
use crate::text::Special;
use crate::train::counted::{FlopRates, Setup};
use crate::train::trainer::{Flow, Trainer, Watcher};
use crate::train::update::Update;

/// Ids of the made-up vocabulary's special tokens, as BERT has them.
const SPECIAL: Special = Special { pad: 0, unk: 100, cls: 101, sep: 102, mask: 103 };
/// First id of an ordinary token.
const FIRST: u32 = 1000;
/// Samples of the made-up epoch.
const SAMPLES: u32 = 1 << 20;
/// Steps that warm up and do not count.
const WARM: usize = 2;

/// Pairs of random ids, all of one length, half of them labelled as negatives.
struct Synthetic {
    length: usize,
    vocab: u32,
}

impl SampleSource for Synthetic {
    fn samples(&self) -> u32 {
        SAMPLES
    }

    fn length(&self, _sample: u32, _epoch: u32) -> usize {
        self.length
    }

    fn pairs(&self, _sample: u32) -> usize {
        1
    }

    fn push(&self, sample: u32, epoch: u32, batch: &mut Batch) -> Result<()> {
        let id = |i: usize| FIRST + philox([sample, epoch], [i as u32, 0, 0, 0])[0] % (self.vocab - FIRST);
        let text: Vec<u32> = (0..self.length.saturating_sub(3)).map(id).collect();
        let (query, document) = text.split_at(text.len() / 16);
        batch.push(SPECIAL, sample, query, Some(document));
        batch.pair_labels.push(sample % 2);
        Ok(())
    }

    fn longest(&self) -> usize {
        self.length
    }
}

/// How the workload's tokens are masked.
pub fn rule(work: &Workload) -> MaskRule {
    MaskRule {
        seed: 1,
        threshold: (f64::from(work.mask_rate) * 4_294_967_296.0) as u32,
        segments: 3,
        whole_word: false,
        vocab: work.shape.vocab as u32,
        cls: SPECIAL.cls,
        sep: SPECIAL.sep,
        mask: SPECIAL.mask,
    }
}

fn new_loader(work: &Workload, world: &World) -> Result<Loader> {
    let source = Arc::new(Synthetic { length: work.length, vocab: work.shape.vocab as u32 });
    let options = LoaderOptions {
        seed: 1,
        pack_tokens: work.pack_tokens,
        packs_per_step: work.packs_per_step.max(world.size()),
        rank: world.rank(),
        world: world.size(),
        rule: Some(rule(work)),
        continues: Arc::new(vec![0; work.shape.vocab]),
        start: Cursor::default(),
    };
    Loader::new(source, options)
}

/// Tokens/s of this rank's loader when packs are taken as fast as they come.
pub fn loader(work: &Workload, budget: Duration, world: &World) -> Result<f64> {
    let mut loader = new_loader(work, world)?;
    // packs that were ready before anybody asked do not count
    for _ in 0..8 {
        loader.next_step()?;
    }
    let (start, mut tokens) = (Instant::now(), 0);
    while start.elapsed() < budget {
        tokens += loader.next_step()?.batches.iter().map(Batch::tokens).sum::<usize>();
    }
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}

/// All gradients of the model, bucket by bucket as backward would hand them over.
pub fn all_reduce<E: Distributed>(
    engine: &E,
    fence: &Fence<E>,
    work: &Workload,
    budget: Duration,
    world: &World,
) -> Result<Option<ReduceSpeed>> {
    if world.size() == 1 {
        return Ok(None);
    }
    let layout = Layout::new(&work.shape, HeadSet::PRETRAINING)?;
    let mut grads = engine.zeros(layout.len)?;
    let mut collective = engine.collective(world)?;
    // all ranks agree on the number of calls: their clocks differ
    let mut calls = |n: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..n {
            for bucket in layout.buckets() {
                collective.all_reduce(engine, &mut grads, bucket)?;
            }
            collective.finish(engine)?;
        }
        fence.wait(engine)?;
        Ok(start.elapsed().as_secs_f64() / n as f64)
    };
    let mut first = [calls(1)?];
    world.sum_f64(&mut first);
    let n = (budget.as_secs_f64() * world.size() as f64 / first[0]).clamp(2.0, 1000.0) as usize;
    let seconds = calls(n)?;
    let (bytes, ranks) = (4 * layout.len, world.size() as f64);
    let bus = bytes as f64 * 2.0 * (ranks - 1.0) / ranks / seconds;
    Ok(Some(ReduceSpeed { bytes, ms: 1e3 * seconds, bus_bytes_per_s: bus }))
}

/// Records every step's time.
struct Clock {
    step_ms: Vec<f64>,
    waited_ms: Vec<f64>,
    tokens: usize,
}

impl<E: Distributed> Watcher<E> for Clock {
    fn after(&mut self, update: &Update, _trainer: &mut Trainer<'_, E>) -> Result<Flow> {
        self.step_ms.push(update.step_ms);
        self.waited_ms.push(update.waited_ms);
        self.tokens = update.tokens;
        Ok(Flow::Continue)
    }
}

/// Steps of `coarse` on made-up samples, from fresh weights.
pub fn train<E: Distributed>(
    engine: E,
    config: &Config,
    work: &Workload,
    peaks: Peaks,
    budget: Duration,
    world: &World,
) -> Result<StepSpeed> {
    let options = Options {
        objective: Objective::Pretraining { mlm: 1.0, qdpp: 1.0 },
        heads: HeadSet::PRETRAINING,
        capacity: Capacity::of_pack(work.pack_tokens, work.mask_rate, false),
        train: true,
        dropout: work.dropout,
        seed: 1,
        rule: Some(rule(work)),
        continues: vec![0; work.shape.vocab],
    };
    let layout = Layout::new(&work.shape, HeadSet::PRETRAINING)?;
    let counted = Setup {
        layout: &layout,
        options: options.clone(),
        train: &config.train,
        rank: world.rank(),
        ranks: world.size(),
    };
    let per_token = work.flops_per_token(&FlopRates::of(&counted)?);
    let mut model = Bert::new(engine, &work.shape, options)?;
    checkpoint::fill_fresh(&mut model, 1)?;
    let mut loader = new_loader(work, world)?;
    // A step's time is not known until one has been made; all ranks must make the same number.
    let packs = work.packs_per_step.max(world.size()).div_ceil(world.size()) as f64;
    let flops = per_token * work.pack_tokens as f64 * packs;
    let expected = flops / (0.5 * peaks.flops);
    let mut all = [(budget.as_secs_f64() / expected).ceil()];
    world.sum_f64(&mut all);
    let steps = WARM + (all[0] / world.size() as f64).clamp(3.0, 200.0) as usize;
    let mut trainer = Trainer::new(model, world, &config.train, steps as u64)?;
    let mut clock = Clock { step_ms: Vec::new(), waited_ms: Vec::new(), tokens: 0 };
    trainer.train(&mut loader, &mut clock)?;
    let step_ms = median(&mut clock.step_ms[WARM..]);
    let tokens_per_s = clock.tokens as f64 / step_ms * 1e3;
    Ok(StepSpeed {
        steps: steps - WARM,
        step_ms,
        waited_ms: median(&mut clock.waited_ms[WARM..]),
        tokens_per_s,
        flops_per_token: per_token,
        mfu: tokens_per_s * per_token / (world.size() as f64 * peaks.flops),
    })
}
