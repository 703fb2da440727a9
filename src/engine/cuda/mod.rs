//! The GPU engine, on one NVIDIA card in f32 or bf16, through the driver, NVRTC and cuBLASLt, all found at
//! run time, so that one binary also starts on machines without them.
//!
//! `engine` holds what an engine is made of; the work is next to it: `device` (context, streams,
//! events), `buffer` (memory), `upload` (packs to the device, results back), `module` (kernels
//! compiled and cached), `launch` (starting them), `signatures` (what they take), `gemm` (products),
//! `graph` (recorded segments of a step), `ops` (one launcher for each operation), `memory` (the `Device`
//! trait).
//!
//! Order: every operation goes to the compute stream; packs arrive on the copy stream and sums over ranks run
//! on the communication stream, joined by events. The host waits for the device only when it asks for values.

mod arg;
mod buffer;
mod convert;
mod device;
mod engine;
pub mod gemm;
mod graph;
pub mod launch;
mod memory;
mod module;
mod ops;
pub mod signatures;
mod tables;
mod upload;

pub use arg::{Arg, ArgKind};
pub use buffer::CudaBuf;
pub use device::{Device, Event, Installed, Stream, dotted, probe};
pub use engine::{Cuda, Settings, pack_buffers};
pub use gemm::version as cublaslt_version;
pub use module::version as nvrtc_version;
pub use ops::dq_sums;
pub use tables::KEPT as TABLES_KEPT;
