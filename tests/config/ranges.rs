//! Numbers that no key can use are refused before anything starts: for every key, from the file and from --set.

use std::fs;

use ctune_dist::config::Config;
use ctune_dist::config::keys::{Kind, Range};
use ctune_dist::{Error, Result};

use super::every_key;

/// What people and scripts write by mistake, and the ends of the numbers' own ranges.
const NUMBERS: [&str; 14] = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "-0.5",
    "0",
    "0.0",
    "1e-50",
    "0.5",
    "1",
    "1e39",
    "1e300",
    "9223372036854775807",
    "-9223372036854775808",
];

/// Loads a plan of this text for `fine`, with these overrides.
pub fn load(text: &str, set: &[&str]) -> (String, Result<Config>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.toml");
    fs::write(&path, text).unwrap();
    let overrides: Vec<String> = set.iter().map(ToString::to_string).collect();
    (path.display().to_string(), Config::load(Some(&path), "fine", &overrides))
}

/// The message for a refused plan, without the plan's folder.
pub fn refusal(text: &str, set: &[&str]) -> String {
    let (path, loaded) = load(text, set);
    let error = loaded.expect_err(&format!("{text:?} {set:?}"));
    assert!(matches!(error, Error::Config(_)), "{error}");
    assert_eq!(error.exit_code(), 2);
    let said = error.to_string();
    assert!(!said.contains('\n'), "more than one line: {said}");
    assert!(said.len() < 300, "{said}");
    said.replace(&path, "plan.toml")
}

/// Whether a key is a number or a list of numbers, what is around it, and the text of a value.
fn around(kind: &Kind, value: &str) -> Option<(Range, bool, String)> {
    match kind {
        Kind::Whole(range) => Some((*range, true, value.into())),
        Kind::Number { range, .. } => Some((*range, false, value.into())),
        Kind::List { of, length } => {
            let (range, whole, value) = around(of, value)?;
            Some((range, whole, format!("[{}]", vec![value; length.unwrap_or(1)].join(", "))))
        }
        _ => None,
    }
}

/// A plan in which only the key at `path` may be at fault.
fn base(path: &str) -> String {
    let lora = "[fine.lora]\nrank = 8\nalpha = 16\ntargets = [\"query\"]\n";
    if path.starts_with("fine.lora") { lora.into() } else { String::new() }
}

#[test]
fn every_number_of_every_key_is_taken_or_refused_in_one_line() {
    let mut refused = 0;
    for key in every_key() {
        for number in NUMBERS {
            let Some((range, whole, value)) = around(&key.kind, number) else { continue };
            let path = &key.path;
            let flag = format!("{path}={value}");
            let written = whole != number.contains(['.', 'e', 'n']);
            let usable = number.parse::<f64>().is_ok_and(|number| range.holds(number));
            let (_, loaded) = load(&base(path), &[&flag]);
            if loaded.is_ok() {
                assert!(usable && (written || !whole), "{flag} is taken");
                continue;
            }
            refused += 1;
            let by_flag = refusal(&base(path), &[&flag]);
            assert!(by_flag.contains(path.as_str()), "{by_flag}");
            if usable && (written || !whole) {
                continue; // for another key's sake, or because 32 bits cannot hold it
            }
            assert!(by_flag.starts_with(&format!("--set {flag}: must be ")), "{by_flag}");
            assert!(by_flag.contains(&range.to_string()) || range == Range::FINITE, "{by_flag}");
        }
    }
    assert!(refused > 300, "{refused}");
}

