//! The committed table of what NVIDIA's compilers make of the kernels (kernels/TABLE.md), checked against the
//! kernels' sources and its own rules without a compiler: a kernel that was changed without its table fails
//! here.

use std::fs;
use std::path::{Path, PathBuf};

/// What to do about a stale table.
const RENEW: &str = "renew it: $(tests/gates/toolchain.sh)/python tests/gates/kernels.py write";
const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90", "sm_100"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// CRC-32 of a kernel file and then of the files that it includes, in the order of their names, as
/// tests/gates/build.py computes it.
pub fn source_crc(file: &Path) -> String {
    let mut includes: Vec<PathBuf> = Vec::new();
    let mut pending = vec![file.to_owned()];
    while let Some(path) = pending.pop() {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for line in text.lines() {
            let Some(rest) = line.trim_start().strip_prefix('#').map(str::trim_start) else { continue };
            let Some(name) = rest.strip_prefix("include").map(str::trim) else { continue };
            let name = name.trim_matches('"');
            let beside = file.with_file_name(name);
            let header = if beside.exists() { beside } else { root().join("kernels").join(name) };
            if header.exists() && !includes.contains(&header) {
                includes.push(header.clone());
                pending.push(header);
            }
        }
    }
    includes.sort_by_key(|path| path.file_name().unwrap().to_owned());
    let mut hasher = crc32fast::Hasher::new();
    for path in std::iter::once(file.to_owned()).chain(includes) {
        hasher.update(&fs::read(path).unwrap());
    }
    format!("{:08x}", hasher.finalize())
}

/// Rows of the table whose first cell is not a heading: cells without their borders.
fn rows(text: &str, columns: usize) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let lines = text.lines().filter(|line| line.starts_with("| "));
    lines.map(cells).filter(|row| row.len() == columns && row[0] != "file" && row[0] != "kernel").collect()
}

#[test]
fn the_table_is_of_these_kernels() {
    let kernels = root().join("kernels");
    let text = fs::read_to_string(kernels.join("TABLE.md")).unwrap();
    let listed = rows(&text, 2);
    let mut files: Vec<PathBuf> =
        fs::read_dir(&kernels).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    assert!(!files.is_empty());
    let names: Vec<String> =
        files.iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(
        listed.iter().map(|row| &row[0]).collect::<Vec<_>>(),
        names.iter().collect::<Vec<_>>(),
        "{RENEW}"
    );
    for (file, row) in files.iter().zip(&listed) {
        assert_eq!(
            source_crc(file),
            row[1],
            "kernels/{} has changed since the table was made; {RENEW}",
            row[0]
        );
    }
}

#[test]
fn the_table_keeps_the_rules() {
    let text = fs::read_to_string(root().join("kernels/TABLE.md")).unwrap();
    let heading = text.lines().find(|line| line.starts_with("| kernel")).unwrap();
    let columns: Vec<&str> = heading.trim_matches('|').split('|').map(str::trim).collect();
    let at = |name: &str| columns.iter().position(|column| *column == name).unwrap();
    let table = rows(&text, columns.len());
    let number = |row: &[String], name: &str| -> i64 { row[at(name)].parse().unwrap() };
    for row in &table {
        let what = format!("{} on {}", row[0], row[1]);
        assert_eq!(number(row, "local"), 0, "{what} uses local memory");
        assert_eq!(number(row, "dynamic"), launch_key(&row[0], "dynamic_shared") as i64, "{what}: {RENEW}");
        assert!(number(row, "blocks") >= 1, "{what} fits no multiprocessor");
        match row[at("kind")].as_str() {
            "tensor" => assert!(number(row, "hmma") > 0, "{what} has no tensor-core instruction"),
            "row" => assert!(number(row, "wide_loads") > 0, "{what} has no 16-byte load"),
            _ => {}
        }
    }
    let mut kernels: Vec<&String> = table.iter().map(|row| &row[0]).collect();
    kernels.dedup();
    assert!(kernels.iter().any(|name| name.starts_with("attention_d64")), "no attention in the table");
    for kernel in kernels {
        let on: Vec<&str> = table.iter().filter(|row| row[0] == *kernel).map(|row| row[1].as_str()).collect();
        assert_eq!(on.len(), ARCHITECTURES.len(), "{kernel} is listed on {on:?}");
    }
}

/// What kernels/launches.txt says of a kernel, as `dynamic_shared` (bytes); 0 when it says nothing.
pub fn launch_key(kernel: &str, key: &str) -> usize {
    let text = fs::read_to_string(root().join("kernels/launches.txt")).unwrap();
    let fits = |pattern: &str| match pattern.split_once('*') {
        Some((head, tail)) => kernel.starts_with(head) && kernel.ends_with(tail),
        None => kernel == pattern,
    };
    let mut lines = text.lines().filter(|line| !line.starts_with('#')).map(str::split_whitespace);
    let words = lines.find(|words| words.clone().next().is_some_and(fits));
    let words = words.unwrap_or_else(|| panic!("{kernel} has no line in kernels/launches.txt"));
    let value = words.filter_map(|word| word.split_once('=')).find(|(name, _)| *name == key);
    value.map_or(0, |(_, value)| value.parse().unwrap())
}
