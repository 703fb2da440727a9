//! Where a fault is reported: the line of the file, or the flag, that set the value.

use std::path::Path;

use ctune_dist::config::Config;

use super::ranges::{load, refusal};

const PLAN: &str = "\
seed = 1
[train]
lr = 1e-3
eps = 1e-8

[[source]]
role = \"documents\"
path = \"a.tsv\"

[[source]]
role = \"clicks\"
path = \"b.tsv\"

[stage.fine.train]
lr = 2e-3
[stage.coarse]
model = { layers = 2 }
";

fn with(from: &str, to: &str) -> String {
    assert!(PLAN.contains(from));
    refusal(&PLAN.replacen(from, to, 1), &[])
}

#[test]
fn a_fault_of_the_file_has_its_line() {
    assert_eq!(with("eps = 1e-8", "eps = inf"), "plan.toml:4: train.eps = inf: must be a number > 0");
    assert_eq!(
        with("seed = 1", "seed = -1"),
        "plan.toml:1: seed = -1: must be a whole number in [0, 4294967295]"
    );
    assert_eq!(
        with("role = \"clicks\"", "role = \"click\""),
        "plan.toml:11: source.role = \"click\": must be one of \"documents\", \"clicks\", \"queries\", \"qrels\""
    );
    assert_eq!(with("role = \"clicks\"\n", ""), "plan.toml:10: source.role: is missing");
    assert_eq!(with("path = \"b.tsv\"", "file = \"b.tsv\""), {
        "plan.toml:12: source.file: unknown key; docs/config.md lists all keys"
    });
    assert_eq!(refusal("seed = 1\ntrain = 3\n", &[]), "plan.toml:2: train = 3: must be a table");
    assert_eq!(
        with("path = \"b.tsv\"", "path = 3"),
        "plan.toml:12: source.path = 3: must be a path or a list of paths"
    );
}

/// The table of the command that runs counts first; those of the other commands are looked at too.
#[test]
fn a_fault_of_a_stage_has_its_line() {
    assert_eq!(with("lr = 2e-3", "lr = nan"), "plan.toml:15: train.lr = nan: must be a number > 0");
    assert_eq!(
        with("layers = 2", "layers = 0"),
        "plan.toml:17: stage.coarse.model.layers = 0: must be a whole number in [1, 1024]"
    );
    assert_eq!(
        with("layers = 2", "layer = 2"),
        "plan.toml:17: stage.coarse.model.layer: unknown key; did you mean layers?"
    );
    assert_eq!(
        with("stage.coarse", "stage.course"),
        "plan.toml:16: stage.course: unknown stage; stages are prepare, pretrain, coarse, fine, experiment"
    );
    assert_eq!(refusal("stage = 1", &[]), "plan.toml:1: stage: must be a table");
    assert_eq!(refusal("[stage]\nfine = 1", &[]), "plan.toml:2: stage.fine: must be a table");
}

/// An override replaces a wrong value; an override that is itself wrong is named by its flag.
#[test]
fn a_fault_of_a_flag_names_the_flag() {
    let plan = PLAN.replacen("lr = 1e-3", "lr = nan", 1);
    let (_, loaded) = load(&plan, &[]);
    assert_eq!(loaded.unwrap().train.lr, 2e-3);
    let said = refusal(&plan, &["train.eps=1e-6", "train.lr=0", "train.lr=-1", "train.beta1=0.5"]);
    assert_eq!(said, "--set train.lr=-1: must be a number > 0");
    assert_eq!(
        refusal(PLAN, &["train={lr = 0}"]),
        "--set train={lr = 0}: train.lr = 0: must be a number > 0",
        "a table in one flag"
    );
    assert_eq!(refusal(PLAN, &["train.lr"]), "--set train.lr: must be KEY=VALUE, as in --set train.lr=1e-4");
    assert_eq!(refusal(PLAN, &["seed.x=1"]), "--set seed.x=1: seed is a value, not a table");
    assert_eq!(
        refusal(PLAN, &["stage.fine.train.lr=1"]),
        "--set stage.fine.train.lr=1: stage: unknown key; docs/config.md lists all keys"
    );
}

