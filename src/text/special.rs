//! The ids of special tokens. Code that builds or reads sequences needs them and nothing else of a tokenizer.

/// Ids of a BERT vocabulary's special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Special {
    pub pad: u32,
    pub unk: u32,
    pub cls: u32,
    pub sep: u32,
    pub mask: u32,
}
