//! Files that are whole or not there. Whoever finds a file under its own name may trust that it is complete:
//! it was written beside its place, synced, and renamed.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Begins the names of files that are not complete yet.
const UNFINISHED: &str = ".unfinished-";

/// The bytes of a file.
///
/// # Errors
/// `Error::Data` where it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|cause| Error::io("read", path, cause))
}

/// The text of a file.
///
/// # Errors
/// `Error::Data` where it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|cause| Error::io("read", path, cause))
}

/// Writes a file beside its place and renames it.
///
/// # Errors
/// `Error::Data` where the disk refuses; what was at the place is then still there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_by(path, |file| file.write_all(bytes).map_err(|cause| Error::io("written", path, cause)))
}

/// As `write`, for what comes piece by piece.
///
/// # Errors
/// As `write`, and what `each` returns.
pub fn write_by(path: &Path, each: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |cause| Error::io("written", path, cause);
    // Temporary files are private to their owner; a result is as readable as the user's umask says.
    let mode = fs::Permissions::from_mode(0o666);
    let mut builder = tempfile::Builder::new();
    let mut file = builder.prefix(UNFINISHED).permissions(mode).tempfile_in(folder).map_err(failed)?;
    each(&mut file)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Removes what `write` left in a folder when its process was killed. Only for a folder that no other
/// process writes to.
pub fn sweep(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in
        entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()))
    {
        // Best effort: such a file costs room and misleads nobody.
        let _ = fs::remove_file(entry.path());
    }
}

/// Puts a file's content, or a folder's names, on the disk.
///
/// # Errors
/// `Error::Data` where the disk refuses.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|cause| Error::io("synced", path, cause))
}

/// What became of an attempt to lock.
#[derive(Debug)]
pub enum Lock {
    /// Ours for as long as the file is open; a killed process holds no lock.
    Held(File),
    /// Another process has it.
    Busy,
    /// The file system has no locks, so nobody can be kept out.
    Unknown(File),
}

/// Makes the file and locks it, without waiting.
///
/// # Errors
/// `Error::Data` where the file cannot be made.
pub fn lock(path: &Path) -> Result<Lock> {
    let file = File::create(path).map_err(|cause| Error::io("written", path, cause))?;
    Ok(match file.try_lock() {
        Ok(()) => Lock::Held(file),
        Err(TryLockError::WouldBlock) => Lock::Busy,
        Err(TryLockError::Error(_)) => Lock::Unknown(file),
    })
}

/// Refuses to write where something is read from.
///
/// # Errors
/// `Error::Config` when `out` is one of the `inputs`, by whatever name.
pub fn refuse_input<'a>(out: &Path, inputs: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    let Ok(place) = out.canonicalize() else { return Ok(()) }; // what is not there is no input
    match inputs.into_iter().find(|input| input.canonicalize().is_ok_and(|input| input == place)) {
        None if place.is_dir() => {
            Err(Error::config(format!("{}: is a folder: name a file to write", out.display())))
        }
        None => Ok(()),
        Some(_) => Err(Error::config(format!(
            "{}: is an input and would be overwritten: choose another file",
            out.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_write_that_fails_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result");
        write(&path, b"first").unwrap();
        let failed = write_by(&path, |file| {
            file.write_all(b"half").unwrap();
            Err(Error::data("enough"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "enough");
        assert_eq!(read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["result"]);
    }

    #[test]
    fn sweeping_takes_what_a_killed_write_left_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("result"), b"whole").unwrap();
        fs::write(folder.path().join(format!("{UNFINISHED}x7Gq2")), b"ha").unwrap();
        sweep(folder.path());
        assert_eq!(names(folder.path()), ["result"]);
    }

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = lock(&path).unwrap();
        assert!(matches!(first, Lock::Held(_)));
        assert!(matches!(lock(&path).unwrap(), Lock::Busy));
        drop(first);
        assert!(matches!(lock(&path).unwrap(), Lock::Held(_)));
    }
}
