//! The command line: raw arguments only. What they mean is decided where they are used.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::keys::{Range, above, above_to};
use crate::corpus::Format;
use crate::corpus::read::documents::Field;
use crate::ir::analysis::Language;
use crate::ir::topics::TopicField;

/// Coarse-tuning of re-ranking models on query logs, data-parallel, measured like trec_eval.
///
/// Start ranks with `mpirun -n N ctune-dist ...`; alone it runs as a single process.
#[derive(Debug, Parser)]
#[command(name = "ctune-dist", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a corpus to try things out on.
    #[command(subcommand)]
    Sample(Sample),
    /// Turn queries, clicks and documents into tokenised shards.
    Prepare(Prepare),
    /// Train MLM on documents alone, from random or given weights.
    Pretrain(RunArgs),
    /// Train MLM + query-document pair prediction on the shards of a query log.
    Coarse(RunArgs),
    /// Rank documents for topics with BM25 and write a TREC run.
    Retrieve(Retrieve),
    /// Fine-tune a cross-encoder on topics, qrels and a run, by cross-validation.
    Fine(Repeated),
    /// Re-score the candidates of a run with a model.
    Rerank(Rerank),
    /// Measure a run as trec_eval does; compare it with a baseline.
    Evaluate(Evaluate),
    /// Mask query words, with and without the document, and measure what models predict.
    Probe(Probe),
    /// Run arms x folds x training-set sizes from one config, then write the report.
    Experiment(Repeated),
    /// Write an experiment's report.html again.
    Report {
        /// Experiment directory (results.json).
        dir: PathBuf,
    },
    /// Predict memory, speed, epoch time and cost on GPUs before renting them.
    Plan(Predict),
    /// Measure this machine's engine: operations, a whole step, the loader, the all-reduce.
    Bench(Bench),
    /// Check what this machine has, and whether its GPU computes what its CPU computes.
    Doctor {
        /// Device to check; auto checks a GPU if there is one.
        #[arg(long, value_enum, default_value = "auto")]
        device: crate::config::Device,
    },
    /// Print what is in a shard directory and verify its checksums.
    Inspect {
        /// Shard directory.
        dir: PathBuf,
        /// Also write an HTML page with plots of the lengths.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Sample {
    /// From this machine's apt package index: 63,000 documents, a query log and a test collection.
    Debian {
        /// Folder to write.
        #[arg(long)]
        out: PathBuf,
        /// Folder with apt's package lists [default: fetched into a folder below --out].
        #[arg(long)]
        lists: Option<PathBuf>,
    },
    /// Random syllables in the formats of ORCAS and MS MARCO, of any size: for tests of scale, not quality.
    Synthetic {
        /// Folder to write.
        #[arg(long)]
        out: PathBuf,
        /// Rows of the click log.
        #[arg(long)]
        pairs: u32,
        /// Distinct queries [default: half of --pairs].
        #[arg(long)]
        queries: Option<u32>,
        /// Documents to make.
        #[arg(long)]
        documents: u32,
        /// Mean words of a document.
        #[arg(long, default_value_t = 1000)]
        words: u32,
        /// Seed of the random text.
        #[arg(long, default_value_t = 1)]
        seed: u32,
    },
}

/// A run that a config describes.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// TOML config.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Override one key, as in --set train.lr=1e-4 (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Run directory; same as --set run.out=DIR.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Device; same as --set run.device=DEVICE.
    #[arg(long)]
    pub device: Option<crate::config::Device>,
    /// Where to start: auto continues the run in the run directory, never refuses to if there is one, and
    /// PATH continues from a checkpoint (or from the last one of a run directory).
    #[arg(long, value_name = "auto|never|PATH", default_value = "auto")]
    pub resume: crate::config::ResumeFrom,
    /// Continue although steps, epochs, [checkpoint], [run], sharding or recomputation changed.
    #[arg(long)]
    pub resume_with_changes: bool,
}

/// A run that may be repeated with other seeds.
#[derive(Args, Debug)]
pub struct Repeated {
    #[command(flatten)]
    pub run: RunArgs,
    /// Repeat fine-tuning with N seeds (seed, seed + 1, ...); same as --set fine.seeds=N.
    #[arg(long)]
    pub seeds: Option<u32>,
}

