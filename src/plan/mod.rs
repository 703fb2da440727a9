//! `plan`: the memory and time that a coarse-tuning run would take on GPUs, before they are rented. Memory,
//! launches, bytes and floating-point operations are counted by running the model and the optimiser on the
//! engine that only counts (`train::counted`); time comes from a roofline of every operation (`roofline`) on
//! a card's data sheet (`hardware`). Nothing is measured, and the output says so.

pub mod hardware;
mod prediction;
mod print;
pub mod roofline;

use std::path::Path;
use std::sync::Arc;

use half::bf16;

use crate::config::{Config, Precision};
use crate::corpus::shard::Shards;
use crate::data::batch::Batch;
use crate::data::{ClickLog, ClickSource, SampleSource};
use crate::engine::Card;
use crate::engine::dry::{Counts, Dry};
use crate::engine::op::{Kind, MaskRule};
use crate::model::activations::Capacity;
use crate::model::bert::Options;
use crate::model::checkpoint;
use crate::model::layout::{HeadSet, Layout};
use crate::model::{Objective, Shape};
use crate::run::model::fresh_shape;
use crate::run::samples::click_options;
use crate::train::counted::{Bytes, Counted, Setup, made_up};
use crate::train::settings;
use crate::{Error, Result};

use hardware::{Gpu, KERNEL_GAP, LINK_SHARE};
pub use prediction::{Lengths, Pack, Prediction, Report, Timed};
use roofline::Operation;

/// What is asked.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    pub gpus: usize,
    /// Names of `hardware::GPUS`.
    pub models: Vec<String>,
    /// Price of one GPU for an hour, in any currency.
    pub price: Option<f64>,
    /// Link between nodes of eight GPUs, gigabytes/s for each GPU.
    pub network: f64,
    /// Samples of an epoch, if there are no shards to count.
    pub samples: Option<u64>,
    /// Mean tokens of a sample, if there are no shards to measure.
    pub mean_tokens: Option<f64>,
    pub json: bool,
}

/// Clicks of the full ORCAS log: an epoch, unless shards say otherwise.
const ORCAS_CLICKS: u64 = 18_823_602;
/// BERT's vocabulary, unless a model or shards say otherwise.
const BERT_VOCAB: usize = 30_522;
/// How many samples lengths are measured on, spread evenly over the epoch.
const MEASURED_SAMPLES: u32 = 20_000;
/// Share of a pack's budget that windowed best-fit fills (0.993 to 0.998 in the tests of `data::pack`).
const PACK_FILL: f64 = 0.995;
/// GPUs that share one node's links.
const NODE: usize = 8;
/// cuBLASLt's workspace, the CUDA context with its modules, and NCCL's buffers: assumed.
const WORKSPACE: f64 = 64e6;
const CONTEXT: f64 = 1.0e9;
/// How many packs are counted when lengths were measured.
const PACKS: usize = 16;
/// Packs from this many times 1024 tokens on are not tried.
const MOST_THOUSANDS: usize = 1025;

/// Models known by their folder's name, so that a plan needs no download: (name, layers, hidden, heads).
const KNOWN: [(&str, usize, usize, usize); 5] = [
    ("bert-base-uncased", 12, 768, 12),
    ("bert-large-uncased", 24, 1024, 16),
    ("MiniLM-L6-H384-uncased", 6, 384, 12),
    ("MiniLM-L12-H384-uncased", 12, 384, 12),
    ("bert_uncased_L-2_H-128_A-2", 2, 128, 2),
];

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
    let layout = settings::tuning(&config.train, None).layout(&shape, HeadSet::PRETRAINING)?;
    let run = Asked { config, layout: &layout, ranks: options.gpus, packs: packs(config, &lengths) };
    let packs = run.packs.len() as f64;
    let sum = |of: &dyn Fn(&Batch) -> usize| run.packs.iter().map(of).sum::<usize>() as f64 / packs;
    let pack = Pack {
        shape: shape.clone(),
        tokens: sum(&Batch::tokens),
        sequences: sum(&Batch::sequences),
        masked: sum(&|pack| pack.masked),
    };
    let counted = run.count(&Card::default())?;
    let memory = run.memory(config.train.pack_tokens)?;
    let mut report = Report {
        note: "A prediction from data sheets and assumptions. Nothing here was measured.",
        assumptions: hardware::SOURCES.iter().map(|&s| s.to_owned()).collect(),
        model,
        parameters: layout.parameters(),
        flops_per_token: counted.packs.total().least_flops / (packs * pack.tokens),
        pack,
        lengths,
        gpus: options.gpus,
        packs_per_step: config.train.packs_per_step,
        packs_per_rank: config.train.packs_per_step.div_ceil(options.gpus),
        memory_bytes: total(memory),
        exchanged_bytes: layout.len as f64 * if config.train.reduce == Precision::Bf16 { 2.0 } else { 4.0 },
        memory,
        predictions: Vec::new(),
    };
    for name in &options.models {
        let prediction = predict(options, &run, &report, &layout, Gpu::find(name)?)?;
        report.predictions.push(prediction);
    }
    Ok(report)
}

