//! Retrieval and measuring. Every value here comes from outside the project: trec_eval's published
//! outputs, hand-computed cases, textbook examples.

mod evaluate;
mod files;
mod measures;
mod odd;
mod retrieval;
mod statistics;

use std::path::PathBuf;

use ctune_dist::ir::measures::{Evaluation, Measure, Options, evaluate};
use ctune_dist::ir::qrels::Qrels;
use ctune_dist::ir::run::Run;

use crate::skip::shared;

/// A file with this content, kept as long as the folder.
fn file(folder: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn qrels_of(content: &str) -> Qrels {
    let folder = folder();
    Qrels::read(&file(&folder, "qrels", content)).unwrap()
}

fn run_of(content: &str) -> Run {
    let folder = folder();
    Run::read(&file(&folder, "run", content)).unwrap()
}

fn measured(qrels: &str, run: &str, names: &[&str], options: &Options) -> Evaluation {
    let measures = names.iter().map(|name| name.parse().unwrap()).collect::<Vec<Measure>>();
    evaluate(&qrels_of(qrels), &run_of(run), &measures, options).unwrap()
}
