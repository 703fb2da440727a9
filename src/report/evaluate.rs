//! The output of `evaluate`: trec_eval's lines, a printed table, JSON for programs, and the plot of the
//! differences to a baseline.

use std::borrow::Cow;
use std::path::Path;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::compare::p_text;
use super::html::{escape, figure, shell, table};
use super::plot::{self, Differences};
use super::text::text_table;
use crate::files;
use crate::ir::compare::{Compared, Comparison, DRAWS};
use crate::ir::evaluate::{EvaluateOptions, Outcome, measure, number, trec_layout};
use crate::ir::measures::{Measure, Options};
use crate::{Error, Result};

/// Panels of a plot at most; nobody would read more.
const PANELS: usize = 12;

/// The form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum OutputFormat {
    /// trec_eval's lines and, with a baseline, one more line per measure.
    #[default]
    Trec,
    Table,
    Json,
}

/// Measures and prints; `plot` is a file for the differences to the baseline.
///
/// # Errors
/// What `measure` refuses; `Error::Config` for a plot without a baseline or of another kind than SVG or
/// HTML.
pub fn run(options: &EvaluateOptions, format: OutputFormat, plot: Option<&Path>) -> Result<()> {
    let draw = plot.map(|path| Drawing::of(path, options)).transpose()?;
    let outcome = measure(options)?;
    if let (Some(draw), Some(comparison)) = (draw, &outcome.comparison) {
        draw.write(comparison, options)?;
    }
    let text = render(options, &outcome, format)?;
    tell_raw!("{text}");
    Ok(())
}

/// What `run` prints.
///
/// # Errors
/// `Error::Data` if JSON cannot be written.
pub fn render(options: &EvaluateOptions, outcome: &Outcome, format: OutputFormat) -> Result<String> {
    Ok(match format {
        OutputFormat::Json => json(options, outcome)?,
        OutputFormat::Table => tables(options, outcome),
        OutputFormat::Trec => {
            let mut text = trec_layout(outcome, options.per_topic, !options.no_summary);
            if let Some(comparison) = &outcome.comparison {
                text += &format!("\n# {}\n", legend(comparison).replace('\n', "\n# "));
                let lines = comparison_cells(comparison);
                for cells in &lines {
                    text += &format!("{:<22}\t{}\n", cells[0], cells[1..].join("\t"));
                }
            }
            text
        }
    })
}

fn legend(comparison: &Comparison) -> String {
    let left_out = match comparison.left_out {
        0 => String::new(),
        n => format!(" ({n} that only one run has are left out)"),
    };
    format!(
        "{} topics of both runs{left_out}; p: paired t, two-sided; holm: that p corrected for the {} measures here;\n\
         fisher: randomisation, {DRAWS} draws; low, high: 95 % bootstrap interval of the difference; seed {}",
        comparison.topics.len(),
        comparison.measures.len(),
        comparison.seed
    )
}

/// A head, then one line per measure.
fn comparison_cells(comparison: &Comparison) -> Vec<Vec<String>> {
    let head = ["measure", "run", "baseline", "diff", "p", "holm", "fisher", "low", "high", "win/tie/loss"];
    let line = |c: &Compared| {
        vec![
            c.measure.to_string(),
            format!("{:.4}", c.run),
            format!("{:.4}", c.baseline),
            format!("{:+.4}", c.test.mean_difference),
            format!("{:.4}", c.test.p),
            format!("{:.4}", c.p_holm),
            format!("{:.4}", c.p_randomisation),
            format!("{:+.4}", c.interval.0),
            format!("{:+.4}", c.interval.1),
            format!("{}/{}/{}", c.wins, c.ties, c.losses),
        ]
    };
    std::iter::once(head.map(String::from).to_vec()).chain(comparison.measures.iter().map(line)).collect()
}

