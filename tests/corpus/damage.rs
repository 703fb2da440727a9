//! Damage that any format may have: Windows' line ends and byte order mark, Latin-1 bytes, empty fields, huge
//! records, duplicate ids, flipped bytes in packed files. Each is read, counted, or refused in one line.

use std::io::Write;

use ctune_dist::corpus::Role;

use super::formats::{only, row, rows};
use super::message;
use super::prepare::case;

/// One record of each format and role, and a word of it.
const RECORDS: [(Role, &str, &str); 9] = [
    (Role::Documents, "D1\tu\ttitle\tword\n", "word"),
    (Role::Documents, "id\tbody\nD1\tword\n", "word"),
    (Role::Documents, "{\"docid\": \"D1\", \"title\": \"t\", \"body\": \"word\"}\n", "word"),
    (Role::Documents, "{\"_id\": \"D1\", \"title\": \"t\", \"text\": \"word\"}\n", "word"),
    (Role::Documents, "<DOC>\n<DOCNO>D1</DOCNO>\n<TEXT>\nword\n</TEXT>\n</DOC>\n", "word"),
    (
        Role::Documents,
        "<DOC>\n<DOCNO>D1</DOCNO>\n<DOCHDR>\nhttp://x\n</DOCHDR>\n<html>word</html>\n</DOC>\n",
        "word",
    ),
    (Role::Clicks, "q1\tword\tD1\tu\n", "word"),
    (Role::Queries, "q1\tword\n", "word"),
    (Role::Qrels, "q1 0 word 1\n", "word"),
];

#[test]
fn windows_files_are_read_as_others() {
    for (role, record, _) in RECORDS {
        let windows = format!("\u{feff}{}\r\n", record.replace('\n', "\r\n"));
        assert_eq!(only(role, windows), only(role, record), "{record}");
    }
}

#[test]
fn latin_1_bytes_are_counted_and_the_row_is_kept() {
    for (role, record, word) in RECORDS {
        let at = record.find(word).unwrap();
        let bytes = [&record.as_bytes()[..at], b"caf\xe9", &record.as_bytes()[at + word.len()..]].concat();
        let (all, counts) = rows(role, bytes).unwrap();
        assert_eq!((counts.kept, counts.damaged, counts.not_utf8), (1, 0, 1), "{record}");
        assert!(counts.shown[0].contains("not UTF-8"), "{:?}", counts.shown);
        // Collections older than UTF-8 are read in their own encoding; elsewhere such a byte is a sign of
        // damage.
        let wanted = if record.starts_with('<') { "caf\u{e9}" } else { "caf\u{fffd}" };
        assert!(all[0].iter().any(|column| column == wanted), "{all:?}");
    }
}

#[test]
fn rows_with_an_empty_id_or_query_are_counted() {
    let good = RECORDS.map(|(_, record, _)| record);
    for (role, record, broken) in [
        (Role::Documents, good[0], "\tu\ttitle\tword\n"),
        (Role::Documents, good[1], "\tword\n"),
        (Role::Documents, good[2], "{\"docid\": \"\", \"body\": \"word\"}\n"),
        (Role::Documents, good[3], "{\"_id\": null, \"text\": \"word\"}\n"),
        (Role::Documents, good[4], "<DOC><DOCNO> </DOCNO><TEXT>word</TEXT></DOC>\n"),
        (Role::Documents, good[5], "<DOC><DOCNO></DOCNO><DOCHDR>u</DOCHDR>word</DOC>\n"),
        (Role::Clicks, good[6], "q2\t \tD1\tu\n"),
        (Role::Clicks, good[6], "q2\tword\t\tu\n"),
        (Role::Queries, good[7], "q2\t\u{2003}\n"),
        (Role::Qrels, good[8], "q2 0  1\n"),
    ] {
        let (all, counts) = rows(role, format!("{record}{broken}")).unwrap();
        assert_eq!((all.len(), counts.kept, counts.damaged), (1, 1, 1), "{broken}");
        let line = record.matches('\n').count() + 1;
        assert!(counts.shown[0].contains(&format!("line {line}: ")), "{:?}", counts.shown);
    }
    // A document without text is a document: only its id is required.
    assert_eq!(only(Role::Documents, "D1\t\t\t\n"), row(["D1", "", "", ""]));
}

