//! From the embedded `kernels/*.cu` to functions: NVRTC compiles each file for this card when a process
//! starts, and the result is kept on disk, so that only the first start of a version waits.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use cudarc::driver::result as driver;
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule};
use cudarc::nvrtc::sys as nvrtc;

use super::device::{Device, check};
use super::signatures::{self, Signature};
use crate::{Error, Result, files};

// `SOURCES` and `HEADERS`: (file name, text) of every kernels/*.cu and *.cuh, written by build.rs.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Dynamic shared memory that a kernel may use without asking.
const SHARED_FREE: u32 = 48 * 1024;

/// Language of the kernels.
const STANDARD: &str = "--std=c++17";

/// Capabilities whose PTX also runs on newer cards, newest first; for cards that NVRTC does not know yet.
const PTX_TARGETS: [i32; 4] = [120, 100, 90, 80];

/// The compiled kernels of one device.
pub struct Module {
    modules: Vec<CUmodule>,
    /// By the kernel's full name.
    functions: RefCell<HashMap<String, Function>>,
}

/// A kernel that can be launched.
#[derive(Clone, Copy)]
pub struct Function {
    pub raw: CUfunction,
    /// The arguments that its launches must pass.
    pub signature: &'static Signature,
    /// Bytes of dynamic shared memory that it was allowed.
    allowed: u32,
}

impl Module {
    /// Compiles every kernel for `device`, whose context is current, or finds it in `cache` (`None`:
    /// the user's cache folder).
    pub fn load(device: &Device, cache: Option<&Path>) -> Result<Self> {
        let compiler = Compiler::new(device, cache)?;
        let mut module = Self { modules: Vec::new(), functions: RefCell::default() };
        for (name, source) in SOURCES {
            module.modules.push(compiler.module(name, source)?);
        }
        Ok(module)
    }

    /// The kernel of this name, allowed `shared` bytes of dynamic shared memory.
    pub fn function(&self, name: &str, shared: u32) -> Result<Function> {
        let mut functions = self.functions.borrow_mut();
        if let Some(function) = functions.get(name)
            && shared <= function.allowed
        {
            return Ok(*function);
        }
        let (raw, signature) = (self.find(name)?, signatures::of(name)?);
        if shared > SHARED_FREE {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function lives as long as its module.
            let answer = unsafe { driver::function::set_function_attribute(raw, attribute, shared as i32) };
            check(name, answer)?;
        }
        let function = Function { raw, signature, allowed: shared.max(SHARED_FREE) };
        functions.insert(name.to_owned(), function);
        Ok(function)
    }

    fn find(&self, name: &str) -> Result<CUfunction> {
        let text = c_string(name)?;
        for module in &self.modules {
            // SAFETY: the module lives as long as `self`.
            if let Ok(function) = unsafe { driver::module::get_function(*module, text.clone()) } {
                return Ok(function);
            }
        }
        Err(Error::device(format!("no kernel {name} in kernels/*.cu")))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        for module in self.modules.drain(..) {
            // SAFETY: loaded once in `load`; no launch follows. A failure cannot be reported.
            let _ = unsafe { driver::module::unload(module) };
        }
    }
}

/// NVRTC for one card.
struct Compiler {
    /// Compute capability, as 90 for 9.0.
    arch: i32,
    version: (i32, i32),
    cache: Option<PathBuf>,
}

impl Compiler {
    fn new(device: &Device, cache: Option<&Path>) -> Result<Self> {
        let arch = device.card.arch.0 * 10 + device.card.arch.1;
        let cache = cache.map(Path::to_owned).or_else(users_cache).and_then(made);
        Ok(Self { arch, version: version()?, cache })
    }

    /// The loaded module of one file: from the cache, or compiled.
    fn module(&self, name: &str, source: &str) -> Result<CUmodule> {
        let cached = self.cache.as_ref().map(|dir| dir.join(format!("{name}-{:016x}.bin", self.key(source))));
        if let Some(code) = cached.as_ref().and_then(|path| fs::read(path).ok())
            && let Ok(module) = load(&code)
        {
            return Ok(module);
        }
        let code = self.compile(name, source)?;
        let module = check(name, load(&code))?;
        if let Some(path) = cached
            && let Err(e) = files::write(&path, &code)
        {
            tracing::warn!("compiled kernels cannot be cached ({e}): every start compiles them again");
        }
        Ok(module)
    }

    fn key(&self, source: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        (source, HEADERS, self.arch, self.version, STANDARD).hash(&mut hasher);
        hasher.finish()
    }

