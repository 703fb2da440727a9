//! `[checkpoint]`: when a run's state is saved.

use super::keys::{keys, section};

section! {
    /// When a run's state is saved. It is also saved at the end and when a signal asks the run to stop.
    pub struct Checkpoint {
        /// Minutes between two checkpoints, by the clock of rank 0. 0 leaves it to `every_steps`.
        pub every_minutes: f64 = 15.0, within 0.0..=1e9;
        /// Steps between two checkpoints. 0 leaves it to `every_minutes`.
        pub every_steps: u64 = 0;
        /// Checkpoints that are kept besides the best one. The best one has the lowest validation loss or, without
        /// validation, the lowest mean training loss since the one before it.
        pub keep: usize = 2, within 1..;
    }
}
