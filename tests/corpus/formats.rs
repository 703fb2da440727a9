//! Every format and packing that `prepare` reads: what each becomes, how they are told apart, and what the
//! program says of a file that is not what it should be.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use ctune_dist::Result;
use ctune_dist::corpus::read::documents::{ReadCounts, ReadOptions, read_rows};
use ctune_dist::corpus::{Format, Role, Source};
use proptest::prelude::*;

use super::{message, shared};

fn put(folder: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    path
}

fn rows_of(sources: &[Source]) -> Result<(Vec<[String; 4]>, ReadCounts)> {
    let mut all = Vec::new();
    let counts = read_rows(sources, sources[0].role, &ReadOptions::default(), |row| {
        all.push(row);
        Ok(())
    })?;
    Ok((all, counts))
}

pub fn rows(role: Role, content: impl AsRef<[u8]>) -> Result<(Vec<[String; 4]>, ReadCounts)> {
    let folder = tempfile::tempdir().unwrap();
    rows_of(&[Source::of(role, put(&folder, "file", content))])
}

pub fn row(columns: [&str; 4]) -> [String; 4] {
    columns.map(ToOwned::to_owned)
}

/// The one row of a file.
pub fn only(role: Role, content: impl AsRef<[u8]>) -> [String; 4] {
    let (mut all, counts) = rows(role, content).unwrap();
    assert_eq!((all.len(), counts.kept, counts.damaged), (1, 1, 0), "{counts:?}");
    all.remove(0)
}

