//! Tests of the tests: kernels with one planted mistake each (programs/bugs.cu) are caught, each by the layer
//! meant for it, and the same kernels without the mistake pass silently.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaContext, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use tempfile::TempDir;

use super::build::{SOURCES, Sanitizer};
use super::{child, load, sanitizers};

/// Kernel, floats in its input (0: none) and in its output, blocks.
const KERNELS: [(&str, usize, usize, u32); 15] = [
    ("overrun", 0, 128, 2),
    ("misaligned", 264, 64, 1),
    ("divergent_barrier", 0, 64, 1),
    ("shuffle_mask", 0, 64, 1),
    ("shuffle_absent", 0, 64, 1),
    ("deadlock", 0, 64, 1),
    ("uninitialised", 0, 64, 1),
    ("missing_barrier", 0, 64, 1),
    ("missing_syncwarp", 0, 64, 1),
    ("write_race", 0, 64, 1),
    ("shared_overrun", 0, 64, 1),
    ("dynamic_overrun", 0, 64, 1),
    ("missing_copy_wait", 256, 64, 1),
    ("missing_copy_barrier", 256, 64, 1),
    ("block_race", 0, 64, 4),
];

fn source() -> PathBuf {
    Path::new(SOURCES).join("programs/bugs.cu")
}

fn kernels_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// Compiles the file with and without the mistakes and runs one kernel, whose output it returns.
struct Bench {
    stream: Arc<CudaStream>,
    module: Arc<cudarc::driver::CudaModule>,
    _headers: TempDir,
}

impl Bench {
    fn new(fixed: bool) -> Self {
        load();
        let context = CudaContext::new(0).unwrap();
        // The kernels' headers, without the one that the shim replaces.
        let headers = tempfile::tempdir().unwrap();
        std::fs::copy(kernels_folder().join("common.cuh"), headers.path().join("common.cuh")).unwrap();
        let mut options = vec!["--std=c++17".to_owned()];
        if fixed {
            options.push("-DFIXED".into());
        }
        let options = CompileOptions {
            include_paths: vec![headers.path().to_str().unwrap().into()],
            options,
            name: Some("bugs.cu".into()),
            ..CompileOptions::default()
        };
        let image = compile_ptx_with_opts(std::fs::read_to_string(source()).unwrap(), options).unwrap();
        let module = context.load_module(image).unwrap();
        Self { stream: context.new_stream().unwrap(), module, _headers: headers }
    }

    fn run(&self, name: &str) -> Vec<f32> {
        let (_, inputs, outputs, blocks) = *KERNELS.iter().find(|k| k.0 == name).unwrap();
        let function = self.module.load_function(name).unwrap();
        let shared_mem_bytes = if name == "dynamic_overrun" { 256 } else { 0 };
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes };
        let x = (inputs > 0).then(|| self.stream.clone_htod(&vec![1.0f32; inputs]).unwrap());
        let mut y = self.stream.alloc_zeros::<f32>(outputs).unwrap();
        let n = outputs as i32;
        let mut launch = self.stream.launch_builder(&function);
        if let Some(x) = &x {
            launch.arg(x);
        }
        launch.arg(&mut y);
        if name == "overrun" {
            launch.arg(&n);
        }
        // SAFETY: the mistakes are the point; the software device holds what they do to its memory.
        unsafe { launch.launch(config) }.unwrap();
        self.stream.clone_dtoh(&y).unwrap()
    }
}

/// A child's role: `wrong NAME` or `fixed NAME`.
#[test]
fn child_runs_a_kernel() {
    let Some(role) = child::role() else { return };
    let (kind, name) = role.split_once(' ').unwrap();
    let bench = Bench::new(kind == "fixed");
    for name in if name == "all" { KERNELS.map(|k| k.0).to_vec() } else { vec![name] } {
        let y = bench.run(name);
        println!("{name} {} values are not numbers", y.iter().filter(|v| v.is_nan()).count());
    }
}

fn child(role: &str) -> std::process::Command {
    child::command("softgpu::bugs::child_runs_a_kernel", role)
}

