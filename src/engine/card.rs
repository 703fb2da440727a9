//! What is known of a GPU without asking a driver: what speeds are compared with, and what launches depend on.

/// Facts of a card that speeds are compared with.
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
    /// FLOP/s of dense products with sums in f32, in bf16 on tensor cores (`narrow`) or in f32 without them:
    /// clock times what a multiprocessor does in a clock, by NVIDIA's data sheets; 0 where these do not say
    /// (tensor cores of workstation cards and of others with the same capability differ by a factor of two).
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
