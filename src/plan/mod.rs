//! `plan`: what a coarse-tuning run would need and take on GPUs, before they are rented. Memory is the
//! sum of the buffers that the trainer allocates; time is a roofline of every kernel (`roofline`) on a
//! card's data sheet (`hardware`). All of it is arithmetic: nothing is measured, and the output says so.

pub mod hardware;
mod print;
pub mod roofline;

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::config::{Config, Precision, Sharding};
use crate::corpus::shard::Shards;
use crate::data::source::{ClickLog, ClickSource, SampleSource};
use crate::engine::Rows;
use crate::engine::cuda::rounded_rows;
use crate::model::Shape;
use crate::model::activations::Capacity;
use crate::model::checkpoint;
use crate::model::layout::{HeadSet, Layout};
use crate::model::memory::{self, Field, Sizes};
use crate::run::model::fresh_shape;
use crate::run::samples::click_options;
use crate::{Error, Result};

use hardware::{Gpu, KERNEL_GAP, LINK_SHARE};
use roofline::{Kernel, Kind, Pack};

/// What is asked.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    pub gpus: usize,
    /// Names of `hardware::GPUS`.
    pub models: Vec<String>,
    /// Of one GPU for an hour, in any currency.
    pub price: Option<f64>,
    /// Link between nodes of eight GPUs, gigabytes/s for each GPU.
    pub network: f64,
    /// Samples of an epoch, where there are no shards to count.
    pub samples: Option<u64>,
    /// Mean tokens of a sample, where there are no shards to measure.
    pub mean_tokens: Option<f64>,
    pub json: bool,
}

/// Clicks of the full ORCAS log: what an epoch is where no shards say otherwise.
const ORCAS_CLICKS: u64 = 18_823_602;
/// BERT's vocabulary, where neither a model nor shards say otherwise.
const BERT_VOCAB: usize = 30_522;
/// Lengths are measured on so many samples, spread evenly over the epoch.
const MEASURED_SAMPLES: u32 = 20_000;
/// Share of a pack's budget that windowed best-fit fills (0.993 to 0.998 in the tests of `data::pack`).
const PACK_FILL: f64 = 0.995;
/// GPUs that share one node's links.
const NODE: usize = 8;
/// cuBLASLt's workspace, the CUDA context with its modules, and NCCL's buffers: assumed.
const WORKSPACE: f64 = 64e6;
const CONTEXT: f64 = 1.0e9;
/// Bytes of a weight or activation on a GPU (bf16).
const REAL: usize = 2;

/// Models that are known by their folder's name, so that a plan needs no download:
/// (name, layers, hidden, heads).
const KNOWN: [(&str, usize, usize, usize); 5] = [
    ("bert-base-uncased", 12, 768, 12),
    ("bert-large-uncased", 24, 1024, 16),
    ("MiniLM-L6-H384-uncased", 6, 384, 12),
    ("MiniLM-L12-H384-uncased", 12, 384, 12),
    ("bert_uncased_L-2_H-128_A-2", 2, 128, 2),
];

/// The data as the prediction needs it.
#[derive(Clone, Debug, Serialize)]
pub struct Lengths {
    pub samples: u64,
    pub mean_tokens: f64,
    /// Mean over tokens of their sequence's length.
    pub attended: f64,
    pub source: String,
}

/// One GPU model's prediction.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    pub gpu: Gpu,
    pub fits: bool,
    /// Largest `train.pack_tokens` that fits, a multiple of 1024; 0 when none does.
    pub largest_pack_tokens: usize,
    pub kernels: Vec<Timed>,
    /// Milliseconds of a step.
    pub pack_ms: f64,
    pub update_ms: f64,
    pub all_reduce_ms: f64,
    /// What of the all-reduce no computation hides.
    pub exposed_ms: f64,
    pub step_ms: f64,
    /// The all-reduce by link, milliseconds.
    pub links: Vec<(&'static str, f64)>,
    pub tokens_per_s: f64,
    /// Model FLOPs utilisation, 0 to 1.
    pub mfu: f64,
    pub epoch_hours: f64,
    pub epoch_cost: Option<f64>,
    /// Where the step's time goes that the peak would not need, in per cent of the step.
    pub costs: Vec<(String, f64)>,
}

/// One kernel with its time on one GPU.
#[derive(Clone, Debug, Serialize)]
pub struct Timed {
    #[serde(flatten)]
    pub kernel: Kernel,
    /// Milliseconds of all its calls in a step.
    pub ms: f64,
}

