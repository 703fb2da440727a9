//! Where a process says what happened. Warnings go to the terminal; everything goes to the process's own log
//! in the run directory, `logs/rank-000.log`, so that a job that died overnight can be explained. Lines for
//! the log alone carry the target `journal`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::Level;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::prelude::*;

pub use crate::files::host;
use crate::{Error, Result};

/// Target of lines that the terminal does not show.
const QUIET: &str = "journal";

/// The run's log, once there is a run.
static LOG: OnceLock<File> = OnceLock::new();

/// False on ranks that leave common warnings to another rank.
static LEADS: AtomicBool = AtomicBool::new(true);

/// From now on, warnings that every rank has come from the first rank alone.
pub fn follow() {
    LEADS.store(false, Ordering::Relaxed);
}

/// Sets up the terminal and the log, once per process. `RUST_LOG` chooses what the terminal shows.
pub fn start() {
    let mut shown = EnvFilter::from_default_env().add_directive(Level::WARN.into());
    if let Ok(quiet) = format!("{QUIET}=off").parse() {
        shown = shown.add_directive(quiet);
    }
    let terminal = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .with_filter(shown);
    let log =
        fmt::layer().with_writer(Log).with_ansi(false).with_target(false).with_filter(LevelFilter::INFO);
    tracing_subscriber::registry().with(terminal).with(log).init();
}

/// From now on this rank's lines are appended to its log in the run directory `dir`.
///
/// # Errors
/// `Error::Data` when the log cannot be written.
pub fn open(dir: &Path, rank: usize) -> Result<()> {
    let folder = dir.join("logs");
    fs::create_dir_all(&folder).map_err(|e| Error::io("created", &folder, e))?;
    let path = folder.join(format!("rank-{rank:03}.log"));
    let file = File::options().create(true).append(true).open(&path);
    let _ = LOG.set(file.map_err(|e| Error::io("written", &path, e))?); // a process's second run shares it
    note(&format!("process {} on {}", std::process::id(), host()));
    Ok(())
}

/// A line for the log alone.
pub fn note(text: &str) {
    tracing::info!(target: QUIET, "{text}");
}

/// A line for the user and the log.
pub fn say(text: &str) {
    tell!("{text}");
    note(text);
}

/// Warns once for each text, on one rank only: every rank reads the same files, some again for every fold.
pub fn warn_once(text: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let new = SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned());
    if new && LEADS.load(Ordering::Relaxed) {
        tracing::warn!("{text}");
    }
}

/// The error that ends a process, on the terminal and in the log.
pub fn complain(text: &str) {
    // one write, so that no other process of the job can put its own words into the line
    let line = format!("ctune-dist: {text}\n");
    eprint!("{line}");
    tracing::error!(target: QUIET, "{text}");
}

struct Log;

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Self::Writer {
        Log
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match LOG.get() {
            Some(mut file) => file.write(bytes),
            None => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // nothing is buffered: the last line before a crash is the one that matters
    }
}
