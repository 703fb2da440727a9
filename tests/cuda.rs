//! The whole GPU path on the software device: single kernels, the engine in this process, and the program as
//! users start it.

mod attention;
mod buffers;
mod counted;
mod engine;
mod losses;
mod mask;
mod memory;
mod optimiser;
mod program;
mod rows;
mod signatures;
mod streams;
mod support;
mod survive;
mod tuned;