/// The rule of each key as a table, so that a range lost in the code fails here.
#[test]
fn numbers_that_ruin_a_run_are_refused() {
    for (key, numbers) in [
        ("train.eps", "nan inf -inf -1e-4 0 1e-50 1e39"),
        ("train.beta1", "nan inf -0.1 1 1.0 2 0.99999999999"),
        ("train.beta2", "nan inf -0.1 1 1.0 2 0.99999999999"),
        ("train.lr", "nan inf -inf -1 0 0.0"),
        ("train.head_lr", "nan inf -inf -1 0"),
        ("train.min_lr", "nan inf -1e-9 1"),
        ("train.weight_decay", "nan inf -1 1e9 1e39"),
        ("train.clip_norm", "nan inf -1"),
        ("train.dropout", "nan inf -0.1 1"),
        ("train.warmup", "nan inf -0.1 1"),
        ("train.layer_decay", "nan inf 0 -1 1e300"),
        ("train.epochs", "nan inf 0 -1 1e18"),
        ("train.steps", "0 -1 1.5 nan 9223372036854775807"),
        ("train.pack_tokens", "0 -1 7 9223372036854775807"),
        ("train.packs_per_step", "0 -1 9223372036854775807"),
        ("model.layers", "0 -1 9223372036854775807"),
        ("model.hidden", "0 -1 9223372036854775807"),
        ("model.heads", "0 -1"),
        ("model.intermediate", "0 -1"),
        ("model.positions", "0 -1"),
        ("data.max_tokens", "0 -1 7 9223372036854775807"),
        ("data.validation_pairs", "-1 4294967296 1.5"),
        ("seed", "-1 4294967296 1.5 nan"),
        ("objective.mlm", "nan inf -1 1e39"),
        ("objective.qdpp", "nan inf -1 1e39"),
        ("objective.mask_rate", "nan inf -0.1 1"),
        ("objective.negatives_per_positive", "0 -1 4294967295"),
        ("objective.negatives_depth", "[0,1] [2,1] [1] [1,2,3] [-1,4]"),
        ("fine.margin", "nan inf 0 -1 1e39"),
        ("fine.folds", "0 1 2 -1"),
        ("fine.seeds", "0 -1 4294967296"),
        ("fine.lora.rank", "0 -8 4 12 9223372036854775807"),
        ("fine.lora.alpha", "nan inf 0 -1 1e39"),
        ("experiment.train_topics", "[-1] [1.5] 3"),
        ("checkpoint.every_minutes", "nan inf -1 1e300"),
        ("checkpoint.every_steps", "-1 0.5"),
        ("checkpoint.keep", "0 -1"),
        ("run.hang_limit_s", "nan inf 0 -1 1e300"),
        ("run.log_every", "-1 0.5"),
        ("prepare.vocab", "0 15 -1 9223372036854775807"),
        ("prepare.part_tokens", "0 -1"),
    ] {
        for number in numbers.split(' ') {
            let flag = format!("{key}={number}");
            assert!(refusal(&base(key), &[&flag]).starts_with(&format!("--set {flag}: ")), "{flag}");
        }
    }
}

#[test]
fn numbers_with_a_meaning_of_their_own_are_taken() {
    for flag in [
        "train.clip_norm=0",
        "train.weight_decay=0",
        "train.dropout=0",
        "train.beta1=0",
        "train.lr=1",
        "train.warmup_steps=0",
        "train.validate_every=0",
        "objective.mlm=0",
        "objective.mask_rate=0",
        "run.log_every=0",
        "run.check=0",
        "checkpoint.every_minutes=0",
        "checkpoint.every_steps=0",
        "data.max_tokens=8",
        "experiment.train_topics=[0, 8]",
        "seed=4294967295",
    ] {
        let (_, loaded) = load("", &[flag]);
        loaded.unwrap_or_else(|error| panic!("{flag}: {error}"));
    }
}

#[test]
fn file_and_flag_are_told_in_the_same_words() {
    for (table, key, value) in [
        ("train", "eps", "nan"),
        ("train", "beta2", "1.0"),
        ("checkpoint", "keep", "0"),
        ("objective", "qdpp", "-1.0"),
        ("train", "schedule", "\"linaer\""),
        ("run", "graph", "3"),
        ("data", "fields", "[\"bdy\"]"),
        ("train", "lr", "\".001\""),
        ("train", "lrr", "1.0"),
    ] {
        let by_file = refusal(&format!("# a plan\n[{table}]\n{key} = {value}\n"), &[]);
        let by_flag = refusal("", &[&format!("{table}.{key}={value}")]);
        let rest = by_flag.strip_prefix(&format!("--set {table}.{key}={value}: "));
        let rest = rest.unwrap_or_else(|| panic!("{by_flag}"));
        assert!(by_file.starts_with(&format!("plan.toml:3: {table}.{key}")), "{by_file}");
        assert!(by_file.ends_with(rest), "{by_file:?} and {by_flag:?}");
    }
}

#[test]
fn defaults_lie_within_their_ranges() {
    let plan = Config::default().to_toml().unwrap();
    let (_, loaded) = load(&plan, &[]);
    assert_eq!(loaded.unwrap().to_toml().unwrap(), plan);
}

#[test]
fn every_fraction_has_a_range() {
    for key in every_key() {
        if let Kind::Number { range, .. } = key.kind {
            assert_ne!(range, Range::FINITE, "{}", key.path);
        }
    }
}

#[test]
fn a_path_stands_for_a_list_of_one() {
    for (text, paths) in [("\"a.txt\"", 1), ("[\"a.txt\", \"b.txt\"]", 2), ("[]", 0)] {
        let prepare = format!("[prepare]\nexclude_topics = {text}\nexclude_qrels = {text}\n");
        let (_, loaded) = load(&format!("{prepare}[[source]]\nrole = \"clicks\"\npath = {text}\n"), &[]);
        let config = loaded.unwrap();
        let lists = [&config.prepare.exclude_topics, &config.prepare.exclude_qrels, &config.sources[0].path];
        assert!(lists.iter().all(|list| list.len() == paths), "{lists:?}");
    }
}
