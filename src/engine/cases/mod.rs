//! One set of cases for every operation: sizes, edges and seeds. `doctor` and the tests compare their results
//! on two engines; `bench` and the criterion benchmarks time them. Inputs are pure functions of a seed,
//! rounded to bf16, so that an engine in bf16 starts from the same numbers as one in f32.

mod heads;
mod pack;
mod products;
mod rows;
mod sizes;
mod update;
mod visitor;

pub use pack::{Room, rule};
pub use sizes::Sizes;
pub use visitor::{Keep, Left, Outcome, Visitor};

use super::Engine;
use crate::Result;

/// Shows every operation at `sizes` to `visitor`.
///
/// # Errors
/// Any error of the engine or the visitor.
pub fn visit<E: Engine>(engine: &E, sizes: &Sizes, visitor: &mut impl Visitor<E>) -> Result<()> {
    let mut room = Room::new(engine, sizes)?;
    pack::masking(&mut room, visitor)?;
    products::visit(&room, visitor)?;
    rows::visit(&room, visitor)?;
    heads::visit(&room, visitor)?;
    update::visit(&room, visitor)
}

/// The results of every operation at `sizes`.
///
/// # Errors
/// Any error of the engine.
pub fn outcomes<E: Engine>(engine: &E, sizes: &Sizes, mut keep: Keep) -> Result<Vec<Outcome>> {
    visit(engine, sizes, &mut keep)?;
    Ok(keep.outcomes)
}
