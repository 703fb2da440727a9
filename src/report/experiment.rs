//! An experiment's report: its table of arms, learning curve, losses and facts on one page. Everything that
//! comes from a run is escaped.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::compare::{self, Against, Row, p_text};
use super::html::{escape, figure, shell, table};
use super::metrics::{self, Curves, LOSSES, smooth, thin};
use super::plot::{self, Axis, Line};
use super::results::{Cell, Results};
use crate::Result;
use crate::files;

/// Points of a drawn curve: more points than pixels would only make the file larger.
const POINTS: usize = 1000;

/// Reads `dir/results.json` and the metrics files that it names (relative paths start at `dir`) and writes
/// `dir/report.html`; returns its path. The report names a metrics file that cannot be read, and is made all
/// the same.
///
/// # Errors
/// `Error::Data` when `results.json` cannot be read or contradicts itself, or the report cannot be
/// written.
pub fn write_experiment_report(dir: &Path) -> Result<PathBuf> {
    let results = Results::read(&dir.join("results.json"))?;
    let curves = results.training.iter().map(|run| metrics::read(&run.name, &dir.join(&run.metrics)));
    let page = page(&results, &curves.collect::<Vec<_>>())?;
    let path = dir.join("report.html");
    files::write(&path, page.as_bytes())?;
    Ok(path)
}

/// The whole page.
///
/// # Errors
/// As [`compare::rows`].
fn page(results: &Results, curves: &[Curves]) -> Result<String> {
    let title = escape(&results.title);
    let mut body = format!("<h1>{title}</h1>\n");
    body += &arms(results, &compare::rows(results)?);
    body += &sizes(results)?;
    body += &losses(curves)?;
    body += &facts(results);
    Ok(shell(&title, &body))
}

fn arms(results: &Results, rows: &[Row]) -> String {
    let mut head = vec!["arm".to_string(), "topics".into()];
    for measure in &results.measures {
        head.extend([escape(measure), "diff".into(), "p".into(), "p (Holm)".into()]);
    }
    let lines = rows.iter().map(|row| {
        let mut cells = vec![escape(&row.arm), row.topics.to_string()];
        let mut class = "";
        for entry in &row.entries {
            cells.push(entry.mean_text());
            match entry.against {
                Some(a) => cells.extend([
                    format!("{:+.4}", a.difference),
                    escape(&p_text(a.p)),
                    escape(&p_text(a.holm)) + a.marker(),
                ]),
                None => {
                    class = "baseline";
                    cells.extend(["baseline".into(), "–".into(), "–".into()]);
                }
            }
        }
        (class, cells)
    });
    let mut html = "<h2>Arms</h2>\n".to_string() + &table("arms", &head, &lines.collect::<Vec<_>>());
    let _ = writeln!(html, "<p class=\"note\">{}</p>", escape(&compare::legend(results)));
    for row in rows {
        let fewer = row.entries.iter().filter_map(|entry| entry.against).map(|a| a.topics).min();
        if let Some(topics) = fewer.filter(|&topics| topics < row.topics) {
            let _ = writeln!(
                html,
                "<p class=\"note\">{}: only {topics} of its {} topics are topics of the baseline too.</p>",
                escape(&row.arm),
                row.topics
            );
        }
    }
    html
}

/// What the learning curve's sizes count.
const SIZES: &str = "topics fine-tuned on";

/// Numbers of fine-tuning topics as columns: each number that some arm has, then all topics.
fn columns(results: &Results) -> (Vec<usize>, Vec<String>) {
    let partial = results.cells.iter().filter(|cell| !cell.all_topics);
    let mut numbers: Vec<usize> = partial.filter_map(|cell| cell.train_topics).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut names: Vec<String> = numbers.iter().map(usize::to_string).collect();
    if results.cells.iter().any(|cell| cell.all_topics && cell.train_topics.is_some()) {
        names.push("all".into());
    }
    (numbers, names)
}

/// The column of a cell; `None` for an arm that is not fine-tuned.
fn column(cell: &Cell, numbers: &[usize]) -> Option<usize> {
    let topics = cell.train_topics?;
    if cell.all_topics { Some(numbers.len()) } else { numbers.binary_search(&topics).ok() }
}

