//! `bench`: how fast this machine's engine is, in numbers that compare across machines: single operations
//! against the machine's own speed of light (its best matrix product, its best copy), a whole training step
//! with its MFU, the loader, and the sum of gradients over ranks.
//!
//! Samples are made up (random ids, every sequence as long as `data.max_tokens`), so that two machines
//! do the same work without sharing data. Everything is measured on the engine that `coarse` would use.

mod clock;
pub mod operations;
mod print;
mod report;
mod step;

use std::time::Duration;

use crate::config::{Config, Device};
use crate::engine::cuda;
use crate::model::Shape;
use crate::ranks::{Distributed, World};
use crate::run::engine::on_engine;
use crate::{Error, Result};

use clock::Fence;
pub use report::{Operation, Peaks, ReduceSpeed, Report, StepSpeed, Workload};

/// Vocabulary of the made-up samples: BERT's.
const VOCAB: usize = 30_522;
/// The model if the config names none: 6 x 384, the size of MiniLM-L6.
const STANDARD: [usize; 3] = [6, 384, 12];

/// Measures each thing for about `seconds` and prints the report on the leading rank.
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
        norm_eps: Shape::NORM_EPS,
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

/// The processor's name according to the kernel.
fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", name.map_or("unknown processor", |(_, name)| name.trim()))
}
