//! Every command where the system gives little: few threads, few open files, little memory, no temporary folder.
//! It works with less, or one line says what is lacking; it never panics and never hangs.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::program::{BINARY, Place, assert_done};
use super::ranking::ready;

/// Every command, in an order in which each finds what it needs if those before it were let through.
const COMMANDS: [&str; 15] = [
    "sample synthetic --out made --pairs 20 --documents 10 --words 20",
    "prepare --clicks clicks.tsv --documents documents.tsv --vocab 200 --max-tokens 32 --out OUT/shards",
    "inspect shards --report OUT/lengths.html",
    "retrieve --documents documents.tsv --topics topics.tsv --out OUT/bm25.run",
    "evaluate qrels.txt bm25.run -m map",
    "pretrain --config plan.toml --device cpu --set train.steps=1 --out OUT/pre",
    "coarse --config plan.toml --device cpu --set train.steps=2 --set checkpoint.every_steps=1 --out OUT/coarse",
    "fine --config plan.toml --device cpu --set model.path=tuned/model --set train.steps=1 \
     --set train.pack_tokens=1024 --out OUT/fine",
    "rerank --config plan.toml --device cpu --model tuned/model --run-out OUT/out.run",
    "probe --config plan.toml --device cpu --model a=tuned/model --pairs 5 --out OUT/probe",
    "experiment --config study.toml --device cpu --set train.steps=1 --set train.pack_tokens=1024 --out OUT/study",
    "report OUT/study",
    "plan --set model.path=bert-base-uncased --gpus 4",
    "bench --device cpu --seconds 0.01 --set model.layers=1 --set model.hidden=32 --set model.heads=2 \
     --set train.pack_tokens=256 --set data.max_tokens=32",
    "doctor --device cpu",
];

/// Everything that the commands read, and the program itself, for a user who may do little.
fn prepared() -> Place {
    let place = ready();
    let coarse = "coarse --config plan.toml --device cpu --set train.steps=2 --out tuned";
    assert_done(&place.run(&coarse.split_whitespace().collect::<Vec<_>>()));
    let arm = "[[experiment.arms]]\nname = \"plain\"\nmodel = \"tuned/model\"\nstart = \"qdpp-head\"\n";
    place.write("study.toml", &(fs::read_to_string(place.path("plan.toml")).unwrap() + arm));
    let open = Command::new("chmod").args(["-R", "a+rwX"]).arg(place.path(".")).status().unwrap();
    assert!(open.success());
    // after the change of modes: a link shares them with the program that it is of
    let program = place.path("program");
    fs::hard_link(BINARY, &program).or_else(|_| fs::copy(BINARY, &program).map(drop)).unwrap();
    place
}

/// Starts `line` below `limit`, words that end where the program begins; one that hangs is ended with 124.
fn limited(place: &Place, limit: &str, line: &str, out: &str) -> Output {
    fs::create_dir_all(place.path(out)).unwrap();
    let open = Command::new("chmod").arg("a+rwx").arg(place.path(out)).status().unwrap();
    assert!(open.success());
    let line = line.replace("OUT", out).replace("made", &format!("{out}/made"));
    let words = ["-k", "5", "300"].into_iter().chain(limit.split_whitespace());
    let mut command = Command::new("timeout");
    command.args(words).arg("./program").args(line.split_whitespace()).current_dir(place.path("."));
    command.output().unwrap()
}

/// It must have worked, or have said in one line what was lacking.
fn assert_orderly(out: &Output, what: &str) {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let code = out.status.code();
    assert!([Some(0), Some(3), Some(4)].contains(&code), "{what}: {code:?}\n{text}");
    assert!(!text.contains("panicked"), "{what}: {text}");
    let said = text.lines().filter(|line| line.starts_with("ctune-dist: ")).count();
    assert_eq!(said, usize::from(code != Some(0)), "{what}: {code:?}\n{text}");
}

fn may_become_somebody_else() -> bool {
    let setpriv = Command::new("setpriv").args(["--reuid=65534", "--clear-groups", "true"]).status();
    setpriv.is_ok_and(|status| status.success())
}

/// Words that limit processes and threads. Root has no such limit, and others share theirs with all they run: a
/// user whom nobody else is, one a test, has `threads` for one process alone.
fn threads(test: u32, threads: u32) -> String {
    let user = 100_000 + 8 * std::process::id() + test;
    format!("setpriv --reuid={user} --regid={user} --clear-groups prlimit --nproc={threads}:{threads}")
}

