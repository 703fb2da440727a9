//! `sample synthetic`: a query log and documents of any size, for tests of scale. It is NOT real text and no model
//! should be judged by it: words are syllables drawn by Zipf's law, lengths are log-normal as those of web
//! pages are, popular documents get more clicks, and half of a query's words are from the title of the
//! first document it clicks. The files have ORCAS' and MS MARCO's form; the same seed gives the same bytes.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::corpus::ordered;
use crate::files;
use crate::random::{Purpose, philox};
use crate::{Error, Result};

/// Distinct words: what half a million web pages share, without the tail of names and numbers.
const WORDS: usize = 200_000;
/// Spread of the logarithm of a document's length; MS MARCO's is near it.
const SIGMA: f64 = 0.9;
/// Words in a document at most.
const LONGEST: f64 = 20_000.0;
/// Documents (or queries) that one thread makes at once.
const CHUNK: u32 = 512;
/// The file that says that all others are complete.
const DONE: &str = "source.json";

/// What `sample synthetic` is told.
#[derive(Clone, Debug, Serialize)]
pub struct SyntheticOptions {
    #[serde(skip)]
    pub out: PathBuf,
    /// Rows of the click log.
    pub pairs: u32,
    /// Distinct queries; every query has at least one row.
    pub queries: u32,
    pub documents: u32,
    /// Mean words of a document.
    pub words: u32,
    pub seed: u32,
}

/// Writes `clicks.tsv`, `documents.tsv` and `source.json`. A directory that has `source.json` is complete and
/// left alone.
///
/// # Errors
/// `Error::Config` for sizes that cannot be, `Error::Data` where the disk refuses.
pub fn run(options: &SyntheticOptions) -> Result<()> {
    let SyntheticOptions { out, pairs, queries, documents, words, seed } = options;
    if *pairs < *queries || *queries == 0 || *documents == 0 || *words == 0 {
        return Err(Error::config(
            "synthetic: --documents, --words and --queries must be at least 1, and --pairs at least --queries",
        ));
    }
    if out.join(DONE).exists() {
        tell!("{}: complete ({DONE} is there); remove the directory to make it again", out.display());
        return Ok(());
    }
    fs::create_dir_all(out).map_err(|cause| Error::io("made", out, cause))?;
    files::sweep(out);
    let text = Text { zipf: Zipf::new(WORDS), seed: *seed, words: f64::from(*words) };
    let bytes = write(&out.join("documents.tsv"), *documents, |document, out| text.document(document, out))?;
    let extra = extra_clicks(options);
    let clicks = |query: u32, out: &mut String| {
        text.clicks(query, 1 + extra[query as usize], *documents, out);
    };
    let more = write(&out.join("clicks.tsv"), *queries, clicks)?;
    let about = serde_json::json!({
        "note": "synthetic: random syllables, no language; for tests of scale only",
        "made with": options,
        "distinct words": WORDS,
        "documents.tsv": "docid, url, title, body; the form of MS MARCO documents version 1",
        "clicks.tsv": "query id, query, document id, url; the form of ORCAS",
    });
    files::write(&out.join(DONE), format!("{about:#}\n").as_bytes())?;
    tell!(
        "{}: {documents} documents ({:.1} MB), {queries} queries and {pairs} clicks ({:.1} MB), all synthetic",
        out.display(),
        bytes as f64 / 1e6,
        more as f64 / 1e6
    );
    Ok(())
}

/// Clicks of each query beyond its first.
fn extra_clicks(options: &SyntheticOptions) -> Vec<u32> {
    let mut extra = vec![0; options.queries as usize];
    for i in 0..options.pairs - options.queries {
        extra[below(philox(Purpose::SyntheticExtra.key(options.seed), [i, 0, 0, 0])[0], options.queries)
            as usize] += 1;
    }
    extra
}

/// Writes the lines of items `0..count`, made on all cores; returns the bytes.
fn write(path: &Path, count: u32, make: impl Fn(u32, &mut String) + Sync) -> Result<u64> {
    let mut bytes = 0;
    files::write_by(path, |file| {
        ordered::run(
            |pass| (0..count).step_by(CHUNK as usize).try_for_each(pass),
            |start| {
                let mut text = String::new();
                (start..start.saturating_add(CHUNK).min(count)).for_each(|item| make(item, &mut text));
                Ok(text)
            },
            |text| {
                bytes += text.len() as u64;
                file.write_all(text.as_bytes()).map_err(|cause| Error::io("written", path, cause))
            },
        )
    })?;
    Ok(bytes)
}

/// Random numbers of one item.
struct Numbers {
    key: [u32; 2],
    item: u32,
    next: u32,
    ready: Vec<u32>,
}

impl Numbers {
    fn new(seed: u32, purpose: Purpose, item: u32) -> Self {
        Self { key: purpose.key(seed), item, next: 0, ready: Vec::new() }
    }

    fn number(&mut self) -> u32 {
        if self.ready.is_empty() {
            self.ready.extend(philox(self.key, [self.item, self.next, 0, 0]));
            self.next += 1;
        }
        // Just filled: four numbers.
        self.ready.pop().unwrap_or_default()
    }

