//! Files that are not as their format says: documents without an end, ids in other places, pipes, wide text, old
//! packings, numbers and charsets. Each is read as it was meant, or counted, or refused in one line.

use std::path::PathBuf;

use ctune_dist::corpus::prepare::run;
use ctune_dist::corpus::read::documents::{ReadOptions, read_rows};
use ctune_dist::corpus::{Format, Role, Source};
use ctune_dist::files::Fate;
use ctune_dist::ir::qrels::Qrels;
use ctune_dist::ir::topics::read_topics;

use super::accounts::{WAYS, Way, brought};
use super::formats::{only, row, rows};
use super::message;
use super::prepare::case;

fn documents(content: &str) -> (Vec<(String, String)>, ctune_dist::corpus::read::documents::ReadCounts) {
    let (all, counts) = rows(Role::Documents, content).unwrap();
    assert_eq!(counts.bytes.total(), content.len() as u64);
    (all.into_iter().map(|[id, _, _, body]| (id, body)).collect(), counts)
}

fn texts(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(id, body)| ((*id).to_owned(), (*body).to_owned())).collect()
}

const UNCLOSED: &str = "<DOC>\n<DOCNO> A-1 </DOCNO>\n<TEXT>heron otter</TEXT>\n</DOC>\n\
    <DOC>\n<DOCNO> A-2 </DOCNO>\n<TEXT>badger lantern</TEXT>\n\
    <DOC>\n<DOCNO> A-3 </DOCNO>\n<TEXT>violin kettle</TEXT>\n</DOC>\n";

#[test]
fn a_document_without_end_does_not_swallow_the_next() {
    let (all, counts) = documents(UNCLOSED);
    assert_eq!(all, texts(&[("A-1", "heron otter"), ("A-2", "badger lantern"), ("A-3", "violin kettle")]));
    assert_eq!((counts.unclosed, counts.damaged), (1, 0));
    assert!(counts.shown[0].contains("line 5: <DOC> without </DOC>"), "{:?}", counts.shown);
    // On one line, where a DOCNO tells that it is a document and no text.
    let (all, counts) = documents("<doc><docno>1</docno>one<doc><docno>2</docno>two</doc>\n");
    assert_eq!((all, counts.unclosed), (texts(&[("1", "one"), ("2", "two")]), 1));
    // Three in a row.
    let (all, counts) =
        documents("<DOC><DOCNO>1</DOCNO>a\n<DOC><DOCNO>2</DOCNO>b\n<DOC><DOCNO>3</DOCNO>c</DOC>");
    assert_eq!((all, counts.unclosed), (texts(&[("1", "a"), ("2", "b"), ("3", "c")]), 2));
    // A file without a single end: all but the last are known to be whole.
    let (all, counts) = documents("<DOC><DOCNO>1</DOCNO>a\n<DOC><DOCNO>2</DOCNO>b\n");
    assert_eq!((all, counts.unclosed, counts.damaged), (texts(&[("1", "a")]), 1, 1));
    // The word in a line of text is text.
    let (all, counts) = documents("<DOC><DOCNO>1</DOCNO><TEXT>a <DOC> b <DOCUMENT> c</TEXT></DOC>\n");
    assert_eq!((all, counts.unclosed), (texts(&[("1", "a b c")]), 0));
}

#[test]
fn a_document_without_end_is_counted_by_prepare_and_refused_by_strict() {
    let made = || case(b"1\tviolin\tA-3\n2\tbadger\tA-2\n3\theron\tA-1\n", UNCLOSED.as_bytes());
    let first = made();
    let shards = first.shards();
    assert_eq!((shards.documents(), shards.clicks()), (3, 3));
    let dropped = &shards.manifest().dropped;
    let reason = "document rows without </DOC> (read up to the next <DOC>, not dropped)";
    assert_eq!(dropped.get(reason), Some(&1), "{dropped:?}");
    let mut log = made();
    log.strict();
    let text = message(run(log.options()));
    assert!(text.contains("line 5: <DOC> without </DOC>"), "{text}");
}

