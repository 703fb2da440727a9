//! A study from one plan: arms x numbers of training topics x folds. Every task is one small
//! fine-tuning on one rank, so ranks work side by side; finished tasks are kept and not repeated, so
//! a study that was cut off goes on where it stopped. Ends with the table and the report.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fine::{FoldTask, Start, Study, make_folder};
use crate::config::{Arm, Config, Fine, Split};
use crate::files;
use crate::ir::folds::Fold;
use crate::ir::measures::{self, Evaluation, Measure, evaluate};
use crate::ir::run::Run;
use crate::model::checkpoint::{self, HeadStart};
use crate::ranks::{Distributed, World};
use crate::report::results::{Cell, Results, Training};
use crate::report::{table_text, write_experiment_report};
use crate::run::checkpoints::Identity;
use crate::run::directory;
use crate::run::engine::{announce, on_engine};
use crate::run::resume;
use crate::run::signals;
use crate::text::Tokenizer;
use crate::train::metrics::duration;
use crate::{Error, Result};

/// One fine-tuning.
struct Task<'a> {
    arm: &'a Arm,
    /// Training topics; `None` is all of the fold.
    topics: Option<usize>,
    fold: usize,
    /// Number of the repetition, from 0.
    repeat: u32,
}

impl Task<'_> {
    fn dir(&self, out: &Path) -> PathBuf {
        let mut dir = out.join("tasks").join(slug(&self.arm.name)).join(size_name(self.topics));
        if self.repeat > 0 {
            dir = dir.join(format!("repeat-{}", self.repeat + 1));
        }
        dir.join(format!("fold-{}", self.fold + 1))
    }
}

/// Runs the study of `config` on every rank of `world`.
pub fn run(config: &Config, world: &World) -> Result<()> {
    on_engine!(config, world, engine => run_on(&engine, config, world))
}

fn run_on<E: Distributed>(engine: &E, config: &Config, world: &World) -> Result<()> {
    let arms = &config.experiment.arms;
    let Some(first) = arms.first() else {
        return Err(Error::config("experiment.arms is empty: name at least one [[experiment.arms]]"));
    };
    check_arms(config)?;
    let dir = &config.run.out;
    world.agree(world.leads().then(|| resume::check_command(dir, "experiment")))?;
    let _lock = directory::lock(dir, world)?;
    // Every task says what its result depends on, so a study may change and keep what still holds.
    let plan = resume::plan_of(config, &[])?;
    let identity = Identity { command: "experiment".into(), data: String::new(), plan };
    directory::create(config, &identity, &[("arms", json!(arms.len()))], world)?;
    let study = Study::read(config, &first.model, dir, world)?;
    let tasks = tasks(config, study.folds.len());
    announce(engine, world);
    signals::listen()?;
    let start = std::time::Instant::now();
    let claims = dir.join(CLAIMS);
    world.agree(world.leads().then(|| empty_folder(&claims)))?;
    for (i, task) in tasks.iter().enumerate() {
        if claim(&claims, i)? {
            let done = run_task(engine, &study, task, dir);
            if let Err(error @ Error::Preempted(_)) = &done {
                world.fail(error); // the others are at other tasks: there is nothing to agree on
            }
            done?;
        }
        if world.leads() && (i + 1) % 10 == 0 {
            tell!("task {}/{} | {}", i + 1, tasks.len(), duration(start.elapsed().as_secs_f64()));
        }
    }
    world.barrier();
    world.agree(world.leads().then(|| remove_folder(&claims)))?;
    world.agree(world.leads().then(|| conclude(&study, &tasks, dir)))?;
    Ok(())
}

/// Folder of the tasks that are taken: a rank that is done takes the next free one, so none waits for
/// another's long task, and kept tasks cost their rank nothing.
const CLAIMS: &str = "claims";

fn empty_folder(dir: &Path) -> Result<()> {
    remove_folder(dir)?; // of a study that was cut off
    make_folder(dir)
}

fn remove_folder(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removed", dir, cause)),
        _ => Ok(()),
    }
}

/// Whether a task is this rank's: it is of the first that makes its file.
fn claim(dir: &Path, task: usize) -> Result<bool> {
    let path = dir.join(task.to_string());
    match fs::File::create_new(&path) {
        Ok(_) => Ok(true),
        Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(cause) => Err(Error::io("created", &path, cause)),
    }
}

/// Rows of the table that are no arm's.
const FIRST_STAGE: &str = "first stage";
const ZERO_SHOT: &str = ", zero-shot";

