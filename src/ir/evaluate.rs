//! `evaluate`: a run's measures in trec_eval's layout. Papers and scripts parse the layout, so a line
//! that trec_eval would print is printed to the byte.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::compare::{Comparison, compare};
use super::measures::{Evaluation, Measure, Options, evaluate};
use super::qrels::Qrels;
use super::run::Run;
use crate::{Error, Result};

/// What to measure and how; the letters are trec_eval's options.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvaluateOptions {
    pub qrels: PathBuf,
    /// `-` is standard input.
    pub run: PathBuf,
    /// `-m`; none means `official`. trec_eval's order of measures is the order of printing.
    pub measures: Vec<String>,
    /// `-q`: each topic's values before the summary.
    pub per_topic: bool,
    /// `-n`: no summary.
    pub no_summary: bool,
    /// `-c -l -J -M`
    pub how: Options,
    /// A run to compare with, topic by topic.
    pub baseline: Option<PathBuf>,
    /// Draws of the randomisation test and the bootstrap.
    pub seed: u32,
}

/// What was measured.
pub struct Outcome {
    pub found: Evaluation,
    pub tag: Option<String>,
    pub baseline_tag: Option<String>,
    pub comparison: Option<Comparison>,
}

/// Reads, measures, compares. Warnings about topics go to the log.
///
/// # Errors
/// What the readers, `evaluate` and `compare` refuse.
pub fn measure(o: &EvaluateOptions) -> Result<Outcome> {
    let measures = measures(&o.measures)?;
    let stdin = Path::new("-");
    if o.run == stdin && o.baseline.as_deref() == Some(stdin) {
        return Err(Error::config("run and --baseline are both standard input: name a file for one of them"));
    }
    let (qrels, run) = rayon::join(|| Qrels::read(&o.qrels), || Run::read(place(&o.run)));
    let (qrels, run) = (qrels?, run?);
    let found = evaluate(&qrels, &run, &measures, &o.how)?;
    warn(&found, &o.run, o.how.complete);
    let tag = run.tag().map(str::to_owned);
    let Some(path) = &o.baseline else {
        return Ok(Outcome { found, tag, baseline_tag: None, comparison: None });
    };
    let baseline = Run::read(place(path))?;
    let other = evaluate(&qrels, &baseline, &measures, &o.how)?;
    warn(&other, path, o.how.complete);
    let comparison = Some(compare(&found, &other, o.seed)?);
    Ok(Outcome { found, tag, baseline_tag: baseline.tag().map(str::to_owned), comparison })
}

fn place(path: &Path) -> &Path {
    if path == Path::new("-") { Path::new("/dev/stdin") } else { path }
}

/// The named measures in trec_eval's order, each once. As in trec_eval, `-m all_trec -m P.3` gives `P_3`
/// instead of all the usual cut-offs of `P`.
fn measures(names: &[String]) -> Result<Vec<Measure>> {
    if names.is_empty() {
        return Ok(Measure::official());
    }
    let (bare, listed): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| Measure::is_bare(name));
    let mut list = BTreeSet::new();
    for name in listed {
        list.extend(Measure::expand(name)?);
    }
    let stems: BTreeSet<&str> = list.iter().map(|measure| measure.stem()).collect();
    for name in bare {
        list.extend(Measure::expand(name)?.into_iter().filter(|measure| !stems.contains(measure.stem())));
    }
    Ok(list.into_iter().collect())
}

fn warn(found: &Evaluation, run: &Path, complete: bool) {
    if found.missing > 0 {
        let treated = if complete { "count as 0" } else { "are left out of the means (-c counts them as 0)" };
        tracing::warn!("{} judged topics are not in {} and {treated}", found.missing, run.display());
    }
    if found.unjudged > 0 {
        tracing::warn!("{} topics of {} have no judgement and are ignored", found.unjudged, run.display());
    }
}

/// What trec_eval prints.
pub fn trec_layout(outcome: &Outcome, per_topic: bool, summary: bool) -> String {
    let mut text = String::new();
    let found = &outcome.found;
    if per_topic {
        topic_lines(&mut text, found);
    }
    if summary {
        for (measure, &mean) in found.measures.iter().zip(&found.means) {
            match measure {
                Measure::RunId => line(&mut text, *measure, "all", outcome.tag.as_deref().unwrap_or("-")),
                Measure::RelString(_) => (),
                _ => line(&mut text, *measure, "all", &number(*measure, mean)),
            }
        }
    }
    text
}

/// `%-22s\t%s\t%s`.
fn line(text: &mut String, measure: Measure, topic: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{measure:<22}\t{topic}\t{value}");
}

/// A value as trec_eval prints it.
pub fn number(measure: Measure, value: f64) -> String {
    if measure.is_count() { format!("{value:.0}") } else { format!("{value:6.4}") }
}

fn topic_lines(text: &mut String, found: &Evaluation) {
    for (topic, values) in &found.topics {
        let printed = found.measures.iter().zip(values).filter(|(measure, _)| measure.has_topic_value());
        for (measure, &value) in printed {
            match measure.relstring_length() {
                Some(length) => {
                    line(text, *measure, topic, &format!("'{}'", relstring(found, topic, length)))
                }
                None => line(text, *measure, topic, &number(*measure, value)),
            }
        }
    }
}

/// The first labels of a topic; they are ASCII.
fn relstring<'a>(found: &'a Evaluation, topic: &str, length: usize) -> &'a str {
    let all = found.relstrings.get(topic).map(String::as_str).unwrap_or_default();
    &all[..length.min(all.len())]
}
