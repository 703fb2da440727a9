//! The readers of every format, on clean, dirty and foreign files.

use std::io::Write;
use std::path::PathBuf;

use ctune_dist::corpus::read::documents::{
    Document, Field, ReadCounts, ReadOptions, read_documents, read_rows,
};
use ctune_dist::corpus::{Format, Role, Source};
use ctune_dist::{Error, Result};
use proptest::prelude::*;

use super::{message, shared};

const ALL: [Field; 3] = [Field::Url, Field::Title, Field::Body];

fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.tsv");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

/// Documents as the named format, or as the detected one.
fn documents_as(
    content: &[u8],
    format: Option<Format>,
    fields: &[Field],
) -> Result<(Vec<(String, String)>, ReadCounts)> {
    let (_folder, path) = file(content);
    let source = Source { format, ..Source::documents(path) };
    let mut all = Vec::new();
    let counts = read_documents(
        &[source],
        fields,
        &ReadOptions::default(),
        |_| true,
        |Document { id, text }| {
            all.push((id, text));
            Ok(())
        },
    )?;
    Ok((all, counts))
}

fn documents(content: &[u8], fields: &[Field]) -> Result<(Vec<(String, String)>, ReadCounts)> {
    documents_as(content, Some(Format::MsmarcoV1), fields)
}

fn rows(source: Source, strict: bool) -> Result<(Vec<[String; 4]>, ReadCounts)> {
    let mut all = Vec::new();
    let role = source.role;
    let counts = read_rows(&[source], role, &ReadOptions { strict, done: None }, |row| {
        all.push(row);
        Ok(())
    })?;
    Ok((all, counts))
}

fn clicks(content: &[u8], strict: bool) -> Result<(Vec<[String; 3]>, ReadCounts)> {
    let (_folder, path) = file(content);
    let source = Source { format: Some(Format::Orcas), ..Source::clicks(path) };
    let (all, counts) = rows(source, strict)?;
    Ok((all.into_iter().map(|[query_id, query, document, _]| [query_id, query, document]).collect(), counts))
}

fn pair(id: &str, text: &str) -> (String, String) {
    (id.into(), text.into())
}

#[test]
fn fields_are_joined_in_the_order_asked_for() {
    let content = b"D1\tu\tt\tb one\nD2\t\t\tb\nD3\tu\t\t\n";
    let (all, counts) = documents(content, &[Field::Title, Field::Body]).unwrap();
    assert_eq!(all, [pair("D1", "t b one"), pair("D2", "b"), pair("D3", "")]);
    assert_eq!((counts.rows, counts.kept, counts.damaged), (3, 3, 0));
    let (all, _) = documents(content, &ALL).unwrap();
    assert_eq!(all[0].1, "u t b one");
}

#[test]
fn windows_line_ends_bom_quotes_and_blank_lines_are_no_fault() {
    let content = b"\xef\xbb\xbfD1\tu\t\"t\tb \"quoted\r\n\r\n\nD2\tu\tt\tlast without end";
    let (all, counts) = documents(content, &[Field::Title, Field::Body]).unwrap();
    assert_eq!(all, [pair("D1", "\"t b \"quoted"), pair("D2", "t last without end")]);
    assert_eq!((counts.rows, counts.damaged, counts.not_utf8), (2, 0, 0));
}

#[test]
fn damaged_rows_are_counted_and_the_first_ten_shown() {
    let mut content = b"D0\tu\tt\tcaf\xe9\n".to_vec();
    for _ in 0..12 {
        content.extend(b"D1 no tabs\n");
    }
    content.extend(b"\tu\tt\tb\nD2\tu\tt\tb\n");
    let (all, counts) = documents(&content, &[Field::Body]).unwrap();
    assert_eq!(all, [pair("D0", "caf\u{fffd}"), pair("D2", "b")]);
    assert_eq!((counts.rows, counts.kept, counts.damaged, counts.not_utf8), (15, 2, 13, 1));
    assert_eq!(counts.shown.len(), 10);
    assert!(counts.shown[0].contains("line 1: holds bytes that are not UTF-8"), "{}", counts.shown[0]);
    assert!(counts.shown[1].contains("line 2: 1 columns"), "{}", counts.shown[1]);
}

#[test]
fn strict_ends_at_the_first_fault() {
    let (_folder, path) = file(b"D1\tu\tt\tb\nD2 broken\nD3\tu\tt\tb\n");
    let text = message(rows(Source::documents(path), true));
    assert!(text.contains("line 2") && text.contains("--strict"), "{text}");
}

