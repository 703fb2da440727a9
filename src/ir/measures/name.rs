//! The names of measures. A name means exactly what it means in trec_eval. Measures that trec_eval lacks (the
//! MS MARCO MRR, the exponential nDCG, judged_k) have names that it does not use, so that two numbers of one
//! name can always be compared.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// What is measured, in the order in which trec_eval prints. `k` is a rank from 1. "Relevant" is a
/// label of at least `Options::level`. The formulas are in `ranking`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Measure {
    /// The run's tag: a text, which only the summary has.
    RunId,
    /// Topics in the average.
    NumQ,
    /// Retrieved documents.
    NumRet,
    /// Relevant documents, retrieved or not.
    NumRel,
    /// Relevant documents that were retrieved.
    NumRelRet,
    /// Average precision: the sum of precisions at relevant ranks over `num_rel`.
    Map,
    /// Geometric mean over topics of average precision (each at least 0.00001).
    GmMap,
    /// Precision at rank `num_rel`.
    RPrec,
    /// Buckley and Voorhees, SIGIR 2004; unjudged documents do not count.
    Bpref,
    /// One over the rank of the first relevant document, at any depth.
    RecipRank,
    /// The highest precision at or after this recall, in hundredths.
    IprecAtRecall(u32),
    /// Relevant documents in the first k, over k.
    P(usize),
    /// The labels of the first documents (10 when no number is given): a text, which only topics have.
    RelString(Option<usize>),
    /// Relevant documents in the first k, over `num_rel`.
    Recall(usize),
    /// Inferred average precision (Yilmaz and Aslam, CIKM 2006): label -1 is "in the pool, not judged".
    InfAp,
    /// Geometric mean over topics of `bpref` (each at least 0.00001).
    GmBpref,
    /// Precision at a multiple of `num_rel`, in hundredths.
    RPrecMult(u32),
    /// Relevant retrieved documents minus the other retrieved ones.
    Utility,
    /// Mean of `iprec_at_recall` at 0.0, 0.1, ... 1.0.
    ElevenPtAvg,
    /// `G` with gain 1 for every relevant document.
    BinG,
    /// Gains, each over the logarithm of the gain that better ranks could have held and did not.
    G,
    /// Sum of label / log2(rank + 1) over the same sum of the best order of all judged.
    Ndcg,
    /// `ndcg` at each relevant rank, averaged.
    NdcgRel,
    /// `ndcg` at the ranks where the best order goes down to a lower label, averaged.
    Rndcg,
    /// As `ndcg`, both sums cut at k.
    NdcgCut(usize),
    /// `map` of the first k.
    MapCut(usize),
    /// `P_k` over the highest possible `P_k`.
    RelativeP(usize),
    /// 1 if a relevant document is in the first k.
    Success(usize),
    /// Relevant retrieved documents over all retrieved.
    SetP,
    /// `set_P` over the highest possible `set_P`.
    SetRelativeP,
    /// Relevant retrieved documents over `num_rel`.
    SetRecall,
    /// `set_P` times `set_recall`.
    SetMap,
    /// Harmonic mean of `set_P` and `set_recall`.
    SetF,
    /// Retrieved documents that are judged and not relevant.
    NumNonrelJudgedRet,
    /// Rank-biased precision (Moffat and Zobel, TOIS 2008) with persistence 0.9.
    Rbp,
    /// What `rbp` could still gain from documents without a judgement.
    RbpResid,
    /// Documents without a judgement in the first k, over k.
    Unjudged(usize),
    /// nDCG with the gain 2^label - 1 of Burges et al. 2005 (gdeval). Not trec_eval's.
    NdcgExpCut(usize),
    /// Judged documents in the first k, over k. Not trec_eval's.
    Judged(usize),
    /// Reciprocal rank in the first k of the rank column (ties: document id ascending), averaged over
    /// all topics of the qrels. Not trec_eval's.
    MsMarcoMrr(usize),
}

