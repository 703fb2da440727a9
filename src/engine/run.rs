//! What an engine is: a device that runs every operation of `op`. What every engine does around each
//! operation is written here once.

use super::device::Device;
use super::op::{self, Operation, Written};
use super::segment::Segment;
use crate::{Error, Result};

/// A device that computes one operation.
pub trait Compute<O>: Device {
    /// Computes `op`, or queues it. Callers use `Engine::run`.
    fn compute(&self, op: &mut O) -> Result<()>;
}

macro_rules! engine {
    ($($op:ident,)*) => {
        /// A device that runs every operation.
        pub trait Engine: Device $(+ for<'a> Compute<op::$op<'a, Self>>)* {
            /// Runs `op`.
            fn run<O: Operation<Self>>(&self, mut op: O) -> Result<()>
            where
                Self: Compute<O>,
            {
                self.compute(&mut op)?;
                if self.watch().is_set() { look(self, &op) } else { Ok(()) }
            }

            /// Runs the operations of a segment, which `work` queues, or replays them.
            fn segment(&self, segment: Segment, mut work: impl FnMut() -> Result<()>) -> Result<()> {
                self.watch().enter(Some(segment));
                // checking results waits for them, which a recording cannot do
                let done = if self.watch().is_set() { work() } else { self.replay(segment, &mut work) };
                self.watch().enter(None);
                done
            }
        }

        impl<D: Device $(+ for<'a> Compute<op::$op<'a, D>>)*> Engine for D {}
    };
}
op::operations!(engine);

/// # Errors
/// `Error::Data` when `op` wrote a value that is not finite.
fn look<D: Device>(device: &D, op: &dyn Operation<D>) -> Result<()> {
    let Some(Written { values, rows, width }) = op.written() else { return Ok(()) };
    let looked_at = rows.count() * width;
    if looked_at == 0 {
        return Ok(());
    }
    match device.non_finite(values, looked_at)? {
        0 => Ok(()),
        found => Err(Error::data(format!(
            "{}{}: {found} of {looked_at} values are not finite, and earlier operations had none; lower \
             train.lr, or check the weights of model.path",
            device.watch().place(),
            op.name()
        ))),
    }
}
