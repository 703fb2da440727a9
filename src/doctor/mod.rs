//! `doctor`: what this machine has for training (MPI, driver, libraries, GPUs), whether its GPU computes what
//! the CPU computes, operation by operation, and whether a whole step has the reference model's gradients;
//! and how fast each operation is compared with what the card allows. It is for a first look at a new
//! machine, and for a run that looks wrong or slow.

mod difference;
pub mod sample;
mod speed;

use crate::engine::cpu::Cpu;
use crate::engine::cuda::{self, Cuda, Device, Settings, dotted};
use crate::engine::{Device as _, Engine, Real};
use crate::model::activations::Capacity;
use crate::model::bert::Options;
use crate::model::{Bert, HeadSet, Objective, Shape, checkpoint};
use crate::ranks::World;
use crate::train::check::against_reference;
use crate::{Error, Result};
use difference::allowed;
pub use difference::difference;

/// Looks at everything and prints it.
///
/// # Errors
/// `Error::Device` when the GPU was asked for and is not there, or its results differ from the CPU's.
pub fn run(device: crate::config::Device, world: &World) -> Result<()> {
    let lead = world.leads();
    if lead {
        tell!("program: ctune-dist {} ({})", env!("CARGO_PKG_VERSION"), env!("CTUNE_CODE_VERSION"));
        tell!(
            "ranks: {} here, {} in all, {} thread(s) each",
            world.local_size(),
            world.size(),
            world.threads()
        );
        tell!("MPI: {}", mpi_version(world));
    }
    let found = match (device, cuda::probe()) {
        (crate::config::Device::Cpu, _) => None,
        (crate::config::Device::Cuda, Err(e)) => return Err(e),
        (_, Err(e)) => {
            if lead {
                tell!("GPU: {e}");
            }
            None
        }
        (_, Ok(found)) => Some(found),
    };
    let mut faults = Vec::new();
    step("CPU, f32", Cpu::new(), world, &mut faults)?;
    let narrow = Cpu::<half::bf16>::default();
    step(&narrow.describe(), narrow, world, &mut faults)?;
    if let Some(found) = found {
        gpus(&found, world)?;
        let ordinal = world.local_rank() % found.gpus;
        examine::<f32>(ordinal, world, &mut faults)?;
        examine::<half::bf16>(ordinal, world, &mut faults)?;
    }
    if faults.is_empty() {
        if lead {
            tell!("verdict: everything that was checked agrees");
        }
        return Ok(());
    }
    Err(Error::device(format!("rank {}: {} disagree(s): {}", world.rank(), faults.len(), faults.join(", "))))
}

fn mpi_version(world: &World) -> String {
    if world.size() > 1 || crate::ranks::launched_rank().is_some() {
        let (major, minor) = mpi::environment::version();
        let library = mpi::environment::library_version().unwrap_or_default();
        format!("{major}.{minor}, {}", library.split(',').next().unwrap_or_default())
    } else {
        "not started (one process); check it with mpirun -n 2 ctune-dist doctor".into()
    }
}

fn gpus(found: &cuda::Installed, world: &World) -> Result<()> {
    if !world.leads() {
        return Ok(());
    }
    let (major, minor) = cuda::nvrtc_version()?;
    tell!(
        "driver: CUDA {}; NVRTC {major}.{minor}; cuBLASLt {}; NCCL {}",
        dotted(found.driver),
        cuda::cublaslt_version(),
        crate::ranks::nccl_version().unwrap_or("not found (needed from two ranks on)".into())
    );
    for ordinal in 0..found.gpus {
        let device = Device::open(ordinal)?;
        let card = &device.card;
        let (free, total) = device.memory()?;
        tell!(
            "GPU {ordinal}: {}, compute capability {}.{}, {} multiprocessors, {:.1} of {:.1} GB free, {:.0} GB/s by \
             its data",
            card.name,
            card.arch.0,
            card.arch.1,
            card.multiprocessors,
            free as f64 / 1e9,
            total as f64 / 1e9,
            card.bandwidth / 1e9
        );
    }
    Ok(())
}

/// Every operation, its speed, and a whole step on one GPU in one precision.
fn examine<R: Real>(ordinal: usize, world: &World, faults: &mut Vec<String>) -> Result<()> {
    let gpu = Cuda::<R>::new(ordinal, Settings::default())?;
    let name = gpu.describe();
    if world.leads() {
        tell!(
            "{name}: every operation against the CPU engine, |difference| / |value|, at most {:.0e}; its speed as a \
             share of the card's",
            allowed::<R>()
        );
    }
    let found = speed::examine(&gpu)?;
    if world.leads() {
        tell_raw!("{}", found.table());
    }
    faults.extend(found.wrong().map(|what| format!("{what} ({})", R::NAME)));
    step(&name, gpu, world, faults)
}

/// One pack forward and backward, compared with the reference model and its autograd.
fn step<E: Engine>(name: &str, engine: E, world: &World, faults: &mut Vec<String>) -> Result<()> {
    for shape in sample::shapes() {
        let found = step_of(engine.clone(), &shape)?;
        let Some((loss, expected, worst, error, good)) = found else { continue };
        if world.leads() {
            tell!(
                "{name}: a whole step, D = {}: loss {loss:.6}, reference {expected:.6}; largest error of a gradient \
                 {error:.1e} ({worst})",
                shape.head_size()
            );
        }
        if !good {
            faults.push(format!("a whole step on {name}"));
        }
    }
    Ok(())
}

type Step = Option<(f64, f64, String, f64, bool)>;

fn step_of<E: Engine>(engine: E, shape: &Shape) -> Result<Step> {
    let pack = sample::pack(shape.vocab);
    let options = Options {
        objective: Objective::Pretraining { mlm: 1.0, qdpp: 1.0 },
        heads: HeadSet::PRETRAINING,
        capacity: Capacity {
            tokens: pack.tokens() + 20,
            sequences: pack.sequences() + 3,
            masked: pack.masked + 9,
        },
        train: true,
        dropout: 0.1,
        seed: 11,
        rule: Some(sample::rule(shape.vocab)),
        continues: vec![0; shape.vocab],
    };
    let mut model = Bert::new(engine, &Shape { layers: 2, ..shape.clone() }, options)?;
    checkpoint::fill_fresh(&mut model, 3)?;
    let Some(found) = against_reference(&mut model, &pack)? else { return Ok(None) };
    let (worst, error) = found.worst();
    Ok(Some((found.loss, found.reference_loss, worst.to_owned(), error, found.verdict().is_ok())))
}
