//! `bench`: how fast this machine's engine is, in numbers that compare across machines: single operations
//! against the speed of light of the very machine (its best matrix product, its best copy), a whole
//! training step with its MFU, the loader, and the sum of gradients over ranks.
//!
//! Samples are made up (random ids, every sequence as long as `data.max_tokens`), so that two machines
//! do the same work without sharing data. Everything is measured on the engine that `coarse` would use.

pub mod operations;
mod print;
mod step;

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::{Config, Device};
use crate::engine::cases::Sizes;
use crate::engine::{Engine, Floats, cuda};
use crate::model::Shape;
use crate::ranks::{Distributed, World};
use crate::run::engine::on_engine;
use crate::train::counted::{FlopRates, Work};
use crate::{Error, Result};

/// Vocabulary of the made-up samples: BERT's.
const VOCAB: usize = 30_522;
/// The model where the config names none: 6 x 384, the size of MiniLM-L6.
const STANDARD: [usize; 3] = [6, 384, 12];

/// Calls that are timed one after the other before the clock is looked at.
const ROUND: usize = 3;

/// The work that is measured.
#[derive(Clone, Debug, Serialize)]
pub struct Workload {
    pub shape: Shape,
    pub pack_tokens: usize,
    /// Tokens of every sequence.
    pub length: usize,
    pub mask_rate: f32,
    pub dropout: f32,
    pub packs_per_step: usize,
}

/// What the machine reaches where nothing is in the way.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    /// Best matrix product of some sizes, FLOP/s of one rank.
    pub flops: f64,
    /// Best of a copy of rows and a sum of squares over 256 MB, bytes/s of one rank.
    pub bandwidth: f64,
}

/// One operation.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    /// The case.
    pub name: &'static str,
    /// The operation.
    pub op: &'static str,
    /// Median of the calls.
    pub ms: f64,
    pub calls: usize,
    pub flops: f64,
    /// Bytes that it must move at least.
    pub bytes: f64,
    /// The time that the machine's peaks allow, over the time it took; 0 to about 1.
    pub share_of_light: f64,
}

/// Whole training steps.
#[derive(Clone, Debug, Serialize)]
pub struct StepSpeed {
    pub steps: usize,
    /// Median, milliseconds.
    pub step_ms: f64,
    /// Of that, waiting for the loader.
    pub waited_ms: f64,
    /// Of all ranks.
    pub tokens_per_s: f64,
    pub flops_per_token: f64,
    /// Of `Peaks::flops` on every rank.
    pub mfu: f64,
}

/// The sum of all gradients over ranks.
#[derive(Clone, Debug, Serialize)]
pub struct ReduceSpeed {
    pub bytes: usize,
    pub ms: f64,
    /// 2 (n - 1) / n of the bytes a second: what a ring sends.
    pub bus_bytes_per_s: f64,
}

/// All that `bench` measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub code: &'static str,
    pub machine: String,
    pub device: &'static str,
    pub ranks: usize,
    pub threads: usize,
    pub workload: Workload,
    pub peaks: Peaks,
    pub operations: Vec<Operation>,
    pub step: StepSpeed,
    /// Tokens/s that one rank's loader makes when nobody waits for anything else.
    pub loader_tokens_per_s: f64,
    /// Absent on one rank.
    pub all_reduce: Option<ReduceSpeed>,
}

/// Measures for about `seconds` each thing and prints the report on the leading rank.
///
/// # Errors
/// `Error::Config` for impossible sizes; what the engine reports.
pub fn run(config: &Config, seconds: f64, json: bool, world: &World) -> Result<()> {
    let budget = Duration::from_secs_f64(seconds);
    let mut config = config.clone();
    if json && config.run.device == Device::Auto && cuda::probe().is_err() {
        config.run.device = Device::Cpu; // the report names the device; nothing else may stand beside it
    }
    let report = on_engine!(&config, world, engine => measure(engine, &config, budget, world))?;
    if !world.leads() {
        return Ok(());
    }
    if json {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|e| Error::data(format!("the report cannot be written as JSON: {e}")))?;
        tell!("{text}");
    } else {
        tell_raw!("{}", print::table(&report));
    }
    Ok(())
}