/// All arms must share one vocabulary, since documents are tokenised once.
fn check_arms(config: &Config) -> Result<()> {
    let arms = &config.experiment.arms;
    let first = Tokenizer::load(&arms[0].model)?;
    for arm in arms {
        if !Tokenizer::load(&arm.model)?.same_pieces(&first) {
            return Err(Error::config(format!(
                "experiment.arms: {:?} and {:?} have different tokenizers: compare models of one vocabulary",
                arms[0].name, arm.name
            )));
        }
        if slug(&arm.name).is_empty() || arm.name == FIRST_STAGE || arm.name.ends_with(ZERO_SHOT) {
            return Err(Error::config(format!(
                "experiment.arms: the name {:?} is taken by a row of the report or has no letter: choose another",
                arm.name
            )));
        }
        if let Some(metrics) = arm.metrics.as_ref().filter(|metrics| !metrics.exists()) {
            return Err(Error::config(format!(
                "experiment.arms: {:?} has metrics = {:?}, which does not exist",
                arm.name, metrics
            )));
        }
        if arms.iter().filter(|other| slug(&other.name) == slug(&arm.name)).count() > 1 {
            return Err(Error::config(format!("experiment.arms: two arms are named {:?}", arm.name)));
        }
    }
    match &config.experiment.baseline {
        Some(name) if arms.iter().all(|arm| arm.name != *name) => {
            Err(Error::config(format!("experiment.baseline = {name:?} is not one of the arms")))
        }
        _ => Ok(()),
    }
}

/// Largest first, so that ranks end together.
fn tasks(config: &Config, folds: usize) -> Vec<Task<'_>> {
    let mut sizes: Vec<Option<usize>> = config.experiment.train_topics.iter().copied().map(Some).collect();
    sizes.push(None);
    sizes.sort_by_key(|size| std::cmp::Reverse(size.unwrap_or(usize::MAX)));
    sizes.dedup();
    let mut tasks = Vec::new();
    for &topics in &sizes {
        // without fine-tuning there is nothing to repeat but the draw of a new head
        for repeat in 0..config.fine.seeds {
            for arm in &config.experiment.arms {
                tasks.extend((0..folds).map(|fold| Task { arm, topics, fold, repeat }));
            }
        }
    }
    tasks
}

/// Topics that a task ranks.
fn ranked(config: &Config, fold: &Fold) -> Vec<String> {
    match config.experiment.split {
        Split::Test => fold.test.clone(),
        Split::Validation => fold.validation.clone(),
    }
}

fn run_task<E: Distributed>(engine: &E, study: &Study, task: &Task, out: &Path) -> Result<()> {
    let dir = task.dir(out);
    let (run_path, about_path) = (dir.join("run.txt"), dir.join("task.json"));
    let about = format!("{:#}\n", describe(study, task)?);
    if run_path.exists() && fs::read_to_string(&about_path).is_ok_and(|text| text == about) {
        return Ok(());
    }
    make_folder(&dir)?;
    let fold = &study.folds[task.fold];
    let start = Start { model: &task.arm.model, head: task.arm.start };
    let ranked = ranked(study.config, fold);
    let seed = seed(study, task);
    let fold_task = FoldTask { fold, topics: task.topics, ranked: &ranked, dir: &dir, seed };
    let (_, run) = study.run_fold(engine.clone(), start, &fold_task, &World::solo())?;
    run.write(&run_path, &slug(&task.arm.name))?;
    files::write(&about_path, about.as_bytes())
}

fn seed(study: &Study, task: &Task) -> u32 {
    study.config.seed.wrapping_add(task.repeat)
}

/// Everything that a task's result depends on: a kept result counts only if all of it is the same.
fn describe(study: &Study, task: &Task) -> Result<Value> {
    let config = study.config;
    let fold = &study.folds[task.fold];
    Ok(json!({
        "arm": task.arm,
        "weights_crc32": checkpoint::fingerprint(&task.arm.model)?,
        "inputs": study.inputs,
        "topics": task.topics,
        "fold": [fold.train, fold.validation, fold.test],
        "split": config.experiment.split,
        "seed": seed(study, task),
        "data": config.data,
        "train": config.train,
        "fine": Fine { seeds: 1, ..config.fine.clone() }, // another number of repetitions changes none
    }))
}

/// Joins the folds of every arm and size, measures, writes `results.json`, table and report.
fn conclude(study: &Study, tasks: &[Task], dir: &Path) -> Result<()> {
    let config = study.config;
    let list =
        config.experiment.measures.iter().map(|name| name.parse()).collect::<Result<Vec<Measure>>>()?;
    let mut runs: BTreeMap<(usize, Option<usize>), Vec<Run>> = BTreeMap::new();
    for task in tasks {
        let arm = config.experiment.arms.iter().position(|arm| arm.name == task.arm.name).unwrap_or(0);
        let run = Run::read(&task.dir(dir).join("run.txt"))?;
        let repeats = runs.entry((arm, task.topics)).or_default();
        repeats.resize(repeats.len().max(task.repeat as usize + 1), Run::default());
        repeats[task.repeat as usize].merge(run)?;
    }
    let mut cells = vec![first_stage(study, &list)?];
    for ((arm, topics), repeats) in &runs {
        let Arm { name, start, .. } = &config.experiment.arms[*arm];
        if *topics == Some(0) && *start == HeadStart::QdppHead {
            // QDPP ranks without fine-tuning: a row of the table, not only a point of the curve
            let zero_shot = cell(study, &format!("{name}{ZERO_SHOT}"), None, &repeats[..1], &list)?;
            cells.push(Cell { train_topics: None, ..zero_shot });
        }
        for (repeat, run) in repeats.iter().enumerate() {
            let suffix = if repeat == 0 { String::new() } else { format!("-repeat-{}", repeat + 1) };
            let file = format!("{}-{}{suffix}.run", slug(name), size_name(*topics));
            run.write(&dir.join(file), &slug(name))?;
        }
        cells.push(cell(study, name, *topics, repeats, &list)?);
    }
    let results = Results {
        title: config.experiment.title.clone(),
        measures: config.experiment.measures.clone(),
        baseline: config.experiment.baseline.clone().unwrap_or(config.experiment.arms[0].name.clone()),
        cells,
        training: training(&config.experiment.arms)?,
        facts: facts(study)?,
    };
    let text = serde_json::to_string_pretty(&results)
        .map_err(|e| Error::data(format!("results.json cannot be written: {e}")))?;
    files::write(&dir.join("results.json"), text.as_bytes())?;
    tell!("\n{}", table_text(&results)?);
    tell!("report: {}", write_experiment_report(dir)?.display());
    Ok(())
}

