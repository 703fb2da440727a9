//! The shard format: what is written is read back, and every kind of damage has its error.

use std::path::{Path, PathBuf};

use ctune_dist::corpus::shard::write::{Provenance, ShardWriter};
use ctune_dist::corpus::{Manifest, Shards, Tokens};

use super::{message, small_tokenizer};

/// Three documents, two queries, four clicks (one twice).
fn write(target: &Path, texts_a_part: usize) -> Manifest {
    let tokenizer = small_tokenizer(200);
    let mut writer = ShardWriter::create(target, tokenizer.vocab()).unwrap();
    for (i, (id, tokens)) in [("D1", &[5, 6, 7][..]), ("D-é", &[]), ("D3", &[8, 9])].into_iter().enumerate()
    {
        assert_eq!(writer.document(id, tokens).unwrap(), i as u32);
        if (i + 1).is_multiple_of(texts_a_part) {
            writer.seal(false).unwrap();
        }
    }
    for (i, (id, tokens)) in [("q1", &[10, 11][..]), ("q2", &[12])].into_iter().enumerate() {
        assert_eq!(writer.query(id, tokens).unwrap(), i as u32);
        if (i + 1).is_multiple_of(texts_a_part) {
            writer.seal(true).unwrap();
        }
    }
    for (query, document) in [(0, 2), (1, 0), (0, 0), (0, 2)] {
        writer.click(query, document);
    }
    writer.finish(&tokenizer, Provenance { max_tokens: 64, ..Provenance::default() }).unwrap()
}

fn made() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("shards");
    write(&target, 9);
    (folder, target)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read() {
    // Every text in a part of its own, two in one, all in one.
    for texts_a_part in [1, 2, 9] {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("shards");
        let manifest = write(&target, texts_a_part);
        assert_eq!(names(folder.path()), ["shards"], "only the finished directory stays");
        let shards = Shards::open(&target).unwrap();
        assert_eq!(*shards.manifest(), manifest);
        assert_eq!((shards.documents(), shards.queries(), shards.clicks()), (3, 2, 4));
        let documents: Vec<_> =
            (0..3).map(|i| (shards.document_id(i), shards.document(i).to_vec())).collect();
        assert_eq!(documents, [("D1", vec![5, 6, 7]), ("D-é", vec![]), ("D3", vec![8, 9])]);
        let queries: Vec<_> = (0..2).map(|i| (shards.query_id(i), shards.query(i).to_vec())).collect();
        assert_eq!(queries, [("q1", vec![10, 11]), ("q2", vec![12])]);
        assert_eq!((0..4).map(|i| shards.click(i)).collect::<Vec<_>>(), [(0, 2), (1, 0), (0, 0), (0, 2)]);
        assert_eq!((shards.clicked(0), shards.clicked(1)), (&[0, 2][..], &[0][..]));
        shards.verify().unwrap();
        assert_eq!(shards.tokenizer().unwrap().vocab(), manifest.vocab);
    }
}

#[test]
fn tokens_are_cut_when_taken() {
    let (_folder, target) = made();
    let shards = Shards::open(&target).unwrap();
    let mut out = vec![1];
    shards.document(0).extend(&mut out, 2);
    assert_eq!(out, [1, 5, 6]);
    assert!(matches!(shards.document(0), Tokens::U16(_)));
    let wide = [1u32, 70000];
    assert_eq!(Tokens::U32(&wide).to_vec(), wide);
}

#[test]
fn a_large_vocabulary_takes_four_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut vocab = String::from("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n");
    vocab.extend((0..70_000).map(|i| format!("w{i}\n")));
    std::fs::write(folder.path().join("vocab.txt"), vocab).unwrap();
    let tokenizer = ctune_dist::text::Tokenizer::load(folder.path()).unwrap();
    let target = folder.path().join("shards");
    let mut writer = ShardWriter::create(&target, tokenizer.vocab()).unwrap();
    writer.document("d", &[70_004, 5]).unwrap();
    writer.query("q", &[6]).unwrap();
    writer.click(0, 0);
    writer.finish(&tokenizer, Provenance::default()).unwrap();
    let shards = Shards::open(&target).unwrap();
    assert_eq!(shards.document(0), Tokens::U32(&[70_004, 5]));
    shards.verify().unwrap();
}

#[test]
fn nothing_stays_of_a_directory_that_was_not_finished() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("shards");
    let mut writer = ShardWriter::create(&target, 200).unwrap();
    writer.document("d", &[5]).unwrap();
    assert_eq!(names(folder.path()), [".shards.partial"]);
    let second = message(ShardWriter::create(&target, 200).map(|_| ()));
    assert!(second.contains("another prepare"), "{second}");
    drop(writer);
    assert_eq!(names(folder.path()), Vec::<String>::new());
    // A later start takes over what a killed process leaves.
    std::fs::create_dir_all(folder.path().join(".shards.partial/shards")).unwrap();
    std::fs::write(folder.path().join(".shards.partial/shards/documents-00007.tok"), "old").unwrap();
    write(&target, 9);
    assert_eq!(names(folder.path()), ["shards"]);
    assert!(!target.join("documents-00007.tok").exists());
    let again = message(ShardWriter::create(&target, 200).map(|_| ()));
    assert!(again.contains("already exists"), "{again}");
}

#[test]
fn wrong_numbers_are_refused_when_written() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("shards");
    let tokenizer = small_tokenizer(200);
    let mut writer = ShardWriter::create(&target, tokenizer.vocab()).unwrap();
    let text = message(writer.document("D9", &[tokenizer.vocab() as u32]));
    assert!(text.contains("D9") && text.contains("vocabulary"), "{text}");
    writer.document("d", &[5]).unwrap();
    writer.query("q", &[5]).unwrap();
    writer.click(0, 1);
    assert!(message(writer.finish(&tokenizer, Provenance::default())).contains("document 1"));
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

