//! Where outputs go: links are followed, what is no file is written into, and two processes never write one
//! output.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ctune_dist::files::{Lock, lock};

use super::program::{Place, assert_done, assert_refused};
use super::ranking::ready;
use super::start::{self, BINARY};

const RETRIEVE: &str = "retrieve --documents documents.tsv --topics topics.tsv --out";

/// A place with topics, documents, and the run that `retrieve` makes of them.
fn with_run() -> (Place, Vec<u8>) {
    let place = Place::with_text();
    assert_done(&words(&place, &format!("{RETRIEVE} plain.run")));
    let run = fs::read(place.path("plain.run")).unwrap();
    assert!(!run.is_empty());
    // the same documents in another order
    let text = String::from_utf8(run.clone()).unwrap();
    let turned = text.lines().map(|line| {
        let columns: Vec<&str> = line.split(' ').collect();
        format!("{} Q0 {} 1 {} turned\n", columns[0], columns[2], columns[3])
    });
    place.write("turned.run", &turned.collect::<String>());
    (place, run)
}

fn words(place: &Place, line: &str) -> Output {
    place.run(&line.split_whitespace().collect::<Vec<_>>())
}

fn shell(place: &Place, line: &str) -> Output {
    start::shell(line).current_dir(place.path(".")).output().unwrap()
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).unwrap().is_symlink()
}

#[test]
fn a_link_is_followed_and_stays_a_link() {
    let (place, run) = with_run();
    fs::create_dir(place.path("deep")).unwrap();
    place.write("deep/there.run", "what was there\n");
    for (link, to) in [
        ("there", "deep/there.run"),
        ("dangling", "deep/new.run"),
        ("chain", "there"),
        ("absolute", place.path("deep/absolute.run").to_str().unwrap()),
        ("deep/back", "../back.run"),
    ] {
        symlink(to, place.path(link)).unwrap();
        assert_done(&words(&place, &format!("{RETRIEVE} {link}")));
        assert!(is_link(&place.path(link)), "{link}");
        assert_eq!(fs::read(place.path(link)).unwrap(), run, "{link}");
    }
    for name in ["deep/there.run", "deep/new.run", "deep/absolute.run", "back.run"] {
        assert!(!is_link(&place.path(name)), "{name}");
        assert_eq!(fs::read(place.path(name)).unwrap(), run, "{name}");
    }
    symlink("circle", place.path("circle")).unwrap();
    assert_refused(&words(&place, &format!("{RETRIEVE} circle")), 3, &["circle"]);
    // other outputs: a page, a plot, a folder of shards
    place.write("deep/page.svg", "old");
    symlink("deep/page.svg", place.path("plot.svg")).unwrap();
    assert_done(&words(&place, "evaluate qrels.txt plain.run -m map --baseline turned.run --plot plot.svg"));
    assert!(is_link(&place.path("plot.svg")));
    assert!(fs::read_to_string(place.path("deep/page.svg")).unwrap().contains("<svg"));
    for (link, to) in [("shards", "deep/shards"), ("more", "deep/more")] {
        if link == "shards" {
            fs::create_dir(place.path(to)).unwrap();
        }
        symlink(to, place.path(link)).unwrap();
        let prepare =
            format!("prepare --clicks clicks.tsv --documents documents.tsv --vocab 200 --out {link}");
        assert_done(&words(&place, &prepare));
        assert!(is_link(&place.path(link)) && place.path(to).join("manifest.json").exists(), "{link}");
        assert!(String::from_utf8_lossy(&words(&place, &prepare).stdout).contains("up to date"), "{link}");
    }
}

#[test]
fn a_pipe_is_written_into() {
    let (place, run) = with_run();
    assert!(shell(&place, "mkfifo pipe").status.success());
    let reader = Command::new("cat").arg("pipe").current_dir(place.path(".")).stdout(Stdio::piped()).spawn();
    let reader = reader.unwrap();
    assert_done(&words(&place, &format!("{RETRIEVE} pipe")));
    assert_eq!(reader.wait_with_output().unwrap().stdout, run);
    assert!(fs::metadata(place.path("pipe")).unwrap().file_type().is_fifo());
    // through a link, and a process that bash gives a descriptor
    symlink("pipe", place.path("link")).unwrap();
    let out = shell(&place, &format!("cat pipe > got & {BINARY} {RETRIEVE} link && wait"));
    assert_done(&out);
    assert_eq!(fs::read(place.path("got")).unwrap(), run);
    let wait = "for i in $(seq 200); do [[ $(stat -c %s given 2>&-) == $0 ]] && break; sleep 0.05; done";
    let line = format!("{BINARY} {RETRIEVE} >(cat > given); {wait}").replace("$0", &run.len().to_string());
    let out = shell(&place, &line);
    assert_done(&out);
    assert_eq!(fs::read(place.path("given")).unwrap(), run);
    assert_eq!(fs::read_dir(place.path(".")).unwrap().filter(unfinished).count(), 0);
}

