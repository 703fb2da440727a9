//! What meets the cases, what they leave, and the visitor that keeps it.

use std::ops::Range;

use super::sizes::Sizes;
use crate::Result;
use crate::engine::{Compute, Engine, Floats, Operation, Reals, Words};

/// What meets the cases.
pub trait Visitor<E: Engine> {
    /// Whether it wants this operation at these sizes: not every engine has every size.
    fn wants(&self, op: &str, sizes: &Sizes) -> bool {
        let _ = (op, sizes);
        true
    }

    /// Meets an operation with its operands in place; it may run it more than once.
    fn meet<O>(&mut self, engine: &E, case: &'static str, op: O) -> Result<()>
    where
        O: Operation<E>,
        E: Compute<O>;

    /// Meets `values[range]`, a result of the operation that it has met last.
    fn left(
        &mut self,
        engine: &E,
        what: &'static str,
        values: Left<'_, E>,
        range: Range<usize>,
    ) -> Result<()>;
}

/// A buffer that an operation has left.
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

/// What one operation left behind.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub op: &'static str,
    /// The case and which of its results.
    pub name: String,
    pub values: Vec<f32>,
}

/// A visitor that runs every operation once and keeps what it leaves.
#[derive(Debug, Default)]
pub struct Keep {
    pub outcomes: Vec<Outcome>,
    /// Operations that the engine does not have at the sizes.
    pub left_out: Vec<&'static str>,
    last: (&'static str, &'static str),
    /// Whether a size has kernels on a GPU is asked for.
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
        !self.gpu || !op.starts_with("attention") || sizes.attends_on_gpu()
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
