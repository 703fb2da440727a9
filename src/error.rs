//! The one error type of the program. Its variants are the exit codes that scripts see, so every
//! failure must choose one; its text is the one line that the user reads, so it says what is
//! wrong, where, and what to do next.

use std::path::Path;

/// What can go wrong, by who has to act next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Usage or configuration: the user edits a command or a config (exit code 2).
    #[error("{0}")]
    Config(String),
    /// Input data, shards, checkpoints, run files, the file system (exit code 3).
    #[error("{0}")]
    Data(String),
    /// A device, MPI or NCCL (exit code 4).
    #[error("{0}")]
    Device(String),
    /// A signal asked the run to stop; everything is saved and the same command continues (exit code 75).
    #[error("{0}")]
    Preempted(String),
}

/// The program's result type.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn config(text: impl Into<String>) -> Self {
        Self::Config(text.into())
    }

    pub fn data(text: impl Into<String>) -> Self {
        Self::Data(text.into())
    }

    pub fn device(text: impl Into<String>) -> Self {
        Self::Device(text.into())
    }

    /// A file that cannot be `action` ("read", "written", ...): path and cause on one line. Running out of
    /// memory or descriptors is the machine's fault, not the file's, and becomes `Device`.
    pub fn io(action: &str, path: &Path, cause: std::io::Error) -> Self {
        let text = format!("{}: cannot be {action}: {cause}", path.display());
        match lacking(&text) {
            Some(advice) => Self::Device(format!("{text}: {advice}")),
            None => Self::Data(text),
        }
    }

    /// The process exit code, as the README lists them.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Config(_) => 2,
            Self::Data(_) => 3,
            Self::Device(_) => 4,
            Self::Preempted(_) => 75,
        }
    }
}

/// Which limit to raise when the system has run out of something. The error number is read from the text:
/// causes come wrapped, and std names neither ENFILE nor EMFILE.
fn lacking(text: &str) -> Option<&'static str> {
    let says = |code: u32| text.contains(&format!("(os error {code})"));
    if says(12) {
        return Some("raise the limit on memory (ulimit -v)");
    }
    (says(23) || says(24)).then_some("raise the limit on open files (ulimit -n)")
}