/// With topics, a line per topic and a column per measure; without, a line per measure. Then the comparison.
fn tables(options: &EvaluateOptions, outcome: &Outcome) -> String {
    let found = &outcome.found;
    let shown: Vec<usize> = (0..found.measures.len()).filter(|&m| !found.measures[m].is_text()).collect();
    let value = |m: usize, value: f64| number(found.measures[m], value);
    let mut lines = Vec::new();
    if options.per_topic {
        let names = shown.iter().map(|&m| found.measures[m].to_string());
        lines.push(std::iter::once("topic".to_owned()).chain(names).collect::<Vec<_>>());
        for (topic, values) in &found.topics {
            let cell = |&m: &usize| {
                if found.measures[m].has_topic_value() { value(m, values[m]) } else { String::new() }
            };
            lines.push(std::iter::once(topic.clone()).chain(shown.iter().map(cell)).collect());
        }
        let means = shown.iter().map(|&m| value(m, found.means[m]));
        lines.push(std::iter::once("all".to_owned()).chain(means).collect());
    } else {
        lines.push(vec!["measure".into(), outcome.tag.clone().unwrap_or_else(|| "run".into())]);
        lines.extend(shown.iter().map(|&m| vec![found.measures[m].to_string(), value(m, found.means[m])]));
    }
    let mut text = text_table(&lines);
    if let Some(comparison) = &outcome.comparison {
        text += &format!("\n{}{}\n", text_table(&comparison_cells(comparison)), legend(comparison));
    }
    text
}

/// The document of `--json`, version 1. Fields may be added; the meaning of the existing ones stays.
#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    qrels: &'a Path,
    run: Named<'a>,
    options: Settings,
    /// Measured topics.
    topics: usize,
    /// Judged topics that the run lacks.
    missing_topics: usize,
    /// Topics of the run without a judgement.
    unjudged_topics: usize,
    /// Names in trec_eval's order, without measures whose value is a text.
    measures: Vec<String>,
    /// measure -> its mean, sum (counts) or geometric mean.
    means: Ordered<'a, f64>,
    /// topic -> measure -> value.
    per_topic: Ordered<'a, Ordered<'a, f64>>,
    /// Absent without a baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<ComparisonDocument<'a>>,
}

#[derive(Serialize)]
struct Named<'a> {
    path: &'a Path,
    tag: Option<&'a str>,
}

#[derive(Serialize)]
struct Settings {
    complete: bool,
    level: i32,
    judged_only: bool,
    depth: Option<usize>,
    f64_scores: bool,
}

#[derive(Serialize)]
struct ComparisonDocument<'a> {
    baseline: Named<'a>,
    /// Topics of both runs; all numbers here are over them.
    topics: usize,
    left_out_topics: usize,
    draws: u32,
    seed: u32,
    measures: Ordered<'a, ComparedDocument>,
    /// topic -> measure -> run minus baseline.
    differences: Ordered<'a, Ordered<'a, f64>>,
}

#[derive(Serialize)]
struct ComparedDocument {
    run: f64,
    baseline: f64,
    difference: f64,
    /// Student's t; null if all differences are the same.
    t: Option<f64>,
    degrees_of_freedom: usize,
    p: f64,
    p_holm: f64,
    p_randomisation: f64,
    low: f64,
    high: f64,
    wins: usize,
    ties: usize,
    losses: usize,
}

/// A map that keeps its order.
struct Ordered<'a, T>(Vec<(Cow<'a, str>, T)>);

impl<T: Serialize> Serialize for Ordered<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

fn json(options: &EvaluateOptions, outcome: &Outcome) -> Result<String> {
    let found = &outcome.found;
    let named: Vec<(usize, Measure, String)> =
        found.measures.iter().enumerate().map(|(m, &measure)| (m, measure, measure.to_string())).collect();
    let values = |values: &[f64], wanted: fn(Measure) -> bool| {
        let of = named.iter().filter(|(_, measure, _)| !measure.is_text() && wanted(*measure));
        Ordered(of.map(|(m, _, name)| (name.as_str().into(), values[*m])).collect())
    };
    let Options { complete, level, judged_only, depth, f64_scores } = options.how;
    let document = Document {
        version: 1,
        qrels: &options.qrels,
        run: Named { path: &options.run, tag: outcome.tag.as_deref() },
        options: Settings { complete, level, judged_only, depth, f64_scores },
        topics: found.topics.len(),
        missing_topics: found.missing,
        unjudged_topics: found.unjudged,
        measures: named.iter().filter(|(_, measure, _)| !measure.is_text()).map(|n| n.2.clone()).collect(),
        means: values(&found.means, |_| true),
        per_topic: Ordered(
            found.topics.iter().map(|(t, v)| (t.into(), values(v, Measure::has_topic_value))).collect(),
        ),
        comparison: outcome.comparison.as_ref().zip(options.baseline.as_deref()).map(|(comparison, path)| {
            comparison_document(comparison, Named { path, tag: outcome.baseline_tag.as_deref() })
        }),
    };
    let text = serde_json::to_string_pretty(&document);
    text.map(|text| text + "\n").map_err(|cause| Error::data(format!("JSON cannot be written: {cause}")))
}

