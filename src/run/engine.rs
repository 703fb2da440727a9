//! The engine that a run computes on.

use crate::config::{Device, Precision, Run, Train};
use crate::engine::cpu::Cpu;
use crate::engine::cuda::{self, Cuda};
use crate::ranks::World;
use crate::{Error, Result};

/// The engine of a run; `on_engine!` hands it to code that is generic over `ranks::Distributed`.
pub enum Engine {
    CpuF32(Cpu),
    CpuBf16(Cpu<half::bf16>),
    CudaF32(Cuda<f32>),
    CudaBf16(Cuda<half::bf16>),
}

/// The engine for the device that was asked for: each rank of a machine takes its own GPU.
///
/// # Errors
/// `Error::Device` for `cuda` without a usable GPU, and where ranks outnumber GPUs. `auto` without a
/// usable GPU is the CPU, and says why.
pub fn choose(run: &Run, train: &Train, world: &World) -> Result<Engine> {
    let found = match run.device {
        Device::Cpu => None,
        Device::Cuda => Some(cuda::probe()?),
        Device::Auto => match cuda::probe() {
            Ok(found) => Some(found),
            Err(reason) => {
                if world.leads() {
                    tell!("computing on the CPU: {reason}");
                }
                None
            }
        },
    };
    let precision = train.precision;
    let Some(found) = found else {
        return Ok(match precision.unwrap_or(Precision::F32) {
            Precision::F32 => Engine::CpuF32(Cpu::new()),
            Precision::Bf16 => Engine::CpuBf16(Cpu::default()),
        });
    };
    if world.local_size() > found.gpus {
        return Err(Error::device(format!(
            "{} ranks on a machine whose GPUs are {}: start one rank a GPU, or use run.device = \"cpu\"",
            world.local_size(),
            found.gpus
        )));
    }
    let settings = cuda::Settings {
        graph: run.graph && run.check == 0,
        narrow_sums: train.reduce == Precision::Bf16,
        ..cuda::Settings::default()
    };
    Ok(match precision.unwrap_or(Precision::Bf16) {
        Precision::F32 => Engine::CudaF32(Cuda::new(world.local_rank(), settings)?),
        Precision::Bf16 => Engine::CudaBf16(Cuda::new(world.local_rank(), settings)?),
    })
}

/// `on_engine!(config, world, engine => work)`: runs `work` with the engine that the plan asks for.
macro_rules! on_engine {
    ($config:expr, $world:expr, $engine:ident => $work:expr) => {
        match $crate::run::engine::choose(&$config.run, &$config.train, $world)? {
            $crate::run::engine::Engine::CpuF32($engine) => $work,
            $crate::run::engine::Engine::CpuBf16($engine) => $work,
            $crate::run::engine::Engine::CudaF32($engine) => $work,
            $crate::run::engine::Engine::CudaBf16($engine) => $work,
        }
    };
}
pub(crate) use on_engine;

/// Says where the run computes.
pub fn announce<D: crate::engine::Device>(engine: &D, world: &World) {
    if world.leads() {
        tell!("device: {}, {} rank(s) x {} thread(s)", engine.describe(), world.size(), world.threads());
    }
}