    /// Machine code for this card, or PTX of the newest older card where NVRTC is too old to know it.
    fn compile(&self, name: &str, source: &str) -> Result<Vec<u8>> {
        let bodies = HEADERS.iter().map(|(_, text)| c_string(text)).collect::<Result<Vec<_>>>()?;
        let names = HEADERS.iter().map(|(name, _)| c_string(name)).collect::<Result<Vec<_>>>()?;
        let older = PTX_TARGETS.iter().filter(|arch| **arch <= self.arch);
        let targets =
            std::iter::once(format!("sm_{}", self.arch)).chain(older.map(|a| format!("compute_{a}")));
        let mut failure = None;
        for target in targets {
            let program = Program::new(&c_string(source)?, &c_string(name)?, &bodies, &names)?;
            let options = [c_string(&format!("--gpu-architecture={target}"))?, c_string(STANDARD)?];
            match program.compile(&options) {
                Ok(()) => return program.code(target.starts_with("sm_")),
                Err((nvrtc::nvrtcResult::NVRTC_ERROR_INVALID_OPTION, _)) => {} // the target is unknown
                Err((_, log)) => {
                    failure = Some(log);
                    break;
                }
            }
        }
        let (major, minor) = self.version;
        Err(Error::device(match failure {
            Some(log) => format!("kernels/{name} does not compile with NVRTC {major}.{minor}: {log}"),
            None => {
                format!("NVRTC {major}.{minor} has no target for this GPU: install a newer CUDA toolkit")
            }
        }))
    }
}

/// An NVRTC program, destroyed when dropped.
struct Program(nvrtc::nvrtcProgram);

impl Program {
    fn new(source: &CStr, name: &CStr, bodies: &[CString], names: &[CString]) -> Result<Self> {
        let bodies: Vec<*const c_char> = bodies.iter().map(|b| b.as_ptr()).collect();
        let names: Vec<*const c_char> = names.iter().map(|n| n.as_ptr()).collect();
        let mut raw = std::ptr::null_mut();
        // SAFETY: all strings end with zero and outlive the call, which copies them.
        let answer = unsafe {
            nvrtc::nvrtcCreateProgram(
                &mut raw,
                source.as_ptr(),
                name.as_ptr(),
                bodies.len() as i32,
                bodies.as_ptr(),
                names.as_ptr(),
            )
        };
        nvrtc_check("a program", answer)?;
        Ok(Self(raw))
    }

    /// On failure, returns NVRTC's answer and the errors in its log on one line.
    fn compile(&self, options: &[CString]) -> std::result::Result<(), (nvrtc::nvrtcResult, String)> {
        let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        // SAFETY: the program and the strings live.
        let answer = unsafe { nvrtc::nvrtcCompileProgram(self.0, options.len() as i32, options.as_ptr()) };
        if answer == nvrtc::nvrtcResult::NVRTC_SUCCESS {
            return Ok(());
        }
        // SAFETY: the program lives.
        let log = unsafe { cudarc::nvrtc::result::get_program_log(self.0) }.unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|c| *c != 0).collect();
        let text = String::from_utf8_lossy(&log).into_owned();
        let errors: Vec<&str> = text.lines().filter(|l| l.contains("error")).take(5).collect();
        Err((answer, if errors.is_empty() { format!("{answer:?}") } else { errors.join("; ") }))
    }

    fn code(&self, machine_code: bool) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program is compiled; `size` and then the buffer outlive the calls.
        unsafe {
            if machine_code {
                nvrtc_check("the code's size", nvrtc::nvrtcGetCUBINSize(self.0, &mut size))?;
                let mut code = vec![0u8; size];
                nvrtc_check("the code", nvrtc::nvrtcGetCUBIN(self.0, code.as_mut_ptr().cast()))?;
                Ok(code)
            } else {
                nvrtc_check("the PTX's size", nvrtc::nvrtcGetPTXSize(self.0, &mut size))?;
                let mut code = vec![0u8; size];
                nvrtc_check("the PTX", nvrtc::nvrtcGetPTX(self.0, code.as_mut_ptr().cast()))?;
                Ok(code)
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made once in `new`. A failure cannot be reported.
        let _ = unsafe { nvrtc::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// NVRTC's version.
pub fn version() -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both integers outlive the call.
    nvrtc_check("its version", unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) })?;
    Ok((major, minor))
}

fn nvrtc_check(what: &str, answer: nvrtc::nvrtcResult) -> Result<()> {
    match answer {
        nvrtc::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        other => Err(Error::device(format!("NVRTC: {what}: {other:?}"))),
    }
}

fn load(code: &[u8]) -> std::result::Result<CUmodule, driver::DriverError> {
    let mut image = code.to_vec();
    image.push(0); // PTX is text that ends with zero; machine code knows its own length
    // SAFETY: the image is a whole cubin or PTX text and is copied by the driver.
    unsafe { driver::module::load_data(image.as_ptr().cast()) }
}

/// $XDG_CACHE_HOME/ctune-dist or ~/.cache/ctune-dist.
fn users_cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    if base.is_none() {
        tracing::warn!("neither XDG_CACHE_HOME nor HOME is set: every start compiles the kernels");
    }
    base.map(|base| base.join("ctune-dist"))
}

/// The folder, created if it is missing; `None` if it cannot be created.
fn made(dir: PathBuf) -> Option<PathBuf> {
    match fs::create_dir_all(&dir) {
        Ok(()) => Some(dir),
        Err(e) => {
            tracing::warn!("{}: cannot be created ({e}): every start compiles the kernels", dir.display());
            None
        }
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::device("a zero byte in a kernel's source or name"))
}