#[test]
fn the_plain_device_reports_what_it_can_see() {
    for (name, order, words) in [
        ("overrun", "forward", &["kernel overrun", "argument 0", "past the end of 512 bytes"][..]),
        ("divergent_barrier", "forward", &["thread (32,0,0) at bugs.cu:", "divergent __syncthreads"]),
        ("shuffle_mask", "forward", &["kernel shuffle_mask block (0,0,0)", "lanes that have returned"]),
        ("shuffle_mask", "reverse", &["kernel shuffle_mask block (0,0,0)", "lanes that have returned"]),
        ("shuffle_absent", "forward", &["a lane that is not in its mask"]),
        (
            "deadlock",
            "forward",
            &["deadlock: 64 threads", "in shuffle at bugs.cu:", "in __syncthreads at bugs.cu:"],
        ),
        ("dynamic_overrun", "forward", &["past the end of its 256 bytes of dynamic shared memory"]),
        ("missing_barrier", "compare", &["depends on the order of threads"]),
        ("missing_syncwarp", "compare", &["depends on the order of threads"]),
        ("write_race", "compare", &["depends on the order of threads"]),
        ("block_race", "compare", &["depends on the order of threads or blocks"]),
    ] {
        child::expect_report(child(&format!("wrong {name}")).env("SOFTGPU_ORDER", order), words);
    }
}

#[test]
fn poison_reaches_the_result() {
    for name in ["uninitialised", "missing_copy_wait", "missing_copy_barrier"] {
        let output = child(&format!("wrong {name}")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(name) && !text.contains(&format!("{name} 0 values")), "{text}");
    }
}

#[test]
fn the_device_is_silent_about_kernels_without_mistakes() {
    for order in ["forward", "reverse", "random:3", "compare"] {
        let output = child("fixed all").env("SOFTGPU_ORDER", order).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && child::reports(&output).is_empty(), "{order}: {output:?}");
        assert_eq!(text.matches(" 0 values are not numbers").count(), KERNELS.len(), "{order}: {text}");
    }
}

/// All kernels' launches, recorded while reports do not end the process.
fn recording() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let folder = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = child("fixed all");
        command.env("SOFTGPU_RECORD", folder.path().join("launches"));
        child::expect_silence(&mut command);
        folder
    });
    Box::leak(folder.path().join("launches").into_boxed_path())
}

/// Every kernel that a sanitizer catches, with words of its message; all others pass.
fn check(sanitizer: Sanitizer, found: &[(&str, &[&str])]) {
    for (name, words) in found {
        let output = sanitizers::replay(sanitizer, &[source()], &[], recording(), Some(name));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{sanitizer:?} passes {name}");
        assert!(words.iter().all(|w| text.contains(w)), "{sanitizer:?} {name}: {words:?} not in\n{text}");
    }
    let output = sanitizers::replay(sanitizer, &[source()], &["-DFIXED"], recording(), None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let done = String::from_utf8_lossy(&output.stdout).lines().count();
    assert_eq!(done, KERNELS.len(), "launches repeated");
}

/// The line of bugs.cu that holds `text`, as a sanitizer names it.
fn line_of(text: &str) -> String {
    let source = std::fs::read_to_string(source()).unwrap();
    let line = source.lines().position(|l| l.contains(text)).unwrap();
    format!("bugs.cu:{}", line + 1)
}

#[test]
fn address_and_undefined_behaviour_sanitizers_find_overruns() {
    let overrun = line_of("i < n)) y[i] = 1");
    let misaligned = line_of("const float4*");
    check(
        Sanitizer::Address,
        &[
            ("overrun", &["heap-buffer-overflow", &overrun]),
            ("misaligned", &["misaligned address", &misaligned]),
            ("shared_overrun", &["index 64 out of bounds"]),
            ("dynamic_overrun", &["heap-buffer-overflow", "dynamic_overrun"]),
        ],
    );
}

#[test]
fn thread_sanitizer_finds_races_and_names_the_line() {
    let write = line_of("y[0] = threadIdx.x");
    check(
        Sanitizer::Thread,
        &[
            ("missing_barrier", &["data race", "missing_barrier", "bugs.cu:"][..]),
            ("missing_syncwarp", &["data race", &line_of("s[threadIdx.x ^ 1]")]),
            ("write_race", &["data race", &write]),
            ("missing_copy_barrier", &["data race", &line_of("s[255 - threadIdx.x]")]),
        ],
    );
}