#[test]
fn json_lines() {
    let v2 = r#"{"docid": "msmarco_doc_00_0", "url": "u", "title": "t\u00e9\n", "headings": "h", "body": "b \"q\" é"}"#;
    assert_eq!(only(Role::Documents, v2), row(["msmarco_doc_00_0", "u", "té\n", "b \"q\" é"]));
    let beir = r#"{"metadata": {"_id": 5, "x": [1, {}]}, "_id": "MED-10", "title": "", "text": "body"}"#;
    assert_eq!(only(Role::Documents, beir), row(["MED-10", "", "", "body"]));
    assert_eq!(only(Role::Queries, r#"{"_id": 7, "text": "a query"}"#), row(["7", "a query", "", ""]));
    let (all, counts) = rows(
        Role::Documents,
        "{\"docid\": \"a\", \"body\": [\"x\", null, \"y\"]}\n{\"docid\": \"b\", \"body\": \"cut\n{\"body\": \"no id\"}\n[1]\n\
         {\"docid\": \"c\", \"body\": {\"deep\": 1}}\n{\"docid\": \"d\"}",
    )
    .unwrap();
    assert_eq!(all, [row(["a", "", "", "x  y"]), row(["d", "", "", ""])]);
    assert_eq!((counts.rows, counts.damaged), (6, 4));
    assert!(counts.shown[0].contains("line 2: column"), "{:?}", counts.shown);
}

#[test]
fn named_columns() {
    let folder = tempfile::tempdir().unwrap();
    let named = |role, path: PathBuf, columns: &[(&str, &str)]| Source {
        columns: columns.iter().map(|(column, name)| (column.to_string(), name.to_string())).collect(),
        ..Source::of(role, path)
    };
    let json = put(&folder, "a.jsonl", "{\"key\": 1, \"heading\": \"h\", \"content\": \"c\"}\n");
    let source = named(Role::Documents, json, &[("id", "key"), ("title", "heading"), ("body", "content")]);
    assert_eq!(rows_of(&[source]).unwrap().0, [row(["1", "", "h", "c"])]);
    let tsv = put(&folder, "a.tsv", "when\tquestion\tuser\tpage\n1\tq one\tu\tD1\n2\tq two\tu\tD2\n");
    let columns = [("query_id", "when"), ("query", "question"), ("document_id", "page")];
    let (all, counts) = rows_of(&[named(Role::Clicks, tsv.clone(), &columns)]).unwrap();
    assert_eq!(all, [row(["1", "q one", "D1", ""]), row(["2", "q two", "D2", ""])]);
    assert_eq!(counts.rows, 2);
    let numbers = [("query_id", "1"), ("query", "2"), ("document_id", "4")];
    let plain = put(&folder, "b.tsv", "1\tq one\tu\tD1\n");
    assert_eq!(rows_of(&[named(Role::Clicks, plain, &numbers)]).unwrap().0[0][2], "D1");
    let unknown = named(Role::Clicks, tsv.clone(), &[("query_id", "nothing")]);
    assert!(message(rows_of(&[unknown])).contains("no column \"nothing\""));
    assert!(message(rows_of(&[named(Role::Clicks, tsv, &[("url", "1")])])).contains("no column \"url\""));
}

#[test]
fn two_and_three_columns_and_headers() {
    assert_eq!(only(Role::Documents, "MED-1\tbody text\n"), row(["MED-1", "", "", "body text"]));
    assert_eq!(only(Role::Documents, "D1\tt\tbody\n"), row(["D1", "", "t", "body"]));
    assert_eq!(only(Role::Documents, "id\tbody\ttitle\n7\tb\tt\n"), row(["7", "", "t", "b"]));
    assert_eq!(only(Role::Queries, "qid\tquery\n1\tq\tmore\n"), row(["1", "q\tmore", "", ""]));
    // Tabs in the last column of MS MARCO are text.
    assert_eq!(only(Role::Documents, "D1\tu\tt\tb\tc\n")[3], "b\tc");
}

#[test]
fn qrels_as_clicks() {
    let (all, _) = rows(Role::Qrels, "# c\n9265503 0 D1265400 1\n1  Q0  D2\t0\n").unwrap();
    assert_eq!(all, [row(["9265503", "D1265400", "1", ""]), row(["1", "D2", "0", ""])]);
    let beir = rows(Role::Qrels, "query-id\tcorpus-id\tscore\nq1\td1\t2\n").unwrap();
    assert_eq!((beir.0, beir.1.rows), (vec![row(["q1", "d1", "2", ""])], 1));
    let (_, counts) = rows(Role::Qrels, "1 0 D1 1\n1 0 D2 yes\n1 0 D3\n").unwrap();
    assert_eq!((counts.kept, counts.damaged), (1, 2));
}

const ARTICLES: &str = "<DOC>\n<DOCNO> FBIS3-1 </DOCNO>\n<HEADLINE> A &amp; B\n head </HEADLINE>\n<FOOTER>left out</FOOTER>\n\
    <TEXT>\nThe <F P=105> first</F> text, 5 < 6 &blank;x.\n</TEXT>\n</DOC>\n\
    <DOC>\n<DOCNO>LA-2</DOCNO>\nall of it counts\n</DOC>\n";

#[test]
fn trec_sgml() {
    let (all, counts) = rows(Role::Documents, ARTICLES).unwrap();
    assert_eq!(all[0], row(["FBIS3-1", "", "A & B head", "The first text, 5 < 6  x."]));
    assert_eq!(all[1], row(["LA-2", "", "", "all of it counts"]));
    assert_eq!((counts.rows, counts.kept), (2, 2));
    let (all, counts) =
        rows(Role::Documents, format!("{ARTICLES}<DOC>\n<TEXT>no id</TEXT></DOC>\n<DOC><DOCNO>cut</DOCNO>"))
            .unwrap();
    assert_eq!((all.len(), counts.rows, counts.damaged), (2, 4, 2));
    assert!(counts.shown[0].contains("line 14: a document without <DOCNO>"), "{:?}", counts.shown);
    assert!(counts.shown[1].contains("line 16: <DOC> without </DOC>"), "{:?}", counts.shown);
    // Latin-1, as the LA Times has it, and small letters.
    let (all, counts) = rows(Role::Documents, b"<doc><docno>1</docno><text>caf\xe9</text></doc>").unwrap();
    assert_eq!((all[0][3].as_str(), counts.not_utf8), ("café", 1));
}

#[test]
fn trecweb_pages() {
    let page = b"<DOC>\n<DOCNO>GX000-00-0000000</DOCNO>\n<DOCHDR>\nhttp://x.gov/a.html\nHTTP/1.1 200 OK\n</DOCHDR>\n\
        <html><head><title>The  Title</title><style>p {}</style></head><body><script>if (a<b) x()</script>\
        <p>One<br>two &eacute;&nbsp;<b>three</b></p><!-- no --><p>caf\xe9</body></html>\n</DOC>\n";
    let (all, counts) = rows(Role::Documents, page).unwrap();
    assert_eq!(all, [row(["GX000-00-0000000", "http://x.gov/a.html", "The Title", "One two é three café"])]);
    assert_eq!(counts.not_utf8, 1);
    let deep =
        format!("<DOC><DOCNO>1</DOCNO><DOCHDR>u</DOCHDR>{}x{}</DOC>", "<div>".repeat(20_000), "</div>");
    assert_eq!(only(Role::Documents, deep)[3], "x");
}

/// `compress` 4.2 as its source has it; `clear` empties the table after that many codes.
pub fn compress(data: &[u8], widest: u32, clear: usize) -> Vec<u8> {
    let mut out = vec![0x1f, 0x9d, 0x80 | widest as u8];
    let (mut bits, mut held, mut width, mut codes) = (0u64, 0, 9, 0);
    let mut emit = |code: u32, free: u32, cleared: bool| {
        bits |= u64::from(code) << held;
        held += width;
        codes += 1;
        while held >= 8 {
            out.push(bits as u8);
            (bits, held) = (bits >> 8, held - 8);
        }
        if (free >= 1 << width && width < widest) || cleared {
            // What is left of the group of eight codes is filled up.
            let group = (codes % 8) * width;
            let full = if codes % 8 == 0 { 0 } else { 8 * width };
            let padding = full - group;
            held += padding;
            while held >= 8 {
                out.push(bits as u8);
                (bits, held) = (bits >> 8, held - 8);
            }
            (bits, held, codes) = (0, 0, 0);
            width = if cleared { 9 } else { width + 1 };
        }
        (bits, held)
    };
    let (mut table, mut free, mut count) = (HashMap::new(), 257, 0);
    let mut bytes = data.iter();
    if let Some(&first) = bytes.next() {
        let mut code = u32::from(first);
        for &byte in bytes {
            if let Some(&known) = table.get(&(code, byte)) {
                code = known;
                continue;
            }
            emit(code, free, false);
            count += 1;
            if free < 1 << widest {
                table.insert((code, byte), free);
                free += 1;
            }
            if count % clear == 0 {
                table.clear();
                emit(256, free, true);
                free = 257;
            }
            code = u32::from(byte);
        }
        let (rest, held) = emit(code, free, false);
        if held > 0 {
            out.push(rest as u8);
        }
    }
    out
}

/// What gzip makes of a compressed file; `None` if there is no gzip.
fn gunzip(path: &Path) -> Option<Vec<u8>> {
    let out = std::process::Command::new("gzip")
        .arg("-dc")
        .stdin(std::fs::File::open(path).unwrap())
        .output()
        .ok()?;
    out.status.success().then_some(out.stdout)
}

#[test]
fn every_packing() {
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..20_000)
        .map(|i| format!("D{i}\tu\tt{}\tbody of {} {}\n", i % 97, i % 13, i * 7919 % 1009))
        .collect();
    let plain = rows(Role::Documents, &text).unwrap();
    assert_eq!(plain.0.len(), 20_000);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
    let packed = [gzip.clone(), zstd.clone(), compress(text.as_bytes(), 16, usize::MAX)];
    for bytes in
        packed.into_iter().chain([compress(text.as_bytes(), 12, 9_001), compress(text.as_bytes(), 16, 5_000)])
    {
        let path = put(&folder, "packed.0z", &bytes);
        if bytes.starts_with(&[0x1f, 0x9d])
            && let Some(expected) = gunzip(&path)
        {
            assert!(expected == text.as_bytes(), "gzip reads what the test wrote");
        }
        assert!(rows_of(&[Source::documents(&path)]).unwrap() == plain, "{:x?}", &bytes[..3]);
    }
    for cut in [&gzip[..gzip.len() / 2], &zstd[..zstd.len() / 2]] {
        let text = message(rows(Role::Documents, cut));
        assert!(text.contains("compare its size and checksum"), "{text}");
    }
    let bad = message(rows(Role::Documents, [0x1f, 0x9d, 0x80 | 16, 0xff, 0xff, 0xff]));
    assert!(bad.contains("a code that is not in the table"), "{bad}");
}

#[test]
fn folders_are_read_by_name_and_what_is_no_document_is_told() {
    let folder = tempfile::tempdir().unwrap();
    put(&folder, "disk/b/FB1.z", compress(ARTICLES.as_bytes(), 16, usize::MAX));
    put(&folder, "disk/a/la01", ARTICLES.replace("FBIS3-1", "LA-1").replace("LA-2", "LA-3"));
    put(&folder, "disk/a/.hidden", "x");
    put(&folder, "disk/readme", "Provenance this disk\n");
    let (all, _) = rows_of(&[Source::documents(folder.path().join("disk"))]).unwrap();
    assert_eq!(
        all.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(),
        ["LA-1", "LA-3", "FBIS3-1", "LA-2"]
    );
    put(&folder, "empty/readme", "Provenance this disk\n");
    assert!(
        message(rows_of(&[Source::documents(folder.path().join("empty"))])).contains("no file of documents")
    );
}

#[test]
fn a_wrong_guess_is_told() {
    let as_format = |format, content: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = put(&folder, "file", content);
        message(rows_of(&[Source { format: Some(format), ..Source::documents(path) }]))
    };
    let text = as_format(Format::MsmarcoV1, "{\"docid\": \"msmarco_doc_00_0\"}\n");
    assert!(text.contains("msmarco-v1") && text.contains("looks like msmarco-v2"), "{text}");
    assert!(as_format(Format::Trec, "D1\tu\tt\tb\n").contains("looks like msmarco-v1"));
    assert!(as_format(Format::Beir, ARTICLES).contains("looks like trec"));
    assert!(as_format(Format::Orcas, "x").contains("does not hold documents"));
    let text = message(rows(Role::Documents, "{\"other\": 1}\n"));
    assert!(text.contains("its format cannot be told") && text.contains("columns"), "{text}");
    assert!(message(rows(Role::Documents, "one column\n")).contains("its format cannot be told"));
    assert!(message(rows(Role::Clicks, "1\tq\n")).contains("its format cannot be told"));
}

