//! Signals that ask a run to stop. A batch system sends one before the time limit or a preemption; the
//! training loop checks once per step, all ranks agree, everything is saved, and the program ends with exit
//! code 75 ("start me again").
//!
//! Under Open MPI 4 (measured with 4.1.4): `mpirun` passes SIGUSR1 and SIGUSR2 on to every rank and returns
//! their exit code. SIGTERM or SIGINT (Ctrl-C) to `mpirun` is different: it sends the ranks SIGTERM one
//! second later, SIGKILL one second after that, and ends with code 1. So SIGUSR1 is the signal to send to
//! `mpirun`; launch/local.sh turns Ctrl-C and SIGTERM into it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::{Error, Result};

/// Exit code after a second SIGINT: what shells report for a process that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// The last signal that asked the run to stop; 0 is none.
static ASKED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// From now on SIGTERM, SIGINT and SIGUSR1 ask the run to stop instead of killing it. A second SIGINT ends
/// the process at once.
///
/// # Errors
/// `Error::Device` when the system refuses a handler.
pub fn listen() -> Result<()> {
    if ASKED.get().is_some() {
        return Ok(());
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let interrupted = Arc::new(AtomicBool::new(false));
    let register = || {
        // The order matters: the first SIGINT finds the flag down and raises it.
        flag::register_conditional_shutdown(SIGINT, INTERRUPTED, interrupted.clone())?;
        flag::register(SIGINT, interrupted)?;
        for signal in [SIGTERM, SIGINT, SIGUSR1] {
            flag::register_usize(signal, asked.clone(), signal as usize)?;
        }
        Ok(())
    };
    register().map_err(|e: std::io::Error| Error::device(format!("signals cannot be handled: {e}")))?;
    ASKED.get_or_init(|| asked);
    Ok(())
}

/// Name of the signal that asked this process to stop, if one did.
pub fn asked() -> Option<&'static str> {
    match ASKED.get()?.load(Ordering::Relaxed) as i32 {
        SIGTERM => Some("SIGTERM"),
        SIGINT => Some("SIGINT"),
        SIGUSR1 => Some("SIGUSR1"),
        _ => None,
    }
}
