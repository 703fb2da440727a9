//! Records the code's version in the binary, so that a run directory can name what made it, and
//! lists the GPU kernels, so that a new file under kernels/ is embedded without being named twice.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

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
    let folder = Path::new(&root).join("kernels");
    let lists =
        [("SOURCES", "cu"), ("HEADERS", "cuh")].map(|(name, ending)| kernel_list(&folder, name, ending));
    if let Err(e) = fs::write(Path::new(&out).join("kernels.rs"), lists.concat()) {
        println!("cargo:error=kernels.rs cannot be written: {e}");
    }
}

/// A constant with name and text of every file of `folder` with this ending, in order of name.
fn kernel_list(folder: &Path, constant: &str, ending: &str) -> String {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == ending)).collect();
    files.sort();
    let entries: String = files
        .iter()
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            format!("({name:?}, include_str!({path:?})),\n")
        })
        .collect();
    format!(
        "/// Every kernels/*.{ending}: name and text.\npub const {constant}: &[(&str, &str)] = &[\n{entries}];\n"
    )
}
