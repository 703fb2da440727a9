//! Weights that are not finite are not kept: no checkpoint with one is marked complete, no model is saved,
//! and no run ends as done. A finite gradient does not rule them out: too large a step overflows.

use crate::engine::Engine;
use crate::model::Bert;
use crate::ranks::World;
use crate::{Error, Result};

/// How many weights are NaN or infinite, the most of any rank; waits for the device. Every rank learns the same.
pub fn count<E: Engine>(model: &Bert<E>, world: &World) -> Result<usize> {
    let own = world.agree_all(model.engine.non_finite(&model.weights, model.layout.len))?;
    Ok(world.gather_f64(&[own as f64]).into_iter().fold(0.0, f64::max) as usize)
}

/// # Errors
/// `Error::Data` if a weight of any rank is not finite; `at` says how far training has got.
pub fn check<E: Engine>(model: &Bert<E>, at: &str, world: &World) -> Result<()> {
    match count(model, world)? {
        0 => Ok(()),
        found => Err(Error::data(format!(
            "{at}: {found} of {} weights are not finite, so nothing is saved: lower train.lr, set train.clip_norm, or \
             check the weights of model.path",
            model.layout.len
        ))),
    }
}