/// Every arm's measures against the number of fine-tuning topics: a plot of the first measure, tables of all.
fn sizes(results: &Results) -> Result<String> {
    let (numbers, names) = columns(results);
    if names.len() < 2 {
        return Ok(String::new());
    }
    let mut html = "<h2>How much fine-tuning</h2>\n".to_string();
    let mut lines = Vec::new();
    for (colour, arm) in results.arms().into_iter().enumerate() {
        let mut line = Line { name: arm.into(), colour, ..Line::default() };
        for cell in results.cells.iter().filter(|cell| cell.arm == arm) {
            let mean = cell.mean(&results.measures[0])?;
            match column(cell, &numbers) {
                Some(column) => line.points.push((column as f64, mean)),
                None => line.level = Some(mean),
            }
        }
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        lines.push(line);
    }
    let axis = Axis::Categories { label: SIZES.into(), names: names.clone() };
    let svg = plot::lines(&results.measures[0], &axis, &lines)?;
    html += &figure(
        &svg,
        &format!(
            "{} against the number of topics that an arm was fine-tuned on; dashed: an \
                                    arm that is not fine-tuned.",
            results.measures[0]
        ),
    );
    let rows = compare::rows(results)?;
    for (m, measure) in results.measures.iter().enumerate() {
        let at_all = rows.iter().filter_map(|row| Some((row.arm.as_str(), row.entries[m].against?)));
        let mut tests = numbers
            .iter()
            .map(|&topics| compare::at_size(results, topics, measure))
            .collect::<Result<Vec<_>>>()?;
        tests.push(at_all.collect());
        html += &size_table(results, measure, &numbers, &names, &tests)?;
    }
    let _ = writeln!(
        html,
        "<p class=\"note\">* and **: p below 0.05 and 0.01 against \"{}\" with as many topics, after Holm's correction \
         over the arms of the column (of all topics: over the table of arms).</p>",
        escape(&results.baseline)
    );
    Ok(html)
}

fn size_table(
    results: &Results,
    measure: &str,
    numbers: &[usize],
    names: &[String],
    tests: &[BTreeMap<&str, Against>],
) -> Result<String> {
    let head = std::iter::once(format!("{} by {SIZES}", escape(measure))).chain(names.iter().cloned());
    let mut rows = Vec::new();
    for arm in results.arms() {
        let mut cells = vec![String::new(); names.len()];
        for cell in results.cells.iter().filter(|cell| cell.arm == arm) {
            let mean = format!("{:.4}", cell.mean(measure)?);
            match column(cell, numbers) {
                Some(column) => {
                    let marker = tests[column].get(arm).map_or("", Against::marker);
                    cells[column] = mean + marker;
                }
                None => cells.fill(mean),
            }
        }
        cells.insert(0, escape(arm));
        rows.push(("", cells));
    }
    Ok(table("sizes", &head.collect::<Vec<_>>(), &rows))
}

/// One plot per loss, with a line per run.
fn losses(curves: &[Curves]) -> Result<String> {
    let mut html = String::new();
    for (loss, name) in LOSSES.iter().enumerate() {
        let lines: Vec<Line> = curves
            .iter()
            .enumerate()
            .filter(|(_, run)| !run.losses[loss].is_empty())
            .map(|(colour, run)| Line {
                name: run.name.clone(),
                colour,
                points: thin(&smooth(&run.losses[loss]), POINTS),
                faint: thin(&run.losses[loss], POINTS),
                level: None,
            })
            .collect();
        if !lines.is_empty() {
            let svg = plot::lines(name, &Axis::Numbers { label: "step".into() }, &lines)?;
            html += &figure(&svg, &format!("{name} in nats, smoothed; faint: as measured."));
        }
    }
    for note in curves.iter().filter_map(|run| run.note.as_ref()) {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escape(note));
    }
    Ok(if html.is_empty() { html } else { format!("<h2>Training</h2>\n{html}") })
}

fn facts(results: &Results) -> String {
    if results.facts.is_empty() {
        return String::new();
    }
    let rows = results.facts.iter().map(|(name, value)| ("", vec![escape(name), escape(value)]));
    "<h2>Facts</h2>\n".to_string() + &table("facts", &[], &rows.collect::<Vec<_>>())
}
