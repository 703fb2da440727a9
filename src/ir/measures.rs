//! Measures under trec_eval's names, and their means over topics. A name means exactly what trec_eval
//! means by it; what trec_eval does not have (the MS MARCO MRR, the exponential nDCG, judged_k) has a
//! name that trec_eval does not use, so that two numbers of one name can always be compared.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;

use super::qrels::Qrels;
use super::ranking::{self, Ranking, total};
use super::run::Run;
use crate::{Error, Result};

/// What is measured. `k` is a rank from 1. "Relevant" is a label of at least `Options::level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Measure {
    /// `num_q`: topics in the average.
    NumQ,
    /// `num_ret`: retrieved documents.
    NumRet,
    /// `num_rel`: relevant documents, retrieved or not.
    NumRel,
    /// `num_rel_ret`: relevant documents that were retrieved.
    NumRelRet,
    /// `map`: average precision; the sum of precisions at relevant ranks over `num_rel`.
    Map,
    /// `gm_map`: average precision, its geometric mean over topics (each at least 0.00001).
    GmMap,
    /// `Rprec`: precision at rank `num_rel`.
    RPrec,
    /// `bpref`: Buckley and Voorhees, SIGIR 2004; unjudged documents do not count.
    Bpref,
    /// `recip_rank`: one over the rank of the first relevant document, at any depth.
    RecipRank,
    /// `iprec_at_recall_0.10`: the highest precision at or after this recall, in hundredths.
    IprecAtRecall(u32),
    /// `P_k`: relevant documents in the first k, over k.
    P(usize),
    /// `recall_k`: relevant documents in the first k, over `num_rel`.
    Recall(usize),
    /// `ndcg`: sum of label / log2(rank + 1) over the same sum of the best order of all judged.
    Ndcg,
    /// `ndcg_cut_k`: as `ndcg`, both sums cut at k.
    NdcgCut(usize),
    /// `map_cut_k`: `map` of the first k.
    MapCut(usize),
    /// `success_k`: 1 where a relevant document is in the first k.
    Success(usize),
    /// `ndcg_exp_cut_k`: nDCG with the gain 2^label - 1 of Burges et al. 2005 (gdeval). Not trec_eval's.
    NdcgExpCut(usize),
    /// `judged_k`: judged documents in the first k, over k. Not trec_eval's.
    Judged(usize),
    /// `msmarco_mrr_k`: reciprocal rank in the first k of the rank column (ties: document id
    /// ascending), averaged over all topics of the qrels. Not trec_eval's.
    MsMarcoMrr(usize),
}

/// trec_eval's cut-offs for a measure that is named without one.
const CUTOFFS: [usize; 9] = [5, 10, 15, 20, 30, 100, 200, 500, 1000];

type WithCutoff = fn(usize) -> Measure;

/// Measures with a cut-off: the name, how to make it, the cut-offs of the bare name.
const CUT: [(&str, WithCutoff, &[usize]); 8] = [
    ("P", Measure::P, &CUTOFFS),
    ("recall", Measure::Recall, &CUTOFFS),
    ("ndcg_cut", Measure::NdcgCut, &CUTOFFS),
    ("map_cut", Measure::MapCut, &CUTOFFS),
    ("success", Measure::Success, &[1, 5, 10]),
    ("ndcg_exp_cut", Measure::NdcgExpCut, &[5, 10, 20]),
    ("judged", Measure::Judged, &[5, 10, 20, 100]),
    ("msmarco_mrr", Measure::MsMarcoMrr, &[10, 100]),
];

/// Measures without a parameter.
const PLAIN: [(&str, Measure); 10] = [
    ("num_q", Measure::NumQ),
    ("num_ret", Measure::NumRet),
    ("num_rel", Measure::NumRel),
    ("num_rel_ret", Measure::NumRelRet),
    ("map", Measure::Map),
    ("gm_map", Measure::GmMap),
    ("Rprec", Measure::RPrec),
    ("bpref", Measure::Bpref),
    ("recip_rank", Measure::RecipRank),
    ("ndcg", Measure::Ndcg),
];

