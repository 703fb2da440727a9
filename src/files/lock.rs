//! Locks that say who holds them. Two processes that continued one file would mix what they write.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::{Error, Result};

/// The outcome of an attempt to lock.
#[derive(Debug)]
pub enum Lock {
    /// Ours until this value is dropped; a killed process holds no lock.
    Held(Held),
    /// Another process has it; the text says which, and since when.
    Busy(String),
    /// The file system has no locks, so nobody can be kept out.
    Unknown(Held),
}

/// An open lock file.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    _file: File,
    /// Whether the file is removed with the lock.
    passing: bool,
}

impl Held {
    /// The file is removed when the lock is let go.
    pub fn passing(mut self) -> Self {
        self.passing = true;
        self
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.passing {
            let _ = fs::remove_file(&self.path); // a file left behind does no harm
        }
    }
}

/// Makes the file and locks it, without waiting.
///
/// # Errors
/// `Error::Data` if the file cannot be made.
pub fn lock(path: &Path) -> Result<Lock> {
    let failed = |cause| Error::io("written", path, cause);
    loop {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(failed)?;
        let held = |file| Held { path: path.to_owned(), _file: file, passing: false };
        match file.try_lock() {
            // a lock on a file that its holder has just removed keeps nobody out
            Ok(()) if !is_at(&file, path) => {}
            Ok(()) => {
                // the holder's name is for people: a full disk does not cost the lock
                let _ = file.set_len(0).and_then(|()| file.write_all(me().as_bytes()));
                return Ok(Lock::Held(held(file)));
            }
            Err(TryLockError::WouldBlock) => return Ok(Lock::Busy(holder(path))),
            Err(TryLockError::Error(_)) => return Ok(Lock::Unknown(held(file))),
        }
    }
}

/// Whether `path` still leads to the open file.
fn is_at(file: &File, path: &Path) -> bool {
    let place = |about: &fs::Metadata| (about.dev(), about.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if place(&a) == place(&b))
}

fn me() -> String {
    let mut now = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut now)); // an unreadable clock leaves it empty
    let now = now.split('.').next().unwrap_or_default();
    format!("process {} on {}, since {now} UTC\n", std::process::id(), host())
}

fn holder(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    if line.starts_with("process ") { line.chars().take(120).collect() } else { "another process".into() }
}

/// This machine's name.
pub fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "unknown host".into() } else { name.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_dropped_and_says_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = lock(&path).unwrap();
        assert!(matches!(first, Lock::Held(_)));
        for _ in 0..2 {
            let Lock::Busy(who) = lock(&path).unwrap() else { panic!("two hold it") };
            assert!(who.starts_with(&format!("process {} on ", std::process::id())), "{who}");
            assert!(who.contains(", since 2") && who.ends_with(" UTC"), "{who}");
        }
        drop(first);
        assert!(matches!(lock(&path).unwrap(), Lock::Held(_)));
        assert!(path.exists(), "it was not to go");
    }

    #[test]
    fn a_passing_lock_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let Lock::Held(held) = lock(&path).unwrap() else { panic!("nobody has it") };
        let held = held.passing();
        assert!(matches!(lock(&path).unwrap(), Lock::Busy(_)));
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn what_an_older_program_left_names_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let file = File::create(&path).unwrap();
        file.try_lock().unwrap();
        assert!(matches!(lock(&path).unwrap(), Lock::Busy(who) if who == "another process"));
    }
}
