//! The rules of the house, held over every source file: which room may use which, that no files of a room use
//! each other in a circle, where `unsafe` and `#[cfg]` may stand, how long files and functions may be, and that
//! a file opens with why it exists. `house/tables.rs` is where a rule is changed.

mod graph;
mod planted;
mod scan;
mod tables;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use graph::Graph;
use scan::{Facts, scan};

/// Lines of a file, and of a function, at most.
const FILE: usize = 500;
const FUNCTION: usize = 60;

/// What one rule asks for.
struct Rules<'a> {
    rooms: &'a [(&'a str, &'a [&'a str])],
    may_be_unsafe: &'a [&'a str],
    may_use_cfg: &'a [&'a str],
}

/// Something that a rule forbids.
#[derive(Debug)]
struct Fault {
    /// Stays the same while the fault is there; `KNOWN` lists it.
    what: String,
    /// What to do about it.
    detail: String,
}

impl Fault {
    fn new(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), detail: detail.into() }
    }
}

/// Everything in `files` that the rules forbid.
fn faults(files: &[Facts], rules: &Rules) -> Vec<Fault> {
    let mut found = between_files(files, rules);
    for file in files {
        found.extend(in_file(file, rules));
        found.extend(too_long(&file.path, file.lines));
    }
    let listed = [(rules.may_be_unsafe, "unsafe"), (rules.may_use_cfg, "#[cfg]")];
    for (path, what) in listed.into_iter().flat_map(|(list, what)| list.iter().map(move |path| (path, what)))
    {
        let file = files.iter().find(|file| file.path == *path);
        if !file.is_some_and(|file| if what == "unsafe" { file.has_unsafe } else { file.has_cfg }) {
            found.push(Fault::new(format!("{path}: no {what}"), "take it out of the list in tables.rs"));
        }
    }
    found
}

/// Arrows that are not allowed, and circles.
fn between_files(files: &[Facts], rules: &Rules) -> Vec<Fault> {
    let graph = Graph::of(files);
    let mut found = Vec::new();
    for ((from, to), path) in graph.rooms() {
        let allowed = rules.rooms.iter().find(|(room, _)| *room == from).map(|(_, to)| *to);
        let detail = match allowed {
            Some(allowed) if allowed.contains(&to.as_str()) => continue,
            Some(_) => format!("{path} has it; a room uses only those that tables.rs lists beside it"),
            None => format!("{from} is not in tables.rs"),
        };
        found.push(Fault::new(format!("{from} -> {to}"), detail));
    }
    let mut circles = graph.circles();
    circles.sort();
    for way in circles {
        let (first, rest) = (way[0], way[1..].join(" -> "));
        found.push(Fault::new(format!("{first}: in a circle"), format!("{first} -> {rest} -> {first}")));
    }
    found
}

/// What is wrong within one file.
fn in_file(file: &Facts, rules: &Rules) -> Vec<Fault> {
    let path = file.path.as_str();
    let mut found = Vec::new();
    let mut add = |is: bool, what: &str, detail: &str| {
        if is {
            found.push(Fault::new(format!("{path}: {what}"), detail));
        }
    };
    add(!file.says_why, "no //!", "open the file with why it exists");
    add(file.many_arguments, "too_many_arguments", "give the arguments a struct with named fields");
    let free = file.has_unsafe && !rules.may_be_unsafe.contains(&path);
    add(free, "unsafe", "move it to a file that tables.rs lists, or list this one and say why");
    let free = file.has_cfg && !rules.may_use_cfg.contains(&path);
    add(free, "#[cfg]", "the program is one for all machines; decide when it runs");
    for (name, lines) in file.functions.iter().filter(|(_, lines)| *lines > FUNCTION) {
        let detail = format!("{lines} lines; {FUNCTION} are the most");
        found.push(Fault::new(format!("{path}: fn {name}"), detail));
    }
    found
}

fn too_long(path: &str, lines: usize) -> Option<Fault> {
    let detail = format!("{lines} lines; {FILE} are the most");
    (lines > FILE).then(|| Fault::new(format!("{path}: too long"), detail))
}

/// Files below a folder with one of these endings, from the repository's root, by name.
fn below(folder: &str, endings: &[&str]) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut folders, mut files) = (vec![root.join(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| endings.iter().any(|known| end == *known)) {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// The rules that this program keeps.
const RULES: Rules = Rules { rooms: &tables::ROOMS, may_be_unsafe: tables::UNSAFE, may_use_cfg: tables::CFG };

#[test]
fn the_program_keeps_the_rules() {
    let files: Vec<Facts> = below("src", &["rs"]).iter().map(|(path, text)| scan(path, text)).collect();
    assert!(files.len() > 100, "only {} source files were found", files.len());
    let mut found = faults(&files, &RULES);
    let other = ["cu", "cuh", "cpp", "h", "rs", "py", "sh"];
    let other = ["kernels", "tests"].into_iter().flat_map(|folder| below(folder, &other));
    found.extend(other.filter_map(|(path, text)| too_long(&path, text.lines().count())));
    let known: BTreeSet<&str> = tables::KNOWN.iter().copied().collect();
    let there: BTreeSet<&str> = found.iter().map(|fault| fault.what.as_str()).collect();
    let fresh = found.iter().filter(|fault| !known.contains(fault.what.as_str()));
    let fresh: Vec<String> = fresh.map(|fault| format!("  {}: {}", fault.what, fault.detail)).collect();
    let mended: Vec<String> = known.difference(&there).map(|what| format!("  {what}")).collect();
    assert!(fresh.is_empty(), "against the rules of the house:\n{}", fresh.join("\n"));
    assert!(mended.is_empty(), "mended; take these out of KNOWN:\n{}", mended.join("\n"));
}

#[test]
fn rooms_have_floors() {
    let rings = graph::rings(&tables::ROOMS);
    assert!(rings.is_empty(), "{rings:?}");
    for (at, (room, uses)) in tables::ROOMS.iter().enumerate() {
        for used in *uses {
            let above = tables::ROOMS[..at].iter().any(|(known, _)| known == used);
            assert!(above, "{room} uses {used}, which does not stand above it in the table");
        }
    }
}
