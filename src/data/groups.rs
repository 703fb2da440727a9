//! Ranking groups: one relevant candidate and some others of the same topic, the samples of
//! fine-tuning. What a group holds is a pure function of (seed, epoch, sample id).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::collection::{Candidates, Collection, relevant};
use crate::config::{NegativesFrom, TrainPassages};
use crate::data::batch::Batch;
use crate::data::source::SampleSource;
use crate::engine::op::Aggregate;
use crate::ir::qrels::Qrels;
use crate::ir::run::Run;
use crate::random::{Purpose, philox};
use crate::{Error, Result};

/// How groups are drawn.
#[derive(Clone, Copy, Debug)]
pub struct GroupOptions {
    pub seed: u32,
    /// Other candidates beside the relevant one.
    pub negatives: usize,
    /// Groups of one topic in one epoch, at most its relevant candidates.
    pub positives_per_topic: usize,
    pub from: NegativesFrom,
    /// FirstP trains on first passages alone.
    pub aggregate: Aggregate,
    pub passages: TrainPassages,
}

/// What groups are made from, besides candidates.
#[derive(Clone, Copy, Debug)]
pub struct GroupInputs<'a> {
    pub qrels: &'a Qrels,
    /// Topic -> documents from which negatives are drawn instead of the candidates.
    pub hard: Option<&'a HashMap<String, Vec<String>>>,
    /// Scores that become the targets; without it, labels are.
    pub teacher: Option<&'a Run>,
}

/// A document with its target.
struct Member {
    id: String,
    target: f32,
}

struct Topic {
    query: Vec<u32>,
    relevant: Vec<Member>,
    others: Vec<Member>,
    /// Sample id of this topic's first group.
    first: u32,
    groups: u32,
}

/// The groups of some topics. Sample id = the topic's first group + slot; epoch e gives slot s the
/// relevant candidate (s + e * groups) mod n, so that epochs walk through all of them.
pub struct GroupSource {
    collection: Arc<Collection>,
    topics: Vec<Topic>,
    options: GroupOptions,
    samples: u32,
    /// Passages that one member may have in a group.
    most_passages: u32,
    /// Topics without a relevant or without another document.
    pub left_out: Vec<String>,
}

impl GroupSource {
    /// # Errors
    /// `Error::Data` when no topic has both relevant and other candidates, or the teacher's run
    /// lacks one of them.
    pub fn new(
        collection: Arc<Collection>,
        inputs: GroupInputs,
        training: &[String],
        options: GroupOptions,
    ) -> Result<Self> {
        let most_passages = match options.passages {
            TrainPassages::One => 1,
            TrainPassages::All => collection.most_passages() as u32,
        };
        let (topics, left_out) = (Vec::new(), Vec::new());
        let mut source = Self { collection, topics, options, samples: 0, most_passages, left_out };
        for id in training {
            source.add(id, inputs)?;
        }
        if source.samples == 0 {
            return Err(Error::data(
                "no training topic has both relevant and other candidates: raise fine.depth, check \
                 fine.negatives_from and that run and qrels belong together",
            ));
        }
        Ok(source)
    }

    /// A group's loss needs all of its scores at once, so a group lies in one pack.
    ///
    /// # Errors
    /// `Error::Config` with advice where the longest group is longer than a pack.
    pub fn check_fits(&self, pack_tokens: usize) -> Result<()> {
        let longest = self.longest();
        if longest <= pack_tokens {
            return Ok(());
        }
        let (passages, or) = match self.options.passages {
            TrainPassages::One => ("", ""),
            TrainPassages::All => (
                " with all of their passages",
                ", fine.passages, or train on one passage at a time (fine.train_passages = \"one\")",
            ),
        };
        Err(Error::config(format!(
            "a group of 1 + {} documents{passages} has up to {longest} tokens and train.pack_tokens = {} holds \
             none of that length: raise train.pack_tokens to {longest} (memory grows with it; \
             train.recompute = \"layer\" keeps 1/16 of a layer), or lower fine.negatives, data.max_tokens{or}",
            self.options.negatives, pack_tokens
        )))
    }

    fn add(&mut self, id: &str, inputs: GroupInputs) -> Result<()> {
        let Some(candidates) = self.collection.topics.get(id) else { return Ok(()) };
        let (good, others) = split(id, candidates, inputs, self.options.from);
        if good.is_empty() || others.is_empty() {
            self.left_out.push(id.to_owned());
            return Ok(());
        }
        let groups = good.len().min(self.options.positives_per_topic) as u32;
        let member = |doc: &String| Ok(Member { id: doc.clone(), target: target(id, doc, inputs)? });
        self.topics.push(Topic {
            query: candidates.query.clone(),
            relevant: good.into_iter().map(member).collect::<Result<_>>()?,
            others: others.into_iter().map(member).collect::<Result<_>>()?,
            first: self.samples,
            groups,
        });
        self.samples += groups;
        Ok(())
    }

    /// The number of passage `p` of member `k`, which keys its dropout.
    fn key(&self, sample: u32, k: usize, p: usize) -> u32 {
        let member = sample.wrapping_mul(self.options.negatives as u32 + 1).wrapping_add(k as u32);
        member.wrapping_mul(self.most_passages).wrapping_add(p as u32)
    }