#[test]
fn tags_and_ids_of_every_spelling() {
    for content in [
        "<DOC>\n<DOCNO>7</DOCNO>\n<TEXT>t</TEXT>\n</DOC>",
        "<DOC >\n<DOCNO >7</DOCNO >\n<TEXT>t</TEXT>\n</DOC >",
        "<doc id=\"7\">\n<text>t</text>\n</doc>",
        "<DOC id='7' type=\"story\">\n<TEXT>t</TEXT>\n</DOC>",
        "<DOC docid=7>\n<TEXT>t</TEXT>\n</DOC\n>",
        "<DOC id=\"x\">\n<DOCNO>7</DOCNO>\n<TEXT>t</TEXT>\n</DOC>",
        "<?xml version=\"1.0\"?>\n<collection>\n  <DOC>\n  <DOCNO>7</DOCNO>\n<TEXT>t</TEXT>\n  </DOC>\n</collection>",
    ] {
        assert_eq!(documents(content).0, texts(&[("7", "t")]), "{content}");
    }
    // Neither a DOCNO nor an id.
    let (all, counts) = documents("<DOC>\n<TEXT>a</TEXT></DOC>\n<DOC id=\"2\">b</DOC>");
    assert_eq!((all, counts.damaged), (texts(&[("2", "b")]), 1));
    assert_eq!(counts.bytes.of(Fate::NoId), "<DOC>\n<TEXT>a</TEXT></DOC>".len() as u64);
}

#[test]
fn text_before_the_id_and_between_documents() {
    let early = "<DOC>\n<HEADLINE>early</HEADLINE>\n<DOCNO>1</DOCNO>\n<TEXT>late</TEXT>\n</DOC>";
    assert_eq!(only(Role::Documents, early), row(["1", "", "early", "late"]));
    assert_eq!(only(Role::Documents, "<DOC>\nearly\n<DOCNO>1</DOCNO>\nlate\n</DOC>")[3], "early late");
    let page = "<DOC>\n<p>early</p><DOCNO>1</DOCNO>\n<DOCHDR>\nhttp://x\n</DOCHDR>\n<p>late</DOC>";
    assert_eq!(only(Role::Documents, page), row(["1", "http://x", "", "late"]));
    let lost = "lost and found ".repeat(9);
    let content = format!("<DOC><DOCNO>1</DOCNO>a</DOC>\n{lost}</DOC>\n<DOC><DOCNO>2</DOCNO>b</DOC>\n");
    let (all, counts) = documents(&content);
    assert_eq!(all, texts(&[("1", "a"), ("2", "b")]));
    assert_eq!(counts.bytes.of(Fate::Between), lost.len() as u64 + 8);
    let told = counts.bytes.notable().unwrap();
    assert!(
        told.contains("143 of text or markup between rows") && told.contains("are outside rows"),
        "{told}"
    );
}

/// The bytes that the first look took are not missing afterwards, however small or large the file is.
#[test]
fn pipes_are_read_from_their_first_byte() {
    for lines in [1, 20, 6_000] {
        let text: String = (0..lines).map(|i| format!("D{i}\t\twalnut\tcopper {i} kettle\n")).collect();
        let file = super::accounts::rows(Way::File, Role::Documents, None, text.as_bytes()).unwrap();
        assert_eq!(file.0.len(), lines);
        for way in WAYS {
            let read = super::accounts::rows(way, Role::Documents, None, text.as_bytes()).unwrap();
            assert!(read.0 == file.0 && read.1.bytes == file.1.bytes, "{way:?}, {lines} lines");
        }
    }
    let topics = "1\tone\n2\ttwo\n";
    let read = |way| brought(way, topics.as_bytes(), |path| read_topics(path).unwrap());
    assert!(WAYS.iter().all(|&way| read(way) == read(Way::File)));
    let read = |way| brought(way, b"1 0 a 1\n", |path| Qrels::read(path).unwrap());
    assert!(WAYS.iter().all(|&way| read(way) == read(Way::File)));
}

