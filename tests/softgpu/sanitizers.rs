//! Kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
//!
//! Launches on the software device can be recorded (`SOFTGPU_RECORD`); a program in which g++ watches the
//! kernels then repeats them. So every launch of a test comes under the sanitizers with its own shapes,
//! arguments and contents, and a kernel's author adds nothing here.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use super::build::{Sanitizer, replay_program};
use super::child;

/// Blocks of a launch that ThreadSanitizer watches: the first, the last and some between. It looks for races
/// between the threads of one block, since here blocks run one after another. `SOFTGPU_ORDER=compare` finds
/// races between blocks.
const WATCHED_BLOCKS: &str = "6";

/// Repeats a recording; `only` names a kernel, `first` is each kernel's first launch, none is all.
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
    if matches!(sanitizer, Sanitizer::Thread) && only.is_some() {
        command.env("SOFTGPU_BLOCKS", WATCHED_BLOCKS);
    }
    command.env_remove("SOFTGPU_RECORD").env("SOFTGPU_STRICT", "1");
    command.arg(recording).output().unwrap()
}

/// All kernels of the project.
fn kernels() -> Vec<PathBuf> {
    let folder = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")).unwrap();
    let files = folder.map(|f| f.unwrap().path());
    let mut files: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == "cu")).collect();
    files.sort();
    files
}

/// The launches of every operation's cases: ragged packs, both head sizes, f32 and bf16.
fn recording() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let path = tempfile::tempdir().unwrap().keep().join("launches");
        for test in ["operations_in_f32_are_the_cpu_engines", "operations_in_bf16_are_the_cpu_engines"] {
            let mut command = child::command(&format!("cuda::engine::{test}"), "");
            child::expect_silence(command.env("SOFTGPU_RECORD", &path));
        }
        path
    })
}

fn all_kernels_pass(sanitizer: Sanitizer, only: Option<&str>) {
    let output = replay(sanitizer, &kernels(), &[], recording(), only);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut names: Vec<_> = names.lines().collect();
    println!("{} launches", names.len());
    names.sort_unstable();
    names.dedup();
    println!("of {} kernels: {names:?}", names.len());
    assert!(names.len() > 40, "only {names:?} were launched");
}

#[test]
fn the_projects_kernels_pass_the_address_sanitizer() {
    all_kernels_pass(Sanitizer::Address, None);
}

#[test]
fn the_projects_kernels_pass_the_thread_sanitizer() {
    all_kernels_pass(Sanitizer::Thread, Some("first"));
}

#[test]
fn the_projects_kernels_do_not_depend_on_the_order_of_threads() {
    for test in ["operations_in_f32_are_the_cpu_engines", "operations_in_bf16_are_the_cpu_engines"] {
        let mut command = child::command(&format!("cuda::engine::{test}"), "");
        child::expect_silence(command.env("SOFTGPU_ORDER", "compare"));
    }
}
