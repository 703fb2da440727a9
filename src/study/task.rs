//! The tasks of an experiment: which ones there are, where their results are kept, and what a kept result
//! must have been made from to still count.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fold::{BaseModel, FoldTask, Study, StudySettings};
use super::inputs::make_folder;
use crate::Result;
use crate::config::{Arm, Experiment, Fine, Split};
use crate::files;
use crate::ir::folds::Fold;
use crate::model::checkpoint;
use crate::ranks::{Distributed, World};

/// One fine-tuning.
pub struct Task<'a> {
    pub arm: &'a Arm,
    /// Training topics; `None` means all of the fold's.
    pub topics: Option<usize>,
    fold: usize,
    /// Number of the repetition, from 0.
    pub repeat: u32,
}

impl Task<'_> {
    /// Folder of the task below the experiment's.
    pub fn dir(&self, out: &Path) -> PathBuf {
        let mut dir = out.join("tasks").join(slug(&self.arm.name)).join(size_name(self.topics));
        if self.repeat > 0 {
            dir = dir.join(format!("repeat-{}", self.repeat + 1));
        }
        dir.join(format!("fold-{}", self.fold + 1))
    }
}

/// All tasks, largest first, so that ranks finish at about the same time.
pub fn tasks(settings: &Experiment, seeds: u32, folds: usize) -> Vec<Task<'_>> {
    let mut sizes: Vec<Option<usize>> = settings.train_topics.iter().copied().map(Some).collect();
    sizes.push(None);
    sizes.sort_by_key(|size| std::cmp::Reverse(size.unwrap_or(usize::MAX)));
    sizes.dedup();
    let mut tasks = Vec::new();
    for &topics in &sizes {
        // without fine-tuning, only the draw of a new head can be repeated
        for repeat in 0..seeds {
            for arm in &settings.arms {
                tasks.extend((0..folds).map(|fold| Task { arm, topics, fold, repeat }));
            }
        }
    }
    tasks
}

/// Topics that a task ranks.
pub fn ranked(split: Split, fold: &Fold) -> Vec<String> {
    match split {
        Split::Test => fold.test.clone(),
        Split::Validation => fold.validation.clone(),
    }
}

/// Runs a task below `out`, on this rank alone, unless its result is there already.
pub fn run_task<E: Distributed>(
    engine: &E,
    study: &Study,
    split: Split,
    task: &Task,
    out: &Path,
) -> Result<()> {
    let dir = task.dir(out);
    let (run_path, about_path) = (dir.join("run.txt"), dir.join("task.json"));
    let about = format!("{:#}\n", describe(study, split, task)?);
    if run_path.exists() && fs::read_to_string(&about_path).is_ok_and(|text| text == about) {
        return Ok(());
    }
    make_folder(&dir)?;
    let fold = &study.folds[task.fold];
    let base = BaseModel { path: &task.arm.model, head: task.arm.start };
    let ranked = ranked(split, fold);
    let seed = seed(study, task);
    let fold_task = FoldTask { fold, topics: task.topics, ranked: &ranked, dir: &dir, seed };
    let (_, run) = study.run_fold(engine.clone(), base, &fold_task, &World::solo())?;
    run.write(&run_path, &slug(&task.arm.name))?;
    files::write(&about_path, about.as_bytes())
}

fn seed(study: &Study, task: &Task) -> u32 {
    study.settings.seed.wrapping_add(task.repeat)
}

/// Everything that a task's result depends on: a kept result counts only if all of this is the same.
fn describe(study: &Study, split: Split, task: &Task) -> Result<Value> {
    let StudySettings { data, train, fine, .. } = study.settings;
    let fold = &study.folds[task.fold];
    Ok(json!({
        "arm": task.arm,
        "weights_crc32": checkpoint::fingerprint(&task.arm.model)?,
        "inputs": study.inputs,
        "topics": task.topics,
        "fold": [fold.train, fold.validation, fold.test],
        "split": split,
        "seed": seed(study, task),
        "data": data,
        "train": train,
        "fine": Fine { seeds: 1, ..fine.clone() }, // the number of repetitions changes no result
    }))
}

/// The number of training topics as names of files and folders have it.
pub fn size_name(topics: Option<usize>) -> String {
    topics.map_or("all".into(), |n| n.to_string())
}

/// A name as files have it: letters and digits stay, anything else becomes a dash.
pub fn slug(name: &str) -> String {
    let dash = |c: char| if c.is_alphanumeric() { c } else { '-' };
    name.to_lowercase().chars().map(dash).collect::<String>().trim_matches('-').to_owned()
}
