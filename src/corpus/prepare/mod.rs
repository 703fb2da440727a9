//! `prepare`: queries + clicks + documents -> vocabulary -> shards.
//!
//! 1. The log is read for its ids and pairs; the text of each query is put aside on the disk.
//! 2. Without a given tokenizer, queries and documents are read for their words.
//! 3. Documents are tokenised and written; which of them exist is known after that.
//! 4. The queries that kept a click are tokenised and written.
//!
//! So memory holds ids and pairs (about 1 GB for all of ORCAS), never text. In each stage one thread reads and
//! all cores parse and tokenise. A process that was killed goes on behind the last part that it finished, and
//! ends with the same bytes.

mod documents;
mod filter;
mod leak;
mod log;
mod options;
mod preparation;
mod queries;
mod read_log;
mod stages;
mod texts;
mod vocabulary;

use std::time::Instant;

pub use self::options::{Filter, PrepareOptions};
use self::options::{as_text, inputs, sources};
use self::preparation::Preparation;
use super::read::rows::ReadCounts;
use super::shard::{MANIFEST, Manifest, check_free, fingerprint, read_manifest, tidy};
use crate::files::Target;
use crate::{Error, Result, files};

/// Makes the shard directory and prints a summary. One that was made from the same files with the
/// same options is left alone.
///
/// # Errors
/// `Error::Config` for options that cannot be, `Error::Data` for files that cannot be used, in one line
/// that says what to do.
pub fn run(options: &PrepareOptions) -> Result<()> {
    let start = Instant::now();
    let out = match files::target(&options.out)? {
        Target::File(place) | Target::Stream(place) => place, // the latter is in the way, and will be named
    };
    let options = &PrepareOptions { out, ..options.clone() };
    inputs(options)?.iter().try_for_each(|path| files::refuse_pipe(path))?;
    if let Some(manifest) = up_to_date(options)? {
        tell!(
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
    summarise(options, &manifest, &preparation, start.elapsed().as_secs_f64());
    Ok(())
}

fn up_to_date(options: &PrepareOptions) -> Result<Option<Manifest>> {
    if !options.out.join(MANIFEST).exists() {
        check_free(&options.out)?;
        return Ok(None);
    }
    tidy(&options.out);
    let manifest = read_manifest(&options.out)?;
    if manifest.options == as_text(options) && manifest.sources == sources(options)? {
        return Ok(Some(manifest));
    }
    Err(Error::data(format!(
        "{}: holds shards that were made from other files or with other options; remove it or choose \
        another --out",
        options.out.display()
    )))
}

fn summarise(options: &PrepareOptions, manifest: &Manifest, done: &Preparation<'_>, seconds: f64) {
    for fault in done.read.iter().flat_map(|(_, counts)| &counts.shown) {
        eprintln!("warning: {fault}");
    }
    if let Some(first) = done.passed_over.first() {
        let count = done.passed_over.len();
        eprintln!("warning: {count} files in no known format were skipped, the first is {}", first.display());
    }
    let tokens = manifest.document_tokens + manifest.query_tokens;
    let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    let read: u64 = manifest.sources.iter().map(|source| source.bytes).sum();
    let cut = 100.0 * manifest.documents_cut as f64 / f64::from(manifest.documents.max(1));
    tell!("{}: fingerprint {}", options.out.display(), fingerprint(manifest));
    for (kind, ReadCounts { rows, kept, bytes, .. }) in &done.read {
        tell!("  read {rows} {kind} rows, {kept} of them usable");
        if let Some(text) = bytes.notable() {
            tell!("    {text}");
        }
    }
    let (clicks, found) = done.joined;
    tell!(
        "  joined {found} of {clicks} clicks ({:.1} %) with a document of the collection",
        100.0 * found as f64 / clicks.max(1) as f64
    );
    tell!(
        "  kept {} clicks, {} queries, {} documents",
        manifest.clicks,
        manifest.queries,
        manifest.documents
    );
    for (reason, count) in &manifest.dropped {
        tell!("  dropped {count} {reason}");
    }
    tell!("  vocabulary of {} pieces, {tokens} tokens", manifest.vocab);
    tell!("  {} documents ({cut:.1} %) cut to {} tokens", manifest.documents_cut, manifest.max_tokens);
    tell!(
        "  {:.1} MB from {:.1} MB in {seconds:.1} s ({:.2} M tokens/s)",
        bytes as f64 / 1e6,
        read as f64 / 1e6,
        tokens as f64 / seconds / 1e6
    );
}
