//! `sample debian`: a corpus that every Debian machine already has. The package index holds some 63,000
//! short documents by people (descriptions), a line about each by the same people (its synopsis, here
//! the query that finds it), and labels that other people gave (debtags, here the topics of a test
//! collection). So the whole pipeline runs on real text minutes after installation, without a licence.
//!
//! The synopsis is not put into the document's text, so a query is no copy of a part of its document.

mod apt;
mod index;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::index::Package;
use crate::corpus::shard::SourceFile;
use crate::files;
use crate::{Error, Result};

/// Facets that say how a package is built, not what it is about.
const LEFT_OUT: [&str; 10] = [
    "culture",
    "implemented-in",
    "role",
    "made-of",
    "uitoolkit",
    "iso15924",
    "interface",
    "scope",
    "suite",
    "devel",
];
/// Fewer relevant packages measure nothing, more are found by chance.
const RELEVANT: std::ops::RangeInclusive<usize> = 5..=300;
/// The file that says that all others are complete.
const DONE: &str = "source.json";

/// What `sample debian` is told.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// Directory to write to.
    pub out: PathBuf,
    /// Directory with apt's lists (`*_Packages`, `*_Translation-en`) to read instead of fetching them.
    pub lists: Option<PathBuf>,
}

/// `source.json`: where the corpus comes from and how large it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SampleSource {
    pub documents: usize,
    pub queries: usize,
    pub clicks: usize,
    pub topics: usize,
    pub judgements: usize,
    pub candidates: usize,
    /// Packages that are left out because they have no long description.
    pub without_description: usize,
    /// Mean words of a document's body.
    pub body_words: f64,
    /// `Date` of each Release file.
    pub releases: BTreeMap<String, String>,
    /// The index files that were read.
    pub lists: Vec<SourceFile>,
    pub columns: BTreeMap<String, String>,
}

/// Writes `clicks.tsv`, `documents.tsv`, `topics.tsv`, `qrels.txt`, `candidates.txt` and `source.json`. A
/// directory that has `source.json` is complete and left alone.
///
/// # Errors
/// `Error::Data` where there is no apt, no network, no description or no debtag, or the disk refuses.
pub fn run(options: &SampleOptions) -> Result<()> {
    let out = &options.out;
    if out.join(DONE).exists() {
        tell!("{}: complete ({DONE} is there); remove the directory to make it again", out.display());
        return Ok(());
    }
    fs::create_dir_all(out).map_err(|cause| Error::io("made", out, cause))?;
    files::sweep(out);
    let fetched = out.join("apt");
    let lists = match &options.lists {
        Some(lists) => lists.clone(),
        None => apt::fetch(&fetched)?,
    };
    let index = index::read(&lists)?;
    let source = write(out, &index)?;
    if options.lists.is_none() {
        // The lists are apt's and can be had again; what was read of them is written.
        let _ = fs::remove_dir_all(&fetched);
    }
    tell!(
        "{}: {} documents ({:.1} words each), {} queries, {} clicks, {} topics with {} judgements, {} candidates",
        out.display(),
        source.documents,
        source.body_words,
        source.queries,
        source.clicks,
        source.topics,
        source.judgements,
        source.candidates
    );
    Ok(())
}

