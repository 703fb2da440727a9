//! Which topics train, validate and test: from a fold file, or drawn and kept.

use std::path::Path;

use crate::config::Config;
use crate::dist::World;
use crate::ir::folds::{Fold, make_folds, read_folds, write_folds};
use crate::{Error, Result};

/// The folds of a file, without the topics that cannot be used.
///
/// # Errors
/// `Error::Data` when a fold is left without a training or a test topic.
pub fn folds_from_file(path: &Path, usable: &[String]) -> Result<Vec<Fold>> {
    let mut folds = read_folds(path)?;
    let known = |topic: &String| usable.contains(topic);
    for (i, fold) in folds.iter_mut().enumerate() {
        for list in [&mut fold.train, &mut fold.validation, &mut fold.test] {
            list.retain(known);
        }
        if fold.train.is_empty() || fold.test.is_empty() {
            return Err(Error::data(format!(
                "{}: fold {} has no usable training or test topic: the file belongs to other topics",
                path.display(),
                i + 1
            )));
        }
    }
    Ok(folds)
}

/// `fine.folds` folds over the usable topics, kept in `dir/folds.json`.
///
/// # Errors
/// `Error::Config` when there cannot be so many.
pub fn drawn_folds(config: &Config, usable: &[String], dir: &Path, world: &World) -> Result<Vec<Fold>> {
    let k = config.fine.folds;
    if k < 3 || k > usable.len() {
        return Err(Error::config(format!(
            "fine.folds = {k}: must be at least 3 (training, validation, test) and at most the {} usable topics",
            usable.len()
        )));
    }
    let folds = make_folds(usable, k, config.seed);
    world.agree(world.leads().then(|| write_folds(&dir.join("folds.json"), &folds)))?;
    Ok(folds)
}