#[test]
fn a_pipe_is_not_read_twice_and_nobody_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let text: String = (0..3_000).map(|i| format!("D{i}\tu\tt\tbody {i}\n")).collect();
    let (path, content) = (fifo.clone(), text.clone());
    let writing = std::thread::spawn(move || std::fs::write(path, content));
    let read = || {
        let source = Source::documents(&fifo);
        read_rows(&[source], Role::Documents, &ReadOptions::default(), |_| Ok(()))
    };
    let counts = read().unwrap();
    assert_eq!((counts.kept, counts.bytes.total()), (3_000, text.len() as u64));
    writing.join().unwrap().unwrap();
    let refused = message(read());
    assert!(refused.contains("fifo: is a pipe and is needed twice"), "{refused}");
    assert!(message(read_topics(&fifo)).contains("is a pipe and is needed twice"));
}

/// `prepare` reads its files more than once, and again when it goes on after a kill.
#[test]
fn prepare_refuses_a_pipe_before_it_reads_anything() {
    let log = case(b"1\tfox\tD1\n", b"D1\tu\tt\tfox\n");
    for role in [Role::Clicks, Role::Documents] {
        brought(Way::Pipe, b"D1\tu\tt\tfox\n", |path| {
            let mut options = log.options().clone();
            options.sources.iter_mut().filter(|source| source.role == role).for_each(|source| {
                source.path = vec![path.to_owned()];
            });
            let text = message(run(&options));
            assert!(text.contains("is a pipe, and this command reads the file more than once"), "{text}");
            assert!(!options.out.exists());
        });
    }
    let mut options = log.options().clone();
    brought(Way::Pipe, b"1\tfox\n", |path| {
        options.exclude_topics = vec![path.to_owned()];
        assert!(message(run(&options)).contains("is a pipe"));
    });
}

#[test]
fn wide_text_is_named() {
    let wide = |text: &str, big: bool, mark: bool| -> Vec<u8> {
        let units = mark.then_some(0xfeff).into_iter().chain(text.encode_utf16());
        units.flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    };
    for (role, text) in [
        (Role::Documents, "D1\tu\tt\tb\n"),
        (Role::Documents, "<DOC><DOCNO>1</DOCNO>a</DOC>"),
        (Role::Documents, "{\"_id\": \"1\"}\n"),
        (Role::Clicks, "q\tquery\tD1\n"),
        (Role::Qrels, "1 0 D1 1\n"),
    ] {
        for (big, mark) in [(false, false), (false, true), (true, false), (true, true)] {
            let said = message(rows(role, wide(text, big, mark)));
            assert!(said.contains("is UTF-16 text") && said.contains("iconv"), "{said}");
        }
    }
    brought(Way::Gzip, &wide("1\tq\n", false, true), |path| {
        assert!(message(read_topics(path)).contains("is UTF-16 text"));
    });
    let utf32: Vec<u8> = "D1\tb\n".chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
    assert!(message(rows(Role::Documents, utf32)).contains("is UTF-32 text"));
}

#[test]
fn lines_of_old_macs_are_named() {
    for (role, text) in [
        (Role::Documents, "D1\tu\tt\tb\rD2\tu\tt\tb\r"),
        (Role::Documents, "{\"_id\": \"1\"}\r{\"_id\": \"2\"}\r"),
        (Role::Clicks, "q1\tq\tD1\rq2\tq\tD2\r"),
        (Role::Qrels, "1 0 D1 1\r1 0 D2 1\r"),
    ] {
        let said = message(rows(role, text));
        assert!(said.contains("end in a carriage return alone"), "{said}");
    }
    assert_eq!(only(Role::Documents, "D1\tu\tt\tone\rtwo")[3], "one\rtwo");
    // To SGML it is white space.
    assert_eq!(only(Role::Documents, "<DOC>\r<DOCNO>1</DOCNO>\ra\r</DOC>\r")[3], "a");
}

