//! A shard directory with one damaged file: opening, reading unverified and verifying end in an error or well.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use ctune_dist::corpus::shard_write::{About, ShardWriter};
use ctune_dist::corpus::{Shards, Tokenizer};
use libfuzzer_sys::fuzz_target;

/// A small directory, and its files by name.
fn made() -> &'static (tempfile::TempDir, Vec<(PathBuf, Vec<u8>)>) {
    static MADE: OnceLock<(tempfile::TempDir, Vec<(PathBuf, Vec<u8>)>)> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("shards");
        let tokenizer = Tokenizer::train(["some words and some more".to_owned()].into_iter(), 60).unwrap();
        let mut writer = ShardWriter::create(&target, tokenizer.vocab()).unwrap();
        writer.document("D1", &[5, 6, 7]).unwrap();
        writer.document("D2", &[8]).unwrap();
        writer.query("q1", &[9, 10]).unwrap();
        writer.click(0, 1);
        writer.finish(&tokenizer, About::default()).unwrap();
        let files = std::fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().path());
        let files = files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        (folder, files)
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((first, content)) = data.split_first() else { return };
    let (folder, files) = made();
    let (path, whole) = &files[usize::from(*first) % files.len()];
    // The bytes go over the true ones, so that headers and lengths often stay right.
    let mut bytes = whole.clone();
    for (place, byte) in bytes.iter_mut().zip(content) {
        *place ^= byte;
    }
    std::fs::write(path, &bytes).unwrap();
    if let Ok(shards) = Shards::open(&folder.path().join("shards")) {
        for click in 0..shards.clicks().min(100) {
            let (query, document) = shards.click(click);
            let _ = (shards.query(query).len(), shards.document(document).len(), shards.clicked(query).len());
            let _ = (shards.query_id(query).len(), shards.document_id(document).len());
        }
        let _ = shards.verify();
    }
    std::fs::write(path, whole).unwrap();
});
