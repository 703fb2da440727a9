//! The first stage of `prepare`: the log is read for its ids and pairs, and what may not enter is barred.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::log::{Log, Span};
use super::preparation::Preparation;
use crate::corpus::ordered;
use crate::corpus::progress::Progress;
use crate::corpus::read::repair::repaired;
use crate::corpus::read::rows::{self, Role};
use crate::corpus::read::source::{BlockTally, Piece, Position, SourceFiles, Tally};
use crate::ir::qrels;
use crate::{Error, Result};

/// The rows of one block, parsed and judged.
struct LogBlock {
    tally: BlockTally,
    text: String,
    rows: Vec<Span>,
}

impl Preparation<'_> {
    /// Reads the whole log. The texts of its queries go to `aside`.
    pub(crate) fn read_log(&mut self, aside: &Path) -> Result<()> {
        let failed = |cause| Error::io("written", aside, cause);
        let mut texts = BufWriter::with_capacity(1 << 18, File::create(aside).map_err(failed)?);
        // A header, so that no query can be taken for one.
        texts.write_all(b"id\ttext\n").map_err(failed)?;
        let mut log = Log::default();
        let roles = [Role::Clicks, Role::Queries, Role::Qrels];
        for role in roles.into_iter().filter(|&role| self.options.sources.iter().any(|s| s.role == role)) {
            self.read_role(role, &mut log, &mut texts)?;
        }
        texts.flush().map_err(failed)?;
        if log.pairs.is_empty() {
            self.log = log;
            return Err(self.no_pair());
        }
        log.close();
        self.log = log;
        Ok(())
    }

    fn read_role(&mut self, role: Role, log: &mut Log, texts: &mut impl Write) -> Result<()> {
        let files = SourceFiles::open(&self.options.sources, role)?;
        self.note_passed_over(&files);
        let what = if role == Role::Queries { "reading queries" } else { "reading clicks" };
        let mut progress = Progress::new(what, files.bytes);
        let (done, mut tally) = (progress.done.clone(), Tally::default());
        let mut reasons: Vec<(&'static str, u64)> = Vec::new();
        let mut count = |reason: &'static str| match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, rows)) => *rows += 1,
            None => reasons.push((reason, 1)),
        };
        let (options, this) = (self.options, &*self);
        ordered::run(
            |pass| files.read(Position::default(), &done, pass),
            |piece| Ok(this.judge(&files, &piece)),
            |block| {
                let rows = block.rows.len() as u64;
                for row in &block.rows {
                    let reason = match role {
                        Role::Qrels => log.add_judged(&block.text, row)?,
                        _ => log.add_row(role, &block.text, row, options.filter.duplicate_queries, texts)?,
                    };
                    reason.into_iter().for_each(&mut count);
                }
                progress.tick(rows);
                tally.add(&files, block.tally, options.strict)
            },
        )?;
        if tally.counts.kept == 0 {
            return Err(files.nothing(&tally.counts));
        }
        for (reason, rows) in reasons {
            self.drop_rows(reason, rows);
        }
        self.note(&tally.counts, if role == Role::Queries { "query" } else { "click" });
        Ok(())
    }

    /// Parses a block and decides which of its queries may not enter; on any thread.
    fn judge(&self, files: &SourceFiles, piece: &Piece) -> LogBlock {
        let (mut text, mut rows) = (String::new(), Vec::new());
        let mut keep = |part: &str| {
            let start = text.len();
            text.push_str(part);
            start..text.len()
        };
        let tally = files.parse(piece, &mut |row, _| {
            if files.role == Role::Qrels {
                let barred = qrels::label(&row[2]).is_ok_and(|label| label <= 0);
                let barred = barred.then_some("clicks with a label of 0 or less");
                let (query_id, document_id) = (keep(&row[0]), keep(&row[1]));
                rows.push(Span { query_id, query: 0..0, document_id, times: 1, barred });
                return;
            }
            let query = if self.options.repair { repaired(row[1].trim()) } else { row[1].trim().into() };
            let barred = self.guard.query(&query).or_else(|| self.options.filter.query(&query));
            let (query_id, document_id) = (keep(&row[0]), keep(&row[2]));
            let times = rows::times(&row[3]).unwrap_or(1);
            rows.push(Span { query_id, query: keep(&query), document_id, times, barred });
        });
        LogBlock { tally, text, rows }
    }
}