/// The run that is asked for.
struct Asked<'a> {
    config: &'a Config,
    layout: &'a Layout,
    ranks: usize,
    /// Packs as the data would fill them.
    packs: Vec<Batch>,
}

impl Asked<'_> {
    fn with<T>(&self, pack_tokens: usize, count: impl FnOnce(Setup<'_>) -> Result<T>) -> Result<T> {
        let objective = &self.config.objective;
        let options = Options {
            objective: Objective::Pretraining { mlm: objective.mlm, qdpp: objective.qdpp },
            heads: HeadSet::PRETRAINING,
            capacity: Capacity::of_pack(pack_tokens, rate(self.config), objective.whole_word),
            train: true,
            dropout: self.config.train.dropout,
            seed: 0,
            rule: (rate(self.config) > 0.0).then(MaskRule::default),
            continues: Vec::new(),
        };
        let (layout, train) = (self.layout, &self.config.train);
        count(Setup { layout, options, train, rank: 0, ranks: self.ranks })
    }

    /// One step of its packs on a card.
    fn count(&self, card: &Card) -> Result<Counted> {
        let dry = Dry::<bf16>::new(card.clone());
        self.with(self.config.train.pack_tokens, |run| run.count(&dry, &self.packs))
    }

    /// Bytes of a rank whose packs have `pack_tokens` tokens.
    fn memory(&self, pack_tokens: usize) -> Result<Bytes> {
        self.with(pack_tokens, |run| Ok(run.count_full(&Dry::<bf16>::new(Card::default()))?.bytes))
    }
}

/// The model's sizes (from its folder, its name or the config), and where they came from.
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
    let (vocab, intermediate, positions, segments) = (BERT_VOCAB, 4 * hidden, 512, 2);
    let norm_eps = Shape::NORM_EPS;
    let shape = Shape { vocab, hidden, layers, heads, intermediate, positions, segments, norm_eps };
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
    let some = vec![(mean.round() as usize).max(1)];
    Ok(Lengths { samples, mean_tokens: mean, attended: mean, source: source.into(), some })
}

fn measured_lengths(config: &Config, dir: &Path) -> Result<Lengths> {
    let log: Arc<dyn ClickLog> = Arc::new(Shards::open(dir)?);
    let source = ClickSource::new(log, click_options(config.seed, &config.data, &config.objective))?;
    let step = (source.samples() / MEASURED_SAMPLES).max(1) as usize;
    let some: Vec<usize> =
        (0..source.samples()).step_by(step).map(|sample| source.length(sample, 0)).collect();
    let n = some.len() as f64;
    let sum = some.iter().sum::<usize>() as f64;
    let squares = some.iter().map(|&length| (length * length) as f64).sum::<f64>();
    let text = format!("{}: lengths of {n} samples", dir.display());
    let samples = u64::from(source.samples());
    Ok(Lengths { samples, mean_tokens: sum / n, attended: squares / sum, source: text, some })
}

/// Packs made from the sample's lengths in order, each filled as windowed best-fit fills it.
fn packs(config: &Config, lengths: &Lengths) -> Vec<Batch> {
    let budget = (config.train.pack_tokens as f64 * PACK_FILL) as usize;
    let pack = |lengths: &[usize]| {
        let tokens: usize = lengths.iter().sum();
        made_up(lengths, (tokens as f64 * f64::from(rate(config))).round() as usize)
    };
    let mut packs = Vec::new();
    let (mut open, mut left) = (Vec::new(), budget);
    for &length in lengths.some.iter().cycle() {
        // the last sequence of a pack is as long as there is room
        open.push(length.min(left));
        left -= length.min(left);
        if left == 0 {
            packs.push(pack(&open));
            (open, left) = (Vec::new(), budget);
        }
        if packs.len() == if lengths.some.len() == 1 { 1 } else { PACKS } {
            break;
        }
    }
    packs
}

/// Share of the tokens that is masked.
fn rate(config: &Config) -> f32 {
    if config.objective.mlm > 0.0 { config.objective.mask_rate } else { 0.0 }
}

fn total(memory: Bytes) -> f64 {
    memory.total() as f64 + WORKSPACE + CONTEXT
}

