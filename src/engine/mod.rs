//! One device's arithmetic behind two traits, so that forward, backward and the training loop are written
//! once. `Device` is memory, transfers and packs; `Engine` is a device that runs every operation of `op`.
//! Neither knows a model. There are three: `cpu`, `cuda`, and `dry`, which only counts.
//!
//! Conventions, the same for every implementation:
//! * matrices are row-major; a linear layer's weight is [N, K] (out, in) as Hugging Face stores it;
//! * parameters and their gradients live in flat arenas, addressed by offset (`op::LinearAt`, ...);
//!   gradients are f32 and are *added to* (several packs accumulate into one step);
//! * each activation is one buffer, allocated once at its largest size; every operation takes the row count
//!   it works on and never touches rows after it;
//! * nothing here allocates per call in a way that the caller can see, waits for the host, or
//!   depends on how samples were packed: a row's result depends on its own sequence alone;
//! * reductions have a fixed order: the same call gives the same bits.
//!
//! Symbols T, S, M, H, I, A, D, V are those of `model/shape.rs`.

mod card;
pub mod cases;
mod counts;
pub mod cpu;
pub mod cuda;
mod device;
pub mod dry;
mod fetch;
pub mod op;
mod pack;
mod real;
mod run;
mod segment;
pub mod stats;
mod watch;

pub use card::Card;
pub use counts::{PackCounts, Rows};
pub use device::{Device, Floats, Memory, Reals, Words};
pub use fetch::Fetch;
pub use op::{Cost, Operation};
pub use pack::DeviceBatch;
pub use real::{Elem, Real};
pub use run::{Compute, Engine};
pub use segment::Segment;
pub use watch::Watch;