#[test]
fn rules_between_keys_have_a_place_too() {
    let said = refusal("[train]\nsteps = 10\nwarmup_steps = 11\n", &[]);
    assert_eq!(said, "plan.toml:3: train.warmup_steps = 11: must be at most train.steps = 10");
    let said = refusal("[train]\nsteps = 10\n", &["train.epochs=1"]);
    assert_eq!(said, "--set train.epochs=1: train.steps and train.epochs are both set: keep one");
    let said = refusal("[data]\nmax_tokens = 5000\n", &[]);
    assert_eq!(said, "plan.toml:2: data.max_tokens = 5000 does not fit train.pack_tokens = 4096");
    let said = refusal("[train]\nlr = 1e30\n", &[]);
    assert!(
        said.starts_with("plan.toml:2: train.lr = 1e30 x train.weight_decay = 0.01: must be below 1"),
        "{said}"
    );
    let said = refusal("[train]\nlr = 1\n", &["train.weight_decay=2"]);
    assert!(
        said.starts_with("--set train.weight_decay=2: train.lr = 1.0 x train.weight_decay = 2.0: "),
        "{said}"
    );
    let lora = "[fine.lora]\nrank = 8\nalpha = 16\ntargets = [\"query\"]\n";
    for (flag, word) in [
        ("fine.lora.rank=12", "fine.lora.rank = 12: must be a multiple of 8"),
        ("fine.lora.targets=[]", "targets is empty"),
        ("fine.lora.targets=[\"key\", \"query\", \"key\"]", "\"key\" twice"),
        ("fine.lora.target=[]", "did you mean targets?"),
        ("train.optimizer=lamb", "fine.lora with train.optimizer"),
        ("objective.negatives_depth=[5, 1]", "objective.negatives_depth = [5, 1]"),
        ("objective.negatives=run-file", "objective.negatives_run"),
        ("fine.loss=margin-mse", "fine.teacher"),
        ("fine.aggregate=max-p", "fine.passage_words"),
        ("fine.passage_words=10", "fine.passage_stride = 75"),
        ("fine.patience=1", "fine.validate_every"),
        ("experiment.measures=[]", "experiment.measures is empty"),
        ("train.min_lr=1", "train.lr = 5e-5"),
    ] {
        let said = refusal(lora, &[flag]);
        assert!(said.starts_with(&format!("--set {flag}: ")) && said.contains(word), "{said}");
    }
    assert_eq!(
        refusal("[fine.lora]\nrank = 8\ntargets = []\n", &[]),
        "plan.toml:1: fine.lora.alpha: is missing"
    );
    let said = refusal("[fine]\nmeasure = \"ndgc\"\n", &[]);
    assert!(said.starts_with("plan.toml:2: fine.measure: "), "{said}");
}

#[test]
fn a_slip_names_the_key_that_was_meant() {
    for (flag, meant) in [
        ("train.warm_up=0.1", "warmup"),
        ("train.dropuot=0.1", "dropout"),
        ("train.beta_1=0.1", "beta1"),
        ("train.mask_rate=0.1", "objective.mask_rate"),
        ("model.max_tokens=64", "prepare.max_tokens"),
        ("lr=1e-3", "train.lr"),
        ("modle={path = \"x\"}", "model"),
        ("fine.lora.rnk=8", "rank"),
        ("prepare.filter.max_words=8", "max_query_words"),
    ] {
        let said = refusal("", &[flag]);
        assert_eq!(said, format!("--set {flag}: unknown key; did you mean {meant}?"));
    }
    assert_eq!(refusal("", &["trian.lr=1"]), "--set trian.lr=1: trian: unknown key; did you mean train?");
}

#[test]
fn numbers_in_another_form_are_told_theirs() {
    assert_eq!(
        refusal("", &["train.lr=.001"]),
        "--set train.lr=.001: must be a number > 0; write it as 0.001"
    );
    assert_eq!(
        refusal("[train]\nsteps = \"10\"\n", &[]),
        "plan.toml:2: train.steps = \"10\": must be a whole number in [1, 1e12]; write it as 10"
    );
    let said = refusal("", &["train.steps=1e3"]);
    assert_eq!(said, "--set train.steps=1e3: must be a whole number in [1, 1e12]; write it as 1000");
    assert_eq!(
        refusal("", &["train.eps=1e-50"]),
        "--set train.eps=1e-50: must be a number > 0 (1e-50 is 0 in 32 bits)"
    );
}

/// `refusal` holds every text to one line of at most 300 characters.
#[test]
fn what_is_long_is_cut() {
    let long = "ab\n".repeat(500);
    for flag in [
        format!("data.shards=[\"{}\"]", "x".repeat(500)),
        format!("train.schedule=\"{}\"", "x".repeat(500)),
        format!("{}=1", "x".repeat(500)),
        format!("train.{long}=1"),
        format!("train.schedule={long}"),
        "x".repeat(500),
    ] {
        assert!(refusal("", &[&flag]).contains("..."), "{flag}");
    }
    for plan in [
        format!("[train]\n\"{}\" = 1\n", long.replace('\n', "\\n")),
        format!("[train]\nschedule = \"\"\"{long}\"\"\"\n"),
        format!("[train]\nlr = [{}]\n", "1, ".repeat(500)),
    ] {
        assert!(refusal(&plan, &[]).starts_with("plan.toml:2: train."), "{plan}");
    }
}

#[test]
fn a_file_that_is_no_toml_has_its_line() {
    let said = refusal("seed = 1\n[train\nlr = 1\n", &[]);
    assert!(said.starts_with("plan.toml:2: "), "{said}");
    let said = refusal("seed = 1\nseed = 2\n", &[]);
    assert!(said.starts_with("plan.toml:2: ") && said.contains("duplicate"), "{said}");
    let error = Config::load(Some(Path::new("no-such-file.toml")), "fine", &[]).unwrap_err().to_string();
    assert!(error.starts_with("no-such-file.toml: cannot be read"), "{error}");
}