fn comparison_document<'a>(comparison: &'a Comparison, baseline: Named<'a>) -> ComparisonDocument<'a> {
    let one = |c: &Compared| ComparedDocument {
        run: c.run,
        baseline: c.baseline,
        difference: c.test.mean_difference,
        t: c.test.t.is_finite().then_some(c.test.t),
        degrees_of_freedom: c.test.df,
        p: c.test.p,
        p_holm: c.p_holm,
        p_randomisation: c.p_randomisation,
        low: c.interval.0,
        high: c.interval.1,
        wins: c.wins,
        ties: c.ties,
        losses: c.losses,
    };
    let measures = &comparison.measures;
    let of_topic = |place: usize| {
        Ordered(measures.iter().map(|c| (c.measure.to_string().into(), c.differences[place])).collect())
    };
    ComparisonDocument {
        baseline,
        topics: comparison.topics.len(),
        left_out_topics: comparison.left_out,
        draws: DRAWS,
        seed: comparison.seed,
        measures: Ordered(measures.iter().map(|c| (c.measure.to_string().into(), one(c))).collect()),
        differences: Ordered(
            comparison.topics.iter().enumerate().map(|(i, t)| (t.into(), of_topic(i))).collect(),
        ),
    }
}

/// The plot of differences that was asked for.
struct Drawing<'a> {
    path: &'a Path,
    html: bool,
}

impl<'a> Drawing<'a> {
    /// Refuses what cannot be drawn before anything is measured.
    fn of(path: &'a Path, options: &EvaluateOptions) -> Result<Self> {
        let html = match path.extension().and_then(|end| end.to_str()) {
            Some("svg") => false,
            Some("html") => true,
            _ => {
                let text = format!("--plot {}: the name must end in .svg or .html", path.display());
                return Err(Error::config(text));
            }
        };
        files::refuse_input(path, [&options.qrels, &options.run].into_iter().chain(&options.baseline))?;
        if options.baseline.is_none() {
            return Err(Error::config(
                "--plot draws the differences to a baseline: name one with --baseline RUN",
            ));
        }
        Ok(Self { path, html })
    }

    fn write(&self, comparison: &Comparison, options: &EvaluateOptions) -> Result<()> {
        // Without -m there are 27 measures; one panel is enough.
        let drawn: Vec<&Compared> = match options.measures.is_empty() {
            true => comparison.measures.iter().filter(|c| c.measure == Measure::Map).collect(),
            false => comparison.measures.iter().collect(),
        };
        if drawn.len() > PANELS {
            return Err(Error::config(format!(
                "--plot draws at most {PANELS} measures, and {} are named; name fewer with -m",
                drawn.len()
            )));
        }
        let panels: Vec<Differences> = drawn.iter().map(|c| panel(comparison, c)).collect();
        let text = if self.html { page(comparison, options, &panels)? } else { plot::differences(&panels)? };
        files::write(self.path, text.as_bytes())
    }
}

fn panel(comparison: &Comparison, compared: &Compared) -> Differences {
    let topics = comparison.topics.iter().cloned();
    let title = format!(
        "{}: {:+.4}, p {}, {} won, {} tied, {} lost",
        compared.measure,
        compared.test.mean_difference,
        p_text(compared.test.p),
        compared.wins,
        compared.ties,
        compared.losses
    );
    Differences {
        title,
        y_label: format!("difference in {}", compared.measure),
        bars: topics.zip(compared.differences.iter().copied()).collect(),
        mean: compared.test.mean_difference,
    }
}

fn page(comparison: &Comparison, options: &EvaluateOptions, panels: &[Differences]) -> Result<String> {
    let name = |path: Option<&Path>| path.map(|path| path.display().to_string()).unwrap_or_default();
    let title = format!("{} against {}", name(Some(&options.run)), name(options.baseline.as_deref()));
    let cells = comparison_cells(comparison);
    let escaped = |line: &Vec<String>| line.iter().map(|cell| escape(cell)).collect::<Vec<_>>();
    let rows: Vec<_> = cells[1..].iter().map(|line| ("", escaped(line))).collect();
    let mut body =
        format!("<h1>{}</h1>\n{}", escape(&title), table("comparison", &escaped(&cells[0]), &rows));
    body += &format!("<p class=\"note\">{}</p>\n", escape(&legend(comparison)));
    for panel in panels {
        let caption = format!("{}. Each bar is a topic; dashed: the mean.", panel.title);
        body += &figure(&plot::differences(std::slice::from_ref(panel))?, &caption);
    }
    Ok(shell(&escape(&title), &body))
}