/// The largest multiple of 1024 tokens whose packs fit.
fn largest_pack(run: &Asked<'_>, memory: f64) -> Result<usize> {
    let fits = |thousands: usize| -> Result<bool> { Ok(total(run.memory(1024 * thousands)?) <= memory) };
    let (mut fit, mut too_many) = (0, MOST_THOUSANDS);
    while too_many > fit + 1 {
        let middle = usize::midpoint(fit, too_many);
        if fits(middle)? { fit = middle } else { too_many = middle }
    }
    Ok(1024 * fit)
}

fn predict(
    options: &PlanOptions,
    run: &Asked<'_>,
    report: &Report,
    layout: &Layout,
    gpu: Gpu,
) -> Result<Prediction> {
    let counted = run.count(&gpu.card())?;
    // the counted packs stand for those of a step
    let packs = report.packs_per_rank as f64 / run.packs.len() as f64;
    let time = |counts: &Counts, times: f64| -> Vec<Timed> {
        let ms = |o: &Operation| 1e3 * times * (o.seconds(&gpu) + o.tally.launches as f64 * KERNEL_GAP);
        let scaled = |o: Operation| Operation { tally: o.tally.times(times), ..o };
        roofline::operations(counts).into_iter().map(|o| Timed { ms: ms(&o), operation: scaled(o) }).collect()
    };
    let mut operations = time(&counted.packs, packs);
    let pack_ms: f64 = operations.iter().map(|o| o.ms).sum();
    let update = time(&counted.update, 1.0);
    let update_ms: f64 = update.iter().map(|o| o.ms).sum();
    operations.extend(update);

    // a sharded optimiser scatters and gathers what the ring would: the same bytes
    let links = links(report.exchanged_bytes, options, &gpu);
    let all_reduce_ms = links.first().map_or(0.0, |link| link.1);
    let exposed_ms = exposed(layout, all_reduce_ms, pack_ms / report.packs_per_rank as f64);
    let step_ms = pack_ms + exposed_ms + update_ms;
    let tokens_per_s = report.pack.tokens * report.packs_per_step as f64 / step_ms * 1e3;
    let gpus = options.gpus as f64;
    let epoch_tokens = report.lengths.samples as f64 * report.lengths.mean_tokens;
    let epoch_hours = epoch_tokens / tokens_per_s / 3600.0;
    Ok(Prediction {
        fits: report.memory_bytes <= gpu.memory,
        largest_pack_tokens: largest_pack(run, gpu.memory)?,
        costs: costs(&gpu, &operations, exposed_ms, step_ms),
        operations,
        pack_ms: pack_ms / report.packs_per_rank as f64,
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
    })
}

/// Milliseconds of the gradients' all-reduce over each possible link, the one in use first. A ring sends 2 (n
/// - 1) / n of the bytes.
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
        list.rotate_right(1); // the slowest link of the ring is the limit
    }
    list
}

/// How much of the all-reduce is left when the last pack's backward (two thirds of a pack) has ended: the
/// embeddings' bucket, which is complete last, and whatever the link has not sent by then.
fn exposed(layout: &Layout, all_reduce_ms: f64, pack_ms: f64) -> f64 {
    let last = all_reduce_ms * layout.embed_range.len() as f64 / layout.len as f64;
    last.max(all_reduce_ms - pack_ms * 2.0 / 3.0)
}

/// Where the time goes beyond what a device at its peak would need.
fn costs(gpu: &Gpu, operations: &[Timed], exposed_ms: f64, step_ms: f64) -> Vec<(String, f64)> {
    let sum = |of: &dyn Fn(&Timed) -> f64| operations.iter().map(of).sum::<f64>();
    let at_peak = |flops: f64| flops / gpu.peak * 1e3;
    let useful = sum(&|o| at_peak(o.operation.tally.least_flops));
    let again = sum(&|o| at_peak(o.operation.tally.flops - o.operation.tally.least_flops));
    let above = |o: &Timed| o.ms - at_peak(o.operation.tally.flops);
    let of = |keep: &dyn Fn(Kind) -> bool| sum(&|o| if keep(o.operation.kind) { above(o) } else { 0.0 });
    let products = of(&|kind| matches!(kind, Kind::Product(_)));
    let attention = of(&|kind| matches!(kind, Kind::AttentionForward | Kind::AttentionBackward));
    [
        ("the FLOPs that MFU counts, at the peak", useful),
        ("scores computed again, and rows up to the capacity", again),
        ("matrix products below the peak", products),
        ("attention below the peak", attention),
        ("row kernels (memory)", of(&|kind| kind == Kind::Rows)),
        ("optimiser (memory)", of(&|kind| kind == Kind::Update)),
        ("all-reduce not hidden", exposed_ms),
    ]
    .map(|(what, ms)| (what.to_owned(), 100.0 * ms / step_ms))
    .to_vec()
}