/// What may follow a name, and what the bare name stands for.
#[derive(Clone, Copy)]
enum Suffix {
    Plain(Measure),
    /// `name_5`: cut-offs.
    Cut(fn(usize) -> Measure, &'static [usize]),
    /// `name_0.20`: shares, kept in hundredths.
    Share(fn(u32) -> Measure, &'static [u32]),
    /// `relstring_20`.
    Length,
}

const CUTOFFS: &[usize] = &[5, 10, 15, 20, 30, 100, 200, 500, 1000];
const TENTHS: &[u32] = &[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100];
const FIFTHS: &[u32] = &[20, 40, 60, 80, 100, 120, 140, 160, 180, 200];

/// Names in the order of `Measure`.
const NAMES: [(&str, Suffix); 40] = [
    ("runid", Suffix::Plain(Measure::RunId)),
    ("num_q", Suffix::Plain(Measure::NumQ)),
    ("num_ret", Suffix::Plain(Measure::NumRet)),
    ("num_rel", Suffix::Plain(Measure::NumRel)),
    ("num_rel_ret", Suffix::Plain(Measure::NumRelRet)),
    ("map", Suffix::Plain(Measure::Map)),
    ("gm_map", Suffix::Plain(Measure::GmMap)),
    ("Rprec", Suffix::Plain(Measure::RPrec)),
    ("bpref", Suffix::Plain(Measure::Bpref)),
    ("recip_rank", Suffix::Plain(Measure::RecipRank)),
    ("iprec_at_recall", Suffix::Share(Measure::IprecAtRecall, TENTHS)),
    ("P", Suffix::Cut(Measure::P, CUTOFFS)),
    ("relstring", Suffix::Length),
    ("recall", Suffix::Cut(Measure::Recall, CUTOFFS)),
    ("infAP", Suffix::Plain(Measure::InfAp)),
    ("gm_bpref", Suffix::Plain(Measure::GmBpref)),
    ("Rprec_mult", Suffix::Share(Measure::RPrecMult, FIFTHS)),
    ("utility", Suffix::Plain(Measure::Utility)),
    ("11pt_avg", Suffix::Plain(Measure::ElevenPtAvg)),
    ("binG", Suffix::Plain(Measure::BinG)),
    ("G", Suffix::Plain(Measure::G)),
    ("ndcg", Suffix::Plain(Measure::Ndcg)),
    ("ndcg_rel", Suffix::Plain(Measure::NdcgRel)),
    ("Rndcg", Suffix::Plain(Measure::Rndcg)),
    ("ndcg_cut", Suffix::Cut(Measure::NdcgCut, CUTOFFS)),
    ("map_cut", Suffix::Cut(Measure::MapCut, CUTOFFS)),
    ("relative_P", Suffix::Cut(Measure::RelativeP, CUTOFFS)),
    ("success", Suffix::Cut(Measure::Success, &[1, 5, 10])),
    ("set_P", Suffix::Plain(Measure::SetP)),
    ("set_relative_P", Suffix::Plain(Measure::SetRelativeP)),
    ("set_recall", Suffix::Plain(Measure::SetRecall)),
    ("set_map", Suffix::Plain(Measure::SetMap)),
    ("set_F", Suffix::Plain(Measure::SetF)),
    ("num_nonrel_judged_ret", Suffix::Plain(Measure::NumNonrelJudgedRet)),
    ("rbp", Suffix::Plain(Measure::Rbp)),
    ("rbp_resid", Suffix::Plain(Measure::RbpResid)),
    ("unj", Suffix::Cut(Measure::Unjudged, &[5, 10, 20])),
    ("ndcg_exp_cut", Suffix::Cut(Measure::NdcgExpCut, &[5, 10, 20])),
    ("judged", Suffix::Cut(Measure::Judged, &[5, 10, 20, 100])),
    ("msmarco_mrr", Suffix::Cut(Measure::MsMarcoMrr, &[10, 100])),
];

/// The last of trec_eval's own names in `NAMES`.
const LAST_OF_TREC: &str = "unj";
const OFFICIAL: [&str; 12] = [
    "runid",
    "num_q",
    "num_ret",
    "num_rel",
    "num_rel_ret",
    "map",
    "gm_map",
    "Rprec",
    "bpref",
    "recip_rank",
    "iprec_at_recall",
    "P",
];
const SET: [&str; 11] = [
    "runid",
    "num_q",
    "num_ret",
    "num_rel",
    "num_rel_ret",
    "utility",
    "set_P",
    "set_recall",
    "set_relative_P",
    "set_map",
    "set_F",
];

impl Suffix {
    /// What the bare name stands for.
    fn all(self) -> Vec<Measure> {
        match self {
            Self::Plain(measure) => vec![measure],
            Self::Cut(make, cutoffs) => cutoffs.iter().map(|&k| make(k)).collect(),
            Self::Share(make, shares) => shares.iter().map(|&share| make(share)).collect(),
            Self::Length => vec![Measure::RelString(None)],
        }
    }

    /// What the name stands for with `list` after it; `None` if it cannot have a list.
    fn with(self, list: &str) -> Option<Vec<Measure>> {
        let mut measures = match self {
            Self::Plain(_) => None,
            Self::Cut(make, _) => list.split(',').map(|k| rank(k).map(make)).collect::<Option<Vec<_>>>(),
            Self::Share(make, _) => list.split(',').map(|text| hundredths(text).map(make)).collect(),
            Self::Length => Some(vec![Measure::RelString(Some(rank(list)?))]),
        }?;
        measures.sort_unstable();
        Some(measures)
    }
}

fn named(list: &[&str]) -> Vec<Measure> {
    NAMES.iter().filter(|(name, _)| list.contains(name)).flat_map(|(_, suffix)| suffix.all()).collect()
}

fn rank(text: &str) -> Option<usize> {
    text.parse().ok().filter(|&k| k > 0)
}

fn hundredths(text: &str) -> Option<u32> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1000.0).contains(share))?;
    Some((share * 100.0).round() as u32)
}