#[derive(Args, Debug)]
pub struct Predict {
    #[command(flatten)]
    pub run: RunArgs,
    /// GPUs of the run.
    #[arg(long, default_value_t = 1)]
    pub gpus: usize,
    /// GPU models, separated by commas: a100, h100, h200, b200, l4, l40s, a10, rtx4090.
    #[arg(long, value_delimiter = ',', default_value = "a100,h100")]
    pub gpu: Vec<String>,
    /// Price of one GPU for one hour; adds the cost of an epoch.
    #[arg(long, value_parser = number(Range::of(0.0..)))]
    pub price: Option<f64>,
    /// Network between nodes of eight GPUs, in gigabytes per second for each GPU.
    #[arg(long, default_value_t = 25.0, value_parser = number(Range::of(above(0.0))))]
    pub network: f64,
    /// Samples in an epoch, if there are no shards to count [default: ORCAS'].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub samples: Option<u64>,
    /// Mean tokens of a sample, if there are no shards to measure [default: data.max_tokens].
    #[arg(long, value_parser = number(Range::of(1.0..)))]
    pub mean_tokens: Option<f64>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Bench {
    #[command(flatten)]
    pub run: RunArgs,
    /// Seconds for each measurement.
    #[arg(long, default_value_t = 1.0, value_parser = number(Range::of(above_to(0.0, 1e6))))]
    pub seconds: f64,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Prepare {
    /// TOML config with [[source]] and [prepare] tables; the flags below override it.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Override one key, as in --set prepare.filter.min_query_words=2 (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Click log (format detected): qid, query, docid, url (ORCAS), or another with three columns.
    #[arg(long)]
    pub clicks: Option<PathBuf>,
    /// Documents, a file or folder (format detected): MS MARCO, TREC, trecweb, BEIR, TSV.
    #[arg(long)]
    pub documents: Option<PathBuf>,
    /// Shard directory to write; same as --set data.shards=DIR.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Tokenizer: tokenizer.json, vocab.txt or a folder with either [default: train one].
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,
    /// Size of a trained vocabulary [default: 30522].
    #[arg(long)]
    pub vocab: Option<usize>,
    /// Cut documents to this many tokens [default: data.max_tokens, 512].
    #[arg(long)]
    pub max_tokens: Option<usize>,
    /// Fields that form a document's text [default: title,body].
    #[arg(long, value_delimiter = ',')]
    pub fields: Option<Vec<Field>>,
    /// Keep only documents that were clicked.
    #[arg(long)]
    pub clicked_only: bool,
    /// Leave this topics file's queries out of the log (repeatable).
    #[arg(long)]
    pub exclude_topics: Vec<PathBuf>,
    /// Leave this qrels file's relevant documents out of the log (repeatable).
    #[arg(long)]
    pub exclude_qrels: Vec<PathBuf>,
    /// Repair UTF-8 that was decoded as Windows-1252.
    #[arg(long)]
    pub repair: bool,
    /// Stop at the first damaged line.
    #[arg(long)]
    pub strict: bool,
}

#[derive(Args, Debug)]
pub struct Retrieve {
    /// Documents, a file or folder (format detected, as by prepare).
    #[arg(long)]
    pub documents: PathBuf,
    /// Format of the documents, if it cannot be detected: msmarco-v1, msmarco-v2, trec, trecweb, beir, tsv.
    #[arg(long)]
    pub format: Option<Format>,
    /// Index only the documents listed in this file, one id per line.
    #[arg(long)]
    pub only: Option<PathBuf>,
    /// Topics: TSV, TREC SGML or XML, JSON lines.
    #[arg(long, required_unless_present = "clicks")]
    pub topics: Option<PathBuf>,
    /// Take the queries of a click log instead of topics (hard negatives for coarse).
    #[arg(long, conflicts_with = "topics")]
    pub clicks: Option<PathBuf>,
    /// Parts of a topic that form the query: title, description, narrative.
    #[arg(long, value_delimiter = ',', default_value = "title")]
    pub topic_fields: Vec<TopicField>,
    /// Run to write.
    #[arg(long)]
    pub out: PathBuf,
    /// Documents for each topic.
    #[arg(long, default_value_t = 1000)]
    pub depth: usize,
    /// BM25's k1: how soon a repeated word stops adding.
    #[arg(long, default_value_t = 0.9)]
    pub k1: f32,
    /// BM25's b: how much a document's length counts, from 0 to 1.
    #[arg(long, default_value_t = 0.4)]
    pub b: f32,
    /// Fields to index.
    #[arg(long, value_delimiter = ',', default_value = "title,body")]
    pub fields: Vec<Field>,
    /// Language of stems and stop words: arabic, danish, dutch, english, finnish, french, german, greek,
    /// hungarian, italian, norwegian, portuguese, romanian, russian, spanish, swedish, tamil, turkish.
    #[arg(long, default_value_t = Language::ENGLISH)]
    pub language: Language,
    /// Do not stem words.
    #[arg(long)]
    pub no_stem: bool,
    /// Keep stop words.
    #[arg(long)]
    pub keep_stop_words: bool,
}

#[derive(Args, Debug)]
pub struct Rerank {
    #[command(flatten)]
    pub run: RunArgs,
    /// Model folder; same as --set model.path=DIR.
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Run to write.
    #[arg(long)]
    pub run_out: PathBuf,
}

#[derive(Args, Debug)]
pub struct Probe {
    #[command(flatten)]
    pub run: RunArgs,
    /// A model to probe (repeatable).
    #[arg(long = "model", value_name = "NAME=FOLDER", value_parser = named_path, required = true)]
    pub models: Vec<(String, PathBuf)>,
    /// Model that lends its MLM head to models without one.
    #[arg(long, value_name = "FOLDER")]
    pub heads_from: Option<PathBuf>,
    /// Pairs to draw from data.shards, or from data.topics, qrels, run and documents.
    #[arg(long, default_value_t = 1000)]
    pub pairs: usize,
}

/// A number within `range`; the plan's ranges stand beside its keys.
fn number(range: Range) -> impl Fn(&str) -> Result<f64, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|&number| range.holds(number));
        number.ok_or_else(|| format!("must be a number {range}"))
    }
}

fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("must be NAME=FOLDER".into()),
    }
}

#[derive(Args, Debug)]
pub struct Evaluate {
    /// Judgements.
    pub qrels: PathBuf,
    /// Run to measure; - is standard input.
    pub run: PathBuf,
    /// Measure by trec_eval's name (ndcg_cut.5, P.10, map), or a set: official (the default), set,
    /// all_trec (repeatable).
    #[arg(short = 'm', long = "measure")]
    pub measures: Vec<String>,
    /// Also print every topic.
    #[arg(short = 'q')]
    pub per_topic: bool,
    /// Print no summary.
    #[arg(short = 'n')]
    pub no_summary: bool,
    /// Average over all topics of the qrels; a topic missing from the run counts as 0.
    #[arg(short = 'c')]
    pub complete: bool,
    /// Lowest relevant label.
    #[arg(short = 'l', default_value_t = 1, allow_hyphen_values = true)]
    pub level: i32,
    /// Drop documents without a judgement.
    #[arg(short = 'J')]
    pub judged_only: bool,
    /// Measure only the first DEPTH documents of each topic.
    #[arg(short = 'M')]
    pub depth: Option<usize>,
    /// Compare scores as f64, like trec_eval 10, instead of f32, like 9.0.8.
    #[arg(long)]
    pub f64_scores: bool,
    /// Print a table instead of trec_eval's lines.
    #[arg(long, conflicts_with = "json")]
    pub table: bool,
    /// Print JSON instead: means, every topic, the comparison.
    #[arg(long)]
    pub json: bool,
    /// Run to compare with, topic by topic.
    #[arg(long)]
    pub baseline: Option<PathBuf>,
    /// Seed of the randomisation test and the bootstrap.
    #[arg(long, default_value_t = 1)]
    pub seed: u32,
    /// Plot of the topics' differences to the baseline: FILE.svg or FILE.html.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}
