//! Builds the libraries and the sanitizer programs with g++, each once for its sources, under `target/softgpu`.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/softgpu");
/// Library, its sources, and whether it may use all of this machine's instructions. The names are the ones
/// that cudarc tries first.
pub const LIBRARIES: [(&str, &[&str], bool); 4] = [
    (
        "libcuda.so",
        &[
            "shim/report.cpp",
            "shim/block.cpp",
            "shim/grid.cpp",
            "driver/memory.cpp",
            "driver/streams.cpp",
            "driver/cuda.cpp",
            "driver/modules.cpp",
            "driver/record.cpp",
        ],
        false,
    ),
    ("libcublasLt.so", &["driver/gemm.cpp", "driver/cublaslt.cpp"], true),
    ("libnvrtc.so", &["driver/compile.cpp", "driver/nvrtc.cpp"], false),
    ("libnccl.so", &["driver/nccl.cpp"], false),
];
/// Other names that programs look for.
const ALIASES: [(&str, &str); 2] = [("libcuda.so.1", "libcuda.so"), ("libnccl.so.2", "libnccl.so")];

/// What runs a launch, in the libraries and in the programs.
const RUNTIME: [&str; 3] = ["shim/report.cpp", "shim/block.cpp", "shim/grid.cpp"];

/// The folder with the libraries, built if need be: for `LD_LIBRARY_PATH`.
pub fn library_path() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| once(root().join(format!("{:016x}", fingerprint())), build))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("softgpu")
}

/// Makes `folder` with `build`, unless it is there already. Ranks and parallel test processes build once;
/// closing the file releases the lock.
fn once(folder: PathBuf, build: impl FnOnce(&Path)) -> PathBuf {
    fs::create_dir_all(root()).unwrap();
    let lock = File::create(folder.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if !folder.join("complete").exists() {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        build(&folder);
        File::create(folder.join("complete")).unwrap();
    }
    folder
}

/// A hash of the sources, the compiler and the processor (`-march=native`).
fn fingerprint() -> u64 {
    let mut hash = DefaultHasher::new();
    for folder in ["shim", "driver", "programs"] {
        let mut files: Vec<_> =
            fs::read_dir(Path::new(SOURCES).join(folder)).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        for file in files {
            file.file_name().hash(&mut hash);
            fs::read(&file).unwrap().hash(&mut hash);
        }
    }
    include_str!("build.rs").hash(&mut hash);
    let version = Command::new("g++").arg("--version").output();
    version.expect("softgpu needs g++ (Debian: apt-get install g++)").stdout.hash(&mut hash);
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processor.lines().find(|l| l.starts_with("flags")).hash(&mut hash);
    hash.finish()
}

fn build(folder: &Path) {
    fs::create_dir(folder.join("shim")).unwrap();
    // Kernels are compiled against this copy, so that a library and its headers always belong together.
    for file in fs::read_dir(Path::new(SOURCES).join("shim")).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, folder.join("shim").join(file.file_name().unwrap())).unwrap();
    }
    for (name, sources, native) in LIBRARIES {
        let mut command = compiler();
        command.args(["-fPIC", "-shared"]);
        command.args(if native { &["-O3", "-march=native"][..] } else { &["-O2"] });
        command.args(sources.iter().map(|s| Path::new(SOURCES).join(s)));
        command.arg(format!("-Wl,-soname,{name}")).arg("-o").arg(folder.join(name));
        if name == "libcuda.so" {
            // A kernel reads the thread's context on each use of threadIdx; this way in one instruction.
            command.arg("-ftls-model=initial-exec");
        } else {
            command.arg("-fvisibility=hidden").arg(folder.join("libcuda.so")).arg("-Wl,-rpath,$ORIGIN");
        }
        command.args(["-pthread", "-ldl"]);
        run(&mut command);
    }
    let mut command = compiler();
    command.args(
        ["shim/report.cpp", "driver/compile.cpp", "driver/compile_main.cpp"]
            .map(|s| Path::new(SOURCES).join(s)),
    );
    run(command.arg("-O1").arg("-o").arg(folder.join("compile_kernel")));
    for (alias, name) in ALIASES {
        std::os::unix::fs::symlink(name, folder.join(alias)).unwrap();
    }
}

fn compiler() -> Command {
    let mut command = Command::new("g++");
    command.args(["-std=c++17", "-Wall", "-Wextra", "-fno-strict-aliasing"]);
    command
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// A build in which the compiler watches the kernels.
#[derive(Clone, Copy, Debug)]
pub enum Sanitizer {
    /// AddressSanitizer and UndefinedBehaviorSanitizer: overruns, misaligned vectors, overflow.
    Address,
    /// ThreadSanitizer: races between the threads of a block.
    Thread,
}

impl Sanitizer {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Address => &["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
            Self::Thread => &["-fsanitize=thread"],
        }
    }
}

/// The program that repeats recorded launches (programs/replay.cpp) with the kernels of these files, which may include
/// each other and the headers of `kernels/`.
pub fn replay_program(sanitizer: Sanitizer, sources: &[PathBuf], flags: &[&str]) -> PathBuf {
    let mut hash = DefaultHasher::new();
    (fingerprint(), format!("{sanitizer:?}"), flags).hash(&mut hash);
    let headers = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let headers_and_sources = fs::read_dir(&headers).unwrap().map(|f| f.unwrap().path());
    let mut files: Vec<_> =
        headers_and_sources.filter(|f| f.extension().is_some_and(|e| e == "cuh")).collect();
    files.extend_from_slice(sources);
    files.sort();
    for file in files {
        (file.file_name(), fs::read(&file).unwrap()).hash(&mut hash);
    }
    let name = format!("replay-{:016x}", hash.finish());
    once(root().join(name), |folder| build_replay(folder, sanitizer, sources, flags)).join("replay")
}

fn build_replay(folder: &Path, sanitizer: Sanitizer, sources: &[PathBuf], flags: &[&str]) {
    // A copy without the header that the shim replaces, which would otherwise be found first, beside the
    // kernels.
    let copies = folder.join("kernels");
    fs::create_dir(&copies).unwrap();
    let headers = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")).unwrap();
    let headers = headers.map(|f| f.unwrap().path()).filter(|f| {
        f.extension().is_some_and(|e| e == "cuh") && f.file_name().is_some_and(|n| n != "intrinsics.cuh")
    });
    for file in headers.chain(sources.iter().cloned()) {
        fs::copy(&file, copies.join(file.file_name().unwrap())).unwrap();
    }
    let libraries = library_path();
    let mut link = compiler();
    for source in sources {
        let object = folder.join(source.file_name().unwrap()).with_extension("o");
        let mut command = Command::new(libraries.join("compile_kernel"));
        command.arg(copies.join(source.file_name().unwrap())).arg(libraries.join("shim")).arg(&copies);
        command.arg(&object).args(["-std=c++17", "-O1", "-g", "-DSOFTGPU_SANITIZER", "-D__CUDA_ARCH__=900"]);
        run(command.args(sanitizer.flags()).args(flags));
        link.arg(object);
    }
    // The runtime itself is not watched: it reports fibers to the sanitizer by hand.
    for source in RUNTIME.iter().chain(&["programs/replay.cpp"]) {
        let object = folder.join(Path::new(source).file_name().unwrap()).with_extension("o");
        run(compiler().args(["-O2", "-g", "-c"]).arg(Path::new(SOURCES).join(source)).arg("-o").arg(&object));
        link.arg(object);
    }
    run(link.args(sanitizer.flags()).arg("-pthread").arg("-o").arg(folder.join("replay")));
}
