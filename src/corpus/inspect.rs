//! What is in a shard directory, for a person: counts, lengths, sources, and whether it is whole.

use std::fmt::Write;
use std::path::Path;

use super::shard::{MANIFEST, Shards};
use crate::Result;

/// Whether `path` is a shard directory.
pub fn is_shard_directory(path: &Path) -> bool {
    path.join(MANIFEST).is_file()
}

/// Prints the description of the shard directory, after every checksum has been verified.
///
/// # Errors
/// `Error::Data` where it is none or is damaged.
pub fn run(path: &Path) -> Result<Shards> {
    let shards = Shards::open(path)?;
    shards.verify()?;
    tell_raw!("{}", describe(&shards));
    tell!("checksums        all {} files verified", shards.manifest().files.len());
    for histogram in histograms(&shards) {
        tell_raw!("\n{}", bars(&histogram));
    }
    Ok(shards)
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

/// How many texts have which length.
pub struct Histogram {
    pub name: &'static str,
    /// What is counted.
    pub unit: &'static str,
    pub bins: Vec<Bin>,
    /// Texts in all.
    pub total: u64,
}

/// Texts of at least `from` and less than the next bin's `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bin {
    pub from: usize,
    pub count: u64,
}

/// Bins of a histogram.
const BINS: usize = 20;

/// The lengths of documents and queries, and the clicks of queries.
pub fn histograms(shards: &Shards) -> Vec<Histogram> {
    let about = shards.manifest();
    let documents = (0..about.documents).map(|i| shards.document(i).len());
    let queries = (0..about.queries).map(|i| shards.query(i).len());
    let clicks = (0..about.queries).map(|i| shards.clicked(i).len());
    vec![
        histogram("document length", "tokens", documents),
        histogram("query length", "tokens", queries),
        histogram("clicks a query", "clicks", clicks),
    ]
}

/// Bins of equal width up to the 99th percentile; the last holds all that is longer.
fn histogram(name: &'static str, unit: &'static str, lengths: impl Iterator<Item = usize>) -> Histogram {
    let mut counts: Vec<u64> = Vec::new();
    let mut total = 0;
    for length in lengths {
        if counts.len() <= length {
            counts.resize(length + 1, 0);
        }
        counts[length] += 1;
        total += 1;
    }
    let mut seen = 0;
    let most = counts.iter().position(|&count| {
        seen += count;
        seen * 100 >= total * 99
    });
    let width = (most.unwrap_or(0) + 1).div_ceil(BINS).max(1);
    let mut bins: Vec<Bin> = (0..BINS).map(|bin| Bin { from: bin * width, count: 0 }).collect();
    for (length, count) in counts.iter().enumerate() {
        bins[(length / width).min(BINS - 1)].count += count;
    }
    while bins.last().is_some_and(|bin| bin.count == 0) {
        bins.pop();
    }
    Histogram { name, unit, bins, total }
}

/// A histogram for the terminal.
fn bars(histogram: &Histogram) -> String {
    const WIDTH: u64 = 50;
    let most = histogram.bins.iter().map(|bin| bin.count).max().unwrap_or(0).max(1);
    let mut out = format!("{} ({})\n", histogram.name, histogram.unit);
    for (i, bin) in histogram.bins.iter().enumerate() {
        let more = if i + 1 == BINS { "+" } else { " " };
        let bar = "#".repeat((bin.count * WIDTH / most) as usize);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{:>7}{more} {:>11} {bar}", bin.from, bin.count);
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