fn write(out: &Path, index: &index::Index) -> Result<SampleSource> {
    let (described, bare): (Vec<&Package>, Vec<&Package>) =
        index.packages.values().partition(|package| !package.body.is_empty());
    if described.is_empty() {
        return Err(apt::alternatives(
            "the package index has no long descriptions (did apt fetch no Translation-en?)",
        ));
    }
    let topics = topics(&described);
    if topics.is_empty() {
        return Err(apt::alternatives(
            "the package index has no debtags, so there is no test collection (Debian's own index has them)",
        ));
    }
    let tagged: Vec<&&Package> = described.iter().filter(|package| !package.tags.is_empty()).collect();
    let (clicks, queries) = clicks(&described);
    let documents =
        rows(described.iter().map(|p| [&p.name, &p.homepage, &p.name, &p.body].map(String::as_str)));
    let qrels: Vec<String> = topics
        .iter()
        .flat_map(|(tag, names)| names.iter().map(move |name| format!("{tag} 0 {name} 1\n")))
        .collect();
    let words: usize = described.iter().map(|package| package.body.split(' ').count()).sum();
    let source = SampleSource {
        documents: described.len(),
        queries,
        clicks: described.len(),
        topics: topics.len(),
        judgements: qrels.len(),
        candidates: tagged.len(),
        without_description: bare.len(),
        body_words: words as f64 / described.len() as f64,
        releases: index.releases.clone(),
        lists: index.files.clone(),
        columns: columns(),
    };
    let source_text = serde_json::to_string_pretty(&source)
        .map_err(|cause| Error::data(format!("{DONE} cannot be made: {cause}")))?;
    let topic_rows = rows(topics.keys().map(|tag| [*tag, &topic_text(tag)].map(ToOwned::to_owned)));
    let candidates: String = tagged.iter().map(|package| format!("{}\n", package.name)).collect();
    let put = |name: &str, text: &str| files::write(&out.join(name), text.as_bytes());
    // `source.json` is last: it says that the others are whole.
    put("clicks.tsv", &clicks)?;
    put("documents.tsv", &documents)?;
    put("topics.tsv", &topic_rows)?;
    put("qrels.txt", &qrels.concat())?;
    put("candidates.txt", &candidates)?;
    put(DONE, &(source_text + "\n"))?;
    Ok(source)
}

/// What the columns of each file are.
fn columns() -> BTreeMap<String, String> {
    [
        ("clicks.tsv", "query id, query (synopsis), document id, url; the form of ORCAS"),
        (
            "documents.tsv",
            "document id (package name), url (homepage), title (package name), body (long description \
          without the synopsis); the form of MS MARCO documents version 1",
        ),
        ("topics.tsv", "topic id (debtag), text"),
        ("qrels.txt", "topic id, 0, document id, 1 (the package has the tag)"),
        (
            "candidates.txt",
            "document ids of packages with any debtag: whoever tagged them could have given the tag",
        ),
    ]
    .map(|(name, text)| (name.to_owned(), text.to_owned()))
    .into()
}

/// The log: each synopsis finds its package. Packages that share a synopsis share the query, so that
/// none of them is drawn as a negative of the other. Also the number of queries.
fn clicks(packages: &[&Package]) -> (String, usize) {
    let mut ids: BTreeMap<&str, usize> = BTreeMap::new();
    let mut text = Vec::with_capacity(packages.len());
    for package in packages {
        let next = ids.len() + 1;
        let id = ids.entry(&package.synopsis).or_insert(next);
        text.push([id.to_string(), package.synopsis.clone(), package.name.clone(), package.homepage.clone()]);
    }
    (rows(text), ids.len())
}

/// Tags that make a topic, with their packages.
fn topics<'a>(packages: &[&'a Package]) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut topics: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        for tag in &package.tags {
            topics.entry(tag).or_default().insert(&package.name);
        }
    }
    // `TODO` is the taggers' note that a label is missing: it says nothing of the package.
    topics.retain(|tag, names| {
        let (facet, name) = tag.split_once("::").unwrap_or((tag, ""));
        !name.is_empty() && name != "TODO" && !LEFT_OUT.contains(&facet) && RELEVANT.contains(&names.len())
    });
    topics
}

/// `works-with-format::pdf` -> `works with format pdf`.
fn topic_text(tag: &str) -> String {
    let words: Vec<&str> = tag.split([':', '-', '_']).filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

fn rows<const N: usize>(rows: impl IntoIterator<Item = [impl AsRef<str>; N]>) -> String {
    let mut text = String::new();
    for row in rows {
        for (i, column) in row.iter().enumerate() {
            if i > 0 {
                text.push('\t');
            }
            text.push_str(column.as_ref());
        }
        text.push('\n');
    }
    text
}
