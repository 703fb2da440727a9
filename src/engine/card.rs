//! Facts about a GPU, known without asking a driver: speeds are compared with them, and launches depend on
//! them.

/// A card's sizes and speeds.
#[derive(Clone, Debug, Default)]
pub struct Card {
    pub name: String,
    /// Compute capability.
    pub arch: (i32, i32),
    pub multiprocessors: i32,
    /// Bytes of its memory.
    pub memory: usize,
    /// Bytes of shared memory that one block may use.
    pub shared: usize,
    /// Memory bandwidth in bytes a second, from clock and bus width (2 transfers a clock).
    pub bandwidth: f64,
    /// Multiprocessors' clock in Hz, at its highest.
    pub clock: f64,
}

impl Card {
    /// Peak FLOP/s of dense products with sums in f32: bf16 on tensor cores (`narrow`), or f32 without them.
    /// It is the clock times NVIDIA's data-sheet figure for a multiprocessor and clock; 0 where the sheets
    /// give none (tensor cores of workstation cards differ by a factor of two from others of the same
    /// capability).
    pub fn flops(&self, narrow: bool) -> f64 {
        let [single, tensor] = match self.arch {
            (8, 0) => [128, 2048],
            (8, _) | (12, _) => [256, 0],
            (9, 0) => [256, 4096],
            (10, 0) => [256, 8192],
            _ => [0, 0],
        };
        self.clock * f64::from(self.multiprocessors) * f64::from(if narrow { tensor } else { single })
    }
}
