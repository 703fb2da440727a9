//! The `fine` command: a model fine-tuned and ranked fold by fold, and the runs of all test folds joined and
//! measured.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use statrs::statistics::Statistics;

use super::fold::{BaseModel, FoldTask, Study, StudySettings};
use super::inputs::{facts, identity, make_folder};
use super::validator::mean;
use crate::Result;
use crate::config::{Config, need};
use crate::files;
use crate::ir::measures::{self, Measure, evaluate};
use crate::ir::run::Run;
use crate::model::checkpoint;
use crate::ranks::{Distributed, World};
use crate::run::engine::{announce, on_engine};
use crate::run::{directory, resume, signals};

/// Fine-tunes `model.path` on all folds in turn, each data-parallel over the ranks. Joins the test runs into
/// `run.txt` and writes the measures of all topics to `results.txt`.
pub fn run(config: &Config, world: &World) -> Result<()> {
    on_engine!(config, world, engine => run_on(&engine, config, world))
}

fn run_on<E: Distributed>(engine: &E, config: &Config, world: &World) -> Result<()> {
    let path = need("model.path", &config.model.path)?;
    announce(engine, world);
    let dir = &config.run.out;
    let sources = config.documents()?;
    let (data, fine) = (&config.data, &config.fine);
    let read = [
        ("data.topics", &data.topics),
        ("data.qrels", &data.qrels),
        ("data.run", &data.run),
        ("data.folds", &data.folds),
        ("fine.negatives_run", &fine.negatives_run),
        ("fine.teacher", &fine.teacher),
        ("model.path", &config.model.path),
    ];
    world.same(|| facts(&read, &sources))?;
    let identity = identity(config, &sources, path)?;
    let _lock = resume::lock(dir, world)?;
    if let resume::Start::Finished(text) = resume::decide(dir, &config.resume, &identity, world)? {
        if world.leads() {
            tell!("{text}");
        }
        return Ok(());
    }
    let facts = [("model", json!(path)), ("folds", json!(config.data.folds))];
    directory::create(config, &identity, &facts, world)?;
    let study = Study::read(StudySettings::new(config, &sources), path, dir, world)?;
    signals::listen()?;
    let mut repeats = Vec::new();
    for repeat in 0..config.fine.seeds {
        let folder = if repeat == 0 { dir.clone() } else { dir.join(format!("repeat-{}", repeat + 1)) };
        let seed = config.seed.wrapping_add(repeat);
        let mut joined = Run::default();
        for number in 1..=study.folds.len() {
            let fold = FoldRun { study: &study, model: path, number, dir: &folder, seed };
            joined.merge(fold.finish(engine, world)?)?;
        }
        let conclude = || finish(&config.experiment.measures, &study, &joined, &folder);
        repeats.extend(world.agree(world.leads().then(conclude))?);
    }
    let conclude = || {
        if repeats.len() > 1 {
            summarise(&repeats, dir)?;
        }
        files::write(&dir.join(resume::FINISHED), b"all folds\n")
    };
    world.agree(world.leads().then(conclude))?;
    Ok(())
}

/// A measure's name and mean.
type Mean = (String, f64);

/// Mean and standard deviation (n - 1) of every measure over repetitions, printed and kept.
fn summarise(repeats: &[Vec<Mean>], dir: &Path) -> Result<()> {
    let mut text = String::new();
    for (m, (name, _)) in repeats[0].iter().enumerate() {
        let values = || repeats.iter().map(|means| means[m].1);
        let (mean, deviation) = (values().mean(), values().std_dev());
        text.push_str(&format!("{name:<22}\tall\t{mean:6.4}\t{deviation:6.4}\n"));
    }
    tell_raw!("mean and standard deviation over {} seeds:\n{text}", repeats.len());
    files::write(&dir.join("seeds.txt"), text.as_bytes())
}

/// One fold of one repetition.
struct FoldRun<'a> {
    study: &'a Study<'a>,
    model: &'a Path,
    number: usize,
    /// Folder of the repetition.
    dir: &'a Path,
    seed: u32,
}

impl FoldRun<'_> {
    /// Runs the fold, or takes its result from an earlier start. A finished fold is kept; an interrupted one
    /// starts from its beginning, since folds take minutes and early stopping has its own state.
    fn finish<E: Distributed>(&self, engine: &E, world: &World) -> Result<Run> {
        let Self { study, model: path, number, seed, .. } = *self;
        let (fold, fine) = (&study.folds[number - 1], study.settings.fine);
        let folder = self.dir.join(format!("fold-{number}"));
        let (run_path, done) = (folder.join("run.txt"), folder.join(resume::FINISHED));
        let topics = format!("{:#}\n", json!([fold.train, fold.validation, fold.test]));
        // rank 0 decides: all ranks must do the same
        let kept =
            world.agree(world.leads().then(|| Ok(fs::read_to_string(&done).is_ok_and(|t| t == topics))))?;
        let mut word = String::from(if kept == Some(true) { "kept" } else { "" });
        world.broadcast_text(&mut word);
        if !word.is_empty() {
            if world.leads() {
                tell!("fold {number}: finished before, kept");
            }
            return Run::read(&run_path);
        }
        make_folder(&folder)?;
        let base = BaseModel { path, head: fine.start };
        let n = (fine.train_topics > 0).then_some(fine.train_topics);
        let task = FoldTask { fold, topics: n, ranked: &fold.test, dir: &folder, seed };
        let (model, run) = study.run_fold(engine.clone(), base, &task, world)?;
        let conclude = || {
            checkpoint::save(&model, &folder.join("model"), Some(path))?;
            run.write(&run_path, "ctune-dist")?;
            files::write(&done, topics.as_bytes())?;
            let measure: Measure = fine.measure.parse()?;
            tell!("fold {number}: {measure} {:.4} on its test topics", mean(&study.qrels, &run, measure)?);
            Ok(())
        };
        world.agree(world.leads().then(conclude))?;
        Ok(run)
    }
}

/// Writes and measures the joined run of a repetition.
fn finish(measures: &[String], study: &Study, joined: &Run, dir: &Path) -> Result<Vec<Mean>> {
    let path: PathBuf = dir.join("run.txt");
    joined.write(&path, "ctune-dist")?;
    let mut names = measures.to_vec();
    if !names.contains(&study.settings.fine.measure) {
        names.push(study.settings.fine.measure.clone());
    }
    let list = names.iter().map(|name| name.parse()).collect::<Result<Vec<Measure>>>()?;
    let result = evaluate(&study.qrels, joined, &list, &measures::Options::default())?;
    let mut text = String::new();
    for (measure, value) in list.iter().zip(&result.means) {
        text.push_str(&format!("{:<22}\tall\t{value:6.4}\n", measure.to_string()));
    }
    tell_raw!("all folds joined, {} topics: {}\n{text}", result.topics.len(), path.display());
    files::write(&dir.join("results.txt"), text.as_bytes())?;
    Ok(names.into_iter().zip(result.means).collect())
}