#[test]
fn a_lookup_leads_to_the_wanted_documents() {
    let folder = tempfile::tempdir().unwrap();
    let (mut text, mut lookup) = (String::new(), String::new());
    for i in 0..500 {
        lookup.push_str(&format!("D{i}\t0\t{}\n", text.len()));
        text.push_str(&format!("D{i}\tu\tt\tbody {i} {}\n", "x".repeat(i * 97 % 40_000)));
    }
    let source = Source {
        lookup: Some(put(&folder, "lookup.tsv", &lookup)),
        ..Source::documents(put(&folder, "docs.tsv", &text))
    };
    let read = |source: &Source| {
        let mut ids = Vec::new();
        let wanted = |id: &str| id.len() == 4 && id.ends_with('7');
        ctune_dist::corpus::read::documents::read_documents(
            std::slice::from_ref(source),
            &[ctune_dist::corpus::read::documents::Field::Body],
            &ReadOptions::default(),
            wanted,
            |document| {
                ids.push(document.id);
                Ok(())
            },
        )
        .map(|counts| (ids, counts.rows))
    };
    let (ids, looked_at) = read(&source).unwrap();
    assert_eq!((ids.len(), looked_at), (40, 40), "only the wanted rows are read");
    let (all, rows) = read(&Source { lookup: None, ..source.clone() }).unwrap();
    assert_eq!((all, rows), (ids, 500));
    put(&folder, "lookup.tsv", lookup.replace("D107\t0\t", "D107\t0\t1"));
    assert!(message(read(&source)).contains("says that D107 begins"));
    put(&folder, "lookup.tsv", "D1\t0\n");
    assert!(message(read(&source)).contains("line 1"));
    put(&folder, "lookup.tsv", &lookup);
    let packed = Source {
        path: vec![put(&folder, "docs.zst", zstd::encode_all(text.as_bytes(), 1).unwrap())],
        ..source
    };
    assert!(message(read(&packed)).contains("decompress it"));
}