/// Ten megabytes in one record, between two others.
#[test]
fn huge_records_are_read_whole() {
    for (role, record, word) in RECORDS.into_iter().filter(|(role, _, _)| *role != Role::Qrels) {
        // A page's HTML is cut after a mebibyte, as crawlers do.
        let page = record.contains("<html>");
        let huge = "long word ".repeat(if page { 100_000 } else { 1_000_000 });
        let huge = huge.trim_end();
        let head = if record.starts_with("id\t") { "id\tbody\n" } else { "" };
        let record = record.strip_prefix(head).unwrap();
        let text = [head, record, &record.replace(word, huge), record].concat();
        let (all, counts) = rows(role, text).unwrap();
        assert_eq!((counts.kept, counts.damaged), (3, 0));
        assert!(all[1].iter().any(|column| column == huge), "{role:?}");
    }
}

/// Every byte of a packed file flipped: an error of one line, or the same rows (a byte that means nothing).
#[test]
fn flipped_bytes_of_packed_files_are_found() {
    let text: String = (0..40).map(|i| format!("D{i}\tu\tt\tbody {}\n", i * 7919 % 1009)).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(text.as_bytes()).unwrap();
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
    // As the command-line tool writes it; without, a flip may stay unseen.
    zstd.include_checksum(true).unwrap();
    zstd.write_all(text.as_bytes()).unwrap();
    let whole = rows(Role::Documents, &text).unwrap();
    for packed in [gzip.finish().unwrap(), zstd.finish().unwrap()] {
        let mut found = 0;
        for at in 4..packed.len() {
            let mut bytes = packed.clone();
            bytes[at] ^= 1 << (at % 8);
            match rows(Role::Documents, bytes) {
                Ok(read) => assert!(read == whole, "flipped byte {at} is unseen"),
                Err(error) => {
                    found += 1;
                    let text = message::<()>(Err(error));
                    assert!(text.contains("cannot be read beyond") || text.contains("decompress"), "{text}");
                }
            }
        }
        assert!(found > packed.len() / 2, "{found} of {}", packed.len());
    }
}

/// A page of nothing but open comments, ampersands or tags takes time in proportion to its length.
#[test]
fn hostile_markup_takes_no_longer() {
    // in a time that grows with the square of the bytes it would take hours
    crate::start::must_end(|| {
        for piece in ["<!--", "&", "<a", "<", "</", "<p>", "<!-- -->", "&amp", "<DOC>", "<docno>"] {
            let body = piece.repeat((4 << 20) / piece.len());
            let _ = rows(Role::Documents, format!("<DOC><DOCNO>1</DOCNO><TEXT>{body}</TEXT></DOC>\n"));
            let _ = rows(Role::Documents, format!("<doc><docno>1</docno>{body}</doc>\n"));
        }
    });
}

#[test]
fn ids_that_come_twice_are_counted() {
    let clicks = "q1\tfox\tD1\tu\nq1\tdog\tD2\tu\nq2\tcat\tD1\tu\nq1\tfox\tD3\tu\n";
    let documents = "D1\tu\tt\tfox\nD2\tu\tt\tdog\nD1\tu\tt\tother\nD3\tu\tt\tcat\n";
    let log = case(clicks.as_bytes(), documents.as_bytes());
    let shards = log.shards();
    let dropped = &shards.manifest().dropped;
    let reason = "clicks whose query had another text before (the click is kept, with the first text)";
    assert_eq!(
        (dropped.get(reason), dropped["documents whose id came before"]),
        (Some(&1), 1),
        "{dropped:?}"
    );
    assert_eq!((shards.clicks(), shards.queries()), (4, 2));
    let fox = shards.tokenizer().unwrap().encode_batch(&["fox"], 9).unwrap().remove(0);
    assert_eq!(shards.query(0).to_vec(), fox);

    let mut pair = case(clicks.as_bytes(), documents.as_bytes());
    let queries = pair.put("queries.tsv", "q1\tfox\nq1\tdog\nq2\tcat\n");
    let qrels = pair.put("qrels.txt", "q1 0 D1 1\nq2 0 D1 1\nq1 0 D1 1\nq3 0 D1 1\nq1 0 D2 0\n");
    pair.log_of(queries, qrels);
    let shards = pair.shards();
    let dropped = &shards.manifest().dropped;
    for reason in [
        "queries whose id came before",
        "clicks that came before",
        "clicks whose query is not among the queries",
        "clicks with a label of 0 or less",
    ] {
        assert_eq!(dropped.get(reason), Some(&1), "{reason}: {dropped:?}");
    }
    assert_eq!((shards.clicks(), shards.queries()), (2, 2));
}
