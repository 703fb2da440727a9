//! The software CUDA device: builds the libraries of `shim/` and `driver/` with g++, once, and puts them where the
//! program (`library_path`, `command`) or this test process (`load`) finds them instead of NVIDIA's.
//!
//! Environment variables of the device: `SOFTGPU_STREAMS` (eager, lazy, random:SEED, threads:SEED), `SOFTGPU_ORDER` of
//! threads and blocks (forward, reverse, random:SEED), `SOFTGPU_STRICT` (1: a report ends the process with code 97),
//! `SOFTGPU_CAPABILITY` (90), `SOFTGPU_DEVICES` (8), `SOFTGPU_MEMORY_MB` (16384), `SOFTGPU_THREADS`,
//! `SOFTGPU_NCCL_TIMEOUT` (60 s), `SOFTGPU_CACHE` (compiled kernels).

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

mod device;

/// Exit code of a process that the software device ended because of what it reported.
pub const REPORTED: i32 = 97;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/softgpu");
/// Library, its sources, whether it may use all instructions of this machine. The names are the first that cudarc asks for.
const LIBRARIES: [(&str, &[&str], bool); 4] = [
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
        ],
        false,
    ),
    ("libcublasLt.so", &["driver/gemm.cpp", "driver/cublaslt.cpp"], true),
    ("libnvrtc.so", &["driver/nvrtc.cpp"], false),
    ("libnccl.so", &["driver/nccl.cpp"], false),
];
/// Other names under which programs look for them.
const ALIASES: [(&str, &str); 2] = [("libcuda.so.1", "libcuda.so"), ("libnccl.so.2", "libnccl.so")];

/// The folder with the libraries, built if need be: for `LD_LIBRARY_PATH`.
pub fn library_path() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("softgpu");
        fs::create_dir_all(&root).unwrap();
        let folder = root.join(format!("{:016x}", fingerprint()));
        // Ranks and parallel test processes build once; the lock goes when the file is closed.
        let lock = File::create(root.join("lock")).unwrap();
        lock.lock().unwrap();
        if !folder.join("complete").exists() {
            build(&folder);
            File::create(folder.join("complete")).unwrap();
        }
        folder
    })
}

/// A command of the unmodified program `binary` that finds the software device.
#[allow(dead_code, reason = "for tests of the CUDA engine in other processes")]
pub fn command(binary: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(binary);
    command.env("LD_LIBRARY_PATH", library_path());
    command
}

/// Makes the software device the CUDA of this process: cudarc's later `dlopen("libcuda.so")` finds what is loaded
/// under that name already. To be called before the first CUDA call; any number of times.
pub fn load() {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        for (name, _, _) in LIBRARIES {
            let path = library_path().join(name);
            let handle = open(&path);
            if name == "libcuda.so" {
                // SAFETY: the library defines this function without arguments (driver/cuda.cpp).
                unsafe {
                    let symbol = dlsym(handle, c"softgpu_ignore_leaks".as_ptr());
                    assert!(!symbol.is_null());
                    std::mem::transmute::<*mut c_void, extern "C" fn()>(symbol)();
                }
            }
        }
    });
}

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

fn open(path: &Path) -> *mut c_void {
    const RTLD_NOW: c_int = 2;
    let text = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the libraries' initialisers only fill tables; dlerror returns a C string after a failure.
    unsafe {
        let handle = dlopen(text.as_ptr(), RTLD_NOW);
        assert!(!handle.is_null(), "{:?}", std::ffi::CStr::from_ptr(dlerror()));
        handle
    }
}

/// Of the sources, the compiler and the processor (`-march=native`).
fn fingerprint() -> u64 {
    let mut hash = DefaultHasher::new();
    for folder in ["shim", "driver"] {
        let mut files: Vec<_> =
            fs::read_dir(Path::new(SOURCES).join(folder)).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        for file in files {
            file.file_name().hash(&mut hash);
            fs::read(&file).unwrap().hash(&mut hash);
        }
    }
    include_str!("mod.rs").hash(&mut hash);
    let version = Command::new("g++").arg("--version").output();
    version.expect("softgpu needs g++ (Debian: apt-get install g++)").stdout.hash(&mut hash);
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processor.lines().find(|l| l.starts_with("flags")).hash(&mut hash);
    hash.finish()
}

fn build(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder.join("shim")).unwrap();
    // Kernels are compiled against this copy, so that a library and its headers always belong together.
    for file in fs::read_dir(Path::new(SOURCES).join("shim")).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, folder.join("shim").join(file.file_name().unwrap())).unwrap();
    }
    for (name, sources, native) in LIBRARIES {
        let mut command = Command::new("g++");
        command.args(["-std=c++17", "-Wall", "-Wextra", "-fPIC", "-shared", "-fno-strict-aliasing"]);
        command.args(if native { &["-O3", "-march=native"][..] } else { &["-O2"] });
        command.args(sources.iter().map(|s| Path::new(SOURCES).join(s)));
        command.arg(format!("-Wl,-soname,{name}")).arg("-o").arg(folder.join(name));
        if name != "libcuda.so" {
            command.arg("-fvisibility=hidden").arg(folder.join("libcuda.so")).arg("-Wl,-rpath,$ORIGIN");
        }
        command.args(["-pthread", "-ldl"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{name}:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    for (alias, name) in ALIASES {
        std::os::unix::fs::symlink(name, folder.join(alias)).unwrap();
    }
}
