//! Loss curves from `metrics.jsonl`. Runs that append to it may be killed and resumed at any moment, so a
//! line may be torn and steps may come twice; the reader copes.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// The losses that a training step may carry.
pub const LOSSES: [&str; 3] = ["loss", "mlm_loss", "qdpp_loss"];

/// The losses of one run by step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    pub name: String,
    /// One list of (step, value) for each of [`LOSSES`], ascending; empty if the run has no such loss.
    pub losses: [Vec<(f64, f64)>; 3],
    /// What the reader of the report must know: the file's absence, or lines that could not be read.
    pub note: Option<String>,
}

#[derive(Deserialize)]
struct Line {
    step: Option<u64>,
    loss: Option<f64>,
    mlm_loss: Option<f64>,
    qdpp_loss: Option<f64>,
}

/// Reads a run's losses. If a step was run again after a resume, its last value counts.
pub fn read(name: &str, path: &Path) -> Curves {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(cause) => {
            let note = Some(format!("{name}: {} cannot be read: {cause}", path.display()));
            return Curves { name: name.into(), note, ..Curves::default() };
        }
    };
    let mut steps: [BTreeMap<u64, f64>; 3] = Default::default();
    let mut unread = 0;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let Ok(line) = serde_json::from_str::<Line>(line) else {
            unread += 1;
            continue;
        };
        let values = [line.loss, line.mlm_loss, line.qdpp_loss];
        for (steps, value) in steps.iter_mut().zip(values) {
            if let (Some(step), Some(value)) = (line.step, value.filter(|value| value.is_finite())) {
                steps.insert(step, value);
            }
        }
    }
    let losses = steps.map(|steps| {
        // A loss that is 0 throughout is not part of the objective.
        let used = steps.values().any(|&value| value != 0.0);
        steps.into_iter().filter(|_| used).map(|(step, value)| (step as f64, value)).collect()
    });
    let note =
        (unread > 0).then(|| format!("{name}: {unread} unreadable lines of {} left out", path.display()));
    Curves { name: name.into(), losses, note }
}

/// A moving mean over a fiftieth of the curve. It is centred, so it does not lag behind a falling loss, and
/// it narrows towards the ends.
pub fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut sums = vec![0.0];
    for &(_, value) in points {
        sums.push(sums[sums.len() - 1] + value);
    }
    let mean = |(i, &(step, _)): (usize, &(f64, f64))| {
        let reach = (points.len() / 100).min(i).min(points.len() - 1 - i);
        (step, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1) as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

/// At most `most` evenly chosen points, including the last.
pub fn thin(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let every = points.len().div_ceil(most.max(1)).max(1);
    let last = points.len().saturating_sub(1);
    points.iter().enumerate().filter(|(i, _)| i % every == last % every).map(|(_, &point)| point).collect()
}