#[test]
fn gzip_is_known_by_its_bytes_and_a_cut_one_is_an_error() {
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    for i in 0..1000 {
        writeln!(zip, "D{i}\tu\tt\tbody {i}").unwrap();
    }
    let zip = zip.finish().unwrap();
    // Two members end to end are one file, as `cat a.gz b.gz` makes it.
    let (all, _) = documents(&[zip.clone(), zip.clone()].concat(), &[Field::Body]).unwrap();
    assert_eq!(all.len(), 2000);
    assert_eq!(all[999], pair("D999", "body 999"));
    let text = message(documents(&zip[..zip.len() / 2], &ALL));
    assert!(text.contains("file.tsv") && text.contains("compare its size and checksum"), "{text}");
}

#[test]
fn missing_empty_and_foreign_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = message(rows(Source::documents(folder.path().join("none.tsv")), false));
    assert!(text.contains("none.tsv: cannot be read"), "{text}");
    assert!(message(documents(b"", &ALL)).contains("is empty"));
    assert!(message(documents(b"\n\n", &ALL)).contains("is empty"));
    assert!(message(clicks(b"", false)).contains("is empty"));
    let text = message(clicks(b"q1 a query D1\n", false));
    assert!(text.contains("none of its 1 rows") && text.contains("line 1: 1 columns"), "{text}");
}

#[test]
fn a_line_without_end_does_not_fill_the_memory() {
    let mut content = vec![b'x'; (64 << 20) + 100];
    content.extend(b"\nD2\tu\tt\tb\n");
    let (all, counts) = documents(&content, &[Field::Body]).unwrap();
    assert_eq!((all, counts.rows, counts.damaged), (vec![pair("D2", "b")], 2, 1));
    assert!(counts.shown[0].contains("longer than 64 MiB"), "{}", counts.shown[0]);
}

#[test]
fn an_error_of_the_caller_ends_the_reading() {
    let (_folder, path) = file(b"D1\tu\tt\tb\nD2\tu\tt\tb\n");
    let result = read_rows(&[Source::documents(path)], Role::Documents, &ReadOptions::default(), |_| {
        Err(Error::data("enough"))
    });
    assert_eq!(message(result), "enough");
}

#[test]
fn clicks_with_and_without_url_and_header() {
    let row = |id: &str| [id.to_owned(), "a query".to_owned(), "D1".to_owned()];
    let (all, counts) = clicks(b"1\ta query\tD1\thttp://x\n2\ta query\tD1\n", false).unwrap();
    assert_eq!(all, [row("1"), row("2")]);
    assert_eq!(counts.kept, 2);
    let (all, counts) = clicks(b"qid\tquery\tdid\turl\tlabel\n1\ta query\tD1\tu\tFactual\n", false).unwrap();
    assert_eq!((all, counts.rows, counts.damaged), (vec![row("1")], 1, 0));
    // Without a header a fifth column means that a tab got into the row.
    let (all, counts) =
        clicks(b"1\ta query\tD1\tu\textra\n2\ta query\tD1\tu\n3\t \tD1\tu\n4\tq\t\tu\n", false).unwrap();
    assert_eq!((all, counts.rows, counts.damaged), (vec![row("2")], 4, 3));
    assert!(message(clicks(b"1\tq\tD1\tu\n2\t\tD1\tu\n", true)).contains("line 2: the query is empty"));
}

#[test]
fn the_published_sample_of_orcas_parses() {
    let Some(path) = shared("fixtures/orcas_format/orcas_i_gold_1000.tsv") else { return };
    // One header line; the rest are rows, however many the copy at hand holds.
    let lines = std::fs::read_to_string(&path).unwrap().lines().count() as u64 - 1;
    assert!(lines > 900, "{lines} rows");
    let (all, counts) = rows(Source::clicks(path), true).unwrap();
    assert_eq!((counts.rows, counts.kept, counts.damaged, counts.not_utf8), (lines, lines, 0, 0));
    assert!(all.iter().all(|row| row[2].starts_with('D')));
    assert!(all[0][1].contains("best reads"));
    assert!(all.iter().map(|row| &row[0]).collect::<std::collections::HashSet<_>>().len() > 900);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    /// Any bytes: no panic, and every row is either kept or counted as damaged.
    #[test]
    fn any_bytes_are_counted(bytes in proptest::collection::vec(prop_oneof![Just(b'\t'), Just(b'\n'), any::<u8>()], 0..400)) {
        if let Ok((all, counts)) = documents(&bytes, &ALL) {
            prop_assert_eq!(counts.kept as usize, all.len());
            prop_assert_eq!(counts.rows, counts.kept + counts.damaged);
        }
        if let Ok((all, counts)) = clicks(&bytes, false) {
            prop_assert_eq!(counts.kept as usize, all.len());
            prop_assert_eq!(counts.rows, counts.kept + counts.damaged);
        }
    }
}