impl Measure {
    /// The measures that one name asks for: a nickname of trec_eval's (`official`, `set`, `all_trec`), a
    /// name, which has trec_eval's cut-offs, or a name with a list, as `ndcg_cut.5,10` or `ndcg_cut_5,10`.
    pub fn expand(name: &str) -> Result<Vec<Self>> {
        match name {
            "official" => return Ok(Self::official()),
            "set" => return Ok(named(&SET)),
            "all_trec" => {
                let last = NAMES.iter().position(|(name, _)| *name == LAST_OF_TREC).unwrap_or(0);
                return Ok(NAMES[..=last].iter().flat_map(|(_, suffix)| suffix.all()).collect());
            }
            _ => (),
        }
        if let Some((_, suffix)) = NAMES.iter().find(|(plain, _)| *plain == name) {
            return Ok(suffix.all());
        }
        let with_list = NAMES.iter().filter_map(|(stem, suffix)| {
            let list = name.strip_prefix(stem)?.strip_prefix(['.', '_'])?;
            suffix.with(list).filter(|all| all.iter().all(|measure| measure.possible()))
        });
        with_list.into_iter().next().ok_or_else(|| unknown(name))
    }

    /// Whether a name is a nickname or has no list after it.
    pub fn is_bare(name: &str) -> bool {
        ["official", "set", "all_trec"].contains(&name) || NAMES.iter().any(|(plain, _)| *plain == name)
    }

