//! A study from one plan: arms x numbers of training topics x folds. Every task is one small fine-tuning on
//! one rank, so ranks work side by side. Finished tasks are kept, so an interrupted study continues where it
//! stopped. It ends with the table and the report.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::fold::{Study, StudySettings};
use super::inputs::make_folder;
use super::outcome::{FIRST_STAGE, ZERO_SHOT, conclude};
use super::task::{run_task, slug, tasks};
use crate::config::{Arm, Config, Experiment};
use crate::ranks::{Distributed, World};
use crate::run::checkpoints::Identity;
use crate::run::engine::{announce, on_engine};
use crate::run::{agreement, directory, resume, signals};
use crate::text::Tokenizer;
use crate::train::metrics::duration;
use crate::{Error, Result};

/// Runs the study of `config` on every rank of `world`.
pub fn run(config: &Config, world: &World) -> Result<()> {
    on_engine!(config, world, engine => run_on(&engine, config, world))
}

fn run_on<E: Distributed>(engine: &E, config: &Config, world: &World) -> Result<()> {
    let arms = &config.experiment.arms;
    let Some(first) = arms.first() else {
        return Err(Error::config("experiment.arms is empty: name at least one [[experiment.arms]]"));
    };
    check_arms(&config.experiment)?;
    world.same(|| {
        let arm = |arm: &Arm| agreement::contents(&format!("the model of arm {:?}", arm.name), &arm.model);
        arms.iter().map(arm).collect()
    })?;
    let dir = &config.run.out;
    world.agree(world.leads().then(|| resume::check_command(dir, "experiment")))?;
    let _lock = directory::lock(dir, world)?;
    // Every task says what its result depends on, so a study may change and keep what still holds.
    let plan = resume::plan_of(config, &[])?;
    let identity = Identity { command: "experiment".into(), data: String::new(), plan };
    directory::create(config, &identity, &[("arms", json!(arms.len()))], world)?;
    let sources = config.documents()?;
    let study = Study::read(StudySettings::new(config, &sources), &first.model, dir, world)?;
    let tasks = tasks(&config.experiment, config.fine.seeds, study.folds.len());
    announce(engine, world);
    signals::listen()?;
    let start = std::time::Instant::now();
    let claims = dir.join(CLAIMS);
    world.agree(world.leads().then(|| empty_folder(&claims)))?;
    for (i, task) in tasks.iter().enumerate() {
        if claim(&claims, i)? {
            let done = run_task(engine, &study, config.experiment.split, task, dir);
            if let Err(error @ Error::Preempted(_)) = &done {
                world.fail(error); // the other ranks are busy with other tasks: there is nothing to agree on
            }
            done?;
        }
        if world.leads() && (i + 1) % 10 == 0 {
            tell!("task {}/{} | {}", i + 1, tasks.len(), duration(start.elapsed().as_secs_f64()));
        }
    }
    world.barrier();
    world.agree(world.leads().then(|| remove_folder(&claims)))?;
    world
        .agree(world.leads().then(|| conclude(&config.experiment, &study, &tasks, config.to_toml()?, dir)))?;
    Ok(())
}

/// Folder of claimed tasks. A rank that is done takes the next free task, so no rank waits for another's long
/// task, and kept tasks cost their rank nothing.
const CLAIMS: &str = "claims";

fn empty_folder(dir: &Path) -> Result<()> {
    remove_folder(dir)?; // left by an interrupted study
    make_folder(dir)
}

fn remove_folder(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removed", dir, cause)),
        _ => Ok(()),
    }
}

/// Claims a task: the rank that creates its file owns it.
fn claim(dir: &Path, task: usize) -> Result<bool> {
    let path = dir.join(task.to_string());
    match fs::File::create_new(&path) {
        Ok(_) => Ok(true),
        Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(cause) => Err(Error::io("created", &path, cause)),
    }
}

/// All arms must share one vocabulary, since documents are tokenised once.
fn check_arms(experiment: &Experiment) -> Result<()> {
    let arms = &experiment.arms;
    let first = Tokenizer::load(&arms[0].model)?;
    for arm in arms {
        if !Tokenizer::load(&arm.model)?.same_tokens(&first) {
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
    match &experiment.baseline {
        Some(name) if arms.iter().all(|arm| arm.name != *name) => {
            Err(Error::config(format!("experiment.baseline = {name:?} is not one of the arms")))
        }
        _ => Ok(()),
    }
}
