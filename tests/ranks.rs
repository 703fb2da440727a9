//! Ranks that were started unlike each other: one line with the key, both values and the ranks, before anything
//! is trained. And processes that are no ranks, whatever a launcher's variables say.

use std::fs;
use std::process::{Command, Output};

use super::program::{Place, assert_done, assert_refused};
use super::ranking::ready;
use super::start::{self, BINARY};

/// Starts ranks of different commands, each as a shell line; one that hangs is ended with code 124.
fn ranks(place: &Place, lines: &[&str]) -> Output {
    let mut command = start::mpirun();
    for (i, line) in lines.iter().enumerate() {
        command.args(if i == 0 { &[][..] } else { &[":"] });
        command.args(["-n", "1", "bash", "-c", line]);
    }
    start::limited(command.current_dir(place.path("."))).output().expect("timeout is needed (coreutils)")
}

/// The job must end with code 2 and say `words` in the one line that the program says.
fn assert_differs(out: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{text}");
    let said: Vec<&str> = text.lines().filter(|line| line.contains("ctune-dist: ")).collect();
    assert_eq!(said.len(), 1, "{text}");
    assert!(said[0].len() <= 300, "{}", said[0]);
    for word in words {
        assert!(said[0].contains(word), "{word:?} is not in {:?}", said[0]);
    }
}

/// `coarse` of the test plan.
fn coarse(more: &str) -> String {
    format!("exec {BINARY} coarse --config plan.toml --out run --device cpu {more}")
}

#[test]
fn another_key_of_the_plan_is_named_with_both_values() {
    let place = Place::with_shards();
    for (key, a, b) in [
        ("train.lr", "0.001", "0.05"),
        ("seed", "1", "2"),
        ("model.hidden", "64", "32"),
        ("train.steps", "3", "6"),
        ("train.pack_tokens", "512", "256"),
        ("train.dropout", "0.0", "0.5"),
        ("objective.mask_rate", "0.25", "0.5"),
        ("run.hang_limit_s", "50.0", "60.0"),
    ] {
        let [first, second] = [a, b].map(|value| coarse(&format!("--set {key}={value}")));
        let difference = format!("{key} is {a} on rank 0 and {b} on rank 1");
        assert_differs(&ranks(&place, &[&first, &second]), &[&difference]);
    }
    assert!(!place.path("run").exists(), "something was begun");
}

#[test]
fn a_key_that_one_rank_lacks_and_flags_that_are_no_keys_count_too() {
    let place = Place::with_shards();
    let differ = |first: &str, second: &str, words: &[&str]| {
        let [first, second] = [first, second].map(|args| format!("exec {BINARY} {args}"));
        assert_differs(&ranks(&place, &[&first, &second]), words);
    };
    let plan = "--config plan.toml --device cpu";
    differ(
        &format!("coarse {plan} --set train.head_lr=0.5"),
        &format!("coarse {plan}"),
        &["train.head_lr is 0.5 on rank 0 and not set on rank 1"],
    );
    differ(
        &format!("coarse {plan}"),
        &format!("pretrain {plan}"),
        &["command is coarse on rank 0 and pretrain on rank 1"],
    );
    differ(
        &format!("coarse {plan} --out one"),
        &format!("coarse {plan} --out two"),
        &["run.out is \"one\" on rank 0 and \"two\" on rank 1"],
    );
    differ(
        &format!("rerank {plan} --model m --run-out one.run"),
        &format!("rerank {plan} --model m --run-out two.run"),
        &["--run-out is one.run on rank 0 and two.run on rank 1"],
    );
    differ(
        &format!("probe {plan} --model a=m --pairs 5"),
        &format!("probe {plan} --model a=m --pairs 6"),
        &["--pairs is 5 on rank 0 and 6 on rank 1"],
    );
    differ(
        &format!("bench {plan} --seconds 0.5"),
        &format!("bench {plan} --seconds 0.25"),
        &["--seconds is 0.5 on rank 0 and 0.25 on rank 1"],
    );
    differ(
        &format!("bench {plan}"),
        "doctor --device cpu",
        &["command is bench on rank 0 and doctor on rank 1"],
    );
}

#[test]
fn of_several_ranks_those_with_each_value_are_listed() {
    let place = Place::with_shards();
    let [a, b] = ["1", "2"].map(|seed| coarse(&format!("--set seed={seed}")));
    assert_differs(&ranks(&place, &[&a, &a, &b]), &["seed is 1 on ranks 0 and 1 and 2 on rank 2"]);
    assert_differs(&ranks(&place, &[&a, &b, &b]), &["seed is 1 on rank 0 and 2 on ranks 1 and 2"]);
    // the first of two keys, and that there is another
    let two = coarse("--set seed=1 --set train.lr=0.5 --set train.steps=9");
    assert_differs(&ranks(&place, &[&a, &two]), &["train.lr is 0.002 on rank 0", "(1 more keys differ)"]);
}

