//! `prepare`: queries + clicks + documents -> vocabulary -> shards, in one stream each.
//!
//! 1. The log is read once for its ids and pairs; no text is kept.
//! 2. Without a given tokenizer, queries and documents are read for their words.
//! 3. Documents are tokenised and written; which of them exist is known after that.
//! 4. The log is read again for the text of the queries that kept a click.
//!
//! So memory holds ids and pairs (about 1.5 GB for all of ORCAS), never text. A thread reads while all
//! threads tokenise.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use super::documents::Field;
use super::manifest::{MANIFEST, Manifest, Source, fingerprint, read_manifest};
use super::preparation::Preparation;
use super::shard_write::check_free;
use crate::{Error, Result};

/// What `prepare` is told.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// ORCAS TSV: qid, query, did, url; plain or gzipped.
    pub clicks: PathBuf,
    /// MS MARCO version 1 TSV: docid, url, title, body; plain or gzipped.
    pub documents: PathBuf,
    /// Shard directory to make.
    pub out: PathBuf,
    /// Given tokenizer; without one, a vocabulary is trained.
    pub tokenizer: Option<PathBuf>,
    /// Pieces of a trained vocabulary.
    pub vocab: usize,
    /// Documents are cut to this many tokens.
    pub max_tokens: usize,
    /// Parts of a document, in this order.
    pub fields: Vec<Field>,
    /// Also keep documents that nobody clicked (they serve as negatives and for MLM).
    pub all_documents: bool,
    /// Topics (TSV) whose queries must not be in the log.
    pub exclude_topics: Vec<PathBuf>,
    /// Qrels whose relevant documents must not be in the shards.
    pub exclude_qrels: Vec<PathBuf>,
    /// End at the first damaged line.
    pub strict: bool,
}

/// Makes the shard directory and prints a summary. One that was made from the same files with the
/// same options is left alone.
///
/// # Errors
/// `Error::Config` for options that cannot be, `Error::Data` for files that cannot be used, in one line
/// that says what to do.
pub fn run(options: &PrepareOptions) -> Result<()> {
    let start = Instant::now();
    if let Some(manifest) = up_to_date(options)? {
        println!(
            "{}: up to date (same files, same options): {} clicks, {} queries, {} documents",
            options.out.display(),
            manifest.clicks,
            manifest.queries,
            manifest.documents
        );
        return Ok(());
    }
    let mut preparation = Preparation::new(options)?;
    let manifest = preparation.make()?;
    summarise(options, &manifest, &preparation.shown, start.elapsed().as_secs_f64());
    Ok(())
}

fn up_to_date(options: &PrepareOptions) -> Result<Option<Manifest>> {
    if !options.out.join(MANIFEST).exists() {
        check_free(&options.out)?;
        return Ok(None);
    }
    let manifest = read_manifest(&options.out)?;
    if manifest.options == as_text(options) && manifest.sources == sources(options)? {
        return Ok(Some(manifest));
    }
    Err(Error::data(format!(
        "{}: holds shards that were made from other files or with other options; remove it or name another --out",
        options.out.display()
    )))
}

/// What the manifest says of the options.
pub(super) fn as_text(options: &PrepareOptions) -> BTreeMap<String, String> {
    let fields: Vec<String> = options.fields.iter().map(ToString::to_string).collect();
    let mut text = BTreeMap::from([
        ("all_documents".to_owned(), options.all_documents.to_string()),
        ("fields".to_owned(), fields.join(",")),
        ("max_tokens".to_owned(), options.max_tokens.to_string()),
        ("strict".to_owned(), options.strict.to_string()),
    ]);
    if options.tokenizer.is_none() {
        text.insert("vocab".into(), options.vocab.to_string());
    }
    text
}

/// Every file that the shards come from.
pub(super) fn sources(options: &PrepareOptions) -> Result<Vec<Source>> {
    let mut paths = vec![options.clicks.as_path(), options.documents.as_path()];
    let tokenizer = options.tokenizer.as_deref().map(super::tokenise::find).transpose()?;
    paths.extend(tokenizer.as_deref());
    paths.extend(options.exclude_topics.iter().chain(&options.exclude_qrels).map(PathBuf::as_path));
    paths.into_iter().map(Source::of).collect()
}

fn summarise(options: &PrepareOptions, manifest: &Manifest, shown: &[String], seconds: f64) {
    for fault in shown {
        eprintln!("warning: {fault}");
    }
    let tokens = manifest.document_tokens + manifest.query_tokens;
    let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    let cut = 100.0 * manifest.documents_cut as f64 / f64::from(manifest.documents.max(1));
    println!("{}: fingerprint {}", options.out.display(), fingerprint(manifest));
    println!("  {} clicks, {} queries, {} documents", manifest.clicks, manifest.queries, manifest.documents);
    for (reason, count) in &manifest.dropped {
        println!("  dropped {count} {reason}");
    }
    println!("  vocabulary of {} pieces, {tokens} tokens", manifest.vocab);
    println!("  {} documents ({cut:.1} %) cut to {} tokens", manifest.documents_cut, manifest.max_tokens);
    println!(
        "  {:.1} MB in {seconds:.1} s ({:.2} M tokens/s)",
        bytes as f64 / 1e6,
        tokens as f64 / seconds / 1e6
    );
}
