//! The program as users start it: bad input ends in one clear line and the right exit code, ranks
//! under mpirun compute what one process computes, and a small study runs from text to table.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use tempfile::TempDir;

use crate::start;

/// Words of six themes: documents on one theme share words, and a query asks for a theme.
const THEMES: [&str; 6] = [
    "editor text buffer syntax cursor",
    "network packet socket router proxy",
    "image pixel camera colour photo",
    "audio sound music player codec",
    "game puzzle level score arcade",
    "database table query index record",
];

pub struct Place(TempDir);

impl Place {
    /// Clicks, documents, topics and judgements of 72 documents.
    pub fn with_text() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let (mut clicks, mut documents, mut qrels, mut topics) =
            (String::new(), String::new(), String::new(), String::new());
        for d in 0..72 {
            let words: Vec<&str> = THEMES[d % 6].split(' ').collect();
            let pick = |k: usize| words[(d / 6 + k) % 5];
            let other = THEMES[(d * 7 + 1) % 6].split(' ').nth(d % 5).unwrap();
            let body = format!("{} {} with {} and {other} tool number {d}", pick(0), pick(1), pick(2));
            documents.push_str(&format!("D{d}\t\tpackage{d}\t{body}\n"));
            clicks.push_str(&format!("{d}\t{} {} tool\tD{d}\t\n", pick(1), pick(3)));
            qrels.push_str(&format!("T{} 0 D{d} 1\n", d % 6));
        }
        for (t, theme) in THEMES.iter().enumerate() {
            let words: Vec<&str> = theme.split(' ').take(2).collect();
            topics.push_str(&format!("T{t}\t{} tool\n", words.join(" ")));
        }
        place.write("clicks.tsv", &clicks);
        place.write("documents.tsv", &documents);
        place.write("qrels.txt", &qrels);
        place.write("topics.tsv", &topics);
        place
    }

    /// The same, prepared, with a plan for a very small model.
    pub fn with_shards() -> Self {
        let place = Self::with_text();
        place.prepare();
        place.plan();
        place
    }

    /// Writes the plan.
    pub fn plan(&self) {
        self.write(
            "plan.toml",
            r#"
            seed = 7
            [data]
            shards = "shards"
            max_tokens = 32
            documents = "documents.tsv"
            topics = "topics.tsv"
            qrels = "qrels.txt"
            run = "bm25.run"
            [model]
            layers = 2
            hidden = 32
            heads = 2
            [train]
            steps = 20
            pack_tokens = 256
            packs_per_step = 4
            lr = 2e-3
            [fine]
            folds = 3
            depth = 30
            negatives = 2
            "#,
        );
    }

    /// Makes the shards again.
    pub fn prepare(&self) {
        let out = self.run(&[
            "prepare",
            "--clicks",
            "clicks.tsv",
            "--documents",
            "documents.tsv",
            "--out",
            "shards",
            "--vocab",
            "200",
            "--max-tokens",
            "32",
        ]);
        assert_done(&out);
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    pub fn run(&self, args: &[&str]) -> Output {
        start::program().args(args).current_dir(self.0.path()).output().unwrap()
    }

    /// Under mpirun, as root too, with more ranks than cores.
    pub fn mpirun(&self, ranks: usize, args: &[&str]) -> Output {
        let mut command = start::ranks(ranks);
        command.args(args).current_dir(self.0.path());
        start::limited(&command).output().expect("timeout is needed (coreutils)")
    }

    pub fn metrics(&self, run: &str) -> Vec<BTreeMap<String, serde_json::Value>> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub fn assert_done(out: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{}\n{}{}", out.status, text(&out.stdout), text(&out.stderr));
}

/// The run must end with `code` and say `words` in one line on stderr, without a panic.
pub fn assert_refused(out: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{text}");
    // what is warned of on the way is no part of the error
    let lines = text.trim_end().lines().filter(|line| !line.starts_with(" WARN "));
    assert_eq!(lines.count(), 1, "more than one line:\n{text}");
    assert!(!text.contains("panicked"), "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries
        .filter(|e| e.path().is_file())
        .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
        .collect()
}

#[test]
fn mistakes_in_the_plan_are_one_line_and_exit_code_2() {
    let place = Place::with_shards();
    let coarse = |more: &[&str]| place.run(&[&["coarse", "--config", "plan.toml"], more].concat());
    assert_refused(&place.run(&["coarse", "--config", "no.toml"]), 2, &["no.toml", "cannot be read"]);
    assert_refused(
        &coarse(&["--set", "train.learning_rate=1"]),
        2,
        &["--set train.learning_rate=1: unknown key"],
    );
    assert_refused(&coarse(&["--set", "train.lr=nan"]), 2, &["--set train.lr=nan: must be a number > 0"]);
    assert_refused(&coarse(&["--set", "train.lr=-1"]), 2, &["--set train.lr=-1: "]);
    assert_refused(&coarse(&["--set", "train.epochs=1"]), 2, &["train.steps", "train.epochs"]);
    assert_refused(&coarse(&["--set", "data.max_tokens=4096"]), 2, &["data.max_tokens", "train.pack_tokens"]);
    assert_refused(&coarse(&["--set", "model.hidden=30"]), 2, &["hidden = 30"]);
    assert_refused(&coarse(&["--set", "objective.negatives=tricky"]), 2, &["random-document"]);
    assert_refused(&coarse(&["--set", "objective.mlm=0", "--set", "objective.qdpp=0"]), 2, &["both 0"]);
    assert_refused(&coarse(&["--set", "train.precision=f16"]), 2, &["f16", "\"f32\", \"bf16\""]);
    assert_refused(&coarse(&["--set", "train.freeze=[\"layer.2\"]"]), 2, &["layer.2", "2 layers"]);
    assert_refused(&coarse(&["--set", "train.min_lr=1"]), 2, &["train.min_lr = 1"]);
    assert_refused(&coarse(&["--set", "train.optimizer=sgd"]), 2, &["adamw", "lamb"]);
    place.write("broken.toml", "[train\nlr = 1");
    assert_refused(&place.run(&["coarse", "--config", "broken.toml"]), 2, &["broken.toml:1: "]);
    // a model of another vocabulary
    let golden = crate::golden::folder();
    let path = format!("model.path=\"{}\"", golden.display());
    assert_refused(&coarse(&["--set", &path]), 2, &["120 rows", "196 pieces"]);
}

#[test]
fn a_gpu_that_is_not_there_is_exit_code_4() {
    let place = Place::with_shards();
    let out = place.run(&["coarse", "--config", "plan.toml", "--device", "cuda"]);
    assert_refused(&out, 4, &start::NO_GPU);
}

#[test]
fn bad_data_is_one_line_and_exit_code_3() {
    let place = Place::with_shards();
    let shards = |dir: &str| {
        let set = format!("data.shards={dir}");
        place.run(&["coarse", "--config", "plan.toml", "--set", &set])
    };
    assert_refused(&shards("nowhere"), 3, &["nowhere"]);
    fs::create_dir(place.path("foreign")).unwrap();
    place.write("foreign/manifest.json", "{\"some\": \"other file\"}");
    assert_refused(&shards("foreign"), 3, &["foreign", "manifest.json"]);
    fs::create_dir(place.path("cut")).unwrap();
    for (name, bytes) in files(&place.path("shards")) {
        let keep = if name == "clicks.bin" { bytes.len() / 2 } else { bytes.len() };
        fs::write(place.path("cut").join(name), &bytes[..keep]).unwrap();
    }
    assert_refused(&shards("cut"), 3, &["clicks.bin"]);

    let prepare = |clicks: &str, documents: &str| {
        place.run(&[
            "prepare",
            "--clicks",
            clicks,
            "--documents",
            documents,
            "--out",
            "new",
            "--vocab",
            "200",
        ])
    };
    place.write("empty.tsv", "");
    assert_refused(&prepare("missing.tsv", "documents.tsv"), 3, &["missing.tsv"]);
    assert_refused(&prepare("clicks.tsv", "empty.tsv"), 3, &["empty.tsv"]);
    assert_refused(&prepare("empty.tsv", "documents.tsv"), 3, &["empty.tsv"]);
    place.write("others.tsv", "1\tsome query\tX1\t\n2\tother query\tX2\t\n");
    assert_refused(&prepare("others.tsv", "documents.tsv"), 3, &["X1", "D0"]);
    assert!(!place.path("new").exists(), "a failed prepare left something");
}

#[test]
fn nothing_is_overwritten_by_a_run_that_fails() {
    let place = Place::with_shards();
    assert_done(&place.run(&["coarse", "--config", "plan.toml", "--out", "run"]));
    let before = (files(&place.path("run")), files(&place.path("run/model")), files(&place.path("shards")));
    let bad = ["coarse", "--config", "plan.toml", "--out", "run", "--set", "data.shards=nowhere"];
    assert_refused(&place.run(&bad), 3, &["nowhere"]);
    let other = ["prepare", "--clicks", "clicks.tsv", "--documents", "documents.tsv", "--out", "shards"];
    let out = place.run(&other); // other options than the shards were made with
    assert_refused(&out, 3, &["shards"]);
    let after = (files(&place.path("run")), files(&place.path("run/model")), files(&place.path("shards")));
    assert!(before == after);
}

#[test]
fn ranks_compute_what_one_process_computes() {
    let place = Place::with_shards();
    let args =
        |out: &'static str| ["coarse", "--config", "plan.toml", "--set", "train.dropout=0.1", "--out", out];
    let done = place.run(&args("alone"));
    assert_done(&done);
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    let alone = place.metrics("alone");
    assert_eq!(alone.len(), 20);
    let loss = |line: &BTreeMap<String, serde_json::Value>, key: &str| line[key].as_f64().unwrap();
    assert!(loss(&alone[19], "mlm_loss") < loss(&alone[0], "mlm_loss"), "nothing was learnt");
    for part in [
        "| loss ",
        "| mlm ",
        "| qdpp ",
        "| norm ",
        "| lr ",
        " ms | ",
        " tok/s",
        "| mfu ",
        "| loader ",
        "| comm ",
        " left",
    ] {
        assert!(told.contains(part), "{part:?} is not in a step's line: {told}");
    }
    for key in ["grad_norm", "lr", "step_ms", "loader_ms", "exchange_ms", "tokens_per_s", "mfu"] {
        assert!(alone[19][key].as_f64().is_some_and(f64::is_finite), "{key} is not in a step's line");
    }
    assert!(alone.iter().all(|line| loss(line, "mfu") <= 1.0), "a step is faster than the device");
    assert!(alone[0]["peak_share"].is_null(), "a CPU has no data sheet here");
    for (ranks, out) in [(1, "np1"), (2, "np2"), (4, "np4")] {
        assert_done(&place.mpirun(ranks, &args(out)));
        let metrics = place.metrics(out);
        assert_eq!(metrics.len(), 20, "{ranks} ranks");
        for (one, many) in alone.iter().zip(&metrics) {
            assert_eq!(one["tokens"], many["tokens"]);
            for key in ["loss", "mlm_loss", "qdpp_loss", "grad_norm"] {
                let (a, b) = (loss(one, key), loss(many, key));
                assert!((a - b).abs() < 1e-5 * a.abs(), "{ranks} ranks, {key}: {a} and {b}");
            }
        }
    }
    // one process gives the same bits as one rank
    let model = |run: &str| fs::read(place.path(run).join("model/model.safetensors")).unwrap();
    assert!(model("alone") == model("np1"));
}

/// The largest difference of two runs' final weights.
fn weights_differ(a: &Path, b: &Path) -> f32 {
    let read =
        |run: &Path| ctune_dist::model::checkpoint::Checkpoint::read(&run.join("model")).unwrap().tensors;
    let (a, b) = (read(a), read(b));
    assert!(a.keys().eq(b.keys()));
    let values = a.values().zip(b.values()).flat_map(|(a, b)| a.1.iter().zip(&b.1));
    values.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Whatever the optimiser and wherever its state lies, ranks make one process's updates; a rank with several
/// packs sums them in its gradients.
#[test]
fn optimisers_do_not_depend_on_ranks_or_sharding() {
    let place = Place::with_shards();
    let run = |ranks: usize, optimizer: &str, sharding: &str, lr: &str| {
        let out = format!("{optimizer}-{sharding}-{ranks}");
        let set = |key: &str, value: &str| format!("train.{key}={value}");
        let sets =
            [set("optimizer", optimizer), set("sharding", sharding), set("lr", lr), set("steps", "10")];
        let mut args = vec!["coarse", "--config", "plan.toml", "--set", "train.dropout=0.1", "--out", &out];
        sets.iter().for_each(|text| args.extend(["--set", text]));
        assert_done(&place.mpirun(ranks, &args));
        out
    };
    for (optimizer, lr) in [("adamw", "2e-3"), ("lamb", "1e-2")] {
        let alone = run(1, optimizer, "none", lr);
        let losses = place.metrics(&alone);
        let loss = |line: &BTreeMap<String, serde_json::Value>, key: &str| line[key].as_f64().unwrap();
        assert!(loss(&losses[9], "loss") < loss(&losses[0], "loss"), "{optimizer} learnt nothing");
        for ranks in [2, 4] {
            let pair = ["none", "optimizer"].map(|sharding| run(ranks, optimizer, sharding, lr));
            for out in &pair {
                for (one, many) in losses.iter().zip(&place.metrics(out)) {
                    for key in ["loss", "grad_norm"] {
                        let (a, b) = (loss(one, key), loss(many, key));
                        assert!((a - b).abs() < 1e-5 * a.abs(), "{out}, {key}: {a} and {b}");
                    }
                }
                let off = weights_differ(&place.path(&alone), &place.path(out));
                assert!(off < 1e-5, "{out}: weights differ by {off}");
            }
            let off = weights_differ(&place.path(&pair[0]), &place.path(&pair[1]));
            assert!(
                off <= if optimizer == "adamw" { 0.0 } else { 1e-6 },
                "{optimizer}, {ranks} ranks: {off}"
            );
        }
    }
}

/// What validation reports does not depend on the ranks, and each part of the loss is reported.
#[test]
fn validation_is_the_same_on_any_number_of_ranks() {
    let place = Place::with_shards();
    let lines = |ranks: usize| {
        let out = format!("validated-{ranks}");
        let sets = ["data.validation_pairs=20", "train.validate_every=4", "train.steps=10"];
        let mut args = vec!["coarse", "--config", "plan.toml", "--out", &out];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let done = place.mpirun(ranks, &args);
        assert_done(&done);
        assert!(String::from_utf8_lossy(&done.stdout).contains("val loss"));
        let events = fs::read_dir(place.path(&out)).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("events.out.tfevents")
        });
        assert_eq!(events.count(), 1, "rank 0 alone writes for TensorBoard");
        place.metrics(&out).into_iter().filter(|line| line.contains_key("val_loss")).collect::<Vec<_>>()
    };
    let alone = lines(1);
    let steps: Vec<_> = alone.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [4, 8, 10], "every fourth step and the last");
    for line in &alone {
        let value = |key: &str| line[key].as_f64().unwrap();
        for part in ["mlm_query", "mlm_document"] {
            let loss = value(&format!("val_{part}_loss"));
            assert!((value(&format!("val_{part}_perplexity")) - loss.exp()).abs() < 1e-6 * loss.exp());
            assert!(value(&format!("val_{part}_count")) > 0.0);
        }
        assert!((0.0..=1.0).contains(&value("val_qdpp_auc")));
        assert!((0.0..=1.0).contains(&value("val_qdpp_accuracy")));
        // half the pairs are drawn negatives
        let pairs = value("val_qdpp_count");
        assert!((8.0..=80.0).contains(&pairs) && pairs % 2.0 == 0.0, "{pairs}");
    }
    assert!(alone[2]["val_loss"].as_f64() < alone[0]["val_loss"].as_f64(), "nothing was learnt");
    for ranks in [2, 4] {
        for (one, many) in alone.iter().zip(lines(ranks)) {
            assert!(one.keys().eq(many.keys()));
            for (key, value) in one {
                let (a, b) = (value.as_f64().unwrap(), many[key].as_f64().unwrap());
                assert!((a - b).abs() <= 1e-5 * a.abs(), "{ranks} ranks, {key}: {a} and {b}");
            }
        }
    }
    let refused = |sets: &[&str], words: &[&str]| {
        let args = [&["coarse", "--config", "plan.toml", "--out", "refused"], sets].concat();
        assert_refused(&place.run(&args), 2, words);
    };
    refused(&["--set", "train.validate_every=4"], &["train.validate_every", "data.validation_pairs"]);
    refused(&["--set", "data.validation_pairs=60"], &["data.validation_pairs = 60", "half"]);
}