const RECALL_LEVELS: &str = "iprec_at_recall";

impl Measure {
    /// The measures that one name asks for: `official` is trec_eval's default set, a bare name with a
    /// cut-off means trec_eval's cut-offs, `ndcg_cut.5,10` and `ndcg_cut_5,10` list them.
    pub fn expand(name: &str) -> Result<Vec<Self>> {
        if name == "official" {
            return Ok(Self::official());
        }
        if let Some((_, measure)) = PLAIN.iter().find(|(plain, _)| *plain == name) {
            return Ok(vec![*measure]);
        }
        if let Some(levels) = name.strip_prefix(RECALL_LEVELS) {
            return match levels.strip_prefix(['.', '_']) {
                Some(levels) => levels.split(',').map(|level| recall_level(name, level)).collect(),
                None if levels.is_empty() => {
                    Ok((0..=10).map(|tenth| Self::IprecAtRecall(tenth * 10)).collect())
                }
                None => Err(unknown(name)),
            };
        }
        for (stem, make, cutoffs) in CUT {
            let Some(rest) = name.strip_prefix(stem) else { continue };
            if rest.is_empty() {
                return Ok(cutoffs.iter().map(|&cutoff| make(cutoff)).collect());
            }
            if let Some(list) = rest.strip_prefix(['.', '_'])
                && let Ok(list) =
                    list.split(',').map(str::parse).collect::<std::result::Result<Vec<usize>, _>>()
                && !list.contains(&0)
            {
                return Ok(list.into_iter().map(make).collect());
            }
        }
        Err(unknown(name))
    }

    /// What trec_eval prints when no measure is named, in its order (without the run's tag).
    pub fn official() -> Vec<Self> {
        let mut list = vec![Self::NumQ, Self::NumRet, Self::NumRel, Self::NumRelRet, Self::Map, Self::GmMap];
        list.extend([Self::RPrec, Self::Bpref, Self::RecipRank]);
        list.extend((0..=10).map(|tenth| Self::IprecAtRecall(tenth * 10)));
        list.extend(CUTOFFS.map(Self::P));
        list
    }

    /// Whether the value is a count: its summary is a sum, and it prints as an integer.
    pub fn is_count(self) -> bool {
        matches!(self, Self::NumQ | Self::NumRet | Self::NumRel | Self::NumRelRet)
    }

    /// Whether a single topic has a value to print; trec_eval prints none for these two.
    pub fn has_topic_value(self) -> bool {
        !matches!(self, Self::NumQ | Self::GmMap)
    }
}

