//! The trait of whatever runs the cases, the results of a case, and a visitor that keeps them.

use std::ops::Range;

use super::sizes::Sizes;
use crate::Result;
use crate::engine::{Compute, Engine, Floats, Operation, Reals, Words};

/// Something that runs the cases.
pub trait Visitor<E: Engine> {
    /// Whether to run this operation at these sizes: not every engine supports every size.
    fn wants(&self, op: &str, sizes: &Sizes) -> bool {
        let _ = (op, sizes);
        true
    }

    /// Called with each operation, whose operands are in place; may run it more than once.
    fn meet<O>(&mut self, engine: &E, case: &'static str, op: O) -> Result<()>
    where
        O: Operation<E>,
        E: Compute<O>;

    /// Called with `values[range]`, a result of the last operation.
    fn left(
        &mut self,
        engine: &E,
        what: &'static str,
        values: Left<'_, E>,
        range: Range<usize>,
    ) -> Result<()>;
}

/// A buffer that an operation has written.
pub enum Left<'a, E: Engine> {
    Reals(&'a Reals<E>),
    Floats(&'a Floats<E>),
    Words(&'a Words<E>),
}

impl<E: Engine> Left<'_, E> {
    /// The values, on the host as f32 (indices are below 2^24).
    pub fn values(&self, engine: &E, range: Range<usize>) -> Result<Vec<f32>> {
        Ok(match self {
            Self::Reals(values) => engine.download_weights(values, range)?,
            Self::Floats(values) => engine.download(values, range)?,
            Self::Words(values) => {
                engine.download(values, range)?.into_iter().map(|word| word as f32).collect()
            }
        })
    }
}

/// One result of one operation.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub op: &'static str,
    /// The case and which of its results.
    pub name: String,
    pub values: Vec<f32>,
}

/// A visitor that runs every operation once and keeps its results.
#[derive(Debug, Default)]
pub struct Keep {
    pub outcomes: Vec<Outcome>,
    /// Operations that the engine does not support at these sizes.
    pub left_out: Vec<&'static str>,
    last: (&'static str, &'static str),
    /// Leave out sizes for which the GPU has no kernels.
    gpu: bool,
}

impl Keep {
    /// For a GPU, where not every head size has kernels.
    pub fn on_gpu() -> Self {
        Self { gpu: true, ..Self::default() }
    }
}

impl<E: Engine> Visitor<E> for Keep {
    fn wants(&self, op: &str, sizes: &Sizes) -> bool {
        !self.gpu || sizes.runs_on_gpu(op)
    }

    fn meet<O>(&mut self, engine: &E, case: &'static str, op: O) -> Result<()>
    where
        O: Operation<E>,
        E: Compute<O>,
    {
        self.last = (op.name(), case);
        engine.run(op)
    }

    fn left(
        &mut self,
        engine: &E,
        what: &'static str,
        values: Left<'_, E>,
        range: Range<usize>,
    ) -> Result<()> {
        let (op, case) = self.last;
        let name = if what.is_empty() { case.to_owned() } else { format!("{case}: {what}") };
        self.outcomes.push(Outcome { op, name, values: values.values(engine, range)? });
        Ok(())
    }
}
