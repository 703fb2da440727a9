//! The processes of a run as one of them sees them: which one it is, and the small agreements that they make.
//! Started alone, a process makes no MPI call and runs the same code as a world of one.

use std::panic;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use signal_hook::consts::SIGTERM;
use signal_hook::flag;

use super::beat::Beat;
use super::watchdog::{self, Address, OnEnd, Verdict, Watchdog};
use crate::{Error, Result, journal, threads};

/// Variables by which a launcher says "you are one of several" and gives the rank: Open MPI, PMIx
/// (SLURM's and Open MPI's), PMI (MPICH, Intel MPI, SLURM).
const RANK_VARIABLES: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"];

/// Exit code when a rank panics: a fault of the program, reported as a communication failure so
/// that the whole job ends.
const PANIC_CODE: i32 = 4;

/// How long ranks above 0 wait before they report an error: if all ranks fail alike, rank 0 has reported it
/// and ended the job by then, and the user reads one line instead of one a rank.
const ERROR_DELAY: Duration = Duration::from_millis(400);

/// How long rank 0 stays after it has told the others to end, so that they hear the message, not its silence.
const GRACE: Duration = Duration::from_millis(300);

/// The processes of a run, seen from one of them.
pub struct World {
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
    /// What this rank is doing, for its watchdog.
    beat: Arc<Beat>,
    /// The last error that every rank has.
    agreed: Mutex<String>,
    pub(super) mpi: Option<Mpi>,
}

pub(super) struct Mpi {
    pub(super) comm: SimpleCommunicator,
    /// Last, so that it is dropped last: dropping it finalises MPI.
    _universe: Universe,
}

/// This process's rank, once it has joined the others.
static JOINED: OnceLock<usize> = OnceLock::new();

/// Whether this process reports what ends all of them alike. One that has joined no others reports for
/// itself, whatever a launcher's variables say.
pub fn speaks() -> bool {
    JOINED.get().is_none_or(|rank| *rank == 0)
}

/// The rank that the launcher gave, before MPI is initialised; `None` without a launcher.
pub fn launched_rank() -> Option<usize> {
    RANK_VARIABLES.iter().find_map(|name| std::env::var(name).ok()?.parse().ok())
}

impl World {
    /// A world of one, without MPI.
    pub fn solo() -> Self {
        let (beat, agreed) = Default::default();
        Self { rank: 0, size: 1, local_rank: 0, local_size: 1, beat, agreed, mpi: None }
    }

    /// Joins the ranks that the launcher started, or is alone without one.
    ///
    /// # Errors
    /// `Error::Device` when MPI cannot be initialised.
    pub fn start() -> Result<Self> {
        if launched_rank().is_none() {
            return Ok(Self::solo());
        }
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled).ok_or_else(|| {
            Error::device("MPI is initialised already in this process: start ranks with mpirun or srun")
        })?;
        let comm = universe.world();
        let rank = comm.rank() as usize;
        let local = comm.split_shared(comm.rank());
        abort_on_panic(rank);
        let _ = JOINED.set(rank); // MPI is initialised once a process
        if rank > 0 {
            journal::follow();
        }
        Ok(Self {
            rank,
            size: comm.size() as usize,
            local_rank: local.rank() as usize,
            local_size: local.size() as usize,
            beat: Arc::default(),
            agreed: Mutex::default(),
            mpi: Some(Mpi { comm, _universe: universe }),
        })
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Processes of the run.
    pub fn size(&self) -> usize {
        self.size
    }

    /// This process among those of its machine, from 0.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Processes of the run on this machine.
    pub fn local_size(&self) -> usize {
        self.local_size
    }

    /// Whether this process speaks for the run.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// Threads that this process should compute with.
    pub fn threads(&self) -> usize {
        threads::wanted(self.local_size)
    }

