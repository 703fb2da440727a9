//! How a test says that it leaves something out for want of data, of a package or of a tool. `cargo test` calls
//! such a test passed; what is said here is what tells it from one that looked.

use std::fs::File;
use std::io::Write;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The test that runs on this thread, or where it stands.
#[track_caller]
fn test() -> String {
    match std::thread::current().name() {
        Some(name) if name != "main" => name.to_owned(),
        // with --test-threads=1 no test has a thread of its own
        _ => Location::caller().to_string(),
    }
}

/// Says that the test `name` was not run, or not whole: on standard output and, for `launch/test.sh` to count, in
/// the file that `CTUNE_SKIPPED` names.
pub fn skip(name: &str, reason: &str) {
    note(std::env::var_os("CTUNE_SKIPPED").map(PathBuf::from).as_deref(), name, reason);
}

/// As `skip`, of the test that runs here.
#[track_caller]
pub fn left_out(reason: &str) {
    skip(&test(), reason);
}

fn note(file: Option<&Path>, name: &str, reason: &str) {
    let line = format!("skipped: {name}: {reason}\n");
    print!("{line}");
    if let Some(file) = file {
        // one write of a whole line, as tests run side by side
        let written = File::options().append(true).create(true).open(file);
        written.unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// A path below the folder of real data sets, `CTUNE_SHARED_DATA` or `../shared/data`; where it is missing the
/// caller's test ends early.
#[track_caller]
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("CTUNE_SHARED_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    let there = root.join(path);
    if !there.exists() {
        left_out(&format!("{path} is not in the folder CTUNE_SHARED_DATA"));
        return None;
    }
    Some(there)
}

/// The Python that can import `module`: `CTUNE_PYTHON` or `python3`. `package` is what pip calls the module's.
#[track_caller]
pub fn python(module: &str, package: &str) -> Option<String> {
    let python = std::env::var("CTUNE_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", &format!("import {module}")]).output();
    if there.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    left_out(&format!("{python} cannot import {module}; pip install {package}"));
    None
}

/// Where a program of this machine is; where there is none the caller leaves out what needs it.
#[track_caller]
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        left_out(&format!("there is no {name}"));
    }
    found
}

/// Whether the environment asks for what costs more than tests may: the variable `name` is set.
#[track_caller]
pub fn asked(name: &str, what: &str) -> bool {
    let asked = std::env::var_os(name).is_some();
    if !asked {
        left_out(&format!("set {name}=1 {what}"));
    }
    asked
}

#[test]
fn what_is_left_out_is_named_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("skipped");
    note(Some(&file), "one", "no data");
    note(Some(&file), "two", "no package");
    let text = std::fs::read_to_string(file).unwrap();
    assert_eq!(text, "skipped: one: no data\nskipped: two: no package\n");
    assert!(test().contains("what_is_left_out_is_named_and_counted") || test().contains("skip.rs"));
}

/// What the two modules are for stands in them alone; a test that does it by itself is not counted, or sees a GPU.
#[test]
fn tests_start_programs_and_leave_out_in_one_place() {
    let (own, mut folders) =
        (["start.rs", "skip.rs"], vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")]);
    let forbidden = [
        ("CARGO_BIN_EXE", "start::BINARY"),
        ("Command::new(BINARY", "start::program"),
        ("Command::new(\"mpirun", "start::mpirun"),
        ("println!(\"skipped", "skip::left_out"),
        ("elapsed().as_", "no test asserts a time; start::must_end ends what hangs"),
    ];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|end| end != "rs") || own.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let hits = forbidden.iter().filter(|(word, _)| text.contains(word));
            found.extend(hits.map(|(word, instead)| format!("{}: {word}: {instead}", path.display())));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
