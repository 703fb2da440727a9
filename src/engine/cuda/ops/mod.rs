//! One launcher for each operation: grid, block and arguments of its kernels. Launches cover `Gpu::capacity`
//! rows; kernels read the true count from `Gpu::counts`. What a kernel needs beyond its operation's minimum
//! (`Gpu::needs`) is noted beside its launch.

mod attention;
mod heads;
mod linear;
mod mask;
mod mlm;
mod ranking;
mod rows;
mod tables;
mod update;

pub use attention::dq_sums;

use super::launch::Arg;
use crate::engine::op::Dropout;

/// A dropout site as the last four arguments of a kernel.
fn dropout_args(drop: Dropout) -> [Arg; 4] {
    [Arg::U32(drop.threshold), Arg::F32(drop.scale), Arg::U32(drop.seed), Arg::U32(drop.site)]
}
