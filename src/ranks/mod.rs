//! The processes of a run. `world` says who a process is and carries small agreements, `reduce` sums
//! gradients over MPI and `nccl` over NCCL, `watchdog` ends the job when a rank is gone or stuck, judging by
//! its `beat`.

mod beat;
mod nccl;
mod reduce;
mod same;
mod watchdog;
mod world;

pub use beat::{Beat, Look, late};
pub use nccl::version as nccl_version;
pub use reduce::{Collective, Distributed, MpiCollective, pieces};
pub use same::Facts;
pub use watchdog::{Address, OnEnd, Verdict, Watchdog};
pub use world::{World, launched_rank, speaks};
