//! docs/config.md is made from the doc comments of src/config/, so that every key is described in one place.
//! `UPDATE_DOCS=1 cargo test --release --test tests config::reference` writes it.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use ctune_dist::config::keys::{Key, Kind, Section};
use ctune_dist::config::{Config, STAGES, plan};
use toml::{Table, Value};

use super::{every_key, inner};

const HEAD: &str = "\
# Config reference

<!-- Made from the doc comments in src/config/. To change it, edit those and run
     UPDATE_DOCS=1 cargo test --release --test tests config::reference -->

A plan is one TOML file, `--config FILE`, that every command reads. Each command takes from it what it needs; the
files in `configs/` are examples.

* `--set train.lr=1e-4` replaces one key for this run. It may be given several times.
* A `[stage.NAME]` table holds what differs for one command: `[stage.fine.train]` with `lr = 1e-4` replaces
  `train.lr` when `fine` runs. `--set` replaces these too. The stages are STAGES.
* `rerank` reads the plan as `fine` does; `probe`, `plan` and `bench` read it as `coarse` does.
* A key that does not exist or a value that it cannot have ends the program with one line and exit code 2, before
  anything is done. The line names the key, the value, and the flag or the file and line that wrote it.
* Every number is finite. A number (f32) must still be in its range after it was rounded to 32 bits.
* The run directory's `config.toml` is the whole plan of the run, every default included.
";

fn page() -> String {
    let plan = plan();
    let defaults: Table = Config::default().to_toml().unwrap().parse().unwrap();
    let stages = STAGES.map(|stage| format!("`{stage}`")).join(", ");
    let mut page = HEAD.replace("STAGES", &stages);
    let (tables, single): (Vec<&Key>, Vec<&Key>) =
        plan.keys.iter().partition(|key| inner(&key.kind).is_some());
    page += "\n## Outside any table\n\n";
    rows(&mut page, &single, Some(&defaults), "");
    for key in tables {
        section(&mut page, key, defaults.get(key.name), "");
    }
    page
}

/// A table, then the tables in it.
fn section(page: &mut String, key: &Key, defaults: Option<&Value>, prefix: &str) {
    let Some(Section { text, keys }) = inner(&key.kind) else { return };
    let title = title(key, prefix);
    write!(page, "\n{} `{title}`\n\n{}\n\n", if prefix.is_empty() { "##" } else { "###" }, prose(text))
        .unwrap();
    let defaults = defaults.and_then(Value::as_table);
    rows(page, &keys.iter().collect::<Vec<_>>(), defaults, &format!("{prefix}{}.", key.name));
    for key_in in keys {
        let defaults = defaults.and_then(|table| table.get(key_in.name));
        section(page, key_in, defaults, &format!("{prefix}{}.", key.name));
    }
}

fn title(key: &Key, prefix: &str) -> String {
    match key.kind {
        Kind::Table(_) => format!("[{prefix}{}]", key.name),
        _ => format!("[[{prefix}{}]]", key.name),
    }
}

