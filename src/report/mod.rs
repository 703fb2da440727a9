//! What an experiment gave, for people: a table for the terminal and one self-contained HTML file
//! with tables and plots. It reads what runs wrote (`results.json`, `metrics.jsonl`) and nothing
//! else, so a report can be made again, or elsewhere, long after the run.

pub mod compare;
pub mod evaluate;
pub mod html;
pub mod metrics;
pub mod plot;
pub mod probe;
pub mod results;
mod shards;

use std::path::{Path, PathBuf};

pub use compare::table_text;
pub use results::{Cell, Results, Training};
pub use shards::write_shards_report;

use crate::{Error, Result};

/// Columns aligned for a terminal, two spaces between them. The first line decides how many there are.
pub(crate) fn text_table(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in lines {
        let padded = line.iter().zip(&widths).map(|(field, &width)| format!("{field:<width$}"));
        text += padded.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Reads `dir/results.json` and the metrics files that it names (relative paths start at `dir`) and
/// writes `dir/report.html`; returns its path. A metrics file that cannot be read is named in the
/// report, which is made all the same.
///
/// # Errors
/// `Error::Data` when `results.json` cannot be read or contradicts itself, or the report cannot be
/// written.
pub fn write_experiment_report(dir: &Path) -> Result<PathBuf> {
    let results = Results::read(&dir.join("results.json"))?;
    let curves = results.training.iter().map(|run| metrics::read(&run.name, &dir.join(&run.metrics)));
    let page = html::page(&results, &curves.collect::<Vec<_>>())?;
    let (path, part) = (dir.join("report.html"), dir.join("report.html.part"));
    std::fs::write(&part, page).map_err(|cause| Error::io("written", &part, cause))?;
    std::fs::rename(&part, &path).map_err(|cause| Error::io("written", &path, cause))?;
    Ok(path)
}