#[test]
fn more_ranks_than_packs_and_a_repeated_run() {
    let place = Place::with_shards();
    let set = ["--set", "train.packs_per_step=1", "--set", "train.steps=5"];
    let args = |out: &'static str| [&["coarse", "--config", "plan.toml", "--out", out][..], &set].concat();
    assert_done(&place.run(&args("one")));
    for out in ["two", "again"] {
        assert_done(&place.mpirun(2, &args(out)));
    }
    for (a, b) in place.metrics("one").iter().zip(&place.metrics("two")) {
        let (a, b) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
        assert!((a - b).abs() < 1e-5 * a);
    }
    let model = |run: &str| fs::read(place.path(run).join("model/model.safetensors")).unwrap();
    assert!(model("two") == model("again"), "the same ranks gave other bits");
}

#[test]
fn an_error_under_mpirun_ends_all_ranks() {
    let place = Place::with_shards();
    let out = place.mpirun(2, &["coarse", "--config", "plan.toml", "--set", "data.shards=nowhere"]);
    assert_eq!(out.status.code(), Some(3));
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(text.lines().filter(|line| line.contains("ctune-dist: ")).count(), 1, "{text}");
}

#[test]
fn a_study_runs_from_text_to_table() {
    let place = Place::with_shards();
    let retrieve =
        ["retrieve", "--documents", "documents.tsv", "--topics", "topics.tsv", "--out", "bm25.run"];
    assert_done(&place.run(&retrieve));
    assert_done(&place.run(&["pretrain", "--config", "plan.toml", "--out", "pre"]));
    let coarse = ["coarse", "--config", "plan.toml", "--set", "model.path=pre/model", "--out", "coarse"];
    assert_done(&place.run(&coarse));
    assert_done(&place.run(&["inspect", "shards"]));

    let fine =
        ["fine", "--config", "plan.toml", "--set", "model.path=coarse/model", "--out", "fine", "--set"];
    let validated = [&fine[..], &["fine.validate_every=10", "--set", "fine.start=qdpp-head"]].concat();
    assert_done(&place.mpirun(2, &validated));
    assert!(place.path("fine/fold-3/model/config.json").exists());
    let lora = "fine.lora={ rank = 8, alpha = 16.0, targets = [\"query\", \"value\"] }";
    let args = [&fine[..5], &["--out", "adapted", "--set", lora, "--set", "fine.validate_every=10"]].concat();
    assert_done(&place.mpirun(2, &args));
    let args = ["rerank", "--config", "plan.toml", "--model", "adapted/fold-1/model", "--run-out", "ad.run"];
    assert_done(&place.run(&args));
    let rerank = ["rerank", "--config", "plan.toml", "--model", "fine/fold-1/model", "--run-out", "re.run"];
    assert_done(&place.run(&rerank));
    assert_done(&place.mpirun(2, &[&rerank[..6], &["re2.run"]].concat()));
    let read = |name: &str| fs::read_to_string(place.path(name)).unwrap();
    assert_eq!(read("re.run"), read("re2.run"), "two ranks rank otherwise than one");
    let out = place.run(&["evaluate", "qrels.txt", "re.run", "-m", "ndcg_cut.5", "--baseline", "bm25.run"]);
    assert_done(&out);
    assert!(String::from_utf8_lossy(&out.stdout).contains("ndcg_cut_5"));

    let arm = |name: &str, model: &str, start: &str| {
        format!("[[experiment.arms]]\nname = \"{name}\"\nmodel = \"{model}\"\nstart = \"{start}\"\n")
    };
    let plan = read("plan.toml") + "[experiment]\ntrain_topics = [0, 2]\n";
    let arms = arm("fine only", "pre/model", "new-head") + &arm("coarse", "coarse/model", "qdpp-head");
    place.write("study.toml", &(plan + &arms));
    let study = ["experiment", "--config", "study.toml", "--out", "study"];
    let out = place.mpirun(2, &study);
    assert_done(&out);
    let table = String::from_utf8_lossy(&out.stdout).into_owned();
    for word in ["first stage", "fine only", "coarse, zero-shot", "report:"] {
        assert!(table.contains(word), "{table}");
    }
    let results: serde_json::Value = serde_json::from_str(&read("study/results.json")).unwrap();
    let cells = results["cells"].as_array().unwrap();
    // first stage, zero-shot QDPP, two arms x (0, 2, all) topics
    assert_eq!(cells.len(), 1 + 1 + 2 * 3);
    for cell in cells {
        let mean = cell["means"]["ndcg_cut_5"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&mean));
        assert_eq!(cell["per_topic"]["ndcg_cut_5"].as_object().unwrap().len(), 6, "a topic is missing");
    }
    assert!(read("study/report.html").contains("<svg"));

    assert!(!place.path("study/claims").exists(), "claims are left");
    // finished tasks are kept: a second start, alone, changes no task and ends with the same table
    let task = place.path("study/tasks/coarse/all/fold-1/run.txt");
    let made = fs::metadata(&task).unwrap().modified().unwrap();
    let again = place.run(&study);
    assert_done(&again);
    assert_eq!(fs::metadata(&task).unwrap().modified().unwrap(), made);
    assert_eq!(
        results["cells"],
        serde_json::from_str::<serde_json::Value>(&read("study/results.json")).unwrap()["cells"]
    );
}