fn measure<E: Distributed>(engine: E, config: &Config, budget: Duration, world: &World) -> Result<Report> {
    let workload = workload(config)?;
    let fence = Fence::new(&engine)?;
    let peaks = operations::peaks(&engine, budget)?;
    let operations = operations::measure(&engine, &workload, peaks, budget)?;
    let all_reduce = step::all_reduce(&engine, &fence, &workload, budget, world)?;
    let loader_tokens_per_s = step::loader(&workload, budget, world)?;
    let step = step::train(engine, config, &workload, peaks, budget, world)?;
    Ok(Report {
        code: env!("CTUNE_CODE_VERSION"),
        machine: machine(),
        device: std::any::type_name::<E>(),
        ranks: world.size(),
        threads: world.threads(),
        workload,
        peaks,
        operations,
        step,
        loader_tokens_per_s,
        all_reduce,
    })
}

fn workload(config: &Config) -> Result<Workload> {
    let m = &config.model;
    let [layers, hidden, heads] = STANDARD;
    let hidden = m.hidden.unwrap_or(hidden);
    let length = config.data.max_tokens.min(config.train.pack_tokens);
    let shape = Shape {
        vocab: VOCAB,
        hidden,
        layers: m.layers.unwrap_or(layers),
        heads: m.heads.unwrap_or(heads),
        intermediate: m.intermediate.unwrap_or(4 * hidden),
        positions: length,
        segments: 2,
    };
    shape.check()?;
    Ok(Workload {
        shape,
        pack_tokens: config.train.pack_tokens,
        length,
        mask_rate: config.objective.mask_rate,
        dropout: config.train.dropout,
        packs_per_step: config.train.packs_per_step,
    })
}

impl Workload {
    /// The sizes that single operations are timed at: one pack.
    fn sizes(&self) -> Sizes {
        let Shape { hidden, heads, intermediate, vocab, .. } = self.shape;
        let sequences = (self.pack_tokens / self.length).max(1);
        let even = Sizes::even(sequences, self.length, [hidden, heads, intermediate, vocab]);
        Sizes { dropout: self.dropout, mask_rate: self.mask_rate, ..even }
    }

    /// FLOPs of a token of the workload.
    fn flops_per_token(&self, rates: &FlopRates) -> f64 {
        const SEQUENCES: usize = 1000;
        let tokens = SEQUENCES * self.length;
        let masked = (tokens as f64 * f64::from(self.mask_rate)) as usize;
        let attended = (tokens * self.length) as u64;
        rates.flops(&Work { tokens, attended, masked, sequences: SEQUENCES }) / tokens as f64
    }
}

/// The processor's name, as the kernel tells it.
fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", name.map_or("unknown processor", |(_, name)| name.trim()))
}

/// Waits for the device: reading one element back waits for all that was queued before.
struct Fence<E: Engine>(Floats<E>);

impl<E: Engine> Fence<E> {
    fn new(engine: &E) -> Result<Self> {
        Ok(Self(engine.zeros(1)?))
    }

    fn wait(&self, engine: &E) -> Result<()> {
        engine.download(&self.0, 0..1).map(drop)
    }
}

/// Seconds of one call by the device's clock, median of at least as many as `ROUND` over about `budget`, after
/// one that warms up; and how many there were.
fn time<E: Engine>(
    engine: &E,
    budget: Duration,
    mut call: impl FnMut() -> Result<()>,
) -> Result<(f64, usize)> {
    call()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.is_empty() || start.elapsed() < budget {
        times.extend(engine.time(ROUND, &mut call)?);
    }
    Ok((median(&mut times), times.len()))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