    /// In (0, 1).
    fn unit(&mut self) -> f64 {
        (f64::from(self.number()) + 0.5) / 4_294_967_296.0
    }

    /// Log-normal with this mean.
    fn length(&mut self, mean: f64, sigma: f64) -> f64 {
        // Box and Muller (1958).
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        (mean.ln() - sigma * sigma / 2.0 + sigma * normal).exp()
    }
}

fn below(number: u32, count: u32) -> u32 {
    ((u64::from(number) * u64::from(count)) >> 32) as u32
}

struct Text {
    zipf: Zipf,
    seed: u32,
    words: f64,
}

impl Text {
    fn document(&self, document: u32, out: &mut String) {
        out.push_str(&format!("D{document}\thttps://synthetic.invalid/{document}\t"));
        self.title(document).iter().enumerate().for_each(|(i, &word)| push_word(word, i == 0, i > 0, out));
        out.push('\t');
        let mut numbers = Numbers::new(self.seed, Purpose::SyntheticBody, document);
        let length = numbers.length(self.words, SIGMA).clamp(1.0, LONGEST) as u32;
        let mut first = true;
        for i in 0..length {
            push_word(self.zipf.draw(&mut numbers), first, i > 0, out);
            // A sentence has 16 words and one comma.
            first = match numbers.number() % 16 {
                0 => {
                    out.push('.');
                    true
                }
                1 => {
                    out.push(',');
                    false
                }
                _ => false,
            };
        }
        out.push('\n');
    }

    fn title(&self, document: u32) -> Vec<u32> {
        let mut numbers = Numbers::new(self.seed, Purpose::SyntheticTitle, document);
        (0..3 + numbers.number() % 8).map(|_| self.zipf.draw(&mut numbers)).collect()
    }

    /// The rows of one query.
    fn clicks(&self, query: u32, count: u32, documents: u32, out: &mut String) {
        let mut numbers = Numbers::new(self.seed, Purpose::SyntheticQuery, query);
        // The square of a uniform number: popular documents come first.
        let mut document = || (numbers.unit().powi(2) * f64::from(documents)) as u32;
        let clicked: Vec<u32> = (0..count).map(|_| document()).collect();
        let title = self.title(clicked[0]);
        let mut words = String::new();
        for i in 0..numbers.length(3.5, 0.5).clamp(1.0, 12.0) as u32 {
            let own = numbers.number().is_multiple_of(2);
            let place = below(numbers.number(), title.len() as u32) as usize;
            push_word(
                if own { self.zipf.draw(&mut numbers) } else { title[place] },
                false,
                i > 0,
                &mut words,
            );
        }
        for document in clicked {
            out.push_str(&format!("{query}\t{words}\tD{document}\thttps://synthetic.invalid/{document}\n"));
        }
    }
}

/// Spells the word of a rank: two letters for each digit in base 85, so that frequent words are short.
fn push_word(rank: u32, capital: bool, space: bool, out: &mut String) {
    const CONSONANTS: &[u8; 17] = b"tnsrhdlmcfgpwbvkj";
    const VOWELS: &[u8; 5] = b"eaoiu";
    if space {
        out.push(' ');
    }
    let (mut rest, mut first) = (rank, capital);
    loop {
        let digit = rest % 85;
        let consonant = CONSONANTS[(digit / 5) as usize];
        out.push(if std::mem::take(&mut first) { consonant.to_ascii_uppercase() } else { consonant } as char);
        out.push(VOWELS[(digit % 5) as usize] as char);
        rest /= 85;
        if rest == 0 {
            return;
        }
        rest -= 1;
    }
}

/// Ranks with probability proportional to 1 / (rank + 1), each drawn in constant time (Walker's alias
/// method as Vose 1991 builds it).
struct Zipf {
    /// (Share of the place that is its own, in 2^32; whose the rest is)
    places: Vec<(u32, u32)>,
}

impl Zipf {
    fn new(count: usize) -> Self {
        let total: f64 = (1..=count).map(|rank| 1.0 / rank as f64).sum();
        let mut shares: Vec<f64> = (1..=count).map(|rank| count as f64 / (rank as f64 * total)).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..count).partition(|&rank| shares[rank] < 1.0);
        let mut places: Vec<(u32, u32)> = (0..count as u32).map(|rank| (u32::MAX, rank)).collect();
        while let (Some(&less), Some(&more)) = (small.last(), large.last()) {
            small.pop();
            places[less] = ((shares[less] * 4_294_967_295.0) as u32, more as u32);
            shares[more] -= 1.0 - shares[less];
            if shares[more] < 1.0 {
                large.pop();
                small.push(more);
            }
        }
        Self { places }
    }

    fn draw(&self, numbers: &mut Numbers) -> u32 {
        let place = below(numbers.number(), self.places.len() as u32);
        let (own, other) = self.places[place as usize];
        if numbers.number() <= own { place } else { other }
    }
}
