//! The GPU path, run whole on the software device: the engine in this process, and the program as
//! users start it.

mod engine;
mod mask;
mod optimiser;
mod program;
mod rows;
mod support;
