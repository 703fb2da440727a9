//! The software CUDA device: builds the libraries of `shim/` and `driver/` with g++, once, and puts them where the
//! program (`library_path`, `command`) or this test process (`load`) finds them instead of NVIDIA's.
//!
//! Environment variables of the device: `SOFTGPU_STREAMS` (eager, lazy, late:ID, random:SEED, threads:SEED),
//! `SOFTGPU_ORDER` of threads and blocks (forward, reverse, random:SEED; compare: each launch in three
//! orders, which must agree), `SOFTGPU_STRICT` (1: a report ends the process with code 97),
//! `SOFTGPU_CAPABILITY` (90), `SOFTGPU_DEVICES` (8), `SOFTGPU_MEMORY_MB` (16384), `SOFTGPU_THREADS`,
//! `SOFTGPU_NCCL_TIMEOUT` (60 s), `SOFTGPU_DROP_WAIT` (A<B:K, a planted mistake: the K-th wait of stream A
//! for stream B is left out), `SOFTGPU_WAITS` (a file for the number of the host's waits), `SOFTGPU_CACHE`
//! (compiled kernels), `SOFTGPU_RECORD` (a file for launches, which a sanitizer program then repeats; see
//! sanitizers.rs).

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uchar, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

mod bugs;
mod build;
pub mod child;
mod device;
mod nccl;
mod ptx;
mod sanitizers;

/// Exit code of a process that the software device ended after a report.
pub const REPORTED: i32 = 97;

pub use build::library_path;

/// A command of the unmodified program `binary` that finds the software device.
#[allow(dead_code, reason = "for tests of the CUDA engine in other processes")]
pub fn command(binary: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(binary);
    command.env("LD_LIBRARY_PATH", library_path());
    command
}

/// Makes the software device the CUDA of this process: cudarc's later `dlopen("libcuda.so")` finds the
/// library already loaded under that name. Call it before the first CUDA call; more calls do no harm.
pub fn load() {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        for (name, _, _) in build::LIBRARIES {
            let path = library_path().join(name);
            let handle = open(&path);
            if name == LIBCUDA {
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

/// How often each kernel, product (`cublasLtMatmul`), copy and clearing (`cuMemsetD8Async`) has been put on a
/// stream of this process since the last call.
pub fn take_enqueued() -> BTreeMap<String, usize> {
    load();
    let handle = open(&library_path().join(LIBCUDA));
    let mut text = vec![0u8; 1 << 16];
    // SAFETY: the library defines this function with these arguments (driver/streams.cpp); it writes within the room.
    let needed = unsafe {
        let symbol = dlsym(handle, c"softgpu_take_enqueued".as_ptr());
        assert!(!symbol.is_null());
        let take = std::mem::transmute::<*mut c_void, extern "C" fn(*mut u8, usize) -> usize>(symbol);
        take(text.as_mut_ptr(), text.len())
    };
    assert!(needed <= text.len());
    let lines = String::from_utf8(text[..needed - 1].to_vec()).unwrap();
    let count = |line: &str| {
        let (name, count) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), count.parse().unwrap())
    };
    lines.lines().map(count).collect()
}

/// The driver's library, for the functions beyond CUDA's that the tests call.
const LIBCUDA: &str = "libcuda.so";

/// A kernel as g++'s types describe it: its name, and the size of each argument and whether it is a pointer.
pub type Described = (String, Vec<(u32, bool)>);

/// The kernels of a compiled image (what `Settings::kernel_cache` keeps).
pub fn described(image: &[u8]) -> Vec<Described> {
    /// `softgpu::Kernel` of shim/runtime.h.
    #[repr(C)]
    struct Kernel {
        name: *const c_char,
        function: *const c_void,
        thunk: *const c_void,
        arguments: c_uint,
        sizes: *const c_uint,
        pointers: *const c_uchar,
        max_threads: c_uint,
        touch: *const c_void,
    }
    let text = std::str::from_utf8(image).unwrap();
    let path = text.strip_prefix("softgpu image ").unwrap().lines().next().unwrap();
    let handle = open(Path::new(path));
    // SAFETY: the library defines a table and its length under these names (driver/compile.cpp) and stays mapped.
    unsafe {
        let count = dlsym(handle, c"softgpu_kernel_count".as_ptr()).cast::<c_uint>();
        let table = dlsym(handle, c"softgpu_kernels".as_ptr()).cast::<Kernel>();
        assert!(!count.is_null() && !table.is_null(), "{path}");
        let read = |kernel: &Kernel| {
            let argument = |at| (*kernel.sizes.add(at), *kernel.pointers.add(at) == 1);
            let name = CStr::from_ptr(kernel.name).to_str().unwrap().to_owned();
            (name, (0..kernel.arguments as usize).map(argument).collect())
        };
        std::slice::from_raw_parts(table, *count as usize).iter().map(read).collect()
    }
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
        assert!(!handle.is_null(), "{:?}", CStr::from_ptr(dlerror()));
        handle
    }
}
