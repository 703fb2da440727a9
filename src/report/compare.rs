//! Arms against the baseline arm: mean, difference and paired t-test over topics. Terminal and HTML both take
//! them from here, so that they never disagree.

use std::collections::BTreeMap;

use super::results::{Cell, Results};
use super::text::text_table;
use crate::ir::significance::{holm, paired_t};
use crate::{Error, Result};

/// One arm at full size.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub arm: String,
    /// Topics with a value of the arm's first measure.
    pub topics: usize,
    /// One per measure, in the order of `Results::measures`.
    pub entries: Vec<Entry>,
}

/// One arm and one measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub mean: f64,
    /// Standard deviation over seeds, if there are several.
    pub deviation: Option<f64>,
    /// `None` for the baseline itself.
    pub against: Option<Against>,
}

impl Entry {
    /// The mean, with its deviation over seeds where there is one.
    pub fn mean_text(&self) -> String {
        match self.deviation {
            Some(deviation) => format!("{:.4} ± {deviation:.4}", self.mean),
            None => format!("{:.4}", self.mean),
        }
    }
}

/// An arm's difference to the baseline, over the topics that both have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Against {
    /// Topics of both.
    pub topics: usize,
    /// Mean of arm - baseline.
    pub difference: f64,
    /// Two-sided paired t-test, uncorrected.
    pub p: f64,
    /// `p` after Holm's correction over the arms of the table, measure by measure.
    pub holm: f64,
}

impl Against {
    /// `**` below 0.01, `*` below 0.05, after correction.
    pub fn marker(&self) -> &'static str {
        match self.holm {
            p if p < 0.01 => "**",
            p if p < 0.05 => "*",
            _ => "",
        }
    }
}

/// The table of arms.
///
/// # Errors
/// `Error::Data` when the baseline has no full-size cell, a value is missing, or an arm shares no
/// topic with the baseline.
pub fn rows(results: &Results) -> Result<Vec<Row>> {
    if results.measures.is_empty() {
        return Err(Error::data("results.json names no measure: nothing to report"));
    }
    let baseline = results.table_cell(&results.baseline).ok_or_else(|| {
        Error::data(format!(
            "results.json: the baseline arm \"{}\" has no full-size result (arms: {})",
            results.baseline,
            results.arms().join(", ")
        ))
    })?;
    let mut rows = Vec::new();
    for arm in results.arms() {
        let Some(cell) = results.table_cell(arm) else { continue };
        let entries = results.measures.iter().map(|measure| {
            let against =
                if arm == results.baseline { None } else { Some(against(cell, baseline, measure)?) };
            Ok(Entry { mean: cell.mean(measure)?, deviation: cell.deviation(measure), against })
        });
        let topics = cell.topics(&results.measures[0])?.len();
        rows.push(Row { arm: arm.into(), topics, entries: entries.collect::<Result<_>>()? });
    }
    for measure in 0..results.measures.len() {
        correct(rows.iter_mut().filter_map(|row| row.entries[measure].against.as_mut()));
    }
    Ok(rows)
}

/// Arms fine-tuned on `topics` topics against the baseline at the same number, corrected over these arms;
/// empty if the baseline was not. The table of arms covers all topics.
///
/// # Errors
/// As [`rows`].
pub fn at_size<'a>(results: &'a Results, topics: usize, measure: &str) -> Result<BTreeMap<&'a str, Against>> {
    let cells = || results.cells.iter().filter(|cell| !cell.all_topics && cell.train_topics == Some(topics));
    let Some(baseline) = cells().find(|cell| cell.arm == results.baseline) else {
        return Ok(BTreeMap::new());
    };
    let others = cells().filter(|cell| cell.arm != results.baseline);
    let mut tested = others
        .map(|cell| Ok((cell.arm.as_str(), against(cell, baseline, measure)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    correct(tested.values_mut());
    Ok(tested)
}

/// Holm's correction over tests that are read together.
fn correct<'a>(tested: impl Iterator<Item = &'a mut Against>) {
    let tested: Vec<_> = tested.collect();
    let corrected = holm(&tested.iter().map(|against| against.p).collect::<Vec<_>>());
    for (against, p) in tested.into_iter().zip(corrected) {
        against.holm = p;
    }
}

fn against(cell: &Cell, baseline: &Cell, measure: &str) -> Result<Against> {
    let theirs = baseline.topics(measure)?;
    let (a, b): (Vec<_>, Vec<_>) = cell
        .topics(measure)?
        .iter()
        .filter_map(|(topic, &value)| theirs.get(topic).map(|&other| (value, other)))
        .unzip();
    if a.is_empty() {
        return Err(Error::data(format!(
            "results.json: arms \"{}\" and \"{}\" share no topic of {measure}: they were measured on different \
             test sets",
            cell.arm, baseline.arm
        )));
    }
    let test = paired_t(&a, &b)?;
    Ok(Against { topics: a.len(), difference: test.mean_difference, p: test.p, holm: test.p })
}

/// What the numbers of the table mean, in the same words everywhere.
pub fn legend(results: &Results) -> String {
    let seeds = results.cells.iter().map(|cell| cell.repeats.len()).max().unwrap_or(0);
    let repeated = if seeds > 1 {
        format!(" Means ± standard deviations over {seeds} seeds; tests use each topic's mean over seeds.")
    } else {
        String::new()
    };
    format!(
        "diff: mean difference to \"{}\" over the topics of both; p: two-sided paired t-test over these topics, \
         uncorrected; * and **: p below 0.05 and 0.01 after Holm's correction over the arms, each measure by itself.{repeated}",
        results.baseline
    )
}

/// Four digits, as trec_eval prints measures.
pub fn p_text(p: f64) -> String {
    if p < 0.0001 { "<0.0001".into() } else { format!("{p:.4}") }
}

/// The table of arms for a terminal, its legend below.
///
/// # Errors
/// As [`rows`].
pub fn table_text(results: &Results) -> Result<String> {
    let mut head = vec!["arm".to_string(), "topics".into()];
    for measure in &results.measures {
        head.extend([measure.clone(), "diff".into(), "p".into()]);
    }
    let mut lines = vec![head];
    for row in rows(results)? {
        let mut line = vec![row.arm, row.topics.to_string()];
        for entry in row.entries {
            line.push(entry.mean_text());
            match entry.against {
                Some(a) => line.extend([format!("{:+.4}", a.difference), p_text(a.p) + a.marker()]),
                None => line.extend(["baseline".into(), "-".into()]),
            }
        }
        lines.push(line);
    }
    Ok(text_table(&lines) + &legend(results) + "\n")
}