fn unfinished(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".unfinished")
}

#[test]
fn standard_output_and_open_descriptors_go_on_where_they_stand() {
    let (place, run) = with_run();
    let with = |before: &str, after: &str| [before.as_bytes(), &run, after.as_bytes()].concat();
    for name in ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"] {
        assert_eq!(words(&place, &format!("{RETRIEVE} {name}")).stdout, run, "{name}");
        let line = format!("(echo before; {BINARY} {RETRIEVE} {name}; echo after) > log");
        assert_done(&shell(&place, &line));
        assert_eq!(fs::read(place.path("log")).unwrap(), with("before\n", "after\n"), "{name}");
        let line = format!("echo before > log; {BINARY} {RETRIEVE} {name} >> log");
        assert_done(&shell(&place, &line));
        assert_eq!(fs::read(place.path("log")).unwrap(), with("before\n", ""), "{name}");
    }
    let line = format!("echo before > log; {BINARY} {RETRIEVE} /proc/self/fd/3 3>> log");
    assert_done(&shell(&place, &line));
    assert_eq!(fs::read(place.path("log")).unwrap(), with("before\n", ""));
    assert!(words(&place, &format!("{RETRIEVE} /dev/stderr")).stderr.ends_with(&run));
    assert_refused(&words(&place, &format!("{RETRIEVE} /proc/self/fd/77")), 3, &["/proc/self/fd/77"]);
}

/// Devices of the test's own, so that a fault costs no machine its /dev/null.
#[test]
fn a_device_is_written_into_and_a_full_one_is_said() {
    let (place, _) = with_run();
    if !shell(&place, "mknod null c 1 3 && mknod full c 1 7 && echo > null").status.success() {
        super::skip::left_out("no device can be made here");
        return;
    }
    assert_done(&words(&place, &format!("{RETRIEVE} null")));
    assert_refused(&words(&place, &format!("{RETRIEVE} full")), 3, &["full: ", "No space left on device"]);
    for name in ["null", "full"] {
        assert!(fs::metadata(place.path(name)).unwrap().file_type().is_char_device(), "{name}");
    }
}

#[test]
fn a_place_where_nothing_can_be_made_is_one_line() {
    let (place, _) = with_run();
    let plot = "evaluate qrels.txt plain.run -m map --baseline turned.run --plot";
    for (out, said) in
        [("nowhere/plot.svg", "nowhere"), ("/proc/plot.svg", "/proc"), ("plain.run/x.svg", "plain.run")]
    {
        assert_refused(&words(&place, &format!("{plot} {out}")), 3, &[out, said, "cannot be written"]);
    }
    for folder in ["nowhere", "/proc"] {
        let out = words(&place, &format!("{RETRIEVE} {folder}/out.run"));
        assert_refused(&out, 3, &[folder, "cannot be written"]);
    }
    // a file that may be written in a folder that may not, for somebody who is not root
    fs::create_dir(place.path("shut")).unwrap();
    place.write("shut/plot.svg", "old");
    let line = format!(
        "chmod 755 . && chmod a+r * && chmod 666 shut/plot.svg && chmod 555 shut && (ln {BINARY} program || \
         cp {BINARY} program) 2>&- && chmod 755 program && exec setpriv --reuid=65534 --regid=65534 --clear-groups ./program {plot} shut/plot.svg"
    );
    if Command::new("setpriv").args(["--reuid=65534", "true"]).status().is_ok_and(|status| status.success()) {
        assert_refused(
            &shell(&place, &line),
            3,
            &["shut/plot.svg", "no file can be created in shut", "Permission denied"],
        );
        assert_eq!(fs::read_to_string(place.path("shut/plot.svg")).unwrap(), "old");
    } else {
        super::skip::left_out("a folder that is shut needs root, to become somebody else");
    }
}