    /// Ends the job when a rank is gone, or when training makes no progress for `limit`.
    ///
    /// # Errors
    /// `Error::Device` when the watchdog's port cannot be opened or its thread cannot be started.
    pub fn watch(&self, limit: Duration) -> Result<()> {
        if self.size == 1 {
            return Ok(());
        }
        let on_end = || Box::new(end_job) as OnEnd;
        let mut text = String::new();
        let lead = match self.leads() {
            true => Some(Watchdog::lead(self.size, limit, self.beat.clone(), on_end())),
            false => None,
        };
        if let Some((watchdog, address)) = self.agree(lead)? {
            watchdog::keep(Some(watchdog));
            text = serde_json::to_string(&address).unwrap_or_default();
        }
        self.broadcast_text(&mut text);
        if self.leads() {
            return Ok(());
        }
        let address: Address = serde_json::from_str(&text)
            .map_err(|e| Error::device(format!("the watchdog's address did not arrive: {e}")))?;
        let watchdog = Watchdog::follow(self.rank, &address, limit, self.beat.clone(), on_end())?;
        if watchdog.is_none() {
            tracing::warn!(
                "rank {}: no connection to rank 0's watchdog at {address:?}: a hang of this rank will go \
                unnoticed",
                self.rank
            );
        }
        watchdog::keep(watchdog);
        Ok(())
    }

    /// What this rank is doing, for its watchdog.
    pub fn beat(&self) -> &Beat {
        &self.beat
    }

    /// Waits for all ranks.
    pub fn barrier(&self) {
        if let Some(mpi) = &self.mpi {
            self.beat.collective(|| mpi.comm.barrier());
        }
    }

    /// Sums `values` over ranks, in rank order, into every rank's copy.
    pub fn sum_f64(&self, values: &mut [f64]) {
        let row = values.len();
        let all = self.gather_f64(values);
        for (i, value) in values.iter_mut().enumerate() {
            *value = all.iter().skip(i).step_by(row).sum();
        }
    }

    /// Every rank's `values` (as many on each), end to end: [size, len].
    pub fn gather_f64(&self, values: &[f64]) -> Vec<f64> {
        let Some(mpi) = &self.mpi else { return values.to_vec() };
        let mut all = vec![0.0; values.len() * self.size];
        self.beat.collective(|| mpi.comm.all_gather_into(values, &mut all[..]));
        all
    }

    /// Sends rank 0's bytes to every rank; all have the same number of them.
    pub fn broadcast_bytes(&self, bytes: &mut [u8]) {
        if let Some(mpi) = &self.mpi {
            self.beat.collective(|| mpi.comm.process_at_rank(0).broadcast_into(bytes));
        }
    }

    /// Sends rank 0's text to every rank.
    pub fn broadcast_text(&self, text: &mut String) {
        self.broadcast_from(0, text);
    }

    pub(super) fn broadcast_from(&self, rank: usize, text: &mut String) {
        let Some(mpi) = &self.mpi else { return };
        let root = mpi.comm.process_at_rank(rank as i32);
        let mut len = text.len() as u64;
        self.beat.collective(|| root.broadcast_into(&mut len));
        let mut bytes = std::mem::take(text).into_bytes();
        bytes.resize(len as usize, 0);
        if bytes.is_empty() {
            return; // an empty Vec has no address that MPI accepts
        }
        self.beat.collective(|| root.broadcast_into(&mut bytes[..]));
        *text = String::from_utf8_lossy(&bytes).into_owned();
    }

    /// Rank 0's outcome of work that only it does: its error becomes every rank's error, so that no
    /// rank waits for a result that will not come.
    pub fn agree<T>(&self, outcome: Option<Result<T>>) -> Result<Option<T>> {
        let mut text = outcome.as_ref().map(error_text).unwrap_or_default();
        self.broadcast_text(&mut text);
        let outcome = match outcome {
            Some(result) => result.map(Some),
            None => told_error(&text).map_or(Ok(None), Err),
        };
        outcome.map_err(|error| self.agreed(error))
    }

