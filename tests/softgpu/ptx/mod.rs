//! An interpreter of PTX: runs the very text that NVRTC makes of the project's kernels, so that what the
//! card's compiler understood is tested and not only what a host compiler did. Threads run one at a time
//! up to their next barrier or warp-wide instruction; every access is checked:
//!
//! * global memory: within one allocation, aligned;
//! * shared memory: within the block's, aligned, never while an asynchronous copy to it is under way,
//!   and ordered by a barrier (of the block, or of the warp) against other threads' accesses;
//! * barriers and warp-wide instructions: reached by all the lanes that they name.
//!
//! A fault names kernel, block, thread, source line and PTX line. What this cannot show: the bits of
//! approximate instructions (computed exactly here), the tensor cores' order of summation (in f64 here),
//! effects between blocks, and time. An instruction that it does not know is a fault, never a guess.

mod alu;
mod block;
mod decode;
mod instruction;
mod kernels;
mod memory;
mod parse;
mod planted;
mod warp;

pub use block::{Arg, Fault, Launch};
pub use memory::Device;
pub use parse::Module;
