//! `evaluate`: a run's measures in trec_eval's layout, and the comparison with a baseline run. Papers
//! and scripts parse the layout, so a line that trec_eval would print is printed to the byte.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use super::measures::{Evaluation, Measure, Options, evaluate};
use super::qrels::Qrels;
use super::run::Run;
use super::significance::{bootstrap_interval, holm, paired_t, randomisation, wins_ties_losses};
use crate::{Error, Result};

/// What to measure and how; the letters are trec_eval's options.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluateOptions {
    pub qrels: PathBuf,
    pub run: PathBuf,
    /// `-m`, in the order of printing; none means `official`.
    pub measures: Vec<String>,
    /// `-q`: each topic's values before the summary.
    pub per_topic: bool,
    /// `-c`
    pub complete: bool,
    /// `-l`
    pub level: i32,
    /// `-J`
    pub judged_only: bool,
    /// `-M`
    pub depth: Option<usize>,
    /// Compare scores as f64, as trec_eval 10 does.
    pub f64_scores: bool,
    /// A run to compare with, topic by topic.
    pub baseline: Option<PathBuf>,
    /// Draws of the randomisation test and the bootstrap.
    pub seed: u32,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self {
            qrels: PathBuf::new(),
            run: PathBuf::new(),
            measures: Vec::new(),
            per_topic: false,
            complete: false,
            level: 1,
            judged_only: false,
            depth: None,
            f64_scores: false,
            baseline: None,
            seed: 1,
        }
    }
}

/// Random draws of each test: p-values to about 0.002.
const DRAWS: u32 = 10_000;

/// Measures and prints to standard output. Warnings about topics go to the log.
pub fn run(o: &EvaluateOptions) -> Result<()> {
    let text = render(o)?;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // `evaluate | head` has what it wants.
        Err(cause) if cause.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(cause) => Err(Error::data(format!("standard output cannot be written: {cause}"))),
        Ok(()) => Ok(()),
    }
}

/// What `run` prints.
pub fn render(o: &EvaluateOptions) -> Result<String> {
    let measures = measures(&o.measures)?;
    let options = Options {
        complete: o.complete,
        level: o.level,
        judged_only: o.judged_only,
        depth: o.depth,
        f64_scores: o.f64_scores,
    };
    let (qrels, run) = rayon::join(|| Qrels::read(&o.qrels), || Run::read(&o.run));
    let (qrels, run) = (qrels?, run?);
    let found = evaluate(&qrels, &run, &measures, &options)?;
    warn(&found, o);
    let mut text = String::new();
    if o.per_topic {
        topic_lines(&mut text, &found);
    }
    if o.measures.is_empty() || o.measures.iter().any(|name| name == "official") {
        line(&mut text, "runid", "all", run.tag().unwrap_or("-"));
    }
    for (measure, &mean) in found.measures.iter().zip(&found.means) {
        value_line(&mut text, *measure, "all", mean);
    }
    if let Some(path) = &o.baseline {
        let other = evaluate(&qrels, &Run::read(path)?, &measures, &options)?;
        text.push('\n');
        comparison(&mut text, &found, &other, o.seed)?;
    }
    Ok(text)
}

fn measures(names: &[String]) -> Result<Vec<Measure>> {
    if names.is_empty() {
        return Ok(Measure::official());
    }
    let mut list = Vec::new();
    for name in names {
        list.extend(Measure::expand(name)?);
    }
    let mut seen = std::collections::HashSet::new();
    list.retain(|measure| seen.insert(*measure));
    Ok(list)
}

fn warn(found: &Evaluation, o: &EvaluateOptions) {
    if found.missing > 0 {
        let treated =
            if o.complete { "count as 0" } else { "are left out of the means (-c counts them as 0)" };
        tracing::warn!("{} judged topics are not in {} and {treated}", found.missing, o.run.display());
    }
    if found.unjudged > 0 {
        tracing::warn!("{} topics of {} have no judgement and are ignored", found.unjudged, o.run.display());
    }
}

/// `%-22s\t%s\t%s`.
fn line(text: &mut String, name: &str, topic: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{name:<22}\t{topic}\t{value}");
}

fn value_line(text: &mut String, measure: Measure, topic: &str, value: f64) {
    let value = if measure.is_count() { format!("{value:.0}") } else { format!("{value:6.4}") };
    line(text, &measure.to_string(), topic, &value);
}

fn topic_lines(text: &mut String, found: &Evaluation) {
    for (topic, values) in &found.topics {
        for (measure, &value) in found.measures.iter().zip(values) {
            if measure.has_topic_value() {
                value_line(text, *measure, topic, value);
            }
        }
    }
}

/// One line a measure over the topics that both runs have: means, difference, tests, wins.
fn comparison(text: &mut String, run: &Evaluation, baseline: &Evaluation, seed: u32) -> Result<()> {
    let common = run.topics.keys().filter(|topic| baseline.topics.contains_key(*topic)).collect::<Vec<_>>();
    if common.is_empty() {
        return Err(Error::data("the run and the baseline have no judged topic in common"));
    }
    let places =
        (0..run.measures.len()).filter(|&m| !run.measures[m].is_count() && run.measures[m].has_topic_value());
    let mut rows = Vec::new();
    for m in places {
        let a = common.iter().map(|topic| run.topics[*topic][m]).collect::<Vec<_>>();
        let b = common.iter().map(|topic| baseline.topics[*topic][m]).collect::<Vec<_>>();
        rows.push((m, paired_t(&a, &b)?, a, b));
    }
    let corrected = holm(&rows.iter().map(|row| row.1.p).collect::<Vec<_>>());
    let _ = writeln!(
        text,
        "# {} topics; p: paired t, two-sided; holm: that p corrected for the {} measures here; fisher: \
         randomisation, {DRAWS} draws;\n# low, high: 95 % bootstrap interval of the difference; seed {seed}\n\
         {:<22}\trun\tbaseline\tdiff\tp\tholm\tfisher\tlow\thigh\twin/tie/loss",
        common.len(),
        rows.len(),
        "measure"
    );
    for ((m, test, a, b), holm) in rows.iter().zip(corrected) {
        let mean = |values: &[f64]| values.iter().fold(0.0, |sum, value| sum + value) / values.len() as f64;
        let fisher = randomisation(a, b, DRAWS, seed)?;
        let (low, high) = bootstrap_interval(a, b, DRAWS, seed)?;
        let (wins, ties, losses) = wins_ties_losses(a, b)?;
        let _ = writeln!(
            text,
            "{:<22}\t{:.4}\t{:.4}\t{:+.4}\t{:.4}\t{holm:.4}\t{fisher:.4}\t{low:+.4}\t{high:+.4}\t{wins}/{ties}/{losses}",
            run.measures[*m].to_string(),
            mean(a),
            mean(b),
            test.mean_difference,
            test.p
        );
    }
    Ok(())
}