    /// The name without cut-offs.
    pub fn stem(self) -> &'static str {
        self.parts().0
    }

    /// A recall is at most 1.
    fn possible(self) -> bool {
        !matches!(self, Self::IprecAtRecall(share) if share > 100)
    }

    /// What trec_eval prints when no measure is named.
    pub fn official() -> Vec<Self> {
        named(&OFFICIAL)
    }

    /// Whether the value is a count: its summary is a sum, and it prints as an integer.
    pub fn is_count(self) -> bool {
        use Measure::{NumNonrelJudgedRet, NumQ, NumRel, NumRelRet, NumRet};
        matches!(self, NumQ | NumRet | NumRel | NumRelRet | NumNonrelJudgedRet)
    }

    /// Whether it is a text and no number: its values are 0.
    pub fn is_text(self) -> bool {
        matches!(self, Self::RunId | Self::RelString(_))
    }

    /// Whether a single topic has a value to print; trec_eval prints none for these.
    pub fn has_topic_value(self) -> bool {
        !matches!(self, Self::RunId | Self::NumQ | Self::GmMap | Self::GmBpref)
    }

    /// Whether two runs can be compared by its values for topics.
    pub fn is_comparable(self) -> bool {
        self.has_topic_value() && !self.is_count() && !self.is_text()
    }

    /// Labels that `relstring` shows.
    pub fn relstring_length(self) -> Option<usize> {
        match self {
            Self::RelString(length) => Some(length.unwrap_or(10)),
            _ => None,
        }
    }

    /// The name in `NAMES` and what follows it.
    fn parts(self) -> (&'static str, String) {
        match self {
            Self::IprecAtRecall(share) => ("iprec_at_recall", share_text(share)),
            Self::RPrecMult(share) => ("Rprec_mult", share_text(share)),
            Self::P(k) => ("P", rank_text(k)),
            Self::RelString(length) => ("relstring", length.map(rank_text).unwrap_or_default()),
            Self::Recall(k) => ("recall", rank_text(k)),
            Self::NdcgCut(k) => ("ndcg_cut", rank_text(k)),
            Self::MapCut(k) => ("map_cut", rank_text(k)),
            Self::RelativeP(k) => ("relative_P", rank_text(k)),
            Self::Success(k) => ("success", rank_text(k)),
            Self::Unjudged(k) => ("unj", rank_text(k)),
            Self::NdcgExpCut(k) => ("ndcg_exp_cut", rank_text(k)),
            Self::Judged(k) => ("judged", rank_text(k)),
            Self::MsMarcoMrr(k) => ("msmarco_mrr", rank_text(k)),
            plain => {
                let same = |suffix: Suffix| matches!(suffix, Suffix::Plain(measure) if measure == plain);
                (NAMES.iter().find(|(_, suffix)| same(*suffix)).map_or("", |(name, _)| name), String::new())
            }
        }
    }
}

fn rank_text(k: usize) -> String {
    format!("_{k}")
}

fn share_text(share: u32) -> String {
    format!("_{:.2}", f64::from(share) / 100.0)
}

fn unknown(name: &str) -> Error {
    let stem = name.split('.').next().unwrap_or_default();
    if stem != name
        && NAMES.iter().any(|(plain, suffix)| *plain == stem && matches!(suffix, Suffix::Plain(_)))
    {
        let cut =
            if stem == "recip_rank" { "; evaluate -M 10 measures the first 10 documents only" } else { "" };
        return Error::config(format!("'{name}': {stem} takes no parameters here; write '{stem}'{cut}"));
    }
    Error::config(format!(
        "'{name}' is not a measure; trec_eval's names are known, such as map, recip_rank, bpref, Rprec, P_10, \
         recall_100, ndcg_cut_10, and the sets official, set and all_trec (evaluate -m all_trec prints all names)"
    ))
}

impl FromStr for Measure {
    type Err = Error;

    /// One measure by its full name, as `Display` writes it. Error: several, or one that is no number.
    fn from_str(name: &str) -> Result<Self> {
        match Self::expand(name)?.as_slice() {
            [measure] if measure.is_text() => {
                Err(Error::config(format!("'{name}' is text, but a measure with a number is needed")))
            }
            [measure] => Ok(*measure),
            several => Err(Error::config(format!(
                "'{name}' names {} measures where one is needed; write for example {}",
                several.len(),
                several.iter().find(|measure| !measure.is_text()).unwrap_or(&several[0])
            ))),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stem, suffix) = self.parts();
        f.pad(&format!("{stem}{suffix}"))
    }
}
