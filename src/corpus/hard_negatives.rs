//! Hard negatives: the documents that a first stage ranks high for a query of the log and that the query did not
//! click. A run of a log's queries may have a thousand million rows (ORCAS' top 100 has 983 million), so it is
//! read once, in one stream and on all cores, into a folder beside the shards whose files are mapped:
//!
//! | file | element | content |
//! |---|---|---|
//! | `lists.bin` | u32 | 0, then for each query of the run: how many documents, and their indices, best first |
//! | `starts.bin` | u64 | for each query of the log where its list begins; 0, an empty list, where it has none |
//! | `about.json` | | what they were made from, what was left out, sizes and checksums |
//!
//! The folder is written under a temporary name and renamed. Its name holds the identity of shards, run and
//! ranks, so that runs of training share it, and a changed one makes another. A damaged one is made again.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ids::Ids;
use super::ordered;
use super::progress::Progress;
use super::read::blocks::{Block, Blocks, Cut};
use super::shard::binary::BinaryWriter;
use super::shard::mapped::Mapped;
use super::shard::{FileEntry, Shards, SourceFile};
use crate::files;
use crate::{Error, Result};

const ABOUT: &str = "about.json";
const LISTS: &str = "lists.bin";
const STARTS: &str = "starts.bin";

/// What lists are made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Recipe {
    /// Fingerprints of the shards and of the run.
    shards: String,
    run: String,
    /// First and last rank that is taken, from 1.
    depth: [u32; 2],
}

impl Recipe {
    /// The text whose checksum names the folder. It begins as the first version had it, so that lists made by
    /// that are found again.
    fn text(&self) -> String {
        let Self { shards, run, depth } = self;
        format!("Plan {{ shards: {shards:?}, run: {run:?}, depth: {depth:?} }}")
    }
}

/// What became of the rows of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardCounts {
    pub rows: u64,
    /// Rows of topics that are no query of the log.
    pub foreign: u64,
    /// Documents within the ranks that the shards do not hold.
    pub missing: u64,
    /// Documents within the ranks that the query clicked.
    pub clicked: u64,
    /// Documents that are kept, over all queries.
    pub kept: u64,
    /// Queries of the log with at least one.
    pub queries: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct About {
    #[serde(rename = "plan")]
    recipe: Recipe,
    counts: HardCounts,
    files: Vec<FileEntry>,
}

/// The hard negatives of a log's queries.
pub struct HardNegatives {
    lists: Mapped,
    starts: Mapped,
    about: About,
}

impl fmt::Debug for HardNegatives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.about.fmt(f)
    }
}

impl HardNegatives {
    /// The lists of `run` for the queries of `shards`, ranks `depth[0]` to `depth[1]` (from 1): those that were
    /// made before, or new ones.
    ///
    /// # Errors
    /// `Error::Data` where the run cannot be read or parsed, a topic stands in two places of it, it has no query
    /// of the log, or the shard directory cannot be written.
    pub fn open(shards: &Shards, run: &Path, depth: [u32; 2]) -> Result<Self> {
        let recipe = Recipe { shards: shards.fingerprint(), run: SourceFile::of(run)?.fingerprint, depth };
        let text = recipe.text();
        let dir = shards.dir().join(format!("negatives-{:08x}", crc32fast::hash(text.as_bytes())));
        if let Ok(found) = Self::read(&dir, &recipe, shards.queries()) {
            return Ok(found);
        }
        // Unlike a fixed name, a process's own lets several make the same lists at a time.
        let new = dir.with_extension(format!("part-{}", std::process::id()));
        let made = build(shards, run, &recipe, &new).and_then(|()| publish(&new, &dir));
        if made.is_err() {
            // Best effort: the error says more than what is left.
            let _ = std::fs::remove_dir_all(&new);
        }
        made?;
        Self::read(&dir, &recipe, shards.queries())
    }

    fn read(dir: &Path, recipe: &Recipe, queries: u32) -> Result<Self> {
        let path = dir.join(ABOUT);
        let wrong = |what: &str| Error::data(format!("{}: {what}", path.display()));
        let text = files::read(&path)?;
        let about: About = serde_json::from_slice(&text).map_err(|cause| wrong(&cause.to_string()))?;
        if about.recipe != *recipe {
            return Err(wrong("made from something else"));
        }
        let lists = Mapped::open(dir, LISTS, 4, &about.files)?;
        let starts = Mapped::open(dir, STARTS, 8, &about.files)?;
        for entry in &about.files {
            if files::crc32(&dir.join(&entry.name))? != entry.crc32 {
                return Err(wrong("its files are damaged"));
            }
        }
        if starts.count != queries as usize {
            return Err(wrong("made for another log"));
        }
        Ok(Self { lists, starts, about })
    }

