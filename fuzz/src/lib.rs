//! Every reader of bytes from outside, as a function from any bytes to whether they were accepted. The fuzz
//! targets and the property tests (`tests/readers.rs`) call the same functions, so the tests keep what
//! fuzzing finds. A reader may return any error; it must not panic, hang, or take memory without bound.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use ctune_dist::config::Config;
use ctune_dist::corpus::read::documents::{ReadOptions, read_rows};
use ctune_dist::corpus::shard::write::{Provenance, ShardWriter};
use ctune_dist::corpus::shard::{MANIFEST, MANIFEST_CRC};
use ctune_dist::corpus::{Format, Manifest, Role, Shards, Source};
use ctune_dist::files::{Fate, Ledger, Packing};
use ctune_dist::ir::folds::{read_folds, write_folds};
use ctune_dist::ir::qrels::Qrels;
use ctune_dist::ir::run::Run;
use ctune_dist::ir::topics::{TopicField, read_topics, read_topics_counted, read_topics_fields};
use ctune_dist::model::checkpoint::Checkpoint;
use ctune_dist::report::Results;
use ctune_dist::run::checkpoints::find;
use ctune_dist::text::Tokenizer;

/// A reader and its name, which is also its fuzz target's.
pub type Reader = (&'static str, fn(&[u8]) -> bool);

pub const READERS: [Reader; 23] = [
    ("topics", topics),
    ("qrels", qrels),
    ("runs", runs),
    ("folds", folds),
    ("clicks", clicks),
    ("trec", |data| rows(Role::Documents, Some(Format::Trec), &[], data)),
    ("trecweb", |data| rows(Role::Documents, Some(Format::Trecweb), &[], data)),
    ("msmarco_v1", |data| rows(Role::Documents, Some(Format::MsmarcoV1), &[], data)),
    ("msmarco_v2", |data| rows(Role::Documents, Some(Format::MsmarcoV2), &[], data)),
    ("beir", beir),
    ("jsonl", |data| rows(Role::Documents, Some(Format::Jsonl), &[("id", "key"), ("body", "text")], data)),
    ("tsv", |data| rows(Role::Documents, Some(Format::Tsv), &[("id", "key"), ("body", "text")], data)),
    ("detect", detect),
    ("lookup", lookup),
    ("gzip", |data| packed(&[0x1f, 0x8b], data)),
    ("zstd", |data| packed(&[0x28, 0xb5, 0x2f, 0xfd], data)),
    ("compress", |data| packed(&[0x1f, 0x9d], data)),
    ("shards", shards),
    ("checkpoint", checkpoint),
    ("state", state),
    ("config", config),
    ("tokenizer", tokenizer),
    ("results", |data| with_file("results.json", data, |path| Results::read(path).is_ok())),
];

/// Calls the reader of that name.
///
/// # Panics
/// For a name that is not in the table, and if a reader breaks its promise.
pub fn read(name: &str, data: &[u8]) -> bool {
    let reader = READERS.iter().find(|(known, _)| *known == name).expect("a name of the table");
    reader.1(data)
}

/// Inputs of readers that read several files: each but the last is preceded by its length in two bytes.
pub fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let mut all = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        if i + 1 < parts.len() {
            all.extend((part.len() as u16).to_le_bytes());
        }
        all.extend_from_slice(part);
    }
    all
}

