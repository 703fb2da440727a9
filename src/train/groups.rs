//! Ranking groups: one relevant candidate and some others of the same topic, the samples of
//! fine-tuning. What a group holds is a pure function of (seed, epoch, sample id).

use std::collections::HashMap;
use std::sync::Arc;

use super::collection::{Candidates, Collection, relevant};
use super::passages::Aggregate;
use crate::config::NegativesFrom;
use crate::data::batch::Batch;
use crate::data::source::SampleSource;
use crate::engine::random::{philox, purpose};
use crate::ir::qrels::Qrels;
use crate::ir::run::Run;
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
    /// With anything but FirstP, a group draws one of each document's passages.
    pub aggregate: Aggregate,
}

/// Where groups come from besides the candidates.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
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
    /// Topics without a relevant or without another document.
    pub left_out: Vec<String>,
}

impl GroupSource {
    /// # Errors
    /// `Error::Data` when no topic has both relevant and other candidates, or the teacher's run
    /// lacks one of them.
    pub fn new(
        collection: Arc<Collection>,
        sources: Sources,
        topics: &[String],
        options: GroupOptions,
    ) -> Result<Self> {
        let mut source = Self { collection, topics: Vec::new(), options, samples: 0, left_out: Vec::new() };
        for id in topics {
            source.add(id, sources)?;
        }
        if source.samples == 0 {
            return Err(Error::data(
                "no training topic has both a relevant and another candidate: raise fine.depth, check \
                 fine.negatives_from and that run and qrels belong together",
            ));
        }
        Ok(source)
    }

    fn add(&mut self, id: &str, sources: Sources) -> Result<()> {
        let Some(candidates) = self.collection.topics.get(id) else { return Ok(()) };
        let (good, others) = split(id, candidates, sources, self.options.from);
        if good.is_empty() || others.is_empty() {
            self.left_out.push(id.to_owned());
            return Ok(());
        }
        let groups = good.len().min(self.options.positives_per_topic) as u32;
        let member = |doc: &String| Ok(Member { id: doc.clone(), target: target(id, doc, sources)? });
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
            let word = philox([self.options.seed, purpose::NEGATIVE], [sample, k as u32, epoch, 0])[0];
            let left = (order.len() - k) as u64;
            let pick = k + ((u64::from(word) * left) >> 32) as usize;
            order.swap(k, pick);
            documents.push(&topic.others[order[k] as usize]);
        }
        (topic, documents)
    }

    /// Tokens of member `k`: its first passage, or one that is drawn.
    fn tokens(&self, topic: &Topic, member: &Member, (sample, epoch, k): (u32, u32, usize)) -> &[u32] {
        let passage = match self.options.aggregate {
            Aggregate::FirstP => 0,
            _ => {
                let word = philox([self.options.seed, purpose::PASSAGE], [sample, k as u32, epoch, 0])[0];
                ((u64::from(word) * self.collection.passages(&member.id) as u64) >> 32) as usize
            }
        };
        self.collection.passage(&member.id, passage, &topic.query)
    }
}

/// Relevant candidates, and the documents from which negatives are drawn.
fn split<'a>(
    topic: &str,
    candidates: &'a Candidates,
    sources: Sources<'a>,
    from: NegativesFrom,
) -> (Vec<&'a String>, Vec<&'a String>) {
    let is_relevant = |d: &&String| relevant(sources.qrels, topic, d);
    let good = candidates.documents.iter().filter(is_relevant).collect();
    let pool = match sources.hard {
        Some(hard) => hard.get(topic).map_or(&[][..], Vec::as_slice),
        None => &candidates.documents,
    };
    let fits = |d: &&String| {
        let judged = sources.qrels.label(topic, d).is_some();
        match from {
            NegativesFrom::All => true,
            NegativesFrom::Judged => judged,
            NegativesFrom::Unjudged => !judged,
        }
    };
    (good, pool.iter().filter(|d| !is_relevant(d)).filter(fits).collect())
}

fn target(topic: &str, document: &str, sources: Sources) -> Result<f32> {
    let Some(teacher) = sources.teacher else {
        return Ok(sources.qrels.label(topic, document).unwrap_or(0).max(0) as f32);
    };
    let hits = teacher.get(topic).unwrap_or_default();
    hits.iter().find(|hit| hit.doc == document).map(|hit| hit.score as f32).ok_or_else(|| {
        Error::data(format!(
            "fine.teacher: topic {topic}, document {document}: no score; let the teacher re-rank the very run \
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
        let length = |(k, d): (usize, &&Member)| {
            3 + topic.query.len() + self.tokens(topic, d, (sample, epoch, k)).len()
        };
        documents.iter().enumerate().map(length).sum()
    }

    fn pairs(&self, _sample: u32) -> usize {
        1
    }

    fn push(&self, sample: u32, epoch: u32, batch: &mut Batch) -> Result<()> {
        let (topic, documents) = self.group(sample, epoch);
        if batch.cu_groups.is_empty() {
            batch.cu_groups.push(batch.sequences() as u32);
        }
        let size = self.options.negatives as u32 + 1;
        for (k, member) in documents.into_iter().enumerate() {
            let document = self.tokens(topic, member, (sample, epoch, k));
            batch.targets.push(member.target);
            batch.push(self.collection.special, sample * size + k as u32, &topic.query, Some(document));
        }
        batch.cu_groups.push(batch.sequences() as u32);
        Ok(())
    }

    /// Every epoch draws other documents, so the bound is that of any group: all at full length.
    fn longest(&self) -> usize {
        let longest = |topic: &Topic| {
            let length = |d: &Member| {
                let passages = 0..self.collection.passages(&d.id);
                let longest = passages.map(|p| self.collection.passage(&d.id, p, &topic.query).len()).max();
                3 + topic.query.len() + longest.unwrap_or(0)
            };
            let mut others: Vec<usize> = topic.others.iter().map(length).collect();
            others.sort_unstable_by(|a, b| b.cmp(a));
            let positive = topic.relevant.iter().map(length).max().unwrap_or(0);
            positive + others.iter().take(self.options.negatives).sum::<usize>()
        };
        self.topics.iter().map(longest).max().unwrap_or(0)
    }
}
