//! Every byte of every input is accounted for: bytes of rows used, of rows left out, and outside rows add up to the
//! file, whatever is in it, wherever it is cut, and however it is brought (a file, packed, a pipe).

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ctune_dist::Result;
use ctune_dist::corpus::read::documents::{ReadCounts, ReadOptions, read_rows};
use ctune_dist::corpus::{Format, Role, Source};
use ctune_dist::files::{Fate, Ledger};
use ctune_dist::ir::qrels::Qrels;
use ctune_dist::ir::run::Run;
use ctune_dist::ir::topics::{TopicField, read_topics_counted};
use proptest::prelude::*;

/// How bytes come to a reader.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    File,
    Gzip,
    Zstd,
    Pipe,
    /// A pipe that brings gzip.
    PackedPipe,
}

pub const WAYS: [Way; 5] = [Way::File, Way::Gzip, Way::Zstd, Way::Pipe, Way::PackedPipe];

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(content).unwrap();
    gzip.finish().unwrap()
}

/// Calls `read` with a path at which `content` is to be had.
pub fn brought<T>(way: Way, content: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    let bytes = match way {
        Way::File | Way::Pipe => content.to_vec(),
        Way::Gzip | Way::PackedPipe => gzip(content),
        Way::Zstd => zstd::encode_all(content, 1).unwrap(),
    };
    if matches!(way, Way::Pipe | Way::PackedPipe) {
        let (reader, mut writer) = std::io::pipe().unwrap();
        // A reader that gives up early ends the writing.
        let writing = std::thread::spawn(move || _ = writer.write_all(&bytes));
        let result = read(&PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd())));
        drop(reader);
        writing.join().unwrap();
        return result;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, bytes).unwrap();
    read(&path)
}

type Rows = Vec<[String; 4]>;

pub fn rows(way: Way, role: Role, format: Option<Format>, content: &[u8]) -> Result<(Rows, ReadCounts)> {
    brought(way, content, |path| {
        let source = Source { format, ..Source::of(role, path) };
        let mut all = Vec::new();
        let counts = read_rows(&[source], role, &ReadOptions::default(), |row| {
            all.push(row);
            Ok(())
        })?;
        Ok((all, counts))
    })
}

/// What is true of every account of `content`.
fn holds(counts: &ReadCounts, content: &[u8]) {
    let bytes = &counts.bytes;
    assert_eq!(bytes.total(), content.len() as u64, "{bytes:?}");
    assert_eq!(bytes.of(Fate::Used) + bytes.dropped() + bytes.outside(), bytes.total());
    assert_eq!(bytes.of(Fate::Used) > 0, counts.kept > 0, "{counts:?}");
    assert_eq!(bytes.dropped() > 0, counts.damaged > 0, "{counts:?}");
    assert_eq!(counts.rows, counts.kept + counts.damaged, "{counts:?}");
}

/// Pieces of all formats: what begins, ends and breaks records.
const PIECES: [&[u8]; 40] = [
    b"\t",
    b"\n",
    b"\r\n",
    b"\r",
    b" ",
    b"\0",
    b"#",
    b"x",
    b"\xe9",
    b"\xc3\xa9",
    b"\xef\xbb\xbf",
    b"<",
    b">",
    b"&",
    b"<DOC>",
    b"\n<DOC>\n",
    b"<doc id=\"a\">",
    b"<DOC >",
    b"</DOC>\n",
    b"</DOC",
    b"<DOCNO>",
    b"</DOCNO>",
    b"<DOCHDR>",
    b"</DOCHDR>",
    b"<TEXT>",
    b"<!--",
    b"\"",
    b"{",
    b"}",
    b"\\",
    b"{\"_id\": \"q\", \"text\": \"t\"}\n",
    b"1.0",
    b"-1",
    b"D1\tu\tt\tb\n",
    b"q1\tq\tD1\tu\n",
    b"1 0 D1 1\n",
    b"1\tD1\t1\n",
    b"query-id\tcorpus-id\tscore\n",
    b"<DOC>\n<DOCNO>1</DOCNO>\n<TEXT>t</TEXT>\n</DOC>\n",
    b"qid\tquery\tdid\n",
];

/// Good beginnings, so that a format is found.
const STARTS: [&[u8]; 10] = [
    b"",
    b"\xef\xbb\xbf",
    b"<DOC>\n<DOCNO>A</DOCNO>\n<TEXT>t</TEXT>\n</DOC>\n",
    b"<root>\n<DOC>\n<DOCNO>A</DOCNO>\n<DOCHDR>\nhttp://x\n</DOCHDR>\n<p>t</DOC>\n",
    b"{\"_id\": \"1\", \"text\": \"t\"}\n",
    b"{\"docid\": \"1\", \"body\": \"t\"}\n",
    b"D1\tu\tt\tb\n",
    b"id\tbody\nD1\tb\n",
    b"1 0 D1 1\n",
    b"query-id\tcorpus-id\tscore\n1\tD1\t1\n",
];

fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => prop::sample::select(&PIECES[..]).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ];
    (prop::sample::select(&STARTS[..]), prop::collection::vec(piece, 0..40))
        .prop_map(|(start, pieces)| [start, &pieces.concat()].concat())
}

const ROLES: [Role; 4] = [Role::Documents, Role::Clicks, Role::Queries, Role::Qrels];

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any file, in every role.
    #[test]
    fn any_file(content in content()) {
        for role in ROLES {
            if let Ok((all, counts)) = rows(Way::File, role, None, &content) {
                holds(&counts, &content);
                prop_assert_eq!(all.len() as u64, counts.kept);
            }
        }
    }

    /// Any source gives the same rows and the same account.
    #[test]
    fn any_source(content in content(), role in prop::sample::select(&ROLES[..])) {
        let plain = rows(Way::File, role, None, &content);
        // What begins as a packed file is one.
        for way in WAYS {
            match (&plain, rows(way, role, None, &content)) {
                (Ok((rows, counts)), Ok((other, more))) => {
                    holds(&more, &content);
                    prop_assert_eq!(rows, &other, "{:?}", way);
                    prop_assert_eq!(&counts.bytes, &more.bytes, "{:?}", way);
                    prop_assert_eq!((counts.kept, counts.damaged, counts.unclosed), (more.kept, more.damaged, more.unclosed));
                }
                (Err(_), Err(_)) => {}
                (plain, other) => prop_assert!(false, "{:?}: {} and {}", way, plain.is_ok(), other.is_ok()),
            }
        }
    }

    /// Topics, qrels and runs: accepted files are accounted for too, from any source.
    #[test]
    fn any_judged_file(content in content(), which in 0..JUDGED.len(), lines in prop::collection::vec(0..JUDGED.len(), 0..4)) {
        let lines: Vec<&[u8]> = lines.into_iter().map(|line| JUDGED[line]).collect();
        for content in [&content[..], &[JUDGED[which], &lines.concat()].concat()] {
            for way in [Way::File, Way::Gzip, Way::Pipe] {
                for bytes in accounts(way, content) {
                    prop_assert_eq!(bytes.total(), content.len() as u64, "{:?}", bytes);
                    prop_assert!(bytes.of(Fate::Used) > 0 && bytes.dropped() == 0, "{:?}", bytes);
                }
            }
        }
    }
}

/// Lines and topics that are good where they stand alone.
const JUDGED: [&[u8]; 12] = [
    b"1 0 a 1\n",
    b"1 0 b 2.0\r\n",
    b"# a comment\n",
    b" \r\n",
    b"\xef\xbb\xbf1 Q0 a 1 5.5 tag\n",
    b"1 Q0 b 2 4.5 tag",
    b"1\ta\t1\n",
    b"query-id\tcorpus-id\tscore\n",
    b"7\ta query\n",
    b"<top>\n<num> Number: 3\n<title> R&D\n</top>\n",
    b"<?xml version=\"1.0\"?><!-- c --><topics><topic number=\"4\"><title>a &#233;</title></topic>\n</topics>\n",
    b"{\"_id\": 1.0, \"text\": \"q\"}\n",
];

/// The accounts of the readers of judged files that accept `content`.
fn accounts(way: Way, content: &[u8]) -> Vec<Ledger> {
    let qrels = brought(way, content, |path| Qrels::read_counted(path).map(|read| read.1));
    let run = brought(way, content, |path| Run::read_counted(path).map(|read| read.1));
    let topics =
        brought(way, content, |path| read_topics_counted(path, &[TopicField::Title]).map(|read| read.1));
    [qrels, run, topics].into_iter().flatten().collect()
}

#[test]
fn judged_files_are_accepted_and_told_apart() {
    let fates = |content: &[u8]| accounts(Way::File, content).remove(0);
    for content in [JUDGED[0], JUDGED[4], JUDGED[8], JUDGED[9], JUDGED[10], JUDGED[11]] {
        assert!(!accounts(Way::File, content).is_empty(), "{:?}", String::from_utf8_lossy(content));
    }
    let bytes = fates(b"\xef\xbb\xbf# c\n\nquery-id\tcorpus-id\tscore\n1\ta\t1\n \n# d\n");
    let of = |fate| bytes.of(fate);
    assert_eq!((of(Fate::Mark), of(Fate::Header), of(Fate::Used), of(Fate::Blank)), (3, 25, 6, 2));
    // Comments and blank lines above the header are counted as one.
    assert_eq!(of(Fate::Comment), 5 + 4);
    let bytes = fates(JUDGED[10]);
    assert_eq!((bytes.of(Fate::Comment), bytes.of(Fate::Blank)), (10, 2));
    assert_eq!(bytes.of(Fate::Used), "<topic number=\"4\"><title>a &#233;</title></topic>".len() as u64);
}