/// Every file cut short, by one byte and to nothing, and every file missing.
#[test]
fn truncated_and_missing_files_are_named() {
    let (_folder, target) = made();
    for name in names(&target) {
        let path = target.join(&name);
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 3, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let text = message(Shards::open(&target).and_then(|shards| shards.verify()));
            assert!(text.contains(&name) || text.contains("manifest"), "{name} cut to {length}: {text}");
        }
        std::fs::remove_file(&path).unwrap();
        let text = message(Shards::open(&target).and_then(|shards| shards.verify()));
        assert!(text.contains(&name), "{name} missing: {text}");
        std::fs::write(&path, &whole).unwrap();
    }
    Shards::open(&target).unwrap().verify().unwrap();
}

/// A flipped bit anywhere is an error of `open` or of `verify`, never a panic and never missed.
#[test]
fn flipped_bits_are_found() {
    let (_folder, target) = made();
    for name in names(&target) {
        let path = target.join(&name);
        let whole = std::fs::read(&path).unwrap();
        let step = (whole.len() / 150).max(1);
        for at in (0..whole.len()).step_by(step) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bytes).unwrap();
            message(Shards::open(&target).and_then(|shards| shards.verify()));
        }
        std::fs::write(&path, &whole).unwrap();
    }
    Shards::open(&target).unwrap().verify().unwrap();
}

/// Changes bytes of a file and makes its checksum right again, so that only the deeper checks can find it.
fn forge(target: &Path, name: &str, at: usize, bytes: &[u8]) {
    let path = target.join(name);
    let mut content = std::fs::read(&path).unwrap();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    std::fs::write(&path, &content).unwrap();
    let mut manifest: Manifest =
        serde_json::from_slice(&std::fs::read(target.join("manifest.json")).unwrap()).unwrap();
    manifest.files.iter_mut().find(|f| f.name == name).unwrap().crc32 = crc32fast::hash(&content);
    write_manifest(target, &serde_json::to_string(&manifest).unwrap());
}

fn write_manifest(target: &Path, text: &str) {
    std::fs::write(target.join("manifest.json"), text).unwrap();
    std::fs::write(target.join("manifest.crc32"), format!("{:08x}\n", crc32fast::hash(text.as_bytes())))
        .unwrap();
}

#[test]
fn foreign_and_newer_files_are_refused() {
    let (_folder, target) = made();
    let text = std::fs::read_to_string(target.join("manifest.json")).unwrap();
    write_manifest(&target, &text.replace("\"version\": 1", "\"version\": 2"));
    let error = message(Shards::open(&target));
    assert!(error.contains("version 2") && error.contains("newer"), "{error}");
    write_manifest(&target, "{\"magic\": \"other\"}");
    assert!(message(Shards::open(&target)).contains("wrong magic"));
    write_manifest(&target, &text);
    for (at, bytes, wanted) in [(0, &b"FOREIGN!"[..], "wrong magic"), (8, &[9, 0, 0, 0], "version 9")] {
        let (_folder, target) = made();
        forge(&target, "clicks.bin", at, bytes);
        let error = message(Shards::open(&target));
        assert!(error.contains("clicks.bin") && error.contains(wanted), "{error}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(message(Shards::open(empty.path())).contains("not a shard directory"));
}

/// Files whose checksums agree but whose numbers lie.
#[test]
fn numbers_out_of_range_are_found_when_verified() {
    let header = ctune_dist::corpus::shard::HEADER;
    let cases: [(&str, usize, &[u8], &str); 8] = [
        ("clicks.bin", header, &[2, 0, 0, 0], "click 0"),
        ("clicks.bin", header + 4, &[3, 0, 0, 0], "click 0"),
        ("clicks_by_query.bin", header, &[2, 0, 0, 0], "query 0"),
        ("clicks_by_query.bin", header + 8, &[9, 0, 0, 0], "query 1"),
        ("documents.offsets", header + 8, &[9], "offset 2 is smaller"),
        ("documents.offsets", header + 24, &[4], "offsets go from 0 to 4"),
        ("documents.ids", header + 4, &[0xff], "UTF-8"),
        ("queries.offsets", 16, &[2], "do not make"),
    ];
    for (name, at, bytes, wanted) in cases {
        let (_folder, target) = made();
        forge(&target, name, at, bytes);
        // Unverified, such a directory is read without a panic.
        if let Ok(shards) = Shards::open(&target) {
            for i in 0..4 {
                let (query, document) = shards.click(i);
                let _ = (shards.query(query).len(), shards.document(document).len(), shards.clicked(query));
                let _ = (shards.query_id(query), shards.document_id(document));
            }
        }
        let error = message(Shards::open(&target).and_then(|shards| shards.verify()));
        assert!(error.contains(name) && error.contains(wanted), "{name} at {at}: {error}");
    }
    let (_folder, target) = made();
    forge(&target, "documents-00000.tok", header, &[0xff, 0xff]);
    let error = message(Shards::open(&target).unwrap().verify());
    assert!(error.contains("token 65535"), "{error}");
}

#[test]
fn another_tokenizer_is_refused() {
    let (_folder, target) = made();
    small_tokenizer(80).save(&target).unwrap();
    let error = message(Shards::open(&target).unwrap().tokenizer());
    assert!(error.contains("pieces"), "{error}");
}

#[test]
fn the_fingerprint_follows_the_content() {
    let (_a, first) = made();
    let (_b, second) = made();
    let print = |path: &Path| Shards::open(path).unwrap().fingerprint();
    assert_eq!(print(&first), print(&second));
    forge(&second, "documents-00000.tok", 64, &[6, 0]);
    assert_ne!(print(&first), print(&second));
}
