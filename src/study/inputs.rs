//! What fine-tuning reads besides a collection, and the fingerprint of everything that it reads.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{Config, Fine, Source};
use crate::data::collection::Collection;
use crate::ir::run::Run;
use crate::ranks::Facts;
use crate::run::checkpoints::Identity;
use crate::run::{agreement, resume};
use crate::{Error, Result};

/// The teacher's scores to learn from; every one must be a number.
pub fn read_teacher(path: &Path) -> Result<Run> {
    let run = Run::read(path)?;
    for topic in run.topics() {
        let odd = run.get(topic).unwrap_or_default().iter().find(|hit| !(hit.score as f32).is_finite());
        if let Some(hit) = odd {
            return Err(Error::data(format!(
                "{}: topic '{topic}', document '{}': the score {} cannot be learnt from",
                path.display(),
                hit.doc,
                hit.score
            )));
        }
    }
    Ok(run)
}

/// Topic -> the first `depth` documents of the run at `path`.
pub fn hard_negatives(path: &Path, depth: usize) -> Result<HashMap<String, Vec<String>>> {
    let run = Run::read(path)?;
    let first = |topic: &str| {
        let hits = run.get(topic).unwrap_or_default().iter().take(depth);
        (topic.to_owned(), hits.map(|hit| hit.doc.to_string()).collect())
    };
    Ok(run.topics().map(first).collect())
}

/// What ranks must find equal: the contents of files under some keys, and the size of documents.
pub fn facts(read: &[(&str, &Option<PathBuf>)], sources: &[Source]) -> Result<Facts> {
    let named = read.iter().filter_map(|(key, path)| Some((*key, path.as_deref()?)));
    let mut facts: Facts = named.map(|(key, path)| agreement::contents(key, path)).collect::<Result<_>>()?;
    let mut bytes = 0;
    for path in sources.iter().map(Source::files).collect::<Result<Vec<_>>>()?.concat() {
        bytes += fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?.len();
    }
    facts.push(("the size of the documents".into(), format!("{bytes} bytes")));
    Ok(facts)
}

/// What identifies a fine-tuning: the plan, and the contents of what it reads. Of documents only the size
/// counts, as there may be gigabytes of them.
pub fn identity(config: &Config, sources: &[Source], model: &Path) -> Result<Identity> {
    let mut sum = crc32fast::Hasher::new();
    let (data, fine) = (&config.data, &config.fine);
    let read = [&data.topics, &data.qrels, &data.run, &data.folds, &fine.negatives_run, &fine.teacher];
    for path in read.into_iter().flatten() {
        add_contents(path, &mut sum)?;
    }
    for source in sources {
        for path in source.files()? {
            let size = fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?.len();
            sum.update(&size.to_le_bytes());
        }
    }
    add_contents(&model.join("model.safetensors"), &mut sum)?;
    let unused = ["objective", "experiment.arms", "experiment.train_topics", "data.shards"];
    Ok(Identity {
        command: "fine".into(),
        data: format!("{:08x}", sum.finalize()),
        plan: resume::plan_of(config, &unused)?,
    })
}

/// CRC-32 of everything that a study's task reads besides weights and folds: the documents' tokens, not their
/// files.
pub fn fingerprint(fine: &Fine, qrels: &Path, collection: &Collection) -> Result<u32> {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&collection.fingerprint().to_le_bytes());
    let runs = [&fine.negatives_run, &fine.teacher];
    for path in runs.into_iter().flatten().map(|path| path.as_path()).chain([qrels]) {
        add_contents(path, &mut sum)?;
    }
    Ok(sum.finalize())
}

/// Adds a file, or the files of a folder by name (CEDR's folds are a folder).
fn add_contents(path: &Path, sum: &mut crc32fast::Hasher) -> Result<()> {
    let failed = |e| Error::io("read", path, e);
    if !path.is_dir() {
        sum.update(&fs::read(path).map_err(failed)?);
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(failed)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = entries.collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
    files.retain(|file| file.is_file());
    files.sort();
    files.iter().try_for_each(|file| add_contents(file, sum))
}

/// Makes a folder with its parents.
pub fn make_folder(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("created", dir, e))
}