fn recall_level(name: &str, text: &str) -> Result<Measure> {
    match text.parse::<f64>() {
        Ok(level) if (0.0..=1.0).contains(&level) => {
            Ok(Measure::IprecAtRecall((level * 100.0).round() as u32))
        }
        _ => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> Error {
    Error::config(format!(
        "'{name}' is no measure; there are {}, with a rank k each of {}, {RECALL_LEVELS}_0.10 and the set official",
        PLAIN.map(|(plain, _)| plain).join(", "),
        CUT.map(|(stem, _, _)| format!("{stem}_k")).join(", ")
    ))
}

impl FromStr for Measure {
    type Err = Error;

    /// One measure by its full name, as `Display` writes it.
    fn from_str(name: &str) -> Result<Self> {
        match Self::expand(name)?.as_slice() {
            [measure] => Ok(*measure),
            several => Err(Error::config(format!(
                "'{name}' names {} measures where one is needed; write for example {}",
                several.len(),
                several[0]
            ))),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = |f: &mut fmt::Formatter<'_>, stem: &str, k: usize| f.pad(&format!("{stem}_{k}"));
        match *self {
            Self::IprecAtRecall(level) => f.pad(&format!("{RECALL_LEVELS}_{:.2}", f64::from(level) / 100.0)),
            Self::P(k) => cut(f, "P", k),
            Self::Recall(k) => cut(f, "recall", k),
            Self::NdcgCut(k) => cut(f, "ndcg_cut", k),
            Self::MapCut(k) => cut(f, "map_cut", k),
            Self::Success(k) => cut(f, "success", k),
            Self::NdcgExpCut(k) => cut(f, "ndcg_exp_cut", k),
            Self::Judged(k) => cut(f, "judged", k),
            Self::MsMarcoMrr(k) => cut(f, "msmarco_mrr", k),
            plain => f.pad(PLAIN.iter().find(|(_, measure)| *measure == plain).map_or("", |(name, _)| name)),
        }
    }
}

/// How trec_eval is told to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// `-c`: average over all topics of the qrels; a topic that the run lacks counts as 0.
    pub complete: bool,
    /// `-l`: the lowest label that is relevant; at least 0. Does not touch nDCG.
    pub level: i32,
    /// `-J`: drop documents without a judgement (or with a negative one) before measuring.
    pub judged_only: bool,
    /// `-M`: documents a topic that are looked at, in trec_eval's order, before `judged_only`.
    pub depth: Option<usize>,
    /// Compare scores as f64, as trec_eval 10.0 does, and not as f32, as 9.0.8 and pytrec_eval do.
    pub f64_scores: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { complete: false, level: 1, judged_only: false, depth: None, f64_scores: false }
    }
}

/// The values of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    pub measures: Vec<Measure>,
    /// topic -> values in the order of `measures`. Topics without a relevant document are here, with 0.
    /// `gm_map` holds the topic's average precision.
    pub topics: BTreeMap<String, Vec<f64>>,
    /// The summary of each measure: the mean over `topics`, the sum for counts, the geometric mean for
    /// `gm_map`, the sum over all topics of the qrels divided by their number for `msmarco_mrr_k`.
    pub means: Vec<f64>,
    /// Judged topics that the run lacks. Without `complete` they are in no mean: worth a warning.
    pub missing: usize,
    /// Topics of the run that have no judgement; they count nowhere.
    pub unjudged: usize,
}

impl Evaluation {
    /// The values of one measure, topics in byte order; `None` where it was not asked for.
    pub fn column(&self, measure: Measure) -> Option<Vec<f64>> {
        let place = self.measures.iter().position(|&other| other == measure)?;
        Some(self.topics.values().map(|values| values[place]).collect())
    }
}

/// The lowest average precision that `gm_map` multiplies, as in trec_eval.
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
    let topics = judged
        .par_iter()
        .filter(|topic| options.complete || run.get(topic).is_some())
        .map(|&topic| Ok((topic.to_owned(), topic_values(qrels, run, topic, measures, options)?)))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .collect::<BTreeMap<String, Vec<f64>>>();
    let means = (0..measures.len()).map(|m| summary(&topics, measures[m], m, judged.len())).collect();
    let unjudged = run.topics().filter(|topic| qrels.get(topic).is_none()).count();
    Ok(Evaluation { measures: measures.to_vec(), topics, means, missing, unjudged })
}

fn summary(topics: &BTreeMap<String, Vec<f64>>, measure: Measure, place: usize, judged: usize) -> f64 {
    let values = topics.values().map(|values| values[place]);
    let count = topics.len() as f64;
    match measure {
        Measure::GmMap => (total(values.map(|ap| ap.max(LEAST_FOR_GEOMETRIC).ln())) / count).exp(),
        Measure::MsMarcoMrr(_) => total(values) / judged as f64,
        _ if measure.is_count() => total(values),
        _ => total(values) / count,
    }
}

fn topic_values(
    qrels: &Qrels,
    run: &Run,
    topic: &str,
    measures: &[Measure],
    options: &Options,
) -> Result<Vec<f64>> {
    let empty = Default::default();
    let labels = qrels.get(topic).unwrap_or(&empty);
    let no_hits = Default::default();
    let list = run.list(topic).unwrap_or(&no_hits);
    let ranking = Ranking::new(labels, &list.hits, options);
    measures
        .iter()
        .map(|&measure| match measure {
            Measure::MsMarcoMrr(k) => ranking::msmarco_reciprocal_rank(labels, list, k, options.level)
                .map_err(|error| Error::data(format!("topic '{topic}': {error}"))),
            _ => Ok(ranking.value(measure)),
        })
        .collect()
}
