//! Measures of a run, topic by topic, and their means. Names and formulas are trec_eval's; other measures
//! have names that trec_eval does not use (see `Measure`).

mod gains;
mod name;
mod options;
mod ranking;

use std::collections::BTreeMap;

use rayon::prelude::*;

pub use name::Measure;
pub use options::Options;
use ranking::{Ranking, total};

use super::qrels::Qrels;
use super::run::Run;
use crate::{Error, Result};

/// The values of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    pub measures: Vec<Measure>,
    /// topic -> values in the order of `measures`. Topics without a relevant document are included, with 0.
    /// The geometric means have the topic's `map` and `bpref` here.
    pub topics: BTreeMap<String, Vec<f64>>,
    /// topic -> its labels in rank order as text, as long as the longest `relstring` asked for.
    pub relstrings: BTreeMap<String, String>,
    /// The summary of each measure: the mean over `topics`, the sum for counts, the geometric mean for
    /// `gm_map` and `gm_bpref`, the sum over all topics of the qrels divided by their number for `msmarco_mrr_k`.
    pub means: Vec<f64>,
    /// Judged topics that the run lacks. Without `complete` no mean includes them, which deserves a warning.
    pub missing: usize,
    /// Topics of the run that have no judgement; they count nowhere.
    pub unjudged: usize,
}

impl Evaluation {
    /// The values of one measure, topics in byte order; `None` if it was not asked for.
    pub fn column(&self, measure: Measure) -> Option<Vec<f64>> {
        let place = self.measures.iter().position(|&other| other == measure)?;
        Some(self.topics.values().map(|values| values[place]).collect())
    }
}

/// The lowest value that a geometric mean multiplies, as in trec_eval.
const LEAST_FOR_GEOMETRIC: f64 = 0.00001;

/// Measures a run. Errors: no topic in common, a negative level, a rank column that `msmarco_mrr_k`
/// needs and cannot read.
pub fn evaluate(qrels: &Qrels, run: &Run, measures: &[Measure], options: &Options) -> Result<Evaluation> {
    if options.level < 0 {
        return Err(Error::config(format!(
            "the relevance level is {}; negative labels mean not judged, so it must be 0 or more",
            options.level
        )));
    }
    let judged = qrels.topics().collect::<Vec<_>>();
    let missing = judged.iter().filter(|topic| run.get(topic).is_none()).count();
    if missing == judged.len() {
        return Err(Error::data(format!(
            "no topic of the run is judged: the run has topics such as '{}', the qrels such as '{}'",
            run.topics().next().unwrap_or_default(),
            judged.first().copied().unwrap_or_default()
        )));
    }
    let length = measures.iter().filter_map(|measure| measure.relstring_length()).max();
    let found = judged
        .par_iter()
        .filter(|topic| options.complete || run.get(topic).is_some())
        .map(|&topic| topic_values(qrels, run, topic, measures, options, length.unwrap_or(0)))
        .collect::<Result<Vec<_>>>()?;
    let (mut topics, mut relstrings) = (BTreeMap::new(), BTreeMap::new());
    for (topic, values, text) in found {
        topics.insert(topic.to_owned(), values);
        if length.is_some() {
            relstrings.insert(topic.to_owned(), text);
        }
    }
    let means = (0..measures.len()).map(|m| summary(&topics, measures[m], m, judged.len())).collect();
    let unjudged = run.topics().filter(|topic| qrels.get(topic).is_none()).count();
    Ok(Evaluation { measures: measures.to_vec(), topics, relstrings, means, missing, unjudged })
}

fn summary(topics: &BTreeMap<String, Vec<f64>>, measure: Measure, place: usize, judged: usize) -> f64 {
    let values = topics.values().map(|values| values[place]);
    let count = topics.len() as f64;
    match measure {
        Measure::GmMap | Measure::GmBpref => {
            (total(values.map(|value| value.max(LEAST_FOR_GEOMETRIC).ln())) / count).exp()
        }
        Measure::MsMarcoMrr(_) => total(values) / judged as f64,
        _ if measure.is_count() => total(values),
        _ => total(values) / count,
    }
}

fn topic_values<'a>(
    qrels: &Qrels,
    run: &Run,
    topic: &'a str,
    measures: &[Measure],
    options: &Options,
    length: usize,
) -> Result<(&'a str, Vec<f64>, String)> {
    let empty = Default::default();
    let labels = qrels.get(topic).unwrap_or(&empty);
    let no_hits = Default::default();
    let list = run.list(topic).unwrap_or(&no_hits);
    let ranking = Ranking::new(labels, &list.hits, options);
    let value = |&measure: &Measure| match measure {
        Measure::MsMarcoMrr(k) => ranking::msmarco_reciprocal_rank(labels, list, k, options.level)
            .map_err(|error| Error::data(format!("topic '{topic}': {error}"))),
        _ => Ok(ranking.value(measure)),
    };
    let values = measures.iter().map(value).collect::<Result<Vec<_>>>()?;
    Ok((topic, values, ranking.text(length)))
}