/// All that `plan` says.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub note: &'static str,
    pub assumptions: Vec<String>,
    pub model: String,
    pub parameters: usize,
    pub pack: Pack,
    pub lengths: Lengths,
    pub gpus: usize,
    pub packs_per_step: usize,
    pub packs_per_rank: usize,
    pub flops_per_token: f64,
    pub memory: Vec<(Field, usize)>,
    /// Bytes of the gradients that ranks exchange.
    pub exchanged_bytes: f64,
    /// Bytes on each GPU, workspace and context included.
    pub memory_bytes: f64,
    pub predictions: Vec<Prediction>,
}

/// Prints the prediction for the run that `config` describes.
///
/// # Errors
/// `Error::Config` for unknown GPUs, missing sizes, or no GPU at all.
pub fn run(config: &Config, options: &PlanOptions) -> Result<()> {
    let report = report(config, options)?;
    if options.json {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|e| Error::data(format!("the report cannot be written as JSON: {e}")))?;
        tell!("{text}");
    } else {
        tell_raw!("{}", print::table(&report));
    }
    Ok(())
}

/// The prediction as data.
pub fn report(config: &Config, options: &PlanOptions) -> Result<Report> {
    if options.gpus == 0 {
        return Err(Error::config("--gpus 0: a plan needs at least one GPU"));
    }
    let (shape, model) = shape(config)?;
    let lengths = lengths(config, options)?;
    let layout = Layout::new(&shape, HeadSet::PRETRAINING)?;
    let pack = pack(config, &shape, &lengths);
    let packs_per_rank = config.train.packs_per_step.div_ceil(options.gpus);
    let shards = if config.train.sharding == Sharding::None { 1 } else { options.gpus };
    let memory = memory_of(config, &layout, shards, config.train.pack_tokens);
    let masked_share = if pack.mlm { f64::from(config.objective.mask_rate) } else { 0.0 };
    let mut report = Report {
        note: "A prediction from data sheets and assumptions. Nothing here was measured.",
        assumptions: hardware::SOURCES.iter().map(|&s| s.to_owned()).collect(),
        model,
        parameters: layout.parameters(),
        flops_per_token: roofline::flops_per_token(&shape, pack.attended, masked_share),
        pack,
        lengths,
        gpus: options.gpus,
        packs_per_step: config.train.packs_per_step,
        packs_per_rank,
        memory_bytes: total(&memory),
        exchanged_bytes: layout.len as f64 * if config.train.reduce == Precision::Bf16 { 2.0 } else { 4.0 },
        memory: memory.into_iter().map(|field| (field.clone(), field.bytes(REAL))).collect(),
        predictions: Vec::new(),
    };
    for name in &options.models {
        let prediction = predict(config, options, &report, &layout, Gpu::find(name)?);
        report.predictions.push(prediction);
    }
    Ok(report)
}

