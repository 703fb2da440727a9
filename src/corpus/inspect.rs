//! What is in a shard directory, for a person: counts, lengths, sources, and whether it is whole.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::shard::{MANIFEST, Shards};
use crate::Result;

/// What `inspect` is told.
#[derive(Clone, Debug)]
pub struct InspectOptions {
    pub path: PathBuf,
}

/// Whether `path` is a shard directory.
pub fn is_shard_directory(path: &Path) -> bool {
    path.join(MANIFEST).is_file()
}

/// Prints the description of the shard directory, after every checksum has been verified.
///
/// # Errors
/// `Error::Data` where it is none or is damaged.
pub fn run(options: &InspectOptions) -> Result<()> {
    let shards = Shards::open(&options.path)?;
    shards.verify()?;
    print!("{}", describe(&shards));
    println!("checksums        all {} files verified", shards.manifest().files.len());
    Ok(())
}

/// The description as text, one fact a line.
pub fn describe(shards: &Shards) -> String {
    let about = shards.manifest();
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<16} {text}");
    };
    line("shards", format!("{} (version {})", shards.dir().display(), about.version));
    line("fingerprint", shards.fingerprint());
    line("documents", format!("{}, {} tokens", about.documents, about.document_tokens));
    line("queries", format!("{}, {} tokens", about.queries, about.query_tokens));
    line("clicks", about.clicks.to_string());
    line("vocabulary", format!("{} pieces, {:?}", about.vocab, about.special));
    line("document length", lengths((0..about.documents).map(|i| shards.document(i).len())));
    line("query length", lengths((0..about.queries).map(|i| shards.query(i).len())));
    line("clicks a query", lengths((0..about.queries).map(|i| shards.clicked(i).len())));
    let share = 100.0 * about.documents_cut as f64 / f64::from(about.documents.max(1));
    line("cut", format!("{} documents ({share:.1} %) to {} tokens", about.documents_cut, about.max_tokens));
    for (reason, count) in &about.dropped {
        line("dropped", format!("{count} {reason}"));
    }
    for (name, value) in &about.options {
        line("option", format!("{name} = {value}"));
    }
    for source in &about.sources {
        line("source", format!("{}, {} bytes, {}", source.path, source.bytes, source.fingerprint));
    }
    for file in &about.files {
        line("file", format!("{:<28} {:>12} bytes  {:08x}", file.name, file.bytes, file.crc32));
    }
    out
}

/// Least, percentiles and most.
fn lengths(lengths: impl Iterator<Item = usize>) -> String {
    let mut all: Vec<usize> = lengths.collect();
    all.sort_unstable();
    if all.is_empty() {
        return "none".into();
    }
    let at = |percent: usize| all[(all.len() - 1) * percent / 100];
    format!(
        "min {}, 10 % {}, median {}, 90 % {}, 99 % {}, max {}",
        at(0),
        at(10),
        at(50),
        at(90),
        at(99),
        at(100)
    )
}
