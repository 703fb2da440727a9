//! The three settings of BERT's normaliser that `tokenizer.json` and `tokenizer_config.json` both have.

use serde_json::{Map, Value, json};
use tokenizers::normalizers::BertNormalizer;

/// How a BERT tokenizer changes characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    pub lowercase: bool,
    /// `None` follows `lowercase`.
    pub strip_accents: Option<bool>,
    /// Every ideograph is a word.
    pub chinese: bool,
}

impl Default for Flags {
    /// What transformers assumes if a `tokenizer_config.json` says nothing.
    fn default() -> Self {
        Self { lowercase: true, strip_accents: None, chinese: true }
    }
}

impl From<&BertNormalizer> for Flags {
    fn from(bert: &BertNormalizer) -> Self {
        Self {
            lowercase: bert.lowercase,
            strip_accents: bert.strip_accents,
            chinese: bert.handle_chinese_chars,
        }
    }
}

impl Flags {
    /// What transformers reads from a `tokenizer_config.json`.
    pub fn of_config(config: &Map<String, Value>) -> Self {
        let named = |key: &str| config.get(key).and_then(Value::as_bool);
        let default = Self::default();
        Self {
            lowercase: named("do_lower_case").unwrap_or(default.lowercase),
            strip_accents: named("strip_accents"),
            chinese: named("tokenize_chinese_chars").unwrap_or(default.chinese),
        }
    }

    /// Whether accents are removed.
    pub fn strips(&self) -> bool {
        self.strip_accents.unwrap_or(self.lowercase)
    }

    /// Whether both change the same characters.
    pub fn same(&self, other: &Self) -> bool {
        (self.lowercase, self.strips(), self.chinese) == (other.lowercase, other.strips(), other.chinese)
    }

    /// Writes the settings into a `tokenizer_config.json`; transformers' defaults only if `all`.
    pub fn name_in(&self, config: &mut Map<String, Value>, all: bool) {
        let default = Self::default();
        let named = [
            ("do_lower_case", json!(self.lowercase), true),
            ("strip_accents", json!(self.strip_accents), self.strip_accents != default.strip_accents),
            ("tokenize_chinese_chars", json!(self.chinese), self.chinese != default.chinese),
        ];
        for (key, value, needed) in named {
            if all || needed {
                config.insert(key.into(), value);
            }
        }
    }
}
