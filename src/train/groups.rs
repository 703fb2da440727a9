//! Ranking groups: one relevant candidate and some others of the same topic, the samples of
//! fine-tuning. What a group holds is a pure function of (seed, epoch, sample id).

use std::sync::Arc;

use super::collection::{Collection, relevant};
use crate::data::batch::Batch;
use crate::data::source::SampleSource;
use crate::engine::random::{philox, purpose};
use crate::ir::qrels::Qrels;
use crate::{Error, Result};

/// How groups are drawn.
#[derive(Clone, Copy, Debug)]
pub struct GroupOptions {
    pub seed: u32,
    /// Other candidates beside the relevant one.
    pub negatives: usize,
    /// Groups of one topic in one epoch, at most its relevant candidates.
    pub positives_per_topic: usize,
}

struct Topic {
    query: Vec<u32>,
    relevant: Vec<String>,
    others: Vec<String>,
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
}

impl GroupSource {
    /// # Errors
    /// `Error::Data` when no topic has both relevant and other candidates.
    pub fn new(
        collection: Arc<Collection>,
        qrels: &Qrels,
        topics: &[String],
        options: GroupOptions,
    ) -> Result<Self> {
        let mut source = Self { collection, topics: Vec::new(), options, samples: 0 };
        for id in topics {
            source.add(id, qrels);
        }
        if source.samples == 0 {
            return Err(Error::data(
                "no training topic has both a relevant and another candidate: raise fine.depth or check that \
                 run and qrels belong together",
            ));
        }
        Ok(source)
    }

    fn add(&mut self, id: &str, qrels: &Qrels) {
        let Some(candidates) = self.collection.topics.get(id) else { return };
        let (good, others): (Vec<_>, Vec<_>) =
            candidates.documents.iter().cloned().partition(|d| relevant(qrels, id, d));
        if good.is_empty() || others.is_empty() {
            return;
        }
        let groups = good.len().min(self.options.positives_per_topic) as u32;
        let query = candidates.query.clone();
        self.topics.push(Topic { query, relevant: good, others, first: self.samples, groups });
        self.samples += groups;
    }

    /// Query and documents of a group, the relevant one first.
    fn group(&self, sample: u32, epoch: u32) -> (&Topic, Vec<&str>) {
        let at = self.topics.partition_point(|topic| topic.first <= sample) - 1;
        let topic = &self.topics[at];
        let slot = sample - topic.first;
        let turn = slot as usize + epoch as usize * topic.groups as usize;
        let mut documents = vec![topic.relevant[turn % topic.relevant.len()].as_str()];
        // A partial Fisher-Yates shuffle draws without repetition.
        let mut order: Vec<u32> = (0..topic.others.len() as u32).collect();
        for k in 0..self.options.negatives.min(order.len()) {
            let word = philox([self.options.seed, purpose::NEGATIVE], [sample, k as u32, epoch, 0])[0];
            let left = (order.len() - k) as u64;
            let pick = k + ((u64::from(word) * left) >> 32) as usize;
            order.swap(k, pick);
            documents.push(topic.others[order[k] as usize].as_str());
        }
        (topic, documents)
    }
}

impl SampleSource for GroupSource {
    fn samples(&self) -> u32 {
        self.samples
    }

    fn length(&self, sample: u32, epoch: u32) -> usize {
        let (topic, documents) = self.group(sample, epoch);
        let length = |d: &&str| 3 + topic.query.len() + self.collection.document(d, &topic.query).len();
        documents.iter().map(length).sum()
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
        for (k, id) in documents.iter().enumerate() {
            let document = self.collection.document(id, &topic.query);
            batch.push(self.collection.special, sample * size + k as u32, &topic.query, Some(document));
        }
        batch.cu_groups.push(batch.sequences() as u32);
        Ok(())
    }

    /// Every epoch draws other documents, so the bound is that of any group: all at full length.
    fn longest(&self) -> usize {
        let longest = |topic: &Topic| {
            let length = |d: &String| 3 + topic.query.len() + self.collection.document(d, &topic.query).len();
            let mut others: Vec<usize> = topic.others.iter().map(length).collect();
            others.sort_unstable_by(|a, b| b.cmp(a));
            let positive = topic.relevant.iter().map(length).max().unwrap_or(0);
            positive + others.iter().take(self.options.negatives).sum::<usize>()
        };
        self.topics.iter().map(longest).max().unwrap_or(0)
    }
}
