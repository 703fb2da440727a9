//! `prepare` killed at random moments ends with what an undisturbed run makes, byte for byte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ctune_dist::corpus::Shards;
use ctune_dist::corpus::sample::synthetic::{self, SyntheticOptions};

fn prepare(folder: &Path, out: &str) -> Command {
    let mut command = crate::start::program();
    command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command.args(["prepare", "--clicks", "clicks.tsv", "--documents", "documents.tsv", "--out", out]);
    // Every block of text ends a part: a dozen of them, and a duplicate filter whose memory must survive too.
    command.args(["--vocab", "2000", "--max-tokens", "64", "--set", "prepare.part_tokens=20000"]);
    command.args(["--set", "prepare.filter.duplicate_documents=true"]);
    command
}

/// Name and bytes of every file.
fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect()
}

#[test]
fn a_killed_preparation_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_owned();
    let options =
        SyntheticOptions { out, pairs: 30_000, queries: 15_000, documents: 12_000, words: 200, seed: 3 };
    synthetic::run(&options).unwrap();
    // The same files, so that the paths in the manifests are the same too.
    let start = Instant::now();
    assert!(prepare(folder.path(), "unbroken").status().unwrap().success());
    let whole = start.elapsed();
    let (mut killed, mut finished) = (0, false);
    // Moments spread over the whole run by the golden ratio; a machine under load may need fewer.
    for i in 1..=24 {
        let mut child = prepare(folder.path(), "broken").spawn().unwrap();
        std::thread::sleep(whole.mul_f64(f64::from(i) * 0.618_034 % 1.0).max(Duration::from_millis(5)));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            finished = true;
            break;
        }
        killed += 1;
    }
    assert!(killed > 0, "nothing was killed");
    if !finished {
        assert!(prepare(folder.path(), "broken").status().unwrap().success());
    }
    let (unbroken, broken) =
        (content(&folder.path().join("unbroken")), content(&folder.path().join("broken")));
    assert_eq!(unbroken.keys().collect::<Vec<_>>(), broken.keys().collect::<Vec<_>>());
    for (name, bytes) in &unbroken {
        assert!(broken[name] == *bytes, "{name} differs after {killed} kills");
    }
    assert!(unbroken.keys().filter(|name| name.starts_with("documents-")).count() > 8, "many parts");
    Shards::open(&folder.path().join("broken")).unwrap().verify().unwrap();
    // Nothing is left beside the shards once a later start has looked.
    assert!(prepare(folder.path(), "broken").status().unwrap().success());
    assert!(!folder.path().join(".broken.partial").exists());
}

/// Whether the folder holds a file whose name begins so.
fn is_there((folder, start): &(PathBuf, &str)) -> bool {
    let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().as_encoded_bytes().starts_with(start.as_bytes()))
}

/// The moments around the manifest and the last rename are too short for chance to hit, so the test waits for
/// each.
#[test]
fn killed_while_the_directory_gets_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_owned();
    let options = SyntheticOptions { out, pairs: 600, queries: 300, documents: 200, words: 30, seed: 5 };
    synthetic::run(&options).unwrap();
    assert!(prepare(folder.path(), "unbroken").status().unwrap().success());
    let unbroken = content(&folder.path().join("unbroken"));
    let (target, partial) = (folder.path().join("broken"), folder.path().join(".broken.partial"));
    // What a file's name begins with. The third is the manifest, or its checksum, while it is written.
    let moments = ["clicks.bin.part", "manifest.crc32", ".unfinished-", "manifest.json"];
    let moments: Vec<_> = moments.iter().map(|start| (partial.join("shards"), *start)).collect();
    let (mut before, mut after) = (0, 0);
    // Where the process was quicker than the signal, it is tried again.
    for i in 0..80 {
        let moment = moments.get(i % 5).cloned().unwrap_or_else(|| (target.clone(), "manifest.json"));
        let mut child = prepare(folder.path(), "broken").spawn().unwrap();
        while !is_there(&moment) && child.try_wait().unwrap().is_none() {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        before += usize::from(is_there(&moments[3]) && !target.exists());
        after += usize::from(target.exists() && partial.exists());
        assert!(prepare(folder.path(), "broken").status().unwrap().success());
        assert!(content(&target) == unbroken, "killed at {moment:?}");
        assert!(!partial.exists(), "killed at {moment:?}");
        std::fs::remove_dir_all(&target).unwrap();
        if i >= 5 && before > 0 && after > 0 {
            break;
        }
    }
    assert!(before > 0 && after > 0, "killed {before} times before and {after} times after the last rename");
}

#[test]
fn other_options_do_not_take_over_old_parts() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_owned();
    let options =
        SyntheticOptions { out, pairs: 4_000, queries: 2_000, documents: 3_000, words: 100, seed: 4 };
    synthetic::run(&options).unwrap();
    let mut child = prepare(folder.path(), "shards").spawn().unwrap();
    let first = folder.path().join(".shards.partial/work/documents-00000.note");
    while !first.exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended before its first part could be seen");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for out in ["shards", "fresh"] {
        let mut other = prepare(folder.path(), out);
        assert!(other.args(["--set", "data.fields=[\"body\"]"]).status().unwrap().success());
    }
    assert_eq!(content(&folder.path().join("shards")), content(&folder.path().join("fresh")));
}