/// Records of each format, none of them good alone in every place, and what begins the file.
const CUT: [(Role, Format, &str, &[&str]); 4] = [
    (
        Role::Documents,
        Format::Trec,
        "<DOC>\n<DOCNO>first</DOCNO>\n<TEXT>PAD</TEXT>\n</DOC>\n",
        &[
            "<DOC>\n<DOCNO>A</DOCNO>\n<TEXT>one</TEXT>\n</DOC >\n",
            "<DOC id=\"B\">\n<TEXT>two</TEXT>\n</DOC>\n",
            "between\n",
            "<DOC>\n<DOCNO>C</DOCNO>\n<TEXT>no end\n",
            "<DOC >\n<DOCNO>D</DOCNO> four <DOC> \n</doc\n>\n",
            "<DOC><TEXT>no id</TEXT></DOC>\n",
        ],
    ),
    (
        Role::Documents,
        Format::MsmarcoV1,
        "first\tu\tt\tPAD\n",
        &["A\tu\tt\tone\n", "\r\n", "B\n", "C\tu\tt\tcaf\u{e9}\r\n", "\tu\tt\tno id\n", "D\tu\tt\tlast"],
    ),
    (
        Role::Documents,
        Format::Beir,
        "{\"_id\": \"first\", \"text\": \"PAD\"}\n",
        &[
            "{\"_id\": 1.0, \"text\": \"one\"}\n",
            "\n",
            "{\"_id\": \"B\"\n",
            "{\"text\": \"C\"}\n",
            "{\"_id\": \"D\"}\n",
        ],
    ),
    (
        Role::Clicks,
        Format::Orcas,
        "q0\tPAD\tD0\tu\n",
        &["q1\tone\tD1\tu\n", "q2\ttwo\n", "  \n", "q3\tthree\tD3\n", "q4\t\tD4\tu\n"],
    ),
];

/// Blocks end at a mebibyte: wherever that falls in what follows, the rows and the account are those of a file
/// that is read as one block.
#[test]
fn any_cut() {
    for (role, format, first, records) in CUT {
        let tail = records.concat().repeat(2);
        let file = |padding: usize| [&first.replace("PAD", &"x".repeat(padding)), &tail[..]].concat();
        let (short, wanted) = rows(Way::File, role, Some(format), file(3).as_bytes()).unwrap();
        let before = first.len() - 3;
        for at in (0..=tail.len().min(150)).chain([tail.len() - 1]) {
            let text = file((1 << 20) - before - at);
            for way in [Way::File, Way::Pipe] {
                let (all, counts) = rows(way, role, Some(format), text.as_bytes()).unwrap();
                holds(&counts, text.as_bytes());
                assert!(
                    all[1..] == short[1..],
                    "{format}, {way:?}, a block ends after {at}: {:?}",
                    &all[1..]
                );
                assert_eq!((counts.rows, counts.unclosed), (wanted.rows, wanted.unclosed), "{format}, {at}");
                for fate in Fate::ALL.into_iter().filter(|fate| *fate != Fate::Used) {
                    assert_eq!(counts.bytes.of(fate), wanted.bytes.of(fate), "{format}, {at}: {fate:?}");
                }
            }
        }
    }
}

/// A file that ends anywhere.
#[test]
fn any_end() {
    for (role, format, first, records) in CUT {
        let text = [&first.replace("PAD", "x"), &records.concat()[..]].concat();
        for end in 0..=text.len() {
            for way in [Way::File, Way::Pipe] {
                if let Ok((_, counts)) = rows(way, role, Some(format), &text.as_bytes()[..end]) {
                    holds(&counts, &text.as_bytes()[..end]);
                }
            }
        }
    }
}

/// A record longer than memory may hold is counted whole, and the one after it is read.
#[test]
fn a_record_without_end_is_counted() {
    let long = "x".repeat((64 << 20) + 100);
    for (role, start, end, last) in [
        (Role::Documents, "D0\tu\tt\t", "\n", "D1\tu\tt\tb\n"),
        (Role::Documents, "<DOC>\n<DOCNO>A</DOCNO>", "</DOC >", "<DOC><DOCNO>B</DOCNO></DOC>"),
        (Role::Documents, "<DOC>\n<DOCNO>A</DOCNO>", "\n", "<DOC><DOCNO>B</DOCNO></DOC>"),
    ] {
        let text = [start, &long, end, last].concat();
        for way in [Way::File, Way::Pipe] {
            let (all, counts) = rows(way, role, None, text.as_bytes()).unwrap();
            holds(&counts, text.as_bytes());
            assert_eq!((all.len(), counts.damaged), (1, 1), "{start}");
            assert_eq!(counts.bytes.of(Fate::TooLong), (text.len() - last.len()) as u64, "{start}");
        }
    }
}