fn size_name(topics: Option<usize>) -> String {
    topics.map_or("all".into(), |n| n.to_string())
}

/// The candidates in the first stage's own order.
fn first_stage(study: &Study, list: &[Measure]) -> Result<Cell> {
    let path = Config::need("data.run", &study.config.data.run)?;
    let all = Run::read(path)?;
    let mut run = Run::default();
    for topic in study.folds.iter().flat_map(|fold| ranked(study.config, fold)) {
        if let Some(head) = all.head(&topic, study.config.fine.depth) {
            run.merge(head)?;
        }
    }
    Ok(Cell { train_topics: None, ..cell(study, FIRST_STAGE, None, &[run], list)? })
}

/// Measures of an arm: each topic's value is its mean over the repetitions, so that a test over
/// topics tests what a repetition is expected to give.
fn cell(study: &Study, arm: &str, topics: Option<usize>, runs: &[Run], list: &[Measure]) -> Result<Cell> {
    let evaluated = runs.iter().map(|run| evaluate(&study.qrels, run, list, &measures::Options::default()));
    let results = evaluated.collect::<Result<Vec<_>>>()?;
    let names = &study.config.experiment.measures;
    let n = results.len() as f64;
    let column = |m: usize| {
        let mut sums: BTreeMap<String, f64> = BTreeMap::new();
        for (topic, values) in results.iter().flat_map(|result| &result.topics) {
            *sums.entry(topic.clone()).or_default() += values[m];
        }
        sums.into_iter().map(|(topic, sum)| (topic, sum / n)).collect()
    };
    let means = |result: &Evaluation| names.iter().cloned().zip(result.means.iter().copied()).collect();
    let mean = |m: usize| results.iter().map(|result| result.means[m]).sum::<f64>() / n;
    let largest = study.folds.iter().map(|fold| fold.train.len()).max();
    Ok(Cell {
        arm: arm.to_owned(),
        train_topics: topics.or(largest),
        all_topics: topics.is_none(),
        means: names.iter().cloned().enumerate().map(|(m, name)| (name, mean(m))).collect(),
        repeats: if results.len() > 1 { results.iter().map(means).collect() } else { Vec::new() },
        per_topic: names.iter().cloned().enumerate().map(|(m, name)| (name, column(m))).collect(),
    })
}

fn training(arms: &[Arm]) -> Result<Vec<Training>> {
    let named = arms.iter().filter_map(|arm| Some((arm, arm.metrics.as_ref()?)));
    named
        .map(|(arm, path)| {
            let metrics = fs::canonicalize(path).map_err(|e| Error::io("read", path, e))?;
            Ok(Training { name: arm.name.clone(), metrics })
        })
        .collect()
}

fn facts(study: &Study) -> Result<Vec<(String, String)>> {
    let config = study.config;
    let topics: usize = study.folds.iter().map(|fold| ranked(config, fold).len()).sum();
    let first = Run::read(Config::need("data.run", &config.data.run)?)?;
    let folds = config.data.folds.as_ref().map_or("drawn, folds.json".into(), |p| p.display().to_string());
    Ok(vec![
        ("topics".into(), topics.to_string()),
        ("seeds".into(), format!("{} from {}", config.fine.seeds, config.seed)),
        ("folds".into(), format!("{} ({folds})", study.folds.len())),
        ("ranked".into(), format!("{:?} topics of each fold", config.experiment.split).to_lowercase()),
        ("first stage".into(), first.tag().unwrap_or("unknown").to_owned()),
        (
            "program".into(),
            format!("ctune-dist {} ({})", env!("CARGO_PKG_VERSION"), env!("CTUNE_CODE_VERSION")),
        ),
        ("plan".into(), config.to_toml()?),
    ])
}

/// A name for files: letters and digits, the rest dashes.
fn slug(name: &str) -> String {
    let dash = |c: char| if c.is_alphanumeric() { c } else { '-' };
    name.to_lowercase().chars().map(dash).collect::<String>().trim_matches('-').to_owned()
}
