//! From raw arguments to the call that does the work: one match arm per command.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bench;
use crate::cli::{Command, Evaluate, Predict, Prepare, Probe, Repeated, Rerank, Retrieve, RunArgs, Sample};
use crate::config::{Config, Resume};
use crate::corpus::sample::{debian, synthetic};
use crate::corpus::{Role, Source, inspect, prepare};
use crate::doctor;
use crate::ir::evaluate;
use crate::ir::measures::Options;
use crate::plan;
use crate::probe;
use crate::ranks::{Facts, World};
use crate::report::{Lengths, evaluate as evaluation, write_experiment_report, write_lengths_page};
use crate::run::agreement;
use crate::run::stage::{self, Stage};
use crate::study::{experiment, fine, rerank, retrieve};
use crate::{Error, Result, threads};

/// Runs a command to its end. Errors of distributed commands end all ranks from within.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Sample(sample) => here(|| sample_command(sample)),
        Command::Prepare(args) => here(|| prepare::run(&prepare_options(args)?)),
        Command::Pretrain(plan) => distributed("pretrain", plan, |c, w| stage::run(c, Stage::Pretrain, w)),
        Command::Coarse(plan) => distributed("coarse", plan, |c, w| stage::run(c, Stage::Coarse, w)),
        Command::Fine(args) => distributed("fine", repeated(args), fine::run),
        Command::Experiment(args) => distributed("experiment", repeated(args), experiment::run),
        Command::Rerank(args) => rerank_command(args),
        Command::Probe(args) => probe_command(args),
        Command::Retrieve(args) => here(|| retrieve::retrieve(&retrieve_options(args))),
        Command::Evaluate(args) => here(|| evaluate_command(args)),
        Command::Report { dir } => here(|| {
            tell!("{}", write_experiment_report(&dir)?.display());
            Ok(())
        }),
        Command::Plan(args) => here(|| plan_command(args)),
        Command::Bench(args) => {
            let (seconds, json) = (args.seconds, args.json);
            let flags = vec![("--seconds", seconds.to_string()), ("--json", json.to_string())];
            let ranks = Ranks { command: "bench", stage: "coarse", flags };
            ranks.run(args.run, |config, world| bench::run(config, seconds, json, world))
        }
        Command::Doctor { device } => {
            let about = |_: &()| Ok(agreement::program("doctor"));
            on_ranks(Ok(()), about, |_, world| doctor::run(device, world))
        }
        Command::Inspect { dir, report } => here(|| inspect_command(&dir, report.as_deref())),
    }
}

fn sample_command(sample: Sample) -> Result<()> {
    match sample {
        Sample::Debian { out, lists } => debian::run(&debian::SampleOptions { out, lists }),
        Sample::Synthetic { out, pairs, queries, documents, words, seed } => {
            let queries = queries.unwrap_or(pairs.div_ceil(2));
            synthetic::run(&synthetic::SyntheticOptions { out, pairs, queries, documents, words, seed })
        }
    }
}

/// `--seeds` is an override like any other.
fn repeated(args: Repeated) -> RunArgs {
    let mut run = args.run;
    run.set.extend(args.seeds.map(|n| format!("fine.seeds={n}")));
    run
}

/// Runs a command that uses one process.
fn here(work: impl FnOnce() -> Result<()>) -> Result<()> {
    threads::start(threads::wanted(1));
    work()
}

/// Runs a command on all ranks; the plan has a stage of the command's name.
fn distributed(stage: &str, args: RunArgs, work: impl FnOnce(&Config, &World) -> Result<()>) -> Result<()> {
    Ranks { command: stage, stage, flags: Vec::new() }.run(args, work)
}

/// A command that all ranks run together.
struct Ranks<'a> {
    command: &'a str,
    /// The plan's stage.
    stage: &'a str,
    /// Flags that are not keys of the plan.
    flags: Vec<(&'static str, String)>,
}

impl Ranks<'_> {
    /// Reads the plan and joins the ranks, which must all have the same plan.
    fn run(self, args: RunArgs, work: impl FnOnce(&Config, &World) -> Result<()>) -> Result<()> {
        let about = |config: &Config| agreement::plan(self.command, &self.flags, config);
        on_ranks(config(self.stage, args), about, |config, world| {
            world.watch(Duration::from_secs_f64(config.run.hang_limit_s))?;
            work(config, world)
        })
    }
}

/// Joins the ranks, which all must have a `plan`, and the same facts `about` it; an error ends all of them from
/// within.
fn on_ranks<T>(
    plan: Result<T>,
    about: impl FnOnce(&T) -> Result<Facts>,
    work: impl FnOnce(&T, &World) -> Result<()>,
) -> Result<()> {
    let world = World::start()?;
    threads::start(world.threads());
    let together = || {
        let plan = world.agree_all(plan)?;
        world.same(|| about(&plan))?;
        work(&plan, &world)
    };
    together().or_else(|error| match error {
        // All ranks end here together, so MPI shuts down cleanly and no rank is aborted.
        Error::Preempted(_) => Err(error),
        error => world.fail(&error),
    })
}

