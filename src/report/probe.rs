//! What `probe` found, for people: models side by side, in the terminal and as a page.

use super::html::{escape, figure, shell, table};
use super::plot::{self, Axis, Line};
use super::text_table;
use crate::Result;
use crate::probe::tally::{Probe, Scores};

const CONTEXTS: [&str; 2] = ["query alone", "with document"];

/// One line a model and context: measures over all words, then accuracy@1 by group.
fn lines(probe: &Probe) -> Vec<Vec<String>> {
    let groups = group_names(probe);
    let mut head: Vec<String> =
        ["model", "context", "acc@1", "acc@5", "MRR", "perplexity"].map(String::from).into();
    head.extend(groups.iter().skip(1).map(|group| format!("acc@1 {group}")));
    let mut lines = vec![head];
    for model in &probe.models {
        for (context, name) in CONTEXTS.iter().enumerate() {
            let scores = |group: &str| -> Option<Scores> {
                let found = model.groups.iter().find(|g| g.group == group)?;
                Some(if context == 0 { found.query_alone } else { found.with_document })
            };
            let all = scores("all").unwrap_or_default();
            let mut line = vec![model.name.clone(), (*name).to_owned()];
            line.extend([all.accuracy_1, all.accuracy_5, all.mrr].map(|x| format!("{x:.4}")));
            line.push(format!("{:.1}", all.perplexity));
            let by_group = groups.iter().skip(1).map(|g| scores(g));
            line.extend(by_group.map(|s| s.map_or("-".into(), |s| format!("{:.4}", s.accuracy_1))));
            lines.push(line);
        }
    }
    lines
}

/// Groups that some model has, "all" first.
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
    text_table(&lines(probe)) + &legend(probe) + "\n"
}

/// The page: the table, and accuracy@1 by group as a plot.
///
/// # Errors
/// `Error::Data` when a plot cannot be drawn.
pub fn page(probe: &Probe) -> Result<String> {
    let all = lines(probe);
    let (head, rows) = all.split_first().map_or((&[][..], &[][..]), |(head, rows)| (&head[..], rows));
    let head: Vec<String> = head.iter().map(|cell| escape(cell)).collect();
    let rows: Vec<(&str, Vec<String>)> =
        rows.iter().map(|row| ("", row.iter().map(|cell| escape(cell)).collect())).collect();
    let mut body = format!("<h1>Query prediction</h1>\n{}", table("probe", &head, &rows));
    body += &format!("<p class=\"note\">{}</p>\n", escape(&legend(probe)));
    let names = group_names(probe);
    let mut drawn = Vec::new();
    for (i, model) in probe.models.iter().enumerate() {
        for (context, label) in CONTEXTS.iter().enumerate() {
            let points = model.groups.iter().filter_map(|group| {
                let x = names.iter().position(|name| *name == group.group)? as f64;
                let scores = if context == 0 { group.query_alone } else { group.with_document };
                Some((x, scores.accuracy_1))
            });
            let name = format!("{}, {label}", model.name);
            drawn.push(Line { name, colour: 2 * i + context, points: points.collect(), ..Line::default() });
        }
    }
    let axis = Axis::Categories { label: "words".into(), names };
    body += &figure(
        &plot::lines("accuracy@1", &axis, &drawn)?,
        "Share of masked pieces that are predicted first.",
    );
    Ok(shell("Query prediction", &body))
}
