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

/// Which engine it will be, known before it is made.
#[derive(Clone, Copy, Debug)]
struct Kind {
    /// GPUs of this machine, if one is used.
    gpus: Option<usize>,
    precision: Precision,
}

impl Kind {
    fn of(run: &Run, train: &Train, world: &World) -> Result<Self> {
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
        let gpus = found.map(|found| found.gpus);
        let usual = if gpus.is_some() { Precision::Bf16 } else { Precision::F32 };
        Ok(Self { gpus, precision: train.precision.unwrap_or(usual) })
    }

    fn name(self) -> &'static str {
        match (self.gpus, self.precision) {
            (None, Precision::F32) => "cpu in f32",
            (None, Precision::Bf16) => "cpu in bf16",
            (Some(_), Precision::F32) => "cuda in f32",
            (Some(_), Precision::Bf16) => "cuda in bf16",
        }
    }
}

/// The engine for the device that was asked for: each rank of a machine takes its own GPU, and all ranks
/// have the same kind.
///
/// # Errors
/// `Error::Device` for `cuda` without a usable GPU, and if ranks outnumber GPUs. `auto` without a usable GPU
/// takes the CPU and says why. `Error::Config` if ranks find different devices.
pub fn choose(run: &Run, train: &Train, world: &World) -> Result<Engine> {
    let kind = world.agree_all(Kind::of(run, train, world))?;
    world.same(|| Ok(vec![("the engine (run.device, train.precision)".into(), kind.name().into())]))?;
    let Some(gpus) = kind.gpus else {
        return Ok(match kind.precision {
            Precision::F32 => Engine::CpuF32(Cpu::new()),
            Precision::Bf16 => Engine::CpuBf16(Cpu::default()),
        });
    };
    if world.local_size() > gpus {
        return Err(Error::device(format!(
            "{} ranks on a machine whose GPUs are {gpus}: start one rank per GPU, or use run.device = \"cpu\"",
            world.local_size(),
        )));
    }
    let settings = cuda::Settings {
        graph: run.graph && run.check == 0,
        narrow_sums: train.reduce == Precision::Bf16,
        ..cuda::Settings::default()
    };
    Ok(match kind.precision {
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
