//! Records the code's version in the binary, so that a run directory can name what made it.

use std::process::Command;

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
}
