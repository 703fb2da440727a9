//! One set of cases of every operation: sizes, edges and seeds. `doctor` and the tests compare what they leave on
//! two engines, `bench` and the criterion benchmarks time them. Inputs are pure functions of a seed, rounded to
//! bf16, so that an engine in bf16 starts from the same numbers as one in f32.

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

/// Takes `visitor` to every operation at `sizes`.
///
/// # Errors
/// What the engine or the visitor reports.
pub fn visit<E: Engine>(engine: &E, sizes: &Sizes, visitor: &mut impl Visitor<E>) -> Result<()> {
    let mut room = Room::new(engine, sizes)?;
    pack::masking(&mut room, visitor)?;
    products::visit(&room, visitor)?;
    rows::visit(&room, visitor)?;
    heads::visit(&room, visitor)?;
    update::visit(&room, visitor)
}

/// What every operation leaves at `sizes`.
///
/// # Errors
/// What the engine reports.
pub fn outcomes<E: Engine>(engine: &E, sizes: &Sizes, mut keep: Keep) -> Result<Vec<Outcome>> {
    visit(engine, sizes, &mut keep)?;
    Ok(keep.outcomes)
}
