//! Kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
//!
//! What is launched on the software device can be recorded (`SOFTGPU_RECORD`) and is then repeated by a program in
//! which g++ watches the kernels. So every launch of a test comes under the sanitizers with the shapes, arguments and
//! contents that it has, and a kernel's author adds nothing here.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::build::{Sanitizer, replay_program};

/// Repeats a recording; `only` names a kernel, or none for all.
pub fn replay(
    sanitizer: Sanitizer,
    sources: &[PathBuf],
    flags: &[&str],
    recording: &Path,
    only: Option<&str>,
) -> Output {
    let mut command = Command::new(replay_program(sanitizer, sources, flags));
    if let Some(name) = only {
        command.args(["--kernel", name]);
    }
    // A sanitizer would reserve its memory and print its leaks at the end; a launch has none of its own.
    command
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .env("TSAN_OPTIONS", "report_thread_leaks=0:halt_on_error=1");
    command.env_remove("SOFTGPU_RECORD").env("SOFTGPU_STRICT", "1");
    command.arg(recording).output().unwrap()
}