fn rows(page: &mut String, keys: &[&Key], defaults: Option<&Table>, prefix: &str) {
    *page += "| key | type | default | range | meaning |\n|---|---|---|---|---|\n";
    for key in keys {
        let (kind, range) = kind(&key.kind);
        let default = match defaults.and_then(|table| table.get(key.name)) {
            Some(Value::Table(_)) => String::new(),
            Some(Value::Float(number)) => format!("`{number:?}`"),
            Some(value) => format!("`{value}`"),
            None if key.optional => "not set".into(),
            None => "required".into(),
        };
        let mut meaning = prose(key.text);
        if inner(&key.kind).is_some() {
            let title = title(key, prefix);
            let anchor: String = title.chars().filter(|c| c.is_alphanumeric() || *c == '_').collect();
            meaning += &format!(" See [`{title}`](#{anchor}).");
        }
        for word in choices(&key.kind) {
            meaning += &format!("<br>`\"{}\"`: {}", word.0, prose(word.1));
        }
        let cells = [format!("`{}`", key.name), kind, default, range, meaning];
        writeln!(page, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | ")).unwrap();
    }
}

/// Type and range in words.
fn kind(kind: &Kind) -> (String, String) {
    let plain = |name: &str| (name.to_owned(), String::new());
    let of = |name: &str, range: &dyn ToString| {
        (name.to_owned(), range.to_string().trim_start_matches("in ").to_owned())
    };
    match kind {
        Kind::Whole(range) => of("whole number", range),
        Kind::Number { range, short: false } => of("number", range),
        Kind::Number { range, short: true } => of("number (f32)", range),
        Kind::Flag => plain("true or false"),
        Kind::Text => plain("text"),
        Kind::Path => plain("path"),
        Kind::Choice(_) => plain("choice"),
        Kind::Names => plain("table of texts"),
        Kind::Table(_) => plain("table"),
        Kind::List { of, .. } if matches!(**of, Kind::Path) => plain("path or list of paths"),
        Kind::List { of, length } => {
            let (of, range) = self::kind(of);
            (format!("list of {}{of}s", length.map_or(String::new(), |n| format!("{n} "))), range)
        }
    }
}

fn choices(kind: &Kind) -> Vec<(&'static str, &'static str)> {
    match kind {
        Kind::Choice(words) => words.iter().map(|word| (word.word, word.text)).collect(),
        Kind::List { of, .. } => choices(of),
        _ => Vec::new(),
    }
}

/// A doc comment on one line.
fn prose(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_page_is_what_the_doc_comments_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/config.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(page.lines()).find(|(old, new)| old != new);
    assert!(
        committed == page,
        "docs/config.md is not what src/config/ says: set UPDATE_DOCS=1 and run this test again: {differs:?}"
    );
}

/// Sentences that a reader of the page understands: no links of rustdoc, no names of the code.
#[test]
fn every_key_and_word_is_described() {
    let mut texts: Vec<(String, &str)> = Vec::new();
    for key in every_key() {
        texts.extend(
            choices(&key.kind).into_iter().map(|(word, text)| (format!("{} {word}", key.path), text)),
        );
        texts.push((key.path, key.text));
    }
    assert!(texts.len() > 150, "{}", texts.len());
    for (name, text) in texts {
        let text = prose(text);
        assert!(text.len() >= 4, "{name} is not described");
        assert!(text.ends_with(['.', '`']), "{name}: {text:?} is no sentence");
        assert!(
            !text.starts_with(|c: char| c.is_ascii_lowercase() && !text.starts_with("ln(")),
            "{name}: {text:?}"
        );
        assert!(!text.contains("[`") && !text.contains("::"), "{name}: {text:?}");
    }
}

/// Keys are found by their names, so that no table has two of one name.
#[test]
fn every_key_has_a_name_of_its_own() {
    let mut paths: Vec<String> = every_key().into_iter().map(|key| key.path).collect();
    let all = paths.len();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), all);
}

/// What is stated is what is read: a key that the structs have and the statements lack would be refused.
#[test]
fn the_keys_are_those_of_the_structs() {
    let known: Vec<String> = every_key().into_iter().map(|key| key.path).collect();
    let mut printed = Vec::new();
    flatten("", &Config::default().to_toml().unwrap().parse().unwrap(), &mut printed);
    for path in &printed {
        let list = known.iter().any(|key| key == path || key.starts_with(&format!("{path}.")));
        assert!(list, "{path} is printed and not stated");
    }
    assert!(printed.len() > 60, "{}", printed.len());
}

fn flatten(prefix: &str, table: &Table, paths: &mut Vec<String>) {
    for (name, value) in table {
        match value {
            Value::Table(inner) => flatten(&format!("{prefix}{name}."), inner, paths),
            _ => paths.push(format!("{prefix}{name}")),
        }
    }
}
