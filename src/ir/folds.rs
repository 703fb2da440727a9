//! Folds for cross-validation. Results on a small collection depend on the split, and several splits
//! of the same topics are in public use, so folds are a file that is named and kept. Capreolus' json is
//! what is written; Pyserini's lists and CEDR's folder of runs and training pairs are read too.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::read_text;
use crate::files;
use crate::random::{Purpose, philox};
use crate::{Error, Result};

/// Topic ids of one fold; the three lists share no topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fold {
    pub train: Vec<String>,
    /// Early stopping looks at these.
    pub validation: Vec<String>,
    pub test: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct FileFold {
    train_qids: Vec<TopicId>,
    predict: FilePredict,
}

#[derive(Serialize, Deserialize)]
struct FilePredict {
    dev: Vec<TopicId>,
    test: Vec<TopicId>,
}

/// Some files have numbers where others have strings.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum TopicId {
    Text(String),
    Number(u64),
}

/// Reads folds in one of three forms:
/// * Capreolus: `{"s1": {"train_qids": [..], "predict": {"dev": [..], "test": [..]}}, ..}`, folds in the order of the
///   number in their names;
/// * Pyserini: a list of lists of topics; fold i tests on list i and validates on the next, as `make_folds` does;
/// * CEDR: a folder of `f1.train.pairs`, `f1.valid.run`, `f1.test.run`, `f2...`, of which only the topics count.
///
/// Topics that occur twice in a list (GOV2's lists are padded) are kept once. Errors: any other form, no
/// fold, a fold without test topics, a topic in two lists of a fold.
pub fn read_folds(path: &Path) -> Result<Vec<Fold>> {
    let fail = |text: String| Error::data(format!("{}: {text}", path.display()));
    let folds = if path.is_dir() {
        cedr_folds(path)?
    } else {
        match serde_json::from_str(&read_text(path)?) {
            Ok(Value::Object(file)) => capreolus_folds(file).map_err(&fail)?,
            Ok(Value::Array(lists)) => pyserini_folds(lists).map_err(&fail)?,
            Ok(_) => return Err(fail("not a fold file: expected an object or a list".into())),
            Err(error) => {
                return Err(fail(format!(
                    "not a fold file {{\"s1\": {{\"train_qids\": .., \"predict\": ..}}}}: {error}"
                )));
            }
        }
    };
    if folds.is_empty() {
        return Err(fail("no fold in it".into()));
    }
    for (name, fold) in &folds {
        check(fold).map_err(|text| fail(format!("fold '{name}': {text}")))?;
    }
    Ok(folds.into_iter().map(|(_, fold)| fold).collect())
}

/// Folds with their names, or what is wrong.
type Named = std::result::Result<Vec<(String, Fold)>, String>;

fn capreolus_folds(file: Map<String, Value>) -> Named {
    let mut folds = Vec::new();
    for (name, value) in file {
        let fold: FileFold =
            serde_json::from_value(value).map_err(|error| format!("fold '{name}': {error}"))?;
        let fold = Fold {
            train: distinct(fold.train_qids),
            validation: distinct(fold.predict.dev),
            test: distinct(fold.predict.test),
        };
        let number =
            name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap_or(u64::MAX);
        folds.push((number, name, fold));
    }
    folds.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    Ok(folds.into_iter().map(|(_, name, fold)| (name, fold)).collect())
}

fn pyserini_folds(lists: Vec<Value>) -> Named {
    let lists: Vec<Vec<TopicId>> = serde_json::from_value(Value::Array(lists))
        .map_err(|error| format!("a list of folds holds a list of topics each: {error}"))?;
    let lists: Vec<Vec<String>> = lists.into_iter().map(distinct).collect();
    let name = |i: usize| format!("{}", i + 1);
    Ok(rotated(&lists).into_iter().enumerate().map(|(i, fold)| (name(i), fold)).collect())
}

