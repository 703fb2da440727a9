//! apt's package lists, fetched into a folder of our own: the system's lists may be absent (container
//! images), foreign-language or another user's, and must not change because someone trains a model.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files;
use crate::{Error, Result};

/// Reads lists in whatever compression apt chose.
const HELPER: &str = "/usr/lib/apt/apt-helper";
/// Endings of lists that need the helper.
const PACKED: [&str; 5] = ["lz4", "xz", "zst", "bz2", "lzma"];

/// An error of this command, with what to do instead.
pub(super) fn alternatives(what: &str) -> Error {
    Error::data(format!(
        "sample debian: {what}. Instead, use --lists DIR with the lists of a Debian machine \
        (/var/lib/apt/lists), or your own files with prepare --clicks FILE --documents FILE (ORCAS and MS \
        MARCO TSV)"
    ))
}

/// Fetches the lists of the machine's own sources (about 20 MB) and returns their folder. Works for any
/// user: state, cache and locks are below `dir`.
///
/// # Errors
/// `Error::Data` where there is no apt or it fetched nothing.
pub(super) fn fetch(dir: &Path) -> Result<PathBuf> {
    let lists = dir.join("lists");
    for folder in [lists.join("partial"), dir.join("cache/archives/partial")] {
        fs::create_dir_all(&folder).map_err(|cause| Error::io("made", &folder, cause))?;
    }
    // apt wants absolute paths: it takes relative ones as below its own directories.
    let dir = fs::canonicalize(dir).map_err(|cause| Error::io("read", dir, cause))?;
    eprintln!("fetching the package index (about 20 MB)");
    let output = Command::new("apt-get")
        .env("LC_ALL", "C")
        .args(["-q", "update"])
        .arg("-o")
        .arg(format!("Dir::State::Lists={}/lists", dir.display()))
        .arg("-o")
        .arg(format!("Dir::Cache={}/cache", dir.display()))
        .args(["-o", "Acquire::Languages=en", "-o", "Acquire::Retries=3"])
        .args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"])
        .args(["-o", "Acquire::IndexTargets::deb-src::Sources::DefaultEnabled=false"])
        .output()
        .map_err(|cause| alternatives(&format!("apt-get cannot be run ({cause})")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let lists = dir.join("lists");
    // One source of several that cannot be reached is no reason to stop; no list at all is.
    if !names(&lists)?.iter().any(|name| is_list(name, "_Packages")) {
        let first = said.lines().find(|line| line.starts_with("E:") || line.starts_with("W:"));
        let why = first.unwrap_or("no reason given").trim_end_matches('.');
        return Err(alternatives(&format!("apt-get update fetched no package list ({why})")));
    }
    for line in said.lines().filter(|line| line.starts_with("E:")) {
        eprintln!("warning: apt-get: {line}");
    }
    Ok(lists)
}

/// The file names of a folder, sorted.
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(|cause| Error::io("read", folder, cause))?;
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Whether a name ends in `kind`, compressed or not.
pub(super) fn is_list(name: &str, kind: &str) -> bool {
    let bare = match name.rsplit_once('.') {
        Some((bare, ending)) if ending == "gz" || PACKED.contains(&ending) => bare,
        _ => name,
    };
    bare.ends_with(kind)
}

/// The text of a list.
///
/// # Errors
/// `Error::Data` where it cannot be read, or needs apt's helper and there is none.
pub(super) fn text(path: &Path) -> Result<String> {
    let packed = path.extension().is_some_and(|ending| PACKED.iter().any(|packed| ending == *packed));
    let bytes = if packed {
        let output = Command::new(HELPER).arg("cat-file").arg(path).output().map_err(|cause| {
            alternatives(&format!("{HELPER} cannot be run ({cause}) to read {}", path.display()))
        })?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            let why = why.lines().next().unwrap_or("no reason given");
            return Err(Error::data(format!("{}: cannot be unpacked: {why}", path.display())));
        }
        output.stdout
    } else {
        let bytes = files::read(path)?;
        if bytes.starts_with(&[0x1f, 0x8b]) { unzip(&bytes, path)? } else { bytes }
    };
    Ok(String::from_utf8(bytes).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()))
}

fn unzip(bytes: &[u8], path: &Path) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(bytes), &mut plain)
        .map_err(|cause| Error::io("unpacked", path, cause))?;
    Ok(plain)
}