#[test]
fn numbers_of_json_keep_their_digits() {
    for number in
        ["1.0", "12345678901234567890", "123456789012345678901234567890", "-0", "1e5", "0.10", "007.0"]
    {
        let line = format!("{{\"_id\": {number}, \"text\": \"t \\\" 1.50\"}}\n");
        match rows(Role::Queries, &line) {
            Ok((all, _)) => assert_eq!(all, [row([number, "t \" 1.50", "", ""])], "{number}"),
            // JSON has no such number.
            Err(error) => assert!(number == "007.0" && error.to_string().contains("number"), "{error}"),
        }
    }
    let list = "{\"docid\": \"a\", \"body\": [1.50, \"x\", [2.0, 3]], \"url\": 7}\n";
    assert_eq!(only(Role::Documents, list), row(["a", "7", "", "1.50 x 2.0 3"]));
}

#[test]
fn qrels_of_three_columns_and_labels_with_a_point() {
    let labels = |content: &str| -> Vec<(String, String)> {
        let (all, counts) = rows(Role::Qrels, content).unwrap();
        assert_eq!(counts.damaged, 0, "{counts:?}");
        all.into_iter().map(|[_, document, label, _]| (document, label)).collect()
    };
    assert_eq!(labels("1\ta\t1.0\n1\tb\t0\n"), texts(&[("a", "1.0"), ("b", "0")]));
    assert_eq!(labels("1\ta\t1\n"), texts(&[("a", "1")]));
    assert_eq!(labels("query-id\tcorpus-id\tscore\n1\ta\t2\n"), texts(&[("a", "2")]));
    assert_eq!(labels("query_id iteration doc_id relevance\n1 0 a 2\n"), texts(&[("a", "2")]));
    let (_, counts) = rows(Role::Qrels, "1\ta\tyes\n1\tb\t1\n").unwrap();
    assert_eq!((counts.rows, counts.kept), (2, 1), "a damaged first row is no header");
    // A click is a label above 0, with a point or without.
    let mut log = case(b"", b"D1\tu\tt\tfox\nD2\tu\tt\tdog\n");
    let queries = log.put("queries.tsv", "q1\tfox\n");
    let qrels = log.put("qrels.txt", "q1 0 D1 1.0\nq1 0 D2 0.0\n");
    log.log_of(queries, qrels);
    assert_eq!(log.shards().clicks(), 1);
}

/// The text of a page with this answer and this head, whose body is `bytes`.
fn page(answer: &str, head: &str, bytes: &[u8]) -> (String, u64) {
    let start = format!(
        "<DOC>\n<DOCNO>1</DOCNO>\n<DOCHDR>\nhttp://x.gov\nHTTP/1.1 200 OK\n{answer}\n</DOCHDR>\n<html><head>{head}\
         <title>T</title></head><body>"
    );
    let (mut all, counts) =
        rows(Role::Documents, [start.as_bytes(), bytes, b"</body></html>\n</DOC>\n"].concat()).unwrap();
    (std::mem::take(&mut all[0][3]), counts.not_utf8)
}