#[test]
fn few_threads_are_enough_or_are_said() {
    if !may_become_somebody_else() {
        eprintln!("skipped: needs root, to be a user of its own");
        return;
    }
    let place = prepared();
    for most in [1, 2, 4, 8] {
        for line in COMMANDS.iter().filter(|line| !line.starts_with("doctor") || most < 3) {
            let out = limited(&place, &threads(0, most), line, &format!("threads{most}"));
            assert_orderly(&out, &format!("at most {most} threads: {line}"));
        }
    }
}

/// What needs no thread of its own works with the main thread alone, and gives what it always gives.
#[test]
fn one_thread_is_enough_to_prepare_and_to_evaluate() {
    if !may_become_somebody_else() {
        eprintln!("skipped: needs root, to be a user of its own");
        return;
    }
    let place = prepared();
    let usual = place.run(&COMMANDS[4].split_whitespace().collect::<Vec<_>>());
    assert_done(&usual);
    for most in [1, 2, 4] {
        let folder = format!("alone{most}");
        for line in [COMMANDS[1], COMMANDS[2], COMMANDS[4]] {
            let out = limited(&place, &threads(1, most), line, &folder);
            assert_done(&out);
            if line == COMMANDS[4] {
                assert_eq!(out.stdout, usual.stdout);
            }
        }
        for name in ["documents.ids", "clicks.bin", "vocab.txt"] {
            let read = |folder: &Path| fs::read(folder.join("shards").join(name)).unwrap();
            assert_eq!(read(&place.path(&folder)), read(&place.path(".")), "{most} threads: {name}");
        }
    }
    let out = limited(&place, &threads(1, 1), COMMANDS[4], "alone1");
    assert!(String::from_utf8_lossy(&out.stderr).contains("1 of "), "fewer threads are not said");
}

#[test]
fn few_descriptors_are_enough_or_are_said() {
    let place = prepared();
    // below 4 the system's loader cannot even open the libraries
    for most in [4, 8] {
        for line in COMMANDS.iter().filter(|line| !line.starts_with("doctor") || most == 4) {
            let limit = format!("prlimit --nofile={most}:{most}");
            let out = limited(&place, &limit, line, &format!("files{most}"));
            assert_orderly(&out, &format!("at most {most} open files: {line}"));
        }
    }
    let line = "retrieve --documents documents.tsv --topics topics.tsv --out OUT/bm25.run";
    let out = limited(&place, "prlimit --nofile=4:4", line, "files4");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() != Some(4) || text.contains("raise the limit"), "{text}");
}

#[test]
fn little_memory_is_enough_or_is_said() {
    let place = prepared();
    for bytes in [100_000_000_u64, 300_000_000] {
        for line in COMMANDS.iter().filter(|line| !line.starts_with("doctor") || bytes < 150_000_000) {
            let limit = format!("prlimit --as={bytes}:{bytes}");
            let out = limited(&place, &limit, line, &format!("memory{bytes}"));
            assert_orderly(&out, &format!("at most {bytes} bytes of addresses: {line}"));
        }
    }
}

/// A model that does not fit: the allocation itself is refused.
#[test]
fn memory_that_is_refused_is_one_line_with_code_4() {
    let place = prepared();
    let line = "coarse --config plan.toml --device cpu --set model.hidden=4096 --set model.heads=64 \
                --set model.layers=24 --set train.steps=1 --out OUT/large";
    let out = limited(&place, "prlimit --as=2000000000:2000000000", line, "refused");
    assert_orderly(&out, line);
    assert_eq!(out.status.code(), Some(4));
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(text.contains("bytes of memory") && text.contains("ulimit -v"), "{text}");
}

#[test]
fn a_temporary_folder_that_is_missing_or_shut_is_nobodys_trouble_or_is_said() {
    let place = prepared();
    place.write("file", "");
    for line in COMMANDS.iter().filter(|line| !line.starts_with("doctor")) {
        assert_done(&limited(&place, "env TMPDIR=nowhere", line, "tmp"));
    }
    for folder in ["nowhere", "file", "/proc"] {
        let line = "retrieve --documents documents.tsv --topics topics.tsv --out /dev/stdout";
        let out = limited(&place, &format!("env TMPDIR={folder}"), line, "tmp-stdout");
        assert_orderly(&out, &format!("TMPDIR={folder}: {line}"));
        assert_ne!(out.status.code(), Some(0), "an index without a folder");
        assert!(String::from_utf8_lossy(&out.stderr).contains(folder));
    }
}
