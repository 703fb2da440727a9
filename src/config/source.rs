//! `[[source]]`: files of queries, clicks and documents, and what they are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};

use super::keys::{choice, keys, table};

table! {
    /// Files that `prepare` reads, one table for each kind of row. Those of documents also serve `fine` and `rerank`.
    pub struct Source {
        /// What the rows are.
        pub role: Role;
        /// A file, a folder (all files in it and below it, by name), or a list of both.
        #[serde(deserialize_with = "one_or_many")]
        pub path: Vec<PathBuf>;
        /// Format of the files. Without it, it is detected.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub format: Option<Format>;
        /// For `tsv` and `jsonl`: where each column of the role is. A column of `tsv` is a name of the header or a
        /// number from 1; one of `jsonl` is a key.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub columns: BTreeMap<String, String>;
        /// MS MARCO's `msmarco-docs-lookup.tsv`. Where only some documents are wanted, their places are looked up
        /// in it and the rest of the file is not read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub lookup: Option<PathBuf>;
    }
}

/// Takes a path for a list of one.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Paths {
        One(PathBuf),
        Many(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(deserializer)? {
        Paths::One(path) => vec![path],
        Paths::Many(paths) => paths,
    })
}

impl Source {
    /// One file or folder, its format to be detected.
    pub fn of(role: Role, path: impl Into<PathBuf>) -> Self {
        Self { role, path: vec![path.into()], format: None, columns: BTreeMap::new(), lookup: None }
    }

    pub fn documents(path: impl Into<PathBuf>) -> Self {
        Self::of(Role::Documents, path)
    }

    pub fn clicks(path: impl Into<PathBuf>) -> Self {
        Self::of(Role::Clicks, path)
    }
}

choice! {
    /// What the rows of a file are.
    pub enum Role {
        /// Documents. Columns: `id`, `url`, `title`, `body`.
        Documents = "documents",
        /// Clicks of a log. Columns: `query_id`, `query`, `document_id`, `count`. `count` says how often the click
        /// happened and is read only where `columns` names it.
        Clicks = "clicks",
        /// Queries of a log whose clicks are in a file of qrels. Columns: `id`, `text`.
        Queries = "queries",
        /// Clicks of such a log: rows with a label above 0. Columns: `query_id`, `document_id`, `label`.
        Qrels = "qrels",
    }
}

choice! {
    /// A format that a publisher uses, or one whose columns the user names.
    pub enum Format {
        /// Clicks: qid, query, docid, url, separated by tabs.
        Orcas = "orcas",
        /// Documents: docid, url, title, body, separated by tabs.
        MsmarcoV1 = "msmarco-v1",
        /// Documents: JSON lines with docid, url, title, body.
        MsmarcoV2 = "msmarco-v2",
        /// Documents in TREC SGML, or qrels of four columns.
        Trec = "trec",
        /// Documents: `<DOCHDR>` and HTML, as in GOV2.
        Trecweb = "trecweb",
        /// BEIR's JSON lines (`_id`, title, text), or its qrels with a header.
        Beir = "beir",
        /// JSON lines. `columns` names the keys.
        Jsonl = "jsonl",
        /// Lines separated by tabs. `columns` names the columns.
        Tsv = "tsv",
    }
}