    /// Query and documents of a group, the relevant one first.
    fn group(&self, sample: u32, epoch: u32) -> (&Topic, Vec<&Member>) {
        let at = self.topics.partition_point(|topic| topic.first <= sample) - 1;
        let topic = &self.topics[at];
        let slot = sample - topic.first;
        let turn = slot as usize + epoch as usize * topic.groups as usize;
        let mut documents = vec![&topic.relevant[turn % topic.relevant.len()]];
        // A partial Fisher-Yates shuffle draws without repetition.
        let mut order: Vec<u32> = (0..topic.others.len() as u32).collect();
        for k in 0..self.options.negatives.min(order.len()) {
            let word = philox(Purpose::Negative.key(self.options.seed), [sample, k as u32, epoch, 0])[0];
            let left = (order.len() - k) as u64;
            let pick = k + ((u64::from(word) * left) >> 32) as usize;
            order.swap(k, pick);
            documents.push(&topic.others[order[k] as usize]);
        }
        (topic, documents)
    }

    /// Passages of member `k` that the group holds: its first, a random one, or all.
    fn passages(&self, member: &Member, (sample, epoch, k): (u32, u32, usize)) -> Range<usize> {
        let all = self.collection.passages(&member.id);
        if self.options.aggregate == Aggregate::FirstP {
            return 0..1;
        }
        if self.options.passages == TrainPassages::All {
            return 0..all;
        }
        let word = philox(Purpose::Passage.key(self.options.seed), [sample, k as u32, epoch, 0])[0];
        let drawn = ((u64::from(word) * all as u64) >> 32) as usize;
        drawn..drawn + 1
    }

    /// Tokens that a passage takes in a pack.
    fn passage_len(&self, topic: &Topic, member: &Member, passage: usize) -> usize {
        3 + topic.query.len() + self.collection.passage(&member.id, passage, &topic.query).len()
    }
}

/// Relevant candidates, and the documents from which negatives are drawn.
fn split<'a>(
    topic: &str,
    candidates: &'a Candidates,
    inputs: GroupInputs<'a>,
    from: NegativesFrom,
) -> (Vec<&'a String>, Vec<&'a String>) {
    let is_relevant = |d: &&String| relevant(inputs.qrels, topic, d);
    let good = candidates.documents.iter().filter(is_relevant).collect();
    let pool = match inputs.hard {
        Some(hard) => hard.get(topic).map_or(&[][..], Vec::as_slice),
        None => &candidates.documents,
    };
    let fits = |d: &&String| {
        let judged = inputs.qrels.label(topic, d).is_some();
        match from {
            NegativesFrom::All => true,
            NegativesFrom::Judged => judged,
            NegativesFrom::Unjudged => !judged,
        }
    };
    (good, pool.iter().filter(|d| !is_relevant(d)).filter(fits).collect())
}

fn target(topic: &str, document: &str, inputs: GroupInputs) -> Result<f32> {
    let Some(teacher) = inputs.teacher else {
        return Ok(inputs.qrels.label(topic, document).unwrap_or(0).max(0) as f32);
    };
    let hits = teacher.get(topic).unwrap_or_default();
    hits.iter().find(|hit| hit.doc == document).map(|hit| hit.score as f32).ok_or_else(|| {
        Error::data(format!(
            "fine.teacher: topic {topic}, document {document}: no score; let the teacher re-rank the same run \
             that is trained on"
        ))
    })
}

impl SampleSource for GroupSource {
    fn samples(&self) -> u32 {
        self.samples
    }

    fn length(&self, sample: u32, epoch: u32) -> usize {
        let (topic, documents) = self.group(sample, epoch);
        let length = |(k, member): (usize, &&Member)| -> usize {
            let passages = self.passages(member, (sample, epoch, k));
            passages.map(|passage| self.passage_len(topic, member, passage)).sum()
        };
        documents.iter().enumerate().map(length).sum()
    }

    fn pairs(&self, _sample: u32) -> usize {
        1
    }

    fn push(&self, sample: u32, epoch: u32, batch: &mut Batch) -> Result<()> {
        let (topic, documents) = self.group(sample, epoch);
        let together = self.options.passages == TrainPassages::All;
        if batch.cu_groups.is_empty() {
            batch.cu_groups.push(0);
            if together {
                batch.cu_documents.push(0);
            }
        }
        for (k, member) in documents.into_iter().enumerate() {
            for (p, passage) in self.passages(member, (sample, epoch, k)).enumerate() {
                let document = self.collection.passage(&member.id, passage, &topic.query);
                let key = self.key(sample, k, p);
                batch.push(self.collection.special, key, &topic.query, Some(document));
            }
            batch.targets.push(member.target);
            if together {
                batch.cu_documents.push(batch.sequences() as u32);
            }
        }
        batch.cu_groups.push(batch.documents() as u32);
        Ok(())
    }

    /// Every epoch draws different documents, so the bound covers any group: the longest ones together.
    fn longest(&self) -> usize {
        let all = self.options.passages == TrainPassages::All;
        let longest = |topic: &Topic| {
            let length = |member: &Member| {
                let passages = 0..self.collection.passages(&member.id);
                let lengths = passages.map(|p| self.passage_len(topic, member, p));
                if all { lengths.sum() } else { lengths.max().unwrap_or(0) }
            };
            let mut others: Vec<usize> = topic.others.iter().map(length).collect();
            others.sort_unstable_by(|a, b| b.cmp(a));
            let positive = topic.relevant.iter().map(length).max().unwrap_or(0);
            positive + others.iter().take(self.options.negatives).sum::<usize>()
        };
        self.topics.iter().map(longest).max().unwrap_or(0)
    }
}