/// The model's sizes: its folder's, its name's, or the config's; and where they are from.
fn shape(config: &Config) -> Result<(Shape, String)> {
    let vocab = match &config.data.shards {
        Some(dir) if dir.exists() => Shards::open(dir)?.tokenizer()?.vocab(),
        _ => BERT_VOCAB,
    };
    let Some(path) = &config.model.path else {
        return Ok((fresh_shape(&config.model, vocab, config.data.max_tokens)?, "[model]".into()));
    };
    let file = path.join("config.json");
    if file.exists() {
        return Ok((checkpoint::read_shape(&file)?, path.display().to_string()));
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(&(_, layers, hidden, heads)) = KNOWN.iter().find(|known| known.0 == name) else {
        return Err(Error::config(format!(
            "{}: no such file, and no model is known by the name {name}: give sizes instead, as --set \
             model.layers=12 --set model.hidden=768 --set model.heads=12 without model.path",
            file.display()
        )));
    };
    let (intermediate, segments) = (4 * hidden, 2);
    let shape = Shape { vocab: BERT_VOCAB, hidden, layers, heads, intermediate, positions: 512, segments };
    Ok((shape, format!("{name}, known by its name: {} is not there", path.display())))
}

fn lengths(config: &Config, options: &PlanOptions) -> Result<Lengths> {
    let counted = match &config.data.shards {
        Some(dir) if dir.exists() && options.samples.is_none() && options.mean_tokens.is_none() => {
            return measured_lengths(config, dir);
        }
        _ => options.samples,
    };
    let each = 1 + if config.objective.qdpp > 0.0 { config.objective.negatives_per_positive } else { 0 };
    let mean = options.mean_tokens.unwrap_or(config.data.max_tokens as f64);
    let source = match (counted, options.mean_tokens) {
        (None, None) => "no shards: ORCAS' clicks, every pair as long as data.max_tokens",
        (None, Some(_)) => "no shards: ORCAS' clicks, --mean-tokens",
        (Some(_), None) => "--samples, every one as long as data.max_tokens",
        (Some(_), Some(_)) => "--samples and --mean-tokens",
    };
    let samples = counted.unwrap_or(ORCAS_CLICKS * u64::from(each));
    Ok(Lengths { samples, mean_tokens: mean, attended: mean, source: source.into() })
}

fn measured_lengths(config: &Config, dir: &Path) -> Result<Lengths> {
    let log: Arc<dyn ClickLog> = Arc::new(Shards::open(dir)?);
    let source = ClickSource::new(log, click_options(config.seed, &config.data, &config.objective))?;
    let step = (source.samples() / MEASURED_SAMPLES).max(1) as usize;
    let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for sample in (0..source.samples()).step_by(step) {
        let length = source.length(sample, 0) as f64;
        (n, sum, squares) = (n + 1.0, sum + length, squares + length * length);
    }
    let text = format!("{}: lengths of {n} samples", dir.display());
    let samples = u64::from(source.samples());
    Ok(Lengths { samples, mean_tokens: sum / n, attended: squares / sum, source: text })
}

fn pack(config: &Config, shape: &Shape, lengths: &Lengths) -> Pack {
    let tokens = (config.train.pack_tokens as f64 * PACK_FILL) as usize;
    let rate = rate(config);
    let masked = (tokens as f64 * f64::from(rate)).round() as usize;
    let most = Capacity::of_pack(config.train.pack_tokens, rate, config.objective.whole_word).masked;
    Pack {
        shape: shape.clone(),
        tokens,
        sequences: (tokens as f64 / lengths.mean_tokens).round() as usize,
        attended: lengths.attended,
        masked,
        masked_rows: rounded_rows(Rows::Masked(masked)).min(most),
        mlm: rate > 0.0,
        qdpp: config.objective.qdpp > 0.0,
        dropout: config.train.dropout > 0.0,
        recompute: config.train.recompute,
    }
}

/// Share of the tokens that is masked.
fn rate(config: &Config) -> f32 {
    if config.objective.mlm > 0.0 { config.objective.mask_rate } else { 0.0 }
}

/// Every buffer of a rank with packs of `pack_tokens`.
fn memory_of(config: &Config, layout: &Layout, shards: usize, pack_tokens: usize) -> Vec<Field> {
    let capacity = Capacity::of_pack(pack_tokens, rate(config), config.objective.whole_word);
    let (recompute, state) = (config.train.recompute, layout.len.div_ceil(shards));
    let sizes = Sizes { layout, capacity, recompute, state };
    let mut fields = memory::parameters(sizes, true);
    fields.extend(memory::activations(sizes));
    fields.extend(memory::pack(sizes));
    fields.push(memory::scratch(sizes));
    fields
}

fn total(fields: &[Field]) -> f64 {
    fields.iter().map(|field| field.bytes(REAL) as f64).sum::<f64>() + WORKSPACE + CONTEXT
}

fn predict(config: &Config, options: &PlanOptions, report: &Report, layout: &Layout, gpu: Gpu) -> Prediction {
    let packs = report.packs_per_rank as f64;
    let time = |kernels: Vec<Kernel>, times: f64| -> Vec<Timed> {
        let ms = |k: &Kernel| 1e3 * times * k.calls as f64 * (k.seconds(&gpu) + KERNEL_GAP);
        kernels.into_iter().map(|kernel| Timed { ms: ms(&kernel), kernel }).collect()
    };
    let mut kernels = time(roofline::pack_kernels(&report.pack), packs);
    let pack_ms: f64 = kernels.iter().map(|k| k.ms).sum();
    let shards = if config.train.sharding == Sharding::None { 1 } else { options.gpus };
    let update = time(roofline::update_kernels(&report.pack, layout.len, layout.len.div_ceil(shards)), 1.0);
    let update_ms: f64 = update.iter().map(|k| k.ms).sum();
    kernels.extend(update);

    // a sharded optimiser scatters and gathers what the ring would: the same bytes
    let links = links(report.exchanged_bytes, options, &gpu);
    let all_reduce_ms = links.first().map_or(0.0, |link| link.1);
    let exposed_ms = exposed(layout, all_reduce_ms, pack_ms / packs);
    let step_ms = pack_ms + exposed_ms + update_ms;
    let packs_per_step = report.packs_per_step as f64;
    let tokens_per_s = report.pack.tokens as f64 * packs_per_step / step_ms * 1e3;
    let gpus = options.gpus as f64;
    let epoch_tokens = report.lengths.samples as f64 * report.lengths.mean_tokens;
    let epoch_hours = epoch_tokens / tokens_per_s / 3600.0;
    let fits = |tokens: usize| total(&memory_of(config, layout, shards, tokens)) <= gpu.memory;
    let largest = (1..=1024).map(|n| 1024 * n).take_while(|&tokens| fits(tokens)).last().unwrap_or(0);
    Prediction {
        fits: fits(config.train.pack_tokens),
        largest_pack_tokens: largest,
        costs: costs(report, &gpu, &kernels, exposed_ms, step_ms),
        kernels,
        pack_ms: pack_ms / packs,
        update_ms,
        all_reduce_ms,
        exposed_ms,
        step_ms,
        links,
        tokens_per_s,
        mfu: tokens_per_s * report.flops_per_token / (gpus * gpu.peak),
        epoch_hours,
        epoch_cost: options.price.map(|price| price * gpus * epoch_hours),
        gpu,
    }
}

/// Milliseconds of the gradients' all-reduce by each link there could be, the one that is used first:
/// a ring sends 2 (n - 1) / n of the bytes.
fn links(gradients: f64, options: &PlanOptions, gpu: &Gpu) -> Vec<(&'static str, f64)> {
    let n = options.gpus as f64;
    let bytes = gradients * 2.0 * (n - 1.0) / n;
    let ms = |bandwidth: f64| 1e3 * bytes / (LINK_SHARE * bandwidth);
    if options.gpus == 1 {
        return Vec::new();
    }
    let network = ("network", ms(options.network * 1e9));
    let mut list = vec![("PCIe", ms(gpu.pcie)), network];
    if gpu.nvlink > 0.0 {
        list.insert(0, ("NVLink", ms(gpu.nvlink)));
    }
    if options.gpus > NODE {
        list.rotate_right(1); // the slowest link of the ring decides
    }
    list
}

/// What of the all-reduce is left when the last pack's backward (two thirds of a pack) has ended: the
/// embeddings' bucket, which is complete last, and what the link has not managed by then.
fn exposed(layout: &Layout, all_reduce_ms: f64, pack_ms: f64) -> f64 {
    let last = all_reduce_ms * layout.embed_range.len() as f64 / layout.len as f64;
    last.max(all_reduce_ms - pack_ms * 2.0 / 3.0)
}

/// Where the time goes that a device at its peak would not need.
fn costs(report: &Report, gpu: &Gpu, kernels: &[Timed], exposed_ms: f64, step_ms: f64) -> Vec<(String, f64)> {
    let packs = report.packs_per_rank as f64;
    let useful = report.flops_per_token * report.pack.tokens as f64 * packs / gpu.peak * 1e3;
    let sum = |keep: &dyn Fn(&Timed) -> f64| kernels.iter().map(keep).sum::<f64>();
    let ideal = |k: &Timed| k.kernel.flops / gpu.peak * 1e3 * k.kernel.calls as f64 * packs;
    let attends = |k: &Timed| matches!(k.kernel.kind, Kind::AttentionForward | Kind::AttentionBackward);
    let products = sum(&|k| if matches!(k.kernel.kind, Kind::Product(_)) { k.ms - ideal(k) } else { 0.0 });
    let attention = sum(&|k| if attends(k) { k.ms - ideal(k) } else { 0.0 });
    let rows = sum(&|k| if k.kernel.kind == Kind::Rows { k.ms } else { 0.0 });
    let updates = sum(&|k| if k.kernel.kind == Kind::Update { k.ms } else { 0.0 });
    let work = sum(&ideal) - useful;
    [
        ("the FLOPs that MFU counts, at the peak", useful),
        ("recomputed scores, and masked rows up to the capacity", work),
        ("matrix products below the peak", products),
        ("attention below the peak", attention),
        ("row kernels (memory)", rows),
        ("optimiser (memory)", updates),
        ("all-reduce that nothing hides", exposed_ms),
    ]
    .map(|(what, ms)| (what.to_owned(), 100.0 * ms / step_ms))
    .to_vec()
}
