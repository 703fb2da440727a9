//! What an experiment found: the folds of every arm joined and measured, as `results.json`, table and
//! report.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::fold::{Study, StudySettings};
use super::task::{Task, ranked, size_name, slug};
use crate::config::{Arm, Experiment, need};
use crate::files;
use crate::ir::measures::{self, Evaluation, Measure, evaluate};
use crate::ir::run::Run;
use crate::model::checkpoint::HeadStart;
use crate::report::results::{Cell, Results, Training};
use crate::report::{table_text, write_experiment_report};
use crate::{Error, Result};

/// Rows of the table that belong to no arm.
pub const FIRST_STAGE: &str = "first stage";
pub const ZERO_SHOT: &str = ", zero-shot";

/// Joins the folds of every arm and size, measures, writes `results.json`, table and report.
pub fn conclude(
    experiment: &Experiment,
    study: &Study,
    tasks: &[Task],
    plan: String,
    dir: &Path,
) -> Result<()> {
    let list = experiment.measures.iter().map(|name| name.parse()).collect::<Result<Vec<Measure>>>()?;
    let mut runs: BTreeMap<(usize, Option<usize>), Vec<Run>> = BTreeMap::new();
    for task in tasks {
        let arm = experiment.arms.iter().position(|arm| arm.name == task.arm.name).unwrap_or(0);
        let run = Run::read(&task.dir(dir).join("run.txt"))?;
        let repeats = runs.entry((arm, task.topics)).or_default();
        repeats.resize(repeats.len().max(task.repeat as usize + 1), Run::default());
        repeats[task.repeat as usize].merge(run)?;
    }
    let mut cells = vec![first_stage(experiment, study, &list)?];
    for ((arm, topics), repeats) in &runs {
        let Arm { name, start, .. } = &experiment.arms[*arm];
        if *topics == Some(0) && *start == HeadStart::QdppHead {
            // QDPP ranks without fine-tuning, so it has a row of the table as well as a point of the curve
            let zero_shot =
                cell(&experiment.measures, study, &format!("{name}{ZERO_SHOT}"), None, &repeats[..1], &list)?;
            cells.push(Cell { train_topics: None, ..zero_shot });
        }
        for (repeat, run) in repeats.iter().enumerate() {
            let suffix = if repeat == 0 { String::new() } else { format!("-repeat-{}", repeat + 1) };
            let file = format!("{}-{}{suffix}.run", slug(name), size_name(*topics));
            run.write(&dir.join(file), &slug(name))?;
        }
        cells.push(cell(&experiment.measures, study, name, *topics, repeats, &list)?);
    }
    let results = Results {
        title: experiment.title.clone(),
        measures: experiment.measures.clone(),
        baseline: experiment.baseline.clone().unwrap_or(experiment.arms[0].name.clone()),
        cells,
        training: training(&experiment.arms)?,
        facts: facts(experiment, study, plan)?,
    };
    let text = serde_json::to_string_pretty(&results)
        .map_err(|e| Error::data(format!("results.json cannot be written: {e}")))?;
    files::write(&dir.join("results.json"), text.as_bytes())?;
    tell!("\n{}", table_text(&results)?);
    tell!("report: {}", write_experiment_report(dir)?.display());
    Ok(())
}

/// The candidates in the first stage's own order.
fn first_stage(experiment: &Experiment, study: &Study, list: &[Measure]) -> Result<Cell> {
    let path = need("data.run", &study.settings.data.run)?;
    let all = Run::read(path)?;
    let mut run = Run::default();
    for topic in study.folds.iter().flat_map(|fold| ranked(experiment.split, fold)) {
        if let Some(head) = all.head(&topic, study.settings.fine.depth) {
            run.merge(head)?;
        }
    }
    Ok(Cell { train_topics: None, ..cell(&experiment.measures, study, FIRST_STAGE, None, &[run], list)? })
}

/// Measures of an arm. Each topic's value is its mean over the repetitions, so that a test over topics is
/// about the value expected of one repetition.
fn cell(
    names: &[String],
    study: &Study,
    arm: &str,
    topics: Option<usize>,
    runs: &[Run],
    list: &[Measure],
) -> Result<Cell> {
    let evaluated = runs.iter().map(|run| evaluate(&study.qrels, run, list, &measures::Options::default()));
    let results = evaluated.collect::<Result<Vec<_>>>()?;
    let n = results.len() as f64;
    let column = |m: usize| {
        let mut sums: BTreeMap<String, f64> = BTreeMap::new();
        for (topic, values) in results.iter().flat_map(|result| &result.topics) {
            *sums.entry(topic.clone()).or_default() += values[m];
        }
        sums.into_iter().map(|(topic, sum)| (topic, sum / n)).collect()
    };
    let means = |result: &Evaluation| names.iter().cloned().zip(result.means.iter().copied()).collect();
    let mean = |m: usize| results.iter().map(|result| result.means[m]).sum::<f64>() / n;
    let largest = study.folds.iter().map(|fold| fold.train.len()).max();
    Ok(Cell {
        arm: arm.to_owned(),
        train_topics: topics.or(largest),
        all_topics: topics.is_none(),
        means: names.iter().cloned().enumerate().map(|(m, name)| (name, mean(m))).collect(),
        repeats: if results.len() > 1 { results.iter().map(means).collect() } else { Vec::new() },
        per_topic: names.iter().cloned().enumerate().map(|(m, name)| (name, column(m))).collect(),
    })
}

fn training(arms: &[Arm]) -> Result<Vec<Training>> {
    let named = arms.iter().filter_map(|arm| Some((arm, arm.metrics.as_ref()?)));
    named
        .map(|(arm, path)| {
            let metrics = fs::canonicalize(path).map_err(|e| Error::io("read", path, e))?;
            Ok(Training { name: arm.name.clone(), metrics })
        })
        .collect()
}

fn facts(experiment: &Experiment, study: &Study, plan: String) -> Result<Vec<(String, String)>> {
    let StudySettings { seed, data, fine, .. } = study.settings;
    let topics: usize = study.folds.iter().map(|fold| ranked(experiment.split, fold).len()).sum();
    let first = Run::read(need("data.run", &data.run)?)?;
    let folds = data.folds.as_ref().map_or("drawn, folds.json".into(), |p| p.display().to_string());
    Ok(vec![
        ("topics".into(), topics.to_string()),
        ("seeds".into(), format!("{} from {}", fine.seeds, seed)),
        ("folds".into(), format!("{} ({folds})", study.folds.len())),
        ("ranked".into(), format!("{:?} topics of each fold", experiment.split).to_lowercase()),
        ("first stage".into(), first.tag().unwrap_or("unknown").to_owned()),
        (
            "program".into(),
            format!("ctune-dist {} ({})", env!("CARGO_PKG_VERSION"), env!("CTUNE_CODE_VERSION")),
        ),
        ("plan".into(), plan),
    ])
}