/// A block ends at a mebibyte: lines around it, longer than it, and one of ten megabytes.
#[test]
fn long_lines_cross_blocks() {
    let mut text = String::new();
    for (i, length) in [10, (1 << 20) - 20, 3 << 20, 5, 10_000_000, 7].into_iter().enumerate() {
        text.push_str(&format!("D{i}\tu\tt\t{}\n", "y".repeat(length)));
    }
    for packed in [text.clone().into_bytes(), zstd::encode_all(text.as_bytes(), 1).unwrap()] {
        let (all, counts) = rows(Role::Documents, packed).unwrap();
        assert_eq!(counts.kept, 6);
        assert_eq!(all.iter().map(|row| row[3].len()).sum::<usize>() + 6 * 8, text.len());
    }
}

#[test]
fn orcas_as_a_pair_of_files_and_vaswani() {
    let Some(data) = shared("vaswani/doc-text.trec") else { return };
    assert_eq!(rows_of(&[Source::documents(data)]).unwrap().0.len(), 11_429);
    let Some(data) = shared("nfcorpus/docs_union_dev_test.tsv") else { return };
    assert_eq!(rows_of(&[Source::documents(data)]).unwrap().0.len(), 3_395);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    /// Any bytes in any role and format: no panic, and every row is either kept or counted as damaged.
    #[test]
    fn any_bytes_are_counted(
        start in prop_oneof![Just(""), Just("<DOC><DOCNO>1</DOCNO>"), Just("<DOC><DOCHDR>"), Just("{\"_id\": \"1\", "), Just("a\tb\tc\td\n"), Just("1 0 D1 1\n")],
        bytes in proptest::collection::vec(prop_oneof![
            Just(b"\t".to_vec()), Just(b"\n".to_vec()), Just(b"<DOC>".to_vec()), Just(b"</DOC>".to_vec()), Just(b"<DOCNO>".to_vec()),
            Just(b"</DOCNO>".to_vec()), Just(b"\"".to_vec()), Just(b"}".to_vec()), Just(b"&".to_vec()), proptest::collection::vec(any::<u8>(), 0..6)], 0..60),
    ) {
        let content = [start.as_bytes(), &bytes.concat()].concat();
        for role in [Role::Documents, Role::Clicks, Role::Queries, Role::Qrels] {
            if let Ok((all, counts)) = rows(role, &content) {
                prop_assert_eq!(counts.kept as usize, all.len());
                prop_assert_eq!(counts.rows, counts.kept + counts.damaged);
            }
        }
        let folder = tempfile::tempdir().unwrap();
        for magic in [&[0x1f, 0x8b, 8][..], &[0x1f, 0x9d, 0x90], &[0x28, 0xb5, 0x2f, 0xfd]] {
            let _ = rows_of(&[Source::documents(put(&folder, "packed", [magic, &content].concat()))]);
        }
    }
}
