//! The results of `probe` for people: models side by side, in the terminal and as a page.

use super::tally::{ModelTally, Probe, Scores};
use crate::Result;
use crate::report::html::{escape, figure, shell, table};
use crate::report::plot::{self, Axis, Line};
use crate::report::text_table;

const CONTEXTS: [&str; 2] = ["query alone", "with document"];

/// Name, value and decimals.
type Column = (&'static str, fn(&Scores) -> f64, usize);

const MEASURES: [Column; 4] = [
    ("acc@1", |s| s.accuracy_1, 4),
    ("acc@5", |s| s.accuracy_5, 4),
    ("MRR", |s| s.mrr, 4),
    ("perplexity", |s| s.perplexity, 1),
];

/// A model's scores in a context for a group of words; `None` if it has none.
fn scores(model: &ModelTally, context: usize, group: &str) -> Option<Scores> {
    let found = model.groups.iter().find(|g| g.group == group)?;
    Some(if context == 0 { found.query_alone } else { found.with_document })
}

/// Model and context of each line of a table.
fn sides(probe: &Probe) -> impl Iterator<Item = (&ModelTally, usize)> {
    probe.models.iter().flat_map(|model| (0..CONTEXTS.len()).map(move |context| (model, context)))
}

/// One line per model and context: all measures over all words, then accuracy@1 by group.
fn summary(probe: &Probe) -> Vec<Vec<String>> {
    let groups = group_names(probe);
    let names = MEASURES.iter().map(|(name, ..)| (*name).to_owned());
    let head = ["model", "context"].map(String::from).into_iter().chain(names);
    let mut lines: Vec<Vec<String>> =
        vec![head.chain(groups.iter().skip(1).map(|group| format!("acc@1 {group}"))).collect()];
    for (model, context) in sides(probe) {
        let all = scores(model, context, "all").unwrap_or_default();
        let mut line = vec![model.name.clone(), CONTEXTS[context].to_owned()];
        line.extend(MEASURES.iter().map(|(_, of, decimals)| format!("{:.decimals$}", of(&all))));
        line.extend(by_group(model, context, &groups[1.min(groups.len())..], 0));
        lines.push(line);
    }
    lines
}

/// A measure for each group.
fn by_group(model: &ModelTally, context: usize, groups: &[String], measure: usize) -> Vec<String> {
    let (_, of, decimals) = MEASURES[measure];
    let cell = |group: &String| match scores(model, context, group) {
        Some(scores) => format!("{:.decimals$}", of(&scores)),
        None => "-".into(),
    };
    groups.iter().map(cell).collect()
}

/// One line per model and context: a measure by group.
fn measure_lines(probe: &Probe, measure: usize) -> Vec<Vec<String>> {
    let groups = group_names(probe);
    let head = [MEASURES[measure].0.to_owned(), "context".into()].into_iter().chain(groups.clone());
    let mut lines: Vec<Vec<String>> = vec![head.collect()];
    for (model, context) in sides(probe) {
        let mut line = vec![model.name.clone(), CONTEXTS[context].to_owned()];
        line.extend(by_group(model, context, &groups, measure));
        lines.push(line);
    }
    lines
}

/// Groups that any model has, "all" first.
fn group_names(probe: &Probe) -> Vec<String> {
    probe.models.first().map(|m| m.groups.iter().map(|g| g.group.clone()).collect()).unwrap_or_default()
}

fn legend(probe: &Probe) -> String {
    let mut text = format!(
        "{} words of {} pairs from {}, each masked whole in turn; means over masked pieces. Common words: the \
         most frequent ones that make half of all word occurrences in the queries.",
        probe.words, probe.pairs, probe.source
    );
    for model in &probe.models {
        if let Some(head) = &model.head_from {
            text += &format!(" {}: has no MLM head; that of {} was used.", model.name, head.display());
        }
    }
    text
}

/// The table for a terminal.
pub fn table_text(probe: &Probe) -> String {
    text_table(&summary(probe)) + &legend(probe) + "\n"
}

/// The page: the table, then each measure by group as a plot and a table.
///
/// # Errors
/// `Error::Data` when a plot cannot be drawn.
pub fn html(probe: &Probe) -> Result<String> {
    let mut body = format!("<h1>Query prediction</h1>\n{}", html_table(&summary(probe)));
    body += &format!("<p class=\"note\">{}</p>\n", escape(&legend(probe)));
    for (measure, (name, ..)) in MEASURES.iter().enumerate() {
        body += &format!("<h2>{name}</h2>\n{}", figure(&drawn(probe, measure)?, CAPTIONS[measure]));
        body += &html_table(&measure_lines(probe, measure));
    }
    Ok(shell("Query prediction", &body))
}

const CAPTIONS: [&str; 4] = [
    "Share of masked pieces that are predicted first.",
    "Share of masked pieces that are among the first five predictions.",
    "Mean of 1 / rank of the true piece.",
    "exp of the mean -ln probability of the true piece; lower is better.",
];

fn html_table(lines: &[Vec<String>]) -> String {
    let escaped = |line: &Vec<String>| line.iter().map(|cell| escape(cell)).collect::<Vec<_>>();
    let rows: Vec<_> = lines.iter().skip(1).map(|line| ("", escaped(line))).collect();
    table("probe", &lines.first().map(escaped).unwrap_or_default(), &rows)
}

/// A measure by group, one line per model and context.
fn drawn(probe: &Probe, measure: usize) -> Result<String> {
    let names = group_names(probe);
    let (label, of, _) = MEASURES[measure];
    let lines = sides(probe).enumerate().map(|(colour, (model, context))| {
        let point = |(x, group): (usize, &String)| Some((x as f64, of(&scores(model, context, group)?)));
        let points = names.iter().enumerate().filter_map(point).collect();
        Line { name: format!("{}, {}", model.name, CONTEXTS[context]), colour, points, ..Line::default() }
    });
    let lines: Vec<Line> = lines.collect();
    plot::lines(label, &Axis::Categories { label: "words".into(), names: names.clone() }, &lines)
}
