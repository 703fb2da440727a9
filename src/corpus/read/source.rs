//! `[[source]]`: where rows come from. A source is a file, several, or a folder; whatever their format and
//! packing, they become one sequence of blocks, each of which any thread can parse.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::blocks::{Block, Blocks, Cut};
use super::columns;
use super::format::{self, Format, HEAD, Parser};
use super::lookup::Picks;
use super::rows::{ReadCounts, Role, Row, Seen};
use super::sgml;
pub use crate::config::Source;
use crate::files::{self, Fate};
use crate::{Error, Result};

impl Source {
    /// Every file, folders taken apart.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        Ok(self.marked_files()?.into_iter().map(|(path, _)| path).collect())
    }

    /// As `files`, with whether each came from a folder.
    fn marked_files(&self) -> Result<Vec<(PathBuf, bool)>> {
        let mut files = Vec::new();
        for path in &self.path {
            if path.is_dir() {
                below(path, &mut files)?;
            } else {
                files.push((path.clone(), false));
            }
        }
        Ok(files)
    }
}

/// The files below a folder by name, hidden ones left out.
fn below(folder: &Path, files: &mut Vec<(PathBuf, bool)>) -> Result<()> {
    let failed = |cause| Error::io("read", folder, cause);
    let mut entries: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.retain(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            below(&entry, files)?;
        } else {
            files.push((entry, true));
        }
    }
    Ok(())
}

/// A place between two blocks of a sequence of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) file: usize,
    /// Bytes of its (decompressed) text before the place ...
    pub(crate) offset: u64,
    /// ... and line ends in them.
    pub(crate) line: u64,
}

/// All of the text of a file that cannot be opened again, for whoever reads it first.
type Once = Arc<Mutex<Option<Box<dyn Read + Send>>>>;

/// A file whose format is known.
#[derive(Clone)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    parser: Parser,
    lookup: Option<PathBuf>,
    /// Only these lines are read.
    picks: Option<Picks>,
    /// It is a pipe.
    once: Option<Once>,
}

impl File {
    fn blocks(&self, start: u64, done: &Arc<AtomicU64>) -> Result<Blocks> {
        let cut = if matches!(self.parser, Parser::Sgml { .. }) { Cut::Document } else { Cut::Line };
        match (&self.picks, &self.once) {
            (Some(picks), _) => Blocks::picked(&self.path, picks.clone(), start, done.clone()),
            (None, None) => Blocks::open(&self.path, cut, start, done.clone()),
            (None, Some(once)) => {
                let whole = once.lock().unwrap_or_else(PoisonError::into_inner).take();
                match whole {
                    Some(whole) => Ok(Blocks::once(&self.path, cut, whole)),
                    // Says why not.
                    None => Blocks::open(&self.path, cut, start, done.clone()),
                }
            }
        }
    }
}

/// Every file of one role, in the order of the sources.
#[derive(Clone)]
pub(crate) struct SourceFiles {
    pub(crate) role: Role,
    pub(crate) files: Vec<File>,
    /// Bytes on disk.
    pub(crate) bytes: u64,
    /// Files of a folder that are in no format of the role (`readme`s and DTDs of the TREC disks).
    pub(crate) passed_over: Vec<PathBuf>,
}

/// A block and the number of its file.
pub(crate) struct Piece {
    pub(crate) file: usize,
    block: Block,
}

impl SourceFiles {
    /// Looks at the first bytes of every file of the role.
    ///
    /// # Errors
    /// `Error::Data` and `Error::Config` as `format::resolve`, and where a folder holds no file of the role.
    pub(crate) fn open(sources: &[Source], role: Role) -> Result<Self> {
        let mut all = Self { role, files: Vec::new(), bytes: 0, passed_over: Vec::new() };
        for source in sources.iter().filter(|source| source.role == role) {
            let before = all.files.len();
            for (path, from_folder) in source.marked_files()? {
                let begun = files::begin(&path, HEAD)?;
                match format::resolve(&path, role, source.format, &source.columns, &begun.head) {
                    Ok((format, parser)) => {
                        all.bytes += std::fs::metadata(&path).map_or(0, |about| about.len());
                        let lookup = source.lookup.clone();
                        let once = begun.whole.map(|whole| Arc::new(Mutex::new(Some(whole))));
                        all.files.push(File { path, format, parser, lookup, picks: None, once });
                    }
                    Err(_) if from_folder => all.passed_over.push(path),
                    Err(error) => return Err(error),
                }
            }
            if all.files.len() == before {
                let path = source.path.first().map_or(String::new(), |path| path.display().to_string());
                return Err(Error::data(format!("{path}: no file of {role:?} below it").to_lowercase()));
            }
        }
        Ok(all)
    }

