//! The guard between the log and a test collection: a model must not have trained on the very
//! questions that it is tested on. Queries whose words equal those of a named topic are left out;
//! documents stay (re-ranking knows its collection) unless a qrels file asks for them to go.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::lines::{Lines, ReadOptions};
use crate::{Error, Result};

/// What must not enter the shards.
#[derive(Debug, Default)]
pub(super) struct Guard {
    queries: HashSet<String>,
    documents: HashSet<String>,
}

impl Guard {
    /// Reads topics (TSV: id, text) and qrels (four columns, or three with a header as BEIR has them;
    /// documents with a label above 0).
    ///
    /// # Errors
    /// `Error::Data` where a file cannot be read or a line of it cannot be understood: a guard with
    /// holes is none.
    pub(super) fn read(topics: &[PathBuf], qrels: &[PathBuf]) -> Result<Self> {
        let mut guard = Self::default();
        for path in topics {
            guard.read_topics(path)?;
        }
        for path in qrels {
            guard.read_qrels(path)?;
        }
        Ok(guard)
    }

    fn read_topics(&mut self, path: &Path) -> Result<()> {
        let mut lines = Lines::open(path, &ReadOptions::default())?;
        let before = self.queries.len();
        while let Some(line) = lines.next()? {
            let Some((_, text)) = line.split_once('\t') else {
                return Err(Error::data(format!(
                    "{}: not topics as TSV (id, tab, text): {:?}",
                    path.display(),
                    line.chars().take(60).collect::<String>()
                )));
            };
            self.queries.insert(normal(text));
        }
        self.queries.remove("");
        if self.queries.len() == before && lines.counts.rows == 0 {
            return Err(Error::data(format!("{}: holds no topic to exclude", path.display())));
        }
        Ok(())
    }

    fn read_qrels(&mut self, path: &Path) -> Result<()> {
        let mut lines = Lines::open(path, &ReadOptions::default())?;
        while let Some(line) = lines.next()? {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let (document, label) = match columns[..] {
                [_, _, document, label] | [_, document, label] => (document, label),
                _ => ("", ""),
            };
            match label.parse::<i64>() {
                Ok(label) if label > 0 => _ = self.documents.insert(document.to_owned()),
                Ok(_) => {}
                Err(_) if lines.at_first() && columns.len() == 3 => lines.is_header(),
                Err(_) => {
                    return Err(Error::data(format!(
                        "{}: not a line of qrels (topic, 0, document, label): {:?}",
                        path.display(),
                        line.chars().take(60).collect::<String>()
                    )));
                }
            }
        }
        if lines.counts.rows == 0 {
            return Err(Error::data(format!("{}: holds no judgement to exclude", path.display())));
        }
        Ok(())
    }

    pub(super) fn bars_query(&self, text: &str) -> bool {
        !self.queries.is_empty() && self.queries.contains(&normal(text))
    }

    pub(super) fn bars_document(&self, id: &str) -> bool {
        self.documents.contains(id)
    }
}

/// Lower-cased words of letters and digits with one space between: what makes two queries the same.
fn normal(text: &str) -> String {
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}