/// A mistake that only one rank made.
#[test]
fn a_plan_that_one_rank_cannot_read_ends_all_with_its_name() {
    let place = Place::with_shards();
    let (good, bad) = (coarse(""), coarse("--set train.lr=nan"));
    assert_differs(&ranks(&place, &[&good, &bad]), &["rank 1: ", "train.lr"]);
    assert_differs(&ranks(&place, &[&bad, &good]), &["rank 0: ", "train.lr"]);
    // all alike: no rank is to blame
    let out = ranks(&place, &[&bad, &bad]);
    assert_differs(&out, &["train.lr"]);
    assert!(!String::from_utf8_lossy(&out.stderr).contains("ctune-dist: rank "));
}

/// A folder `other` that holds the same as the place, for a rank that is started there.
fn elsewhere(place: &Place, names: &[&str]) {
    fs::create_dir(place.path("other")).unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-r").args(names).arg("other").current_dir(place.path("."));
    assert!(copy.status().unwrap().success());
}

#[test]
fn other_files_under_the_same_name_are_noticed() {
    let place = ready();
    let there = |args: &str| format!("cd other && exec {BINARY} {args}");
    let here = |args: &str| format!("exec {BINARY} {args}");
    let differ = |args: &str, key: &str| {
        assert_differs(
            &ranks(&place, &[&here(args), &there(args)]),
            &[key, " on rank 0 and ", " on rank 1", "the same files"],
        );
    };
    let all = ["plan.toml", "shards", "model", "topics.tsv", "qrels.txt", "bm25.run", "documents.tsv"];
    elsewhere(&place, &all);
    let trained = "coarse --config plan.toml --device cpu --set model.path=model/model --out run";
    let fine =
        "fine --config plan.toml --device cpu --set model.path=model/model --set train.steps=1 --out fine";
    let rerank = "rerank --config plan.toml --device cpu --model model/model --run-out out.run";

    // the model's folder: a line of its config, then its tokenizer
    for name in ["config.json", "vocab.txt"] {
        let file = place.path("other/model/model").join(name);
        let before = fs::read(&file).unwrap();
        fs::write(&file, [&before[..], b"\n"].concat()).unwrap();
        differ(trained, "the fingerprint of model.path");
        fs::write(&file, before).unwrap();
    }
    // what fine-tuning and re-ranking read
    for (name, key) in [("topics.tsv", "data.topics"), ("bm25.run", "data.run"), ("qrels.txt", "data.qrels")]
    {
        let file = place.path("other").join(name);
        let before = fs::read_to_string(&file).unwrap();
        fs::write(&file, before.clone() + "\n").unwrap();
        differ(fine, &format!("the fingerprint of {key}"));
        if key != "data.qrels" {
            differ(rerank, &format!("the fingerprint of {key}"));
        }
        fs::write(&file, before).unwrap();
    }
    // documents of another size, and of the same
    let file = place.path("other/documents.tsv");
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, before.replace("tool", "tools")).unwrap();
    differ(fine, "the size of the documents");
    fs::write(&file, before.replace("tool", "aids")).unwrap();
    differ(rerank, "what was read of topics, run and documents");
    fs::write(&file, before).unwrap();
    // shards from another log
    let clicks = fs::read_to_string(place.path("clicks.tsv")).unwrap();
    place.write("fewer.tsv", &clicks.lines().take(60).map(|line| format!("{line}\n")).collect::<String>());
    fs::remove_dir_all(place.path("other/shards")).unwrap();
    let prepare = "prepare --clicks fewer.tsv --documents documents.tsv --out other/shards --tokenizer shards \
                   --max-tokens 32";
    assert_done(&place.run(&prepare.split_whitespace().collect::<Vec<_>>()));
    differ("coarse --config plan.toml --device cpu --out run", "the fingerprint of data.shards");
    for folder in ["run", "fine", "other/run", "other/fine"] {
        assert!(!place.path(folder).join("metrics.jsonl").exists(), "{folder}: something was trained");
    }
}

/// How many threads a rank has changes nothing that others see.
#[test]
fn ranks_may_have_different_numbers_of_threads() {
    let place = Place::with_shards();
    let with = |threads: u32| format!("RAYON_NUM_THREADS={threads} {}", coarse("--set train.steps=2"));
    // an assignment stands before a command, not before `exec`
    let [one, two] = [1, 2].map(|n| with(n).replace("exec ", ""));
    assert_done(&ranks(&place, &[&one, &two]));
    assert!(place.path("run/DONE").exists());
}

/// Variables of a batch system do not make a rank of a command that has none.
#[test]
fn a_command_without_ranks_says_its_error_whatever_rank_it_is() {
    let place = Place::with_text();
    let commands: [&[&str]; 7] = [
        &["evaluate", "no.qrels", "no.run"],
        &["retrieve", "--documents", "no.tsv", "--topics", "topics.tsv", "--out", "x.run"],
        &["prepare", "--clicks", "no.tsv", "--documents", "documents.tsv", "--out", "x"],
        &["inspect", "no-shards"],
        &["report", "no-study"],
        &["plan", "--config", "no.toml"],
        &["sample", "debian", "--out", "/proc/no", "--lists", "no-lists"],
    ];
    for args in commands {
        for variable in ["PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"] {
            let mut command = start::program();
            let out = command.args(args).env(variable, "3").current_dir(place.path(".")).output().unwrap();
            let code = out.status.code().unwrap();
            assert!([2, 3].contains(&code), "{variable}, {args:?}: {code}");
            assert_refused(&out, code, &["ctune-dist: ", "no"]);
        }
    }
}