    /// Notes that every rank has this error, so that one reports it for all.
    pub(super) fn agreed(&self, error: Error) -> Error {
        *self.agreed.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
        error
    }

    /// The outcome of work that all ranks share: the error of the lowest rank that failed becomes every
    /// rank's error, and names the rank if others did not fail.
    pub fn agree_all<T>(&self, outcome: Result<T>) -> Result<T> {
        let failed = self.gather_f64(&[f64::from(u8::from(outcome.is_err()))]);
        let Some(rank) = failed.iter().position(|flag| *flag > 0.0) else { return outcome };
        let mut text = error_text(&outcome);
        if failed.contains(&0.0) {
            text = text.replacen(' ', &format!(" rank {rank}: "), 1);
        }
        self.broadcast_from(rank, &mut text);
        told_error(&text).map_or(outcome, |error| Err(self.agreed(error)))
    }

    /// Work that one rank of each node does for all of them: the others wait for its verdict, and an error of
    /// any node becomes every rank's. `Some` on the rank that did it.
    pub fn once_a_node<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        self.agree_all((self.local_rank == 0).then(work).transpose())
    }

    /// Reports `error` and ends every rank with its exit code.
    pub fn fail(&self, error: &Error) -> ! {
        // Training may have taken SIGTERM for itself: from now on it ends the process again, so that
        // rank 0's report ends the ranks that still wait to make theirs.
        let _ = flag::register_conditional_default(SIGTERM, Arc::new(AtomicBool::new(true)));
        watchdog::dismiss();
        let text = error.to_string();
        let agreed = *self.agreed.lock().unwrap_or_else(PoisonError::into_inner) == text;
        if !self.leads() {
            std::thread::sleep(ERROR_DELAY);
        }
        match (self.size > 1, agreed) {
            (true, true) if !self.leads() => journal::note(&text), // rank 0 says it
            (true, false) => journal::complain(&format!("rank {}: {text}", self.rank)),
            _ => journal::complain(&text),
        }
        match &self.mpi {
            Some(mpi) => mpi.comm.abort(error.exit_code()),
            None => std::process::exit(error.exit_code()),
        }
    }
}

/// Exit code and text of an error, to be sent to other ranks; empty without one.
fn error_text<T>(outcome: &Result<T>) -> String {
    outcome.as_ref().err().map(|e| format!("{} {e}", e.exit_code())).unwrap_or_default()
}

/// The error that `error_text` described.
fn told_error(text: &str) -> Option<Error> {
    let (code, text) = text.split_once(' ')?;
    Some(match code {
        "2" => Error::config(text),
        "4" => Error::device(text),
        "75" => Error::Preempted(text.to_owned()),
        _ => Error::data(text),
    })
}

/// The watchdog's last act. Its thread may not call MPI, so it leaves the process; the launcher ends
/// the ranks that are left.
fn end_job(verdict: Verdict) {
    if verdict.speak {
        journal::complain(&format!("{}; the job ends", verdict.text));
        std::thread::sleep(GRACE);
    } else {
        journal::note(&format!("ending: {}", verdict.text));
    }
    signal_hook::low_level::exit(PANIC_CODE);
}

impl Drop for World {
    fn drop(&mut self) {
        if self.mpi.is_some() {
            watchdog::dismiss();
        }
    }
}

/// A panic would unwind into MPI_Finalize and wait there for ranks that wait for this one: end the job
/// instead. Only the main thread may call MPI; any other exits the process, and the launcher ends the others.
fn abort_on_panic(rank: usize) {
    let report = panic::take_hook();
    let main = std::thread::current().id();
    panic::set_hook(Box::new(move |info| {
        watchdog::dismiss();
        journal::complain(&format!("rank {rank} on {} failed:", journal::host()));
        journal::note(&info.to_string());
        report(info);
        if std::thread::current().id() == main {
            SimpleCommunicator::world().abort(PANIC_CODE);
        }
        signal_hook::low_level::exit(PANIC_CODE);
    }));
}
