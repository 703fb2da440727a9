//! Which topics train, validate and test: from a fold file, or drawn and kept.

use std::collections::HashSet;
use std::path::Path;

use crate::data::collection::TopicUse;
use crate::ir::folds::{Fold, make_folds, read_folds, write_folds};
use crate::ranks::World;
use crate::{Error, Result};

/// The folds of a file without unusable topics, and a line for each kind of topic that only the file or only
/// the collection has.
///
/// # Errors
/// `Error::Data` when a fold is left without a training or test topic (or, if training is to `validate`,
/// without a validation topic), or two folds test the same topic.
pub fn folds_from_file(path: &Path, topics: &TopicUse, validate: bool) -> Result<(Vec<Fold>, String)> {
    let mut folds = read_folds(path)?;
    let usable: HashSet<&String> = topics.usable.iter().collect();
    let known: HashSet<&String> = topics.in_topics_file().collect();
    let mut foreign: Vec<String> = Vec::new();
    let mut tested = HashSet::new();
    for (i, fold) in folds.iter_mut().enumerate() {
        for list in [&mut fold.train, &mut fold.validation, &mut fold.test] {
            foreign.extend(list.iter().filter(|topic| !known.contains(topic)).cloned());
            list.retain(|topic| usable.contains(topic));
        }
        let wrong = |text: String| Error::data(format!("{}: fold {} {text}", path.display(), i + 1));
        if fold.train.is_empty() || fold.test.is_empty() {
            return Err(wrong(
                "has no usable training or test topic: the file belongs to other topics".into(),
            ));
        }
        if validate && fold.validation.is_empty() {
            return Err(wrong("has no usable validation topic, which fine.validate_every needs".into()));
        }
        if let Some(topic) = fold.test.iter().find(|topic| !tested.insert((*topic).clone())) {
            return Err(wrong(format!("tests topic {topic}, which another fold tests too")));
        }
    }
    foreign.sort_unstable();
    foreign.dedup();
    let untested: Vec<&str> =
        topics.usable.iter().filter(|topic| !tested.contains(*topic)).map(String::as_str).collect();
    let mut lines = String::new();
    if !foreign.is_empty() {
        lines += &format!(
            "{} topics of the folds are not in the topics file: {}\n",
            foreign.len(),
            foreign.join(" ")
        );
    }
    if !untested.is_empty() {
        lines += &format!("{} usable topics are tested by no fold: {}\n", untested.len(), untested.join(" "));
    }
    Ok((folds, lines))
}

/// `k` folds over the usable topics, kept in `dir/folds.json`.
///
/// # Errors
/// `Error::Config` when there are too few topics for `k` folds.
pub fn drawn_folds(k: usize, seed: u32, usable: &[String], dir: &Path, world: &World) -> Result<Vec<Fold>> {
    if k < 3 || k > usable.len() {
        return Err(Error::config(format!(
            "fine.folds = {k}: must be at least 3 (training, validation, test) and at most the {} usable topics",
            usable.len()
        )));
    }
    let folds = make_folds(usable, k, seed);
    world.agree(world.leads().then(|| write_folds(&dir.join("folds.json"), &folds)))?;
    Ok(folds)
}