    /// The documents of query `query`, best first; none of them was clicked by it.
    pub fn of(&self, query: u32) -> &[u32] {
        let all = self.lists.of::<u32>();
        let start = self.starts.of::<u64>().get(query as usize).map_or(0, |&start| start as usize);
        let n = all.get(start).map_or(0, |&n| n as usize);
        all.get(start + 1..start + 1 + n).unwrap_or_default()
    }

    pub fn counts(&self) -> HardCounts {
        self.about.counts
    }

    /// Changes when any list does.
    pub fn fingerprint(&self) -> String {
        self.about.files.iter().map(|file| format!("{:08x}", file.crc32)).collect()
    }
}

/// Gives the new folder its name. Where another process was faster its folder is as good.
fn publish(new: &Path, dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(|cause| Error::io("removed", dir, cause))?;
    }
    match std::fs::rename(new, dir) {
        Ok(()) => dir.parent().map_or(Ok(()), files::sync),
        Err(_) if dir.join(ABOUT).exists() => {
            std::fs::remove_dir_all(new).map_err(|cause| Error::io("removed", new, cause))
        }
        Err(cause) => Err(Error::io("written", dir, cause)),
    }
}

/// A row of the run, in the numbers of the shards.
#[derive(Clone, Copy)]
struct Row {
    query: u32,
    document: u32,
    score: f64,
}

/// No query, or no document, of the shards.
const NONE: u32 = u32::MAX;

/// A block of the run, parsed on any thread.
struct Parsed {
    rows: Vec<Row>,
    /// Line ends in it.
    lines: u64,
    /// The first line that is no row: its number from 0, and why.
    fault: Option<(u64, String)>,
}

fn build(shards: &Shards, run: &Path, recipe: &Recipe, new: &Path) -> Result<()> {
    std::fs::create_dir_all(new).map_err(|cause| Error::io("made", new, cause))?;
    let names = Names::of(shards)?;
    let mut progress =
        Progress::new("reading hard negatives", std::fs::metadata(run).map_or(0, |about| about.len()));
    let done = progress.done.clone();
    let mut builder = Builder::new(shards, run, recipe.depth, new)?;
    let mut line = 0;
    let mut blocks = Blocks::open(run, Cut::Line, 0, done)?;
    ordered::run(
        |pass| {
            while let Some(block) = blocks.next()? {
                pass(block)?;
            }
            Ok(())
        },
        |block: Block| Ok(names.parse(&block)),
        |parsed: Parsed| {
            if let Some((at, what)) = parsed.fault {
                return Err(Error::data(format!("{}, line {}: {what}", run.display(), line + at + 1)));
            }
            line += parsed.lines;
            progress.tick(parsed.rows.len() as u64);
            parsed.rows.into_iter().try_for_each(|row| builder.row(row))
        },
    )?;
    builder.end_topic()?;
    if builder.counts.rows == builder.counts.foreign {
        return Err(Error::data(format!(
            "{}: none of its {} rows belongs to a query of {}: make a run of the log's own queries with \
            ctune-dist retrieve --clicks LOG",
            run.display(),
            builder.counts.rows,
            shards.dir().display()
        )));
    }
    let (counts, files) = builder.finish(new)?;
    let about = About { recipe: recipe.clone(), counts, files };
    let text = serde_json::to_vec_pretty(&about)
        .map_err(|cause| Error::data(format!("{ABOUT} cannot be made: {cause}")))?;
    files::write(&new.join(ABOUT), &text)?;
    files::sync(new)
}

/// The ids of the shards, to look up.
struct Names {
    queries: Ids,
    documents: Ids,
}

impl Names {
    fn of(shards: &Shards) -> Result<Self> {
        let (mut queries, mut documents) = (Ids::default(), Ids::default());
        for query in 0..shards.queries() {
            queries.insert(shards.query_id(query), "queries")?;
        }
        for document in 0..shards.documents() {
            documents.insert(shards.document_id(document), "documents")?;
        }
        Ok(Self { queries, documents })
    }

    fn parse(&self, block: &Block) -> Parsed {
        let text = block.text();
        let mut parsed = Parsed { rows: Vec::with_capacity(text.len() / 40), lines: 0, fault: None };
        if block.too_long {
            parsed.fault = Some((0, "longer than any row of a run".into()));
        }
        let mut topic = ("", NONE);
        for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
            match columns(line) {
                Ok(None) => {}
                Ok(Some((id, document, score))) => {
                    if id != topic.0 {
                        topic = (id, self.queries.get(id).unwrap_or(NONE));
                    }
                    let known = topic.1 != NONE;
                    let document = if known { self.documents.get(document) } else { None };
                    parsed.rows.push(Row { query: topic.1, document: document.unwrap_or(NONE), score });
                }
                Err(fault) => {
                    parsed.fault = Some((number as u64, fault));
                    break;
                }
            }
        }
        parsed.lines = memchr::memchr_iter(b'\n', text).count() as u64;
        parsed
    }
}