#[test]
fn declared_charsets_of_pages() {
    let answer = |charset: &str| format!("Content-Type: text/html; charset={charset}");
    for (charset, bytes, text) in [
        ("ISO-8859-2", &b"\xb3\xf3d\xbc"[..], "łódź"),
        ("windows-1251", b"\xec\xe8\xf0", "мир"),
        ("\"koi8-r\"", b"\xcd\xc9\xd2", "мир"),
        ("Shift_JIS", b"\x93\xfa\x96{", "日本"),
        ("euc-kr; x=y", b"\xc7\xd1", "한"),
        ("big5", b"\xa4\xa4", "中"),
        ("iso-8859-1", b"caf\xe9", "café"),
        ("utf-8", b"caf\xc3\xa9", "café"),
        ("ISO-2022-JP", b"\x1b$BF|\x1b(B", "日"),
    ] {
        assert_eq!(page(&answer(charset), "", bytes), (text.into(), 0), "{charset} by the answer");
        let lower = answer(charset).to_lowercase();
        assert_eq!(page(&lower, "", bytes).0, text, "{charset} by the answer in small letters");
        let name = charset.trim_matches('"');
        let equiv = format!("<META http-equiv=Content-Type content=\"text/html; charset={name}\">");
        assert_eq!(page("", &equiv, bytes), (text.into(), 0), "{charset} by the page");
        if !name.contains(';') {
            assert_eq!(page("", &format!("<meta charset='{name}' />"), bytes).0, text);
        }
    }
    // The answer counts more than the page; a byte order mark more than both.
    assert_eq!(page(&answer("windows-1251"), "<meta charset=koi8-r>", b"\xec\xe8\xf0").0, "мир");
    // An unknown one, one that is not so, none: UTF-8, else Windows-1252, as before.
    assert_eq!(page(&answer("klingon"), "", b"caf\xe9"), ("café".into(), 1));
    assert_eq!(page(&answer("utf-8"), "", b"caf\xe9"), ("café".into(), 1));
    assert_eq!(page(&answer("utf-16"), "", b"plain"), ("plain".into(), 0));
    assert_eq!(page(&answer("latin1"), "", "\u{201c}é\u{201d}".as_bytes()).0, "\u{201c}é\u{201d}");
    assert_eq!(
        page("Content-Type: text/html", "<meta name=charset>", b"\x93a\x94"),
        ("\u{201c}a\u{201d}".into(), 1)
    );
    // Bytes that the declared charset does not have.
    assert_eq!(page(&answer("euc-jp"), "", b"a\xff").1, 1);
}

#[test]
fn compressed_files_that_compress_refuses() {
    let text = "D1\tu\tt\tbody body body\n".repeat(200);
    let packed = |widest| super::formats::compress(text.as_bytes(), widest, usize::MAX);
    assert_eq!(rows(Role::Documents, packed(10)).unwrap().0.len(), 200);
    let changed = |at: usize, byte: u8| {
        let mut bytes = packed(12);
        bytes[at] = byte;
        bytes
    };
    for (bytes, said) in [
        (packed(9), "compress -b 9"),
        (changed(2, 0x80 | 8), "not a file made by Unix compress"),
        (changed(2, 0x80 | 17), "not a file made by Unix compress"),
        (changed(2, 0x80 | 0x20 | 12), "not a file made by Unix compress"),
        (vec![0x1f, 0x9d], "ends within the head"),
        // The first code must be a byte: 256, then 257.
        (vec![0x1f, 0x9d, 0x90, 0, 1, 0], "a code that is not in the table"),
        (vec![0x1f, 0x9d, 0x90, 1, 1, 0], "a code that is not in the table"),
        (vec![0x1f, 0x9d, 0x90, b'D'], "ends within a code"),
    ] {
        let text = message(rows(Role::Documents, bytes));
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn files_of_a_folder_are_all_accounted_for() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).unwrap();
    put("a", b"<DOC><DOCNO>1</DOCNO>a</DOC>\n");
    put("b", b"\n<DOC id=\"2\">b\n<DOC id=\"3\">c</DOC>\n");
    let source = Source::documents(PathBuf::from(folder.path()));
    let counts = read_rows(&[source], Role::Documents, &ReadOptions::default(), |_| Ok(())).unwrap();
    assert_eq!((counts.kept, counts.unclosed, counts.bytes.total()), (3, 1, 29 + 35));
    assert_eq!(counts.bytes.of(Fate::Blank), 3);
    let given = Source { format: Some(Format::Trec), ..Source::documents(folder.path()) };
    assert_eq!(read_rows(&[given], Role::Documents, &ReadOptions::default(), |_| Ok(())).unwrap(), counts);
}
