//! Values that may still be on their way from the device, so that a training loop reads a step's
//! losses while the device already works on the next step.

use crate::Result;

/// Device values for the host; `wait` hands them over.
pub struct Fetch(Box<dyn FnOnce() -> Result<Vec<f32>>>);

impl Fetch {
    /// Values that have arrived.
    pub fn here(values: Vec<f32>) -> Self {
        Self(Box::new(move || Ok(values)))
    }

    /// Values that `arrive` waits for.
    pub fn later(arrive: impl FnOnce() -> Result<Vec<f32>> + 'static) -> Self {
        Self(Box::new(arrive))
    }

    /// The values; waits for nothing else.
    pub fn wait(self) -> Result<Vec<f32>> {
        (self.0)()
    }
}
