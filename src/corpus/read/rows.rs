//! What the parsers of all formats have in common: rows of named columns, and the count of what was wrong with
//! them. Public query logs hold bytes that are no UTF-8, Windows line ends, and rows that lost a column; each
//! is counted and the first ten are shown, none stops a preparation of hours unless `--strict` asks for it.

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use crate::config::Role;
use crate::files::{Fate, Ledger};
use crate::ir::qrels;
use crate::{Error, Result};

/// Bytes of a record at most. A longer one is none of any of our formats, and must not fill the memory.
pub(crate) const LONGEST: usize = 64 << 20;
/// Faults that are kept word for word.
const SHOWN: usize = 10;
/// The most columns that a role has.
pub(crate) const MOST_COLUMNS: usize = 4;

/// A column that is read only where it is named: logs have other fourth columns, as ORCAS its url.
pub(crate) const COUNT: &str = "count";

/// How often a click happened, from its column.
pub(crate) fn times(count: &str) -> Option<u32> {
    count.parse().ok().filter(|&times| times > 0)
}

/// One row: the columns of its role, in the role's order; what a format lacks is empty.
pub(crate) type Row<'a> = [Cow<'a, str>; MOST_COLUMNS];

impl Role {
    /// Names of the columns, as `columns` of a `[[source]]` has them.
    pub(crate) fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Documents => &["id", "url", "title", "body"],
            Self::Clicks => &["query_id", "query", "document_id", COUNT],
            Self::Queries => &["id", "text"],
            Self::Qrels => &["query_id", "document_id", "label"],
        }
    }

    /// Columns that hold ids, which may be neither empty nor hold a space.
    fn ids(self) -> &'static [usize] {
        match self {
            Self::Documents | Self::Queries => &[0],
            Self::Clicks => &[0, 2],
            Self::Qrels => &[0, 1],
        }
    }

    /// Why a row of this role cannot be used.
    pub(crate) fn fault(self, row: &Row<'_>) -> Option<String> {
        for &at in self.ids() {
            let id = &row[at];
            if id.is_empty() || id.contains(char::is_whitespace) {
                return Some(match self {
                    Self::Documents => "the document id is empty or holds a space".into(),
                    Self::Queries => "the query id is empty or holds a space".into(),
                    _ => "the query id or the document id is empty or holds a space".into(),
                });
            }
        }
        match self {
            Self::Clicks | Self::Queries if row[1].trim().is_empty() => Some("the query is empty".into()),
            Self::Clicks if !row[3].is_empty() && times(&row[3]).is_none() => {
                Some(format!("the count {:?} is not a whole number above 0", row[3]))
            }
            Self::Qrels => qrels::label(&row[2]).err(),
            _ => None,
        }
    }
}

/// What a reader saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCounts {
    /// Lines (or documents) with something in them, a header not counted.
    pub rows: u64,
    /// Rows passed on.
    pub kept: u64,
    /// Rows left out because they cannot be understood.
    pub damaged: u64,
    /// Rows with bytes that are not UTF-8, each replaced by U+FFFD or read as Windows-1252 where the format
    /// says so; the rows are kept.
    pub not_utf8: u64,
    /// Documents without an end, read up to where the next one begins; they are kept.
    #[serde(default)]
    pub unclosed: u64,
    /// Where every byte of the (decompressed) files went; of a file with a lookup, of the lines that were looked up.
    #[serde(default)]
    pub bytes: Ledger,
    /// The first ten faults: file, line and reason.
    pub shown: Vec<String>,
}

impl ReadCounts {
    /// Says what was left out, and the first places.
    pub fn warn(&self) {
        if self.damaged > 0 {
            tracing::warn!("{} of {} rows are damaged and left out; the first:", self.damaged, self.rows);
        }
        for fault in &self.shown {
            tracing::warn!("{fault}");
        }
        if self.bytes.of(Fate::Between) > 0
            && let Some(text) = self.bytes.notable()
        {
            tracing::warn!("{text}");
        }
    }
}

/// What a parser saw in one block; lines count from the block's first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) rows: u64,
    pub(crate) kept: u64,
    pub(crate) damaged: u64,
    pub(crate) not_utf8: u64,
    pub(crate) unclosed: u64,
    pub(crate) bytes: Ledger,
    /// Line ends in the block.
    pub(crate) lines: u64,
    /// (line from 0, what is wrong), the first ten.
    faults: Vec<(u64, String)>,
}

impl Seen {
    /// A row that is left out.
    pub(crate) fn damaged(&mut self, line: u64, reason: impl Into<String>) {
        self.damaged += 1;
        self.fault(line, reason.into());
    }

    /// A row that is kept though it holds bytes that are not in the encoding that they should be in.
    pub(crate) fn not_utf8(&mut self, line: u64, what: impl Into<String>) {
        self.not_utf8 += 1;
        self.fault(line, what.into());
    }

    /// A document that is kept though its end is missing.
    pub(crate) fn unclosed(&mut self, line: u64) {
        self.unclosed += 1;
        self.fault(line, "<DOC> without </DOC>; it was read up to the next <DOC>".into());
    }

    /// A row of so many bytes, or a line that is none.
    pub(crate) fn row(&mut self, fate: Fate, bytes: usize) {
        self.rows += u64::from(!fate.is_outside());
        self.bytes.add(fate, bytes);
    }

    /// Bytes between two documents.
    pub(crate) fn outside(&mut self, gap: &[u8]) {
        self.bytes.add(Fate::of_gap(gap), gap.len());
    }

    fn fault(&mut self, line: u64, reason: String) {
        if self.faults.len() < SHOWN {
            self.faults.push((line, reason));
        }
    }

    /// A block that is one record without an end, of so many bytes.
    pub(crate) fn too_long(bytes: u64) -> Self {
        let mut seen = Self { lines: 1, ..Self::default() };
        seen.row(Fate::TooLong, bytes as usize);
        seen.damaged(0, format!("longer than {} MiB", LONGEST >> 20));
        seen
    }
}

impl ReadCounts {
    /// Adds a block of `path` that begins after `line` line ends (or whatever `unit` is).
    ///
    /// # Errors
    /// With `strict`, its first fault.
    pub(crate) fn add(&mut self, path: &Path, unit: &str, line: u64, seen: Seen, strict: bool) -> Result<()> {
        self.rows += seen.rows;
        self.kept += seen.kept;
        self.damaged += seen.damaged;
        self.not_utf8 += seen.not_utf8;
        self.unclosed += seen.unclosed;
        self.bytes.merge(&seen.bytes);
        for (at, reason) in seen.faults {
            let text = format!("{}, {unit} {}: {reason}", path.display(), line + at + 1);
            if strict {
                return Err(Error::data(format!("{text} (--strict stops at the first fault)")));
            }
            if self.shown.len() < SHOWN {
                self.shown.push(text);
            }
        }
        Ok(())
    }

    /// Adds what was counted elsewhere.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.kept += other.kept;
        self.damaged += other.damaged;
        self.not_utf8 += other.not_utf8;
        self.unclosed += other.unclosed;
        self.bytes.merge(&other.bytes);
        let room = SHOWN.saturating_sub(self.shown.len());
        self.shown.extend(other.shown.iter().take(room).cloned());
    }
}