/// Fold i tests on part i, validates on the part after it and trains on the rest.
fn rotated(parts: &[Vec<String>]) -> Vec<Fold> {
    let k = parts.len();
    let fold = |i: usize| {
        let validation = (i + 1) % k;
        let rest = (0..k).filter(|&p| p != i && p != validation);
        Fold {
            train: rest.flat_map(|p| parts[p].clone()).collect(),
            validation: parts[validation].clone(),
            test: parts[i].clone(),
        }
    };
    (0..k).map(fold).collect()
}

fn cedr_folds(folder: &Path) -> Result<Vec<(String, Fold)>> {
    let topics = |name: String| -> Result<Vec<String>> {
        let path = folder.join(name);
        let text = read_text(&path)?;
        let ids = text.lines().filter_map(|line| line.split_whitespace().next());
        Ok(distinct(ids.map(|id| TopicId::Text(id.to_owned())).collect()))
    };
    let mut folds = Vec::new();
    while folder.join(format!("f{}.test.run", folds.len() + 1)).is_file() {
        let name = format!("f{}", folds.len() + 1);
        let fold = Fold {
            train: topics(format!("{name}.train.pairs"))?,
            validation: topics(format!("{name}.valid.run"))?,
            test: topics(format!("{name}.test.run"))?,
        };
        folds.push((name, fold));
    }
    Ok(folds)
}

/// Writes folds as `read_folds` reads them, named s1, s2, ... in their order.
pub fn write_folds(path: &Path, folds: &[Fold]) -> Result<()> {
    let ids = |topics: &[String]| topics.iter().cloned().map(TopicId::Text).collect();
    let mut file = Map::new();
    for (place, fold) in folds.iter().enumerate() {
        let fold = FileFold {
            train_qids: ids(&fold.train),
            predict: FilePredict { dev: ids(&fold.validation), test: ids(&fold.test) },
        };
        let value = serde_json::to_value(fold)
            .map_err(|error| Error::data(format!("{}: {error}", path.display())))?;
        file.insert(format!("s{}", place + 1), value);
    }
    let text = serde_json::to_string_pretty(&file)
        .map_err(|error| Error::data(format!("{}: {error}", path.display())))?;
    files::write(path, (text + "\n").as_bytes())
}

/// Splits distinct topics into `k` parts whose sizes differ by at most one. Fold i tests on part i,
/// validates on part i + 1 mod k and trains on the rest, so every topic is tested once; below three
/// folds nothing is left to train on, and `k` = 1 validates on its test topics. The split depends on the
/// set of topics and the seed, not on the order of `topics`.
pub fn make_folds(topics: &[String], k: usize, seed: u32) -> Vec<Fold> {
    let mut order = topics.iter().collect::<HashSet<_>>().into_iter().collect::<Vec<_>>();
    order.sort_unstable();
    // Fisher-Yates.
    for i in (1..order.len()).rev() {
        let word = philox(Purpose::Folds.key(seed), [i as u32, 0, 0, 0])[0];
        let j = ((u64::from(word) * (i as u64 + 1)) >> 32) as usize;
        order.swap(i, j);
    }
    let part = |p: usize| order.iter().skip(p).step_by(k).map(|topic| (*topic).clone()).collect::<Vec<_>>();
    rotated(&(0..k).map(part).collect::<Vec<_>>())
}

fn distinct(topics: Vec<TopicId>) -> Vec<String> {
    let mut seen = HashSet::new();
    topics
        .into_iter()
        .map(|topic| match topic {
            TopicId::Text(text) => text,
            TopicId::Number(number) => number.to_string(),
        })
        .filter(|topic| seen.insert(topic.clone()))
        .collect()
}

/// A topic in two lists would let the model be judged on what it has seen.
fn check(fold: &Fold) -> std::result::Result<(), String> {
    if fold.test.is_empty() {
        return Err("no test topic".into());
    }
    let train = fold.train.iter().collect::<HashSet<_>>();
    let validation = fold.validation.iter().collect::<HashSet<_>>();
    let twice = fold.test.iter().find(|topic| train.contains(topic) || validation.contains(topic));
    match twice.or_else(|| fold.validation.iter().find(|topic| train.contains(topic))) {
        Some(topic) => Err(format!("topic '{topic}' is in two of train, dev and test")),
        None => Ok(()),
    }
}