/// Topic, document and score of a row of six columns (topic, Q0, document, rank, score, tag), or of MS MARCO's
/// three (topic, document, rank); nothing for an empty line or a comment.
fn columns(line: &[u8]) -> std::result::Result<Option<(&str, &str, f64)>, String> {
    let line = std::str::from_utf8(line).map_err(|_| "not UTF-8 text".to_owned())?;
    let (mut columns, mut found) = ([""; 6], 0);
    for (place, column) in columns.iter_mut().zip(line.split_ascii_whitespace()) {
        *place = column;
        found += 1;
    }
    if found == 0 || columns[0].starts_with('#') {
        return Ok(None);
    }
    let (document, score) = match found {
        6 => (columns[2], columns[4].parse::<f64>().ok()),
        3 => (columns[1], columns[2].parse::<u32>().ok().map(|rank| -f64::from(rank))),
        _ => ("", None),
    };
    match score {
        Some(score) if !score.is_nan() => Ok(Some((columns[0], document, score))),
        _ => Err(format!(
            "{line:?}: a run has six columns (topic, Q0, document, rank, score, tag), MS MARCO's format three \
             (topic, document, rank)"
        )),
    }
}

/// Rows in the order of the run to lists on the disk.
struct Builder<'a> {
    shards: &'a Shards,
    run: &'a Path,
    depth: [u32; 2],
    lists: BinaryWriter,
    starts: Vec<u64>,
    /// Whether a query's rows have been seen.
    seen: Vec<bool>,
    /// Query of the topic that is being read, and its (document, score) in the order of the file.
    query: u32,
    topic: Vec<(u32, f64)>,
    list: Vec<u32>,
    counts: HardCounts,
}

impl<'a> Builder<'a> {
    fn new(shards: &'a Shards, run: &'a Path, depth: [u32; 2], new: &Path) -> Result<Self> {
        let mut lists = BinaryWriter::create(new, LISTS, 4)?;
        lists.write(&[0u32])?;
        let queries = shards.queries() as usize;
        let (starts, seen) = (vec![0; queries], vec![false; queries]);
        let (topic, list, counts) = (Vec::new(), Vec::new(), HardCounts::default());
        Ok(Self { shards, run, depth, lists, starts, seen, query: NONE, topic, list, counts })
    }

    fn row(&mut self, row: Row) -> Result<()> {
        self.counts.rows += 1;
        if row.query != self.query {
            self.end_topic()?;
            self.query = row.query;
        }
        if row.query == NONE {
            self.counts.foreign += 1;
        } else {
            self.topic.push((row.document, row.score));
        }
        Ok(())
    }

    fn end_topic(&mut self) -> Result<()> {
        let query = self.query;
        if query == NONE {
            return Ok(());
        }
        if std::mem::replace(&mut self.seen[query as usize], true) {
            return Err(Error::data(format!(
                "{}: the rows of topic {} are not consecutive; sort the run by topic (sort -s -k1,1)",
                self.run.display(),
                self.shards.query_id(query)
            )));
        }
        // By score as every reader of runs does; of equals the order of the file stays.
        self.topic.sort_by(|a, b| b.1.total_cmp(&a.1));
        let [from, to] = self.depth.map(|rank| rank as usize);
        let to = to.min(self.topic.len());
        self.list.clear();
        for &(document, _) in self.topic.get(from - 1..to).unwrap_or_default() {
            if document == NONE {
                self.counts.missing += 1;
            } else if self.shards.clicked(query).binary_search(&document).is_ok() {
                self.counts.clicked += 1;
            } else {
                self.list.push(document);
            }
        }
        self.topic.clear();
        if !self.list.is_empty() {
            self.starts[query as usize] = self.lists.count;
            self.lists.write(&[self.list.len() as u32])?;
            self.lists.write(&self.list)?;
            self.counts.kept += self.list.len() as u64;
            self.counts.queries += 1;
        }
        Ok(())
    }

    fn finish(self, new: &Path) -> Result<(HardCounts, Vec<FileEntry>)> {
        let mut starts = BinaryWriter::create(new, STARTS, 8)?;
        starts.write(&self.starts)?;
        Ok((self.counts, vec![self.lists.finish()?, starts.finish()?]))
    }
}