/// Takes `joined` apart, whatever the lengths say.
fn parts<const N: usize>(mut data: &[u8]) -> [&[u8]; N] {
    std::array::from_fn(|i| match data.split_first_chunk::<2>() {
        Some((length, rest)) if i + 1 < N => {
            let (part, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
            data = rest;
            part
        }
        _ => std::mem::take(&mut data),
    })
}

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

/// One file in a folder that exists while `read` runs.
fn with_file<T>(name: &str, content: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    let folder = folder(&[(name, content)]);
    read(&folder.path().join(name))
}

/// Where nothing may be left out, every byte is of what was used or outside it.
fn all_used(bytes: &Ledger, data: &[u8]) {
    assert_eq!(bytes.dropped(), 0, "{bytes:?}");
    // A packed file has another length.
    if Packing::of(data) == Packing::Plain {
        assert_eq!(bytes.total(), data.len() as u64, "{bytes:?}");
    }
}

fn topics(data: &[u8]) -> bool {
    with_file("topics", data, |path| {
        let all =
            read_topics_fields(path, &[TopicField::Title, TopicField::Description, TopicField::Narrative]);
        let titles = read_topics(path);
        if let Ok((_, bytes)) = read_topics_counted(path, &[TopicField::Title]) {
            all_used(&bytes, data);
        }
        for topic in titles.iter().chain(&all).flatten() {
            assert!(!topic.id.is_empty() && !topic.text.is_empty() && !topic.text.contains('\n'));
        }
        titles.is_ok()
    })
}

fn qrels(data: &[u8]) -> bool {
    with_file("qrels", data, |path| {
        let rows =
            read_rows(&[Source::of(Role::Qrels, path)], Role::Qrels, &ReadOptions::default(), |_| Ok(()));
        let read = Qrels::read_counted(path);
        if let Ok((qrels, bytes)) = &read {
            all_used(bytes, data);
            assert!(qrels.judgements() >= qrels.topics().len());
        }
        read.is_ok() && rows.is_ok()
    })
}

fn runs(data: &[u8]) -> bool {
    with_file("run", data, |path| {
        let Ok((run, bytes)) = Run::read_counted(path) else { return false };
        all_used(&bytes, data);
        for topic in run.topics() {
            let hits = run.get(topic).unwrap();
            assert!(hits.iter().all(|hit| !hit.score.is_nan()));
            assert!(hits.is_sorted_by(|a, b| (a.score as f32) >= (b.score as f32)));
        }
        true
    })
}

/// What is accepted is written and read back as it was.
fn folds(data: &[u8]) -> bool {
    with_file("folds.json", data, |path| {
        let Ok(folds) = read_folds(path) else { return false };
        let again = path.with_file_name("again.json");
        write_folds(&again, &folds).unwrap();
        assert_eq!(read_folds(&again).unwrap(), folds);
        true
    })
}

/// Every row is either kept or counted as damaged, and so is every byte, or it is outside rows.
fn rows(role: Role, format: Option<Format>, columns: &[(&str, &str)], data: &[u8]) -> bool {
    with_file("rows", data, |path| {
        let columns = columns.iter().map(|(column, name)| ((*column).to_owned(), (*name).to_owned()));
        rows_of(Source { format, columns: columns.collect(), ..Source::of(role, path) }, data)
    })
}

fn rows_of(source: Source, data: &[u8]) -> bool {
    let (role, mut kept) = (source.role, 0);
    let counts = read_rows(&[source], role, &ReadOptions::default(), |row| {
        assert!(!row[0].is_empty() && !row[0].contains(char::is_whitespace));
        kept += 1;
        Ok(())
    });
    let Ok(counts) = counts else { return false };
    assert_eq!((counts.kept, counts.rows), (kept, counts.kept + counts.damaged));
    let bytes = &counts.bytes;
    if Packing::of(data) == Packing::Plain {
        assert_eq!(bytes.total(), data.len() as u64, "{bytes:?}");
    }
    assert_eq!((bytes.of(Fate::Used) > 0, bytes.dropped() > 0), (kept > 0, counts.damaged > 0), "{bytes:?}");
    counts.damaged == 0
}

fn clicks(data: &[u8]) -> bool {
    rows(Role::Clicks, Some(Format::Orcas), &[], data)
}

/// Documents, queries or qrels of BEIR.
fn beir(data: &[u8]) -> bool {
    let role = if data.starts_with(b"query-id") {
        Role::Qrels
    } else if data.windows(7).any(|bytes| bytes == b"\"title\"") {
        Role::Documents
    } else {
        Role::Queries
    };
    rows(role, Some(Format::Beir), &[], data)
}

/// Any role, with the format detected from the bytes; the first byte chooses the role.
fn detect(data: &[u8]) -> bool {
    let Some((first, data)) = data.split_first() else { return false };
    let role = [Role::Documents, Role::Clicks, Role::Queries, Role::Qrels][usize::from(*first) % 4];
    rows(role, None, &[], data)
}

/// `msmarco-docs-lookup.tsv` and the documents that it leads to.
fn lookup(data: &[u8]) -> bool {
    let [lookup, documents] = parts::<2>(data);
    let folder = folder(&[("lookup", lookup), ("documents", documents)]);
    let path = folder.path().join("documents");
    let source = Source {
        format: Some(Format::MsmarcoV1),
        lookup: Some(folder.path().join("lookup")),
        ..Source::documents(path)
    };
    let fields = [ctune_dist::corpus::read::documents::Field::Body];
    let read = ctune_dist::corpus::read::documents::read_documents(
        &[source],
        &fields,
        &ReadOptions::default(),
        |id| !id.starts_with('x'),
        |_| Ok(()),
    );
    read.is_ok()
}

/// Lines in a packing; its magic number overwrites the first bytes.
fn packed(magic: &[u8], data: &[u8]) -> bool {
    let mut data = data.to_vec();
    data.resize(data.len().max(magic.len()), 0);
    data[..magic.len()].copy_from_slice(magic);
    rows(Role::Documents, Some(Format::Tsv), &[("id", "1"), ("body", "2")], &data)
}

/// A small shard directory and the content of its files by name.
struct Made {
    folder: tempfile::TempDir,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

fn made() -> &'static Mutex<Made> {
    static MADE: OnceLock<Mutex<Made>> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("shards");
        let tokenizer = Tokenizer::train(["some words and some more".to_owned()].into_iter(), 60).unwrap();
        let mut writer = ShardWriter::create(&target, tokenizer.vocab()).unwrap();
        writer.document("D1", &[5, 6, 7]).unwrap();
        writer.seal(false).unwrap();
        writer.document("D2", &[8]).unwrap();
        writer.query("q1", &[9, 10]).unwrap();
        writer.click(0, 1);
        writer.finish(&tokenizer, Provenance::default()).unwrap();
        let files = std::fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().path());
        let files = files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        Mutex::new(Made { folder, files })
    })
}

