//! `retrieve`: makes a BM25 run from a collection and its topics, or the queries of a click log. The search
//! itself is `ir::bm25`, which knows no files; the run's tag names analysis and parameters.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::corpus::read::documents::{Document, Field, ReadOptions, read_documents, read_rows};
use crate::corpus::{Role, Source};
use crate::files::Target;
use crate::ir::analysis::{Analysis, Language};
use crate::ir::bm25::{Indexer, Retriever};
use crate::ir::run::Run;
use crate::ir::topics::{Topic, TopicField, read_topics_fields};
use crate::{Error, Result, files, ir};

/// What `retrieve` reads, does and writes.
#[derive(Clone, Debug, PartialEq)]
pub struct RetrieveOptions {
    /// The collection, in any format that `prepare` reads.
    pub documents: Vec<Source>,
    /// A file with one document id per line. Only these documents are indexed, and the statistics are theirs.
    pub only: Option<PathBuf>,
    pub topics: PathBuf,
    /// `topics` is a click log, whose queries are the topics.
    pub clicks: bool,
    /// Parts of a topic that form the query.
    pub topic_fields: Vec<TopicField>,
    /// The TREC run to write.
    pub out: PathBuf,
    /// Documents per topic.
    pub depth: usize,
    pub k1: f32,
    pub b: f32,
    /// Which of url, title and body are indexed, joined as one field.
    pub fields: Vec<Field>,
    /// Whose stems and stop words.
    pub language: Language,
    /// Snowball's stemmer; for English, Porter2.
    pub stem: bool,
    /// Drop stop words; for English, Lucene's 33.
    pub stop_words: bool,
}

/// Reads documents and topics, searches with all threads and writes a TREC run. A topic without any hit is
/// not in the run and causes a warning. Errors: no document, none of the `only` ids found, an id twice, k1 or
/// b out of range, unknown fields.
pub fn retrieve(o: &RetrieveOptions) -> Result<()> {
    if !(o.k1 >= 0.0 && o.k1.is_finite() && (0.0..=1.0).contains(&o.b)) || o.depth == 0 {
        return Err(Error::config("BM25 needs k1 of at least 0, b from 0 to 1 and a depth of at least 1"));
    }
    if o.fields.is_empty() {
        return Err(Error::config("no document field to index: choose from url, title and body"));
    }
    files::refuse_input(
        &o.out,
        o.documents.iter().flat_map(|source| &source.path).chain([&o.topics]).chain(&o.only),
    )?;
    let topics =
        if o.clicks { queries_of(&o.topics)? } else { read_topics_fields(&o.topics, &o.topic_fields)? };
    let path = o.documents.first().and_then(|source| source.path.first()).cloned().unwrap_or_default();
    let only = o.only.as_deref().map(read_ids).transpose()?;
    let folder = match files::target(&o.out)? {
        Target::File(place) => files::folder_of(&place).to_owned(),
        Target::Stream(_) => std::env::temp_dir(),
    };
    let analysis = Analysis { language: o.language, stem: o.stem, stop_words: o.stop_words };
    if o.stop_words && !o.language.has_stop_words() {
        tracing::warn!("there is no list of {} stop words: none are dropped", o.language);
    }
    let mut indexer = Indexer::new(&folder, analysis)?;
    let wanted = |id: &str| only.as_ref().is_none_or(|ids| ids.contains(id));
    let options = ReadOptions::default();
    let add = |document: Document| indexer.add(&document.id, &document.text);
    read_documents(&o.documents, &o.fields, &options, wanted, add)?.warn();
    let found = indexer.documents();
    if found == 0 && only.is_some() {
        let text = "none of the listed document ids is in it; are both of the same MS MARCO version?";
        return Err(Error::data(format!("{}: {text}", path.display())));
    }
    if let Some(ids) = only.filter(|ids| ids.len() > found) {
        tracing::warn!("{} of {} listed document ids were not found", ids.len() - found, ids.len());
    }
    let retriever = indexer.finish(o.k1, o.b).map_err(|error| match error {
        Error::Data(text) => Error::data(format!("{}: {text}", path.display())),
        other => other,
    })?;
    tracing::info!("{found} documents of {:.1} terms on average", retriever.average_length());
    write_run(&retriever, topics, o)
}

/// Topics searched between two writes: a log has millions of queries.
const TOPICS_AT_ONCE: usize = 10_000;

fn write_run(retriever: &Retriever, mut topics: Vec<Topic>, o: &RetrieveOptions) -> Result<()> {
    topics.sort_by(|a, b| a.id.cmp(&b.id));
    let (tag, mut without) = (tag(o), 0);
    files::write_by(&o.out, |out| {
        for block in topics.chunks(TOPICS_AT_ONCE) {
            let search = |topic: &Topic| retriever.search(&topic.text, o.depth);
            let lists = block.par_iter().map(search).collect::<Result<Vec<_>>>()?;
            let (mut run, mut text) = (Run::default(), String::new());
            for (topic, hits) in block.iter().zip(lists) {
                if !hits.is_empty() {
                    run.insert(topic.id.as_str(), hits)?;
                    run.lines(&topic.id, &tag, &mut text);
                    continue;
                }
                without += 1;
                if !o.clicks {
                    tracing::warn!("topic '{}' has no hit and is not in the run: '{}'", topic.id, topic.text);
                }
            }
            out.write_all(text.as_bytes()).map_err(|cause| Error::io("written", &o.out, cause))?;
        }
        Ok(())
    })?;
    if o.clicks && without > 0 {
        tracing::warn!("{without} of {} queries have no hit and are not in the run", topics.len());
    }
    Ok(())
}

/// The distinct queries of a click log.
fn queries_of(log: &Path) -> Result<Vec<Topic>> {
    let (mut topics, mut seen) = (Vec::new(), HashSet::new());
    let options = ReadOptions::default();
    read_rows(&[Source::clicks(log)], Role::Clicks, &options, |[id, text, ..]| {
        if seen.insert(id.clone()) {
            topics.push(Topic { id, text });
        }
        Ok(())
    })?;
    Ok(topics)
}

/// The run tag: everything that decides the scores, as one word.
pub fn tag(o: &RetrieveOptions) -> String {
    let (stem, language) = match o.language {
        Language::ENGLISH => ("-porter2", String::new()),
        other => ("-snowball", format!("-{other}")),
    };
    let stem = if o.stem { stem } else { "" };
    let stop = if o.stop_words && o.language.has_stop_words() { "-stop" } else { "" };
    let fields: Vec<String> = o.fields.iter().map(ToString::to_string).collect();
    format!("bm25-k{}-b{}{stem}{stop}{language}-{}", o.k1, o.b, fields.join("+"))
}

/// Reads one id per line.
fn read_ids(path: &Path) -> Result<HashSet<String>> {
    let text = ir::read_text(path)?;
    let ids =
        text.lines().map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect::<HashSet<_>>();
    if ids.is_empty() {
        return Err(Error::data(format!("{}: it holds no document id", path.display())));
    }
    Ok(ids)
}
