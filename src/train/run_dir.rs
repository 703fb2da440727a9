//! A run's folder: the plan that was run, where it ran, and files that are complete or absent.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::config::Config;
use crate::dist::World;
use crate::engine::cpu::Cpu;
use crate::{Error, Result};

/// The engine of a run; `on_engine!` hands it to code that is generic over `dist::Distributed`.
pub enum Engine {
    Cpu(Cpu),
}

/// The engine for the device that was asked for.
///
/// # Errors
/// `Error::Device` for a GPU: this version computes on CPUs only.
pub fn engine(config: &Config, _world: &World) -> Result<Engine> {
    if config.run.device == crate::config::Device::Cuda {
        return Err(Error::device(
            "run.device = \"cuda\": this version has no CUDA engine; use \"cpu\" or \"auto\"",
        ));
    }
    Ok(Engine::Cpu(Cpu::new()))
}

/// `on_engine!(config, world, backend => work)`: runs `work` with the engine that the plan asks for.
macro_rules! on_engine {
    ($config:expr, $world:expr, $backend:ident => $work:expr) => {
        match $crate::train::run_dir::engine($config, $world)? {
            $crate::train::run_dir::Engine::Cpu($backend) => $work,
        }
    };
}
pub(crate) use on_engine;

/// Says where the run computes.
pub fn announce(world: &World) {
    if world.leads() {
        println!("device: cpu, {} rank(s) x {} thread(s)", world.size(), world.threads());
    }
}

/// Makes the run directory and writes the resolved plan and the facts that results depend on.
/// Only the leading rank writes; the others learn of its failure.
pub fn create(config: &Config, command: &str, facts: &[(&str, Value)], world: &World) -> Result<PathBuf> {
    let dir = config.run.out.clone();
    world.agree(world.leads().then(|| describe(&dir, config, command, facts, world.size())))?;
    Ok(dir)
}

fn describe(dir: &Path, config: &Config, command: &str, facts: &[(&str, Value)], ranks: usize) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("created", dir, e))?;
    let plan = config.to_toml()?;
    println!("plan of {command}, kept in {}:\n{plan}", dir.join("config.toml").display());
    write_whole(&dir.join("config.toml"), plan.as_bytes())?;
    let mut about = json!({
        "command": command,
        "program": concat!("ctune-dist ", env!("CARGO_PKG_VERSION")),
        "code": env!("CTUNE_CODE_VERSION"),
        "ranks": ranks,
    });
    for (key, value) in facts {
        about[*key] = value.clone();
    }
    write_whole(&dir.join("run.json"), format!("{about:#}\n").as_bytes())
}

/// Writes a file beside its place and renames it, so that a file of this name is complete.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let bad = |e| Error::io("written", path, e);
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o666)) // as any new file: the umask has the last word
        .tempfile_in(dir)
        .map_err(bad)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(bad)?;
    file.persist(path).map_err(|e| Error::io("written", path, e.error))?;
    Ok(())
}