/// The config of `stage`, with the flags on top of it.
fn config(stage: &str, args: RunArgs) -> Result<Config> {
    let mut config = Config::load(args.config.as_deref(), stage, &args.set)?;
    if let Some(out) = args.out {
        config.run.out = out;
    }
    if let Some(device) = args.device {
        config.run.device = device;
    }
    config.resume = Resume { from: args.resume, with_changes: args.resume_with_changes };
    Ok(config)
}

fn rerank_command(args: Rerank) -> Result<()> {
    let (model, out): (Option<PathBuf>, PathBuf) = (args.model, args.run_out);
    let flags = vec![("--model", format!("{model:?}")), ("--run-out", out.display().to_string())];
    Ranks { command: "rerank", stage: "fine", flags }.run(args.run, |config, world| {
        let mut config = config.clone();
        config.model.path = model.or(config.model.path);
        rerank::run(&config, &out, world)
    })
}

fn probe_command(args: Probe) -> Result<()> {
    let options = probe::ProbeOptions { models: args.models, heads_from: args.heads_from, pairs: args.pairs };
    let flags = vec![
        ("--model", format!("{:?}", options.models)),
        ("--heads-from", format!("{:?}", options.heads_from)),
        ("--pairs", options.pairs.to_string()),
    ];
    let ranks = Ranks { command: "probe", stage: "coarse", flags };
    ranks.run(args.run, |config, world| probe::run(config, &options, world))
}

fn plan_command(args: Predict) -> Result<()> {
    let config = config("coarse", args.run)?;
    let options = plan::PlanOptions {
        gpus: args.gpus,
        models: args.gpu,
        price: args.price,
        network: args.network,
        samples: args.samples,
        mean_tokens: args.mean_tokens,
        json: args.json,
    };
    plan::run(&config, &options)
}

/// The config, with the flags on top of it.
fn prepare_options(args: Prepare) -> Result<prepare::PrepareOptions> {
    let config = Config::load(args.config.as_deref(), "prepare", &args.set)?;
    let table = config.prepare;
    let mut sources = config.sources;
    for (role, path) in [(Role::Clicks, args.clicks), (Role::Documents, args.documents)] {
        if let Some(path) = path {
            sources.retain(|source| (source.role == Role::Documents) != (role == Role::Documents));
            sources.push(Source::of(role, path));
        }
    }
    let or = |flags: Vec<PathBuf>, table: Vec<PathBuf>| if flags.is_empty() { table } else { flags };
    Ok(prepare::PrepareOptions {
        sources,
        out: args.out.or(config.data.shards).ok_or_else(|| {
            Error::config("no shard directory: name it with --out or --set data.shards=DIR")
        })?,
        tokenizer: args.tokenizer.or(table.tokenizer),
        vocab: args.vocab.unwrap_or(table.vocab),
        max_tokens: args.max_tokens.or(table.max_tokens).unwrap_or(config.data.max_tokens),
        fields: args.fields.unwrap_or(config.data.fields),
        all_documents: !(args.clicked_only || table.clicked_only),
        exclude_topics: or(args.exclude_topics, table.exclude_topics),
        exclude_qrels: or(args.exclude_qrels, table.exclude_qrels),
        strict: args.strict || table.strict,
        repair: args.repair || table.repair,
        part_tokens: table.part_tokens,
        filter: table.filter,
    })
}

fn retrieve_options(args: Retrieve) -> retrieve::RetrieveOptions {
    retrieve::RetrieveOptions {
        documents: vec![Source { format: args.format, ..Source::documents(args.documents) }],
        only: args.only,
        clicks: args.clicks.is_some(),
        topics: args.topics.or(args.clicks).unwrap_or_default(), // clap asks for one of them
        topic_fields: args.topic_fields,
        out: args.out,
        depth: args.depth,
        k1: args.k1,
        b: args.b,
        fields: args.fields,
        language: args.language,
        stem: !args.no_stem,
        stop_words: !args.keep_stop_words,
    }
}

fn inspect_command(dir: &Path, page: Option<&Path>) -> Result<()> {
    let shards = inspect::run(dir)?;
    let Some(page) = page else { return Ok(()) };
    let lengths = inspect::histograms(&shards).into_iter().map(|histogram| {
        let share = |count: u64| 100.0 * count as f64 / histogram.total.max(1) as f64;
        let points = histogram.bins.iter().map(|bin| (bin.from as f64, share(bin.count))).collect();
        Lengths { name: histogram.name.into(), unit: histogram.unit.into(), points }
    });
    let title = format!("Shards: {}", dir.display());
    write_lengths_page(page, &title, lengths.collect(), &inspect::describe(&shards))
}

fn evaluate_command(args: Evaluate) -> Result<()> {
    let format = match (args.json, args.table) {
        (true, _) => evaluation::OutputFormat::Json,
        (_, true) => evaluation::OutputFormat::Table,
        _ => evaluation::OutputFormat::Trec,
    };
    let options = evaluate::EvaluateOptions {
        qrels: args.qrels,
        run: args.run,
        measures: args.measures,
        per_topic: args.per_topic,
        no_summary: args.no_summary,
        how: Options {
            complete: args.complete,
            level: args.level,
            judged_only: args.judged_only,
            depth: args.depth,
            f64_scores: args.f64_scores,
        },
        baseline: args.baseline,
        seed: args.seed,
    };
    evaluation::run(&options, format, args.plot.as_deref())
}