/// Another process has the lock: this one. Who that is, is said.
#[test]
fn whatever_goes_on_from_a_part_refuses_a_second_start() {
    let place = ready();
    let arm = "[[experiment.arms]]\nname = \"plain\"\nmodel = \"model/model\"\nstart = \"new-head\"\n";
    place.write("study.toml", &(fs::read_to_string(place.path("plan.toml")).unwrap() + arm));
    fs::create_dir_all(place.path(".new.partial")).unwrap();
    fs::create_dir_all(place.path("run")).unwrap();
    let model = "--device cpu --set model.path=model/model --set train.steps=1 --set train.pack_tokens=1024";
    for (lock_file, line) in [
        ("out.run.part.lock", format!("rerank --config plan.toml {model} --run-out out.run")),
        (
            ".new.partial/lock",
            "prepare --clicks clicks.tsv --documents documents.tsv --vocab 200 --out new".into(),
        ),
        ("run/.lock", format!("pretrain --config plan.toml {model} --out run")),
        ("run/.lock", format!("coarse --config plan.toml {model} --out run")),
        ("run/.lock", format!("fine --config plan.toml {model} --out run")),
        ("run/.lock", format!("experiment --config study.toml {model} --out run")),
        ("run/.lock", format!("probe --config plan.toml {model} --model a=model/model --pairs 3 --out run")),
    ] {
        let Lock::Held(held) = lock(&place.path(lock_file)).unwrap() else { panic!("{lock_file} is held") };
        let who = format!("(process {} on ", std::process::id());
        assert_refused(&words(&place, &line), 3, &["another ", &who, ", since 20", " UTC)"]);
        drop(held);
    }
    // nothing of it is in the way of a start afterwards
    assert_done(&words(&place, &format!("coarse --config plan.toml {model} --out run")));
    assert!(!place.path("out.run").exists() && !place.path("new").exists());
}

/// As the case of two jobs with one output: each output is whole, and the other start is refused or ends alike.
#[test]
fn two_at_once_make_one_whole_output() {
    let place = ready();
    let coarse = "coarse --config plan.toml --device cpu --set train.steps=2 --out model2";
    assert_done(&words(&place, coarse));
    let rerank = "rerank --config plan.toml --device cpu --model model2/model --run-out";
    assert_done(&words(&place, &format!("{rerank} alone.run")));
    let prepare = "prepare --clicks clicks.tsv --documents documents.tsv --vocab 200 --max-tokens 32 --out";
    for (line, made, alone) in [
        (format!("{rerank} two.run"), "two.run", "alone.run"),
        (format!("{prepare} again"), "again/documents.ids", "shards/documents.ids"),
    ] {
        for _ in 0..3 {
            let start = || {
                let mut command = start::program();
                command.args(line.split_whitespace()).current_dir(place.path("."));
                command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            };
            let codes = [start(), start()].map(|child| child.wait_with_output().unwrap()).map(|out| {
                let text = String::from_utf8_lossy(&out.stderr).into_owned();
                assert!(
                    out.status.success() || text.contains("another ") || text.contains("exists"),
                    "{text}"
                );
                out.status.code()
            });
            assert!(codes.contains(&Some(0)), "{codes:?}");
            assert_eq!(fs::read(place.path(made)).unwrap(), fs::read(place.path(alone)).unwrap(), "{made}");
            let _ = fs::remove_file(place.path("two.run"));
            let _ = fs::remove_dir_all(place.path("again"));
        }
    }
    let left = fs::read_dir(place.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("two.run")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_rerank_into_a_link_or_a_pipe_ends_with_the_same_run() {
    let place = ready();
    let coarse = "coarse --config plan.toml --device cpu --set train.steps=2 --out model2";
    assert_done(&words(&place, coarse));
    let rerank = "rerank --config plan.toml --device cpu --model model2/model --run-out";
    assert_done(&words(&place, &format!("{rerank} alone.run")));
    let alone = fs::read(place.path("alone.run")).unwrap();
    fs::create_dir(place.path("deep")).unwrap();
    symlink("deep/real.run", place.path("link.run")).unwrap();
    assert_done(&words(&place, &format!("{rerank} link.run")));
    assert!(is_link(&place.path("link.run")));
    assert_eq!(fs::read(place.path("deep/real.run")).unwrap(), alone);
    assert!(shell(&place, "mkfifo pipe").status.success());
    assert_done(&shell(&place, &format!("cat pipe > got & {BINARY} {rerank} pipe && wait")));
    assert_eq!(fs::read(place.path("got")).unwrap(), alone);

    // a part that two processes appended to: what is sound of it counts
    let part = place.path("again.run.part");
    let cut = shell(&place, &format!("ulimit -f 4; exec {BINARY} {rerank} again.run"));
    assert!(!cut.status.success());
    let text = fs::read_to_string(&part).unwrap();
    let (head, blocks) = text.split_at(text.find('\n').unwrap() + 1);
    assert!(blocks.contains(" done\n"), "the limit left no topic: {text}");
    fs::write(&part, format!("{head}{blocks}\n{blocks}")).unwrap();
    let out = words(&place, &format!("{rerank} again.run"));
    assert_done(&out);
    assert!(String::from_utf8_lossy(&out.stdout).contains("are scored already"));
    assert_eq!(fs::read(place.path("again.run")).unwrap(), alone);
    assert!(!part.exists());
}
