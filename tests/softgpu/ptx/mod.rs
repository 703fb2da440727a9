//! An interpreter of PTX: runs the text that NVRTC makes of the project's kernels, so that the tests cover
//! what the card's compiler made of them, not only a host compiler. Threads run one at a time up to their
//! next barrier or warp-wide instruction; every access is checked:
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

use std::io::Read;
use std::path::Path;

pub use block::{Arg, Launch};
pub use memory::Device;
pub use parse::Module;

/// The committed PTX of a kernel file (tests/gates/ptx.py makes it), which must be of the present source.
#[track_caller]
pub fn asset(source: &str) -> Module {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join(source);
    let stem = source.file_stem().unwrap().to_string_lossy();
    let path = root.join(format!("tests/assets/ptx/{stem}.ptx.gz"));
    let mut text = String::new();
    let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let crc = text.lines().next().and_then(|line| line.rsplit(' ').next()).unwrap_or_default();
    assert_eq!(
        crc,
        crate::gates::source_crc(&source),
        "{stem}.cu has changed since its PTX was made: $(tests/gates/toolchain.sh)/python tests/gates/kernels.py write"
    );
    Module::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
