//! Records the code's version in the binary, so that a run directory can name what made it, and
//! lists the GPU kernels, so that a new file under kernels/ is embedded without being named twice, with
//! the parameters of each kernel, so that launches can be checked.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

#[path = "build/signatures.rs"]
mod signatures;

fn main() {
    let version = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .output()
        .ok()
        .filter(|out| out.status.success())
        .and_then(|out| String::from_utf8(out.stdout).ok())
        .map_or("unknown".into(), |text| text.trim().to_owned());
    println!("cargo:rustc-env=CTUNE_CODE_VERSION={version}");
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=kernels");
    let (Ok(root), Ok(out)) = (env::var("CARGO_MANIFEST_DIR"), env::var("OUT_DIR")) else { return };
    if let Err(e) = write_kernels(&Path::new(&root).join("kernels"), Path::new(&out)) {
        println!("cargo:error={e}");
    }
}

/// Writes kernels.rs (names and texts) and signatures.rs (parameters) for the library to include.
fn write_kernels(folder: &Path, out: &Path) -> Result<(), String> {
    let sources = files(folder, "cu");
    let lists = [kernel_list(&sources, "SOURCES"), kernel_list(&files(folder, "cuh"), "HEADERS")];
    let texts = sources.iter().map(|path| match fs::read_to_string(path) {
        Ok(text) => Ok((name(path), text)),
        Err(e) => Err(format!("{}: {e}", path.display())),
    });
    let table = signatures::table(&texts.collect::<Result<Vec<_>, _>>()?)?;
    for (name, text) in [("kernels.rs", lists.concat()), ("signatures.rs", table)] {
        fs::write(out.join(name), text).map_err(|e| format!("{name} cannot be written: {e}"))?;
    }
    Ok(())
}

/// The files of `folder` with this ending, in order of name.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == ending)).collect();
    files.sort();
    files
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A constant with name and text of every file.
fn kernel_list(files: &[PathBuf], constant: &str) -> String {
    let entries: String =
        files.iter().map(|path| format!("({:?}, include_str!({path:?})),\n", name(path))).collect();
    format!("/// Kernel files: name and text.\npub const {constant}: &[(&str, &str)] = &[\n{entries}];\n")
}
