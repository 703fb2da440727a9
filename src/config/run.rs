//! `[run]`: where and how a plan is carried out.

use std::path::PathBuf;

use super::keys::{above_to, choice, keys, section};

section! {
    /// Where and how the plan is carried out.
    pub struct Run {
        /// Run directory.
        pub out: PathBuf = "runs/run".into();
        /// Where the arithmetic is done.
        pub device: Device = Device::Auto;
        /// Steps between two lines on the terminal. 0 prints none.
        pub log_every: u64 = 10;
        /// Seconds without progress after which the job is ended and the late rank named.
        pub hang_limit_s: f64 = 600.0, within above_to(0.0, 1e9);
        /// GPU: record the segments of a step once and replay them.
        pub graph: bool = true;
        /// Steps between two debug steps, of which the first NaN is traced to the operation that made it and the
        /// gradient of the first pack is compared with the reference model's. 0 is off.
        pub check: u64 = 0;
    }
}

choice! {
    /// Where the arithmetic is done.
    #[derive(clap::ValueEnum)]
    pub enum Device {
        /// A GPU where there is a usable one, else the CPU.
        Auto = "auto",
        /// The CPU.
        Cpu = "cpu",
        /// A GPU; an error where there is none.
        Cuda = "cuda",
    }
}
