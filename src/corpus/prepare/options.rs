//! What `prepare` is told, and what of it the manifest keeps: the same files with the same options make the same
//! shards, so they need not be made again.

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use super::filter::Filter;
use crate::Result;
use crate::config::PART_TOKENS;
use crate::corpus::read::documents::Field;
use crate::corpus::read::source::Source;
use crate::corpus::shard::SourceFile;
use crate::text::given;

/// What `prepare` is told.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Clicks (or queries and qrels) and documents.
    pub sources: Vec<Source>,
    /// Shard directory to make.
    pub out: PathBuf,
    /// Given tokenizer; without one, a vocabulary is trained.
    pub tokenizer: Option<PathBuf>,
    /// Pieces of a trained vocabulary.
    pub vocab: usize,
    /// Documents are cut to this many tokens.
    pub max_tokens: usize,
    /// Parts of a document, in this order.
    pub fields: Vec<Field>,
    /// Also keep documents that nobody clicked (they serve as negatives and for MLM).
    pub all_documents: bool,
    /// Topics whose queries must not be in the log.
    pub exclude_topics: Vec<PathBuf>,
    /// Qrels whose relevant documents must not be in the shards.
    pub exclude_qrels: Vec<PathBuf>,
    /// End at the first damaged line.
    pub strict: bool,
    /// Undo mis-decoded UTF-8.
    pub repair: bool,
    /// Tokens after which a part is finished.
    pub part_tokens: u64,
    pub filter: Filter,
}

/// What the manifest says of the options.
pub(crate) fn as_text(options: &PrepareOptions) -> BTreeMap<String, String> {
    let fields: Vec<String> = options.fields.iter().map(ToString::to_string).collect();
    let mut text = BTreeMap::from([
        ("all_documents".to_owned(), options.all_documents.to_string()),
        ("fields".to_owned(), fields.join(",")),
        ("max_tokens".to_owned(), options.max_tokens.to_string()),
        ("strict".to_owned(), options.strict.to_string()),
    ]);
    if options.tokenizer.is_none() {
        text.insert("vocab".into(), options.vocab.to_string());
    }
    if options.repair {
        text.insert("repair".into(), "true".into());
    }
    if options.part_tokens != PART_TOKENS {
        text.insert("part_tokens".into(), options.part_tokens.to_string());
    }
    if options.filter != Filter::default() {
        // A table of plain values always has a text; were it absent, filters would only be compared less.
        text.insert("filter".into(), serde_json::to_string(&options.filter).unwrap_or_default());
    }
    for (number, source) in options.sources.iter().enumerate() {
        if source.format.is_some() || !source.columns.is_empty() {
            let format = source.format.map_or("detected".to_owned(), |format| format.to_string());
            text.insert(format!("source {}", number + 1), format!("{format} {:?}", source.columns));
        }
    }
    text
}

/// Every file that the shards come from.
pub(crate) fn sources(options: &PrepareOptions) -> Result<Vec<SourceFile>> {
    inputs(options)?.iter().map(|path| SourceFile::of(path)).collect()
}

/// The paths of these files.
pub(crate) fn inputs(options: &PrepareOptions) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for source in &options.sources {
        paths.extend(source.files()?);
        paths.extend(source.lookup.clone());
    }
    if let Some(tokenizer) = &options.tokenizer {
        paths.extend(given::paths(&given::find(tokenizer)?).into_iter().map(|(_, path)| path));
    }
    paths.extend(options.exclude_topics.iter().chain(&options.exclude_qrels).cloned());
    Ok(paths)
}