    /// The one file of queries, id and text, that `prepare` itself wrote.
    pub(crate) fn put_aside(path: &Path) -> Self {
        let tabs = columns::Tabs {
            at: [Some(0), Some(1), None, None],
            least: 2,
            most: None,
            header: true,
            due: format::due(Role::Queries).into(),
        };
        let file = File {
            path: path.to_owned(),
            format: Format::Tsv,
            parser: Parser::Tabs(tabs),
            lookup: None,
            picks: None,
            once: None,
        };
        let bytes = std::fs::metadata(path).map_or(0, |about| about.len());
        Self { role: Role::Queries, files: vec![file], bytes, passed_over: Vec::new() }
    }

    /// Reads only the documents that are wanted of the files that have a lookup; returns how many are passed
    /// over for it.
    ///
    /// # Errors
    /// `Error::Config` for a lookup of anything but `msmarco-docs.tsv`, `Error::Data` for a damaged one.
    pub(crate) fn pick(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<u64> {
        let mut unwanted = 0;
        for file in &mut self.files {
            let Some(lookup) = &file.lookup else { continue };
            if file.format != Format::MsmarcoV1 {
                let path = file.path.display();
                return Err(Error::config(format!(
                    "{path}: a lookup goes with msmarco-v1, not {}",
                    file.format
                )));
            }
            let picks = Picks::read(lookup, wanted)?;
            unwanted += picks.unwanted;
            file.picks = Some(picks);
        }
        Ok(unwanted)
    }

    /// Passes the blocks of all files on, from a position that `Tally::position` gave.
    ///
    /// # Errors
    /// `Error::Data` where a file cannot be read further, and what `pass` returns.
    pub(crate) fn read(
        &self,
        from: Position,
        done: &Arc<AtomicU64>,
        pass: &mut dyn FnMut(Piece) -> Result<()>,
    ) -> Result<()> {
        for (file, about) in self.files.iter().enumerate().skip(from.file) {
            let start = if file == from.file { from.offset } else { 0 };
            let mut blocks = about.blocks(start, done)?;
            while let Some(block) = blocks.next()? {
                pass(Piece { file, block })?;
            }
        }
        Ok(())
    }

    /// Calls `each` with the rows of a block and the line of each, counted from the block's first.
    pub(crate) fn parse(&self, piece: &Piece, each: &mut impl FnMut(Row<'_>, u64)) -> BlockTally {
        let (block, role) = (&piece.block, self.role);
        let (text, first) = (block.text(), block.start == 0);
        let mut seen = match &self.files[piece.file].parser {
            _ if block.too_long => Seen::too_long(block.end - block.start),
            Parser::Tabs(tabs) => columns::tabs(text, first, role, tabs, each),
            Parser::Spaces(tabs) => columns::spaces(text, first, role, tabs, each),
            Parser::Json(keys) => columns::json(text, role, keys, each),
            Parser::Sgml { web } => sgml::documents(text, *web, block.last, each),
        };
        seen.bytes.add(Fate::Mark, block.len() - text.len());
        debug_assert!(block.too_long || seen.bytes.total() == block.len() as u64, "{:?}", seen.bytes);
        BlockTally { file: piece.file, end: block.end, seen }
    }

    /// The error of a role without a usable row.
    pub(crate) fn nothing(&self, counts: &ReadCounts) -> Error {
        let due = format::due(self.role);
        let path = self.files.first().map_or(String::new(), |file| file.path.display().to_string());
        let format = self.files.first().map_or(String::new(), |file| format!(" (read as {})", file.format));
        match counts.shown.first() {
            None => Error::data(format!("{path}: is empty; expected rows of {due}{format}")),
            Some(first) => Error::data(format!(
                "{path}: none of its {} rows can be used; expected {due}{format}. First: {first}",
                counts.rows
            )),
        }
    }
}

/// What parsing a block gave besides its rows.
pub(crate) struct BlockTally {
    file: usize,
    /// First byte after the block.
    end: u64,
    seen: Seen,
}

/// Where the reading is and what it saw; fed in the order of the blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) position: Position,
    pub(crate) counts: ReadCounts,
}

impl Tally {
    /// # Errors
    /// With `strict`, the block's first fault.
    pub(crate) fn add(&mut self, files: &SourceFiles, block: BlockTally, strict: bool) -> Result<()> {
        if block.file != self.position.file {
            self.position = Position { file: block.file, offset: 0, line: 0 };
        }
        let lines = block.seen.lines;
        let file = &files.files[block.file];
        // Of picked lines only their number among the picked is known.
        let unit = if file.picks.is_some() { "looked-up row" } else { "line" };
        self.counts.add(&file.path, unit, self.position.line, block.seen, strict)?;
        self.position.offset = block.end;
        self.position.line += lines;
        Ok(())
    }
}