/// The input of `shards` that replaces the file of this name by itself.
pub fn shard_file(name: &str) -> Vec<u8> {
    let made = made().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (at, (_, bytes)) = made.files.iter().enumerate().find(|(_, (path, _))| path.ends_with(name)).unwrap();
    [&[at as u8, 1], bytes.as_slice()].concat()
}

/// A shard directory with one damaged file, which the first byte chooses. An odd second byte makes all
/// checksums agree with it, so that the checks after them are reached. Binary files are XORed with the rest,
/// so that headers and lengths often stay right; text is replaced by it.
fn shards(data: &[u8]) -> bool {
    let [first, second, content @ ..] = data else { return false };
    // A panic of an earlier input must not hide in a poisoned lock.
    let made = made().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (path, whole) = made.files.iter().nth(usize::from(*first) % made.files.len()).unwrap();
    let text = path.extension().is_some_and(|end| end == "json" || end == "txt" || end == "crc32");
    let mut bytes = whole.clone();
    if text && !content.is_empty() {
        bytes = content.to_vec();
    } else {
        bytes.iter_mut().zip(content).for_each(|(byte, change)| *byte ^= change);
    }
    std::fs::write(path, &bytes).unwrap();
    let target = made.folder.path().join("shards");
    if second % 2 == 1 {
        sign(&target, path, &bytes);
    }
    let accepted = Shards::open(&target).is_ok_and(|shards| {
        for click in 0..shards.clicks().min(100) {
            let (query, document) = shards.click(click);
            let _ = (shards.query(query).to_vec(), shards.document(document).to_vec());
            let _ = (shards.clicked(query), shards.query_id(query), shards.document_id(document));
        }
        shards.verify().is_ok()
    });
    for (path, whole) in &made.files {
        if std::fs::read(path).ok().as_ref() != Some(whole) {
            std::fs::write(path, whole).unwrap();
        }
    }
    accepted
}

/// Makes the checksums agree with a changed file.
fn sign(target: &Path, path: &Path, bytes: &[u8]) {
    let mut text = std::fs::read(target.join(MANIFEST)).unwrap();
    if let Ok(mut manifest) = serde_json::from_slice::<Manifest>(&text) {
        let name = path.file_name().unwrap().to_string_lossy();
        if let Some(entry) = manifest.files.iter_mut().find(|entry| entry.name == name) {
            (entry.bytes, entry.crc32) = (bytes.len() as u64, crc32fast::hash(bytes));
            text = serde_json::to_vec(&manifest).unwrap();
            std::fs::write(target.join(MANIFEST), &text).unwrap();
        }
    }
    std::fs::write(target.join(MANIFEST_CRC), format!("{:08x}\n", crc32fast::hash(&text))).unwrap();
}

/// A model folder: `config.json` and `model.safetensors`.
fn checkpoint(data: &[u8]) -> bool {
    let [config, tensors] = parts::<2>(data);
    let folder = folder(&[("config.json", config), ("model.safetensors", tensors)]);
    Checkpoint::read(folder.path()).is_ok()
}

/// A training checkpoint: state, optimiser, the list of files, `DONE`.
fn state(data: &[u8]) -> bool {
    let [state, optimiser, list, done] = parts::<4>(data);
    let files = [
        ("state/state.json", state),
        ("state/optimiser-000-of-001.safetensors", optimiser),
        ("state/files-000.json", list),
        ("DONE", done),
    ];
    let folder = folder(&files);
    let dir = folder.path();
    let whole = find::verify(dir).is_ok();
    let Ok(state) = find::read_state(dir) else { return false };
    let _ = find::held(dir, &state);
    find::read_optimiser(dir, &state, &[0..2, 4..6]).is_ok() && whole
}

/// What is accepted is written and read back.
fn config(data: &[u8]) -> bool {
    with_file("plan.toml", data, |path| {
        let Ok(config) = Config::load(Some(path), "coarse", &[]) else { return false };
        let text = config.to_toml().unwrap();
        std::fs::write(path, &text).unwrap();
        let again = Config::load(Some(path), "coarse", &[]).unwrap();
        assert_eq!(again.to_toml().unwrap(), text);
        true
    })
}

/// `tokenizer.json` where the bytes begin as JSON, else `vocab.txt`.
fn tokenizer(data: &[u8]) -> bool {
    let name = if data.starts_with(b"{") { "tokenizer.json" } else { "vocab.txt" };
    with_file(name, data, |path| {
        let Ok(tokenizer) = Tokenizer::load(path) else { return false };
        let pieces = tokenizer.encode_batch(&["Some words, \u{e9}t\u{e9} [MASK]"], usize::MAX).unwrap();
        assert!(pieces[0].iter().all(|&piece| (piece as usize) < tokenizer.vocab()));
        assert_eq!(tokenizer.continues().len(), tokenizer.vocab());
        true
    })
}
