//! Files that are complete or absent. A file under its final name is complete: it was written beside its
//! place, synced, and renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::target::{Target, folder_of, open_stream, target};
use crate::{Error, Result};

/// Prefix of files that are not complete yet.
const UNFINISHED: &str = ".unfinished-";

/// The bytes of a file.
///
/// # Errors
/// `Error::Data` if it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|cause| Error::io("read", path, cause))
}

/// The text of a file.
///
/// # Errors
/// `Error::Data` if it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|cause| Error::io("read", path, cause))
}

/// Writes a file beside its place and renames it. Links are followed; a pipe, a device or an open descriptor is
/// written into.
///
/// # Errors
/// `Error::Data` if the disk refuses; what was at the place is then still there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_by(path, |file| file.write_all(bytes).map_err(|cause| Error::io("written", path, cause)))
}

/// As `write`, for content that comes piece by piece.
///
/// # Errors
/// As `write`, and what `each` returns.
pub fn write_by(path: &Path, each: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let failed = |cause| Error::io("written", path, cause);
    let place = match target(path)? {
        Target::File(place) => place,
        Target::Stream(place) => {
            let mut stream = open_stream(&place).map_err(failed)?;
            return each(&mut stream);
        }
    };
    let folder = folder_of(&place);
    // Temporary files are private to their owner; a result is as readable as the user's umask says.
    let mode = fs::Permissions::from_mode(0o666);
    let mut builder = tempfile::Builder::new();
    let file = builder.prefix(UNFINISHED).permissions(mode).tempfile_in(folder);
    let mut file = file.map_err(|cause| {
        let text = cause.to_string();
        let cause = text.split(" at path ").next().unwrap_or_default(); // without the temporary name
        let action = format!(
            "written: it is first made beside its place, and no file can be created in {}",
            folder.display()
        );
        Error::io(&action, path, io::Error::other(cause))
    })?;
    each(&mut file)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&place).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Removes what `write` left in a folder when its process was killed. Only for a folder that no other
/// process writes to.
pub fn sweep(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in
        entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()))
    {
        // Best effort: such a file takes space and does no other harm.
        let _ = fs::remove_file(entry.path());
    }
}

/// Puts a file's content, or a folder's names, on the disk.
///
/// # Errors
/// `Error::Data` if the disk refuses.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|cause| Error::io("synced", path, cause))
}

/// Refuses an output that is also an input.
///
/// # Errors
/// `Error::Config` when `out` is one of the `inputs`, by whatever name.
pub fn refuse_input<'a>(out: &Path, inputs: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    let Ok(place) = out.canonicalize() else { return Ok(()) }; // a file that does not exist is no input
    if !(place.is_file() || place.is_dir()) {
        return Ok(()); // only files are overwritten
    }
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
}
