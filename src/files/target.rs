//! Where an output really goes. A file is replaced once its successor is complete. A pipe, a device or an
//! open descriptor is written into: renaming over it would take it from whoever uses it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Links followed in a row at most, as on Linux.
const LINKS: usize = 40;

/// What an output is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file that is there or will be, at the end of all links.
    File(PathBuf),
    /// A pipe, a device, or an open descriptor.
    Stream(PathBuf),
}

/// Follows the links of `path`; the last may lead to a file that does not exist yet.
///
/// # Errors
/// `Error::Data` if a link cannot be followed.
pub fn target(path: &Path) -> Result<Target> {
    let failed = |cause| Error::io("written", path, cause);
    let mut at = path.to_owned();
    for _ in 0..LINKS {
        if descriptors(&at).is_some() {
            return Ok(Target::Stream(at));
        }
        match fs::symlink_metadata(&at) {
            Ok(about) if about.is_symlink() => at = folder_of(&at).join(fs::read_link(&at).map_err(failed)?),
            Ok(about) if !(about.is_file() || about.is_dir()) => return Ok(Target::Stream(at)),
            Err(cause) if cause.kind() != ErrorKind::NotFound => return Err(failed(cause)),
            _ => return Ok(Target::File(at)),
        }
    }
    Err(Error::data(format!("{}: cannot be written: its links lead in a circle", path.display())))
}

/// The folder that a file lies in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `/proc/PROCESS/fd`, if `path` lies in it.
fn descriptors(path: &Path) -> Option<PathBuf> {
    path.file_name()?;
    let folder = folder_of(path).canonicalize().ok()?;
    (folder.starts_with("/proc") && folder.ends_with("fd")).then_some(folder)
}

/// Opens a pipe, a device or a descriptor to write into it.
pub(super) fn open_stream(path: &Path) -> io::Result<File> {
    let Some(folder) = descriptors(path) else { return File::options().write(true).open(path) };
    let own = folder == Path::new("/proc").join(std::process::id().to_string()).join("fd");
    // The program's own outputs continue at their position; opened by name they would be overwritten from the
    // start.
    match path.file_name().and_then(|name| name.to_str()) {
        Some("1") if own => {
            io::stdout().flush()?;
            Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
        }
        Some("2") if own => Ok(io::stderr().as_fd().try_clone_to_owned()?.into()),
        _ => File::options().append(fs::metadata(path)?.is_file()).write(true).open(path),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_to_their_end_and_descriptors_are_no_files() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("far")).unwrap();
        symlink("far/result", at("near")).unwrap();
        symlink(at("near"), at("nearer")).unwrap();
        for link in ["near", "nearer"] {
            assert_eq!(target(&at(link)).unwrap(), Target::File(at("far/result")));
        }
        symlink("round", at("round")).unwrap();
        assert!(target(&at("round")).unwrap_err().to_string().contains("circle"));
        assert_eq!(target(Path::new("/dev/null")).unwrap(), Target::Stream("/dev/null".into()));
        for name in ["/proc/self/fd/1", "/dev/fd/77", "/dev/stdout"] {
            assert!(matches!(target(Path::new(name)).unwrap(), Target::Stream(_)), "{name}");
        }
        assert_eq!(target(Path::new("plain")).unwrap(), Target::File("plain".into()));
    }
}
