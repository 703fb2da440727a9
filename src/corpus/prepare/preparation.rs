//! What the stages of `prepare` share: the options, the log in memory, and the count of what was left out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::leak::Guard;
use super::log::Log;
use super::options::PrepareOptions;
use crate::corpus::read::documents::Field;
use crate::corpus::read::repair::repaired;
use crate::corpus::read::rows::{ReadCounts, Role, Row};
use crate::corpus::read::source::SourceFiles;
use crate::{Error, Result};

/// The work of one `prepare`.
pub(crate) struct Preparation<'a> {
    pub(crate) options: &'a PrepareOptions,
    pub(crate) guard: Guard,
    pub(crate) log: Log,
    pub(crate) dropped: BTreeMap<String, u64>,
    /// What was read of each kind.
    pub(crate) read: Vec<(&'static str, ReadCounts)>,
    /// Files of folders that are in no known format.
    pub(crate) passed_over: Vec<PathBuf>,
    pub(crate) documents_cut: u64,
    /// Usable rows of the log, and those whose document is in the collection.
    pub(crate) joined: (u64, u64),
}

impl<'a> Preparation<'a> {
    /// # Errors
    /// `Error::Config` for options that cannot be, `Error::Data` for excluded files that cannot be read.
    pub(crate) fn new(options: &'a PrepareOptions) -> Result<Self> {
        if options.fields.is_empty() {
            return Err(Error::config("fields: name at least one of url, title, body"));
        }
        if options.max_tokens == 0 {
            return Err(Error::config("max_tokens = 0: documents need at least one token"));
        }
        options.filter.check()?;
        let has = |role: Role| options.sources.iter().any(|source| source.role == role);
        if !has(Role::Documents) {
            return Err(Error::config(
                "no documents: name them with --documents or a [[source]] of that role",
            ));
        }
        let pair = has(Role::Queries) && has(Role::Qrels);
        if !(pair || has(Role::Clicks)) {
            return Err(Error::config(
                "no clicks: name them with --clicks, or with [[source]] tables of role \"clicks\", or \"queries\" and \
                 \"qrels\"",
            ));
        }
        let guard = Guard::read(&options.exclude_topics, &options.exclude_qrels)?;
        let (log, dropped, read, passed_over) = Default::default();
        Ok(Self { options, guard, log, dropped, read, passed_over, documents_cut: 0, joined: (0, 0) })
    }

    pub(crate) fn drop_rows(&mut self, reason: &str, count: u64) {
        if count > 0 {
            *self.dropped.entry(reason.into()).or_default() += count;
        }
    }

    pub(crate) fn note(&mut self, counts: &ReadCounts, kind: &'static str) {
        self.drop_rows(&format!("{kind} rows that are damaged"), counts.damaged);
        self.drop_rows(
            &format!("{kind} rows with bytes that are not UTF-8 (replaced, not dropped)"),
            counts.not_utf8,
        );
        self.drop_rows(
            &format!("{kind} rows without </DOC> (read up to the next <DOC>, not dropped)"),
            counts.unclosed,
        );
        self.read.push((kind, counts.clone()));
    }

    pub(crate) fn note_passed_over(&mut self, files: &SourceFiles) {
        self.passed_over.extend(files.passed_over.iter().cloned());
    }

    pub(crate) fn no_pair(&self) -> Error {
        let reasons: Vec<String> =
            self.dropped.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let clicks = self.options.sources.iter().find(|source| source.role != Role::Documents);
        let path = clicks.and_then(|source| source.path.first());
        Error::data(format!(
            "{}: no pair of query and document is left to train on; dropped: {}",
            path.map_or(String::new(), |path| path.display().to_string()),
            reasons.join(", ")
        ))
    }

    /// Whether a document enters if it has text.
    pub(crate) fn wants(&self, id: &str) -> bool {
        self.options.all_documents || self.log.documents.get(id).is_some()
    }

    /// The chosen fields of a document as `prepare` tokenises them.
    pub(crate) fn parts<'r>(&self, row: &'r Row<'_>) -> Vec<Cow<'r, str>> {
        let text = |field: &Field| match (field.of(row), self.options.repair) {
            (text, true) => repaired(text),
            (text, false) => text.into(),
        };
        self.options.fields.iter().map(text).collect()
    }

    /// The file of texts that `read_log` put aside.
    pub(crate) fn aside(work: &Path) -> PathBuf {
        work.join("queries.tsv")
    }
}
