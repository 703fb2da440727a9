//! How text becomes search terms: words, lower case, then stop words and stems of a language. Apart from `bm25`,
//! which needs to know none of it.

use std::fmt;
use std::str::FromStr;

use tantivy::tokenizer::{
    Language as Stems, LowerCaser, RemoveLongFilter, Stemmer, StopWordFilter, TextAnalyzer,
};

use super::words::Words;
use crate::{Error, Result};

/// A term is at most this long in bytes; what is longer is no word (Lucene's limit is 255 characters).
const LONGEST_TERM: usize = 256;

/// A language that has a Snowball stemmer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Language(Stems);

/// Their names, as options have them.
const LANGUAGES: [(&str, Stems); 18] = [
    ("arabic", Stems::Arabic),
    ("danish", Stems::Danish),
    ("dutch", Stems::Dutch),
    ("english", Stems::English),
    ("finnish", Stems::Finnish),
    ("french", Stems::French),
    ("german", Stems::German),
    ("greek", Stems::Greek),
    ("hungarian", Stems::Hungarian),
    ("italian", Stems::Italian),
    ("norwegian", Stems::Norwegian),
    ("portuguese", Stems::Portuguese),
    ("romanian", Stems::Romanian),
    ("russian", Stems::Russian),
    ("spanish", Stems::Spanish),
    ("swedish", Stems::Swedish),
    ("tamil", Stems::Tamil),
    ("turkish", Stems::Turkish),
];

impl Language {
    pub const ENGLISH: Self = Self(Stems::English);

    /// Whether there is a list of its stop words.
    pub fn has_stop_words(self) -> bool {
        StopWordFilter::new(self.0).is_some()
    }

    /// Every name that an option takes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        LANGUAGES.iter().map(|(name, _)| *name)
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = LANGUAGES.iter().find(|(_, language)| *language == self.0).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

impl FromStr for Language {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = LANGUAGES.iter().find(|(name, _)| *name == text).map(|(_, language)| Self(*language));
        found.ok_or_else(|| {
            Error::config(format!("must be one of {}", Self::names().collect::<Vec<_>>().join(", ")))
        })
    }
}

/// How text becomes terms: words (see `words`), lower case, then as asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Analysis {
    /// Whose stems and stop words.
    pub language: Language,
    pub stem: bool,
    /// Drop stop words, if the language has a list of them.
    pub stop_words: bool,
}

impl Analysis {
    pub(super) fn analyser(self) -> TextAnalyzer {
        let words = match self.language.0 {
            // Their lists hold elided articles without the apostrophe.
            Stems::French | Stems::Italian => Words::elided(),
            _ => Words::default(),
        };
        let words = TextAnalyzer::builder(words).filter(RemoveLongFilter::limit(LONGEST_TERM));
        let mut chain = words.filter(LowerCaser).dynamic();
        if let Some(list) = StopWordFilter::new(self.language.0).filter(|_| self.stop_words) {
            chain = chain.filter_dynamic(list);
        }
        if self.stem {
            chain = chain.filter_dynamic(Stemmer::new(self.language.0));
        }
        chain.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(language: Language, text: &str) -> Vec<String> {
        let (mut terms, analysis) = (Vec::new(), Analysis { language, stem: true, stop_words: true });
        analysis.analyser().token_stream(text).process(&mut |token| terms.push(token.text.clone()));
        terms
    }

    #[test]
    fn a_language_has_its_own_stems_and_stop_words() {
        let of = |name: &str, text: &str| terms(name.parse().unwrap(), text);
        assert_eq!(of("english", "The Women's houses"), ["women", "hous"]);
        assert_eq!(of("german", "Die Häuser und das Haus"), ["haus", "haus"]);
        assert_eq!(of("french", "L’avion d'été, les avions"), of("french", "avion été avion"));
        assert_eq!(of("russian", "и книги"), of("russian", "КНИГА"));
        assert_eq!(of("greek", "ΛΌΓΟΣ"), of("greek", "λόγος"));
        assert_eq!(of("arabic", "الكِتَاب"), of("arabic", "كتاب"));
        assert_eq!(of("english", "北京 हिन्दी"), ["北京", "हिन्दी"], "no stem of another script is touched");
    }

    #[test]
    fn names_are_read_back() {
        for name in Language::names() {
            assert_eq!(name.parse::<Language>().unwrap().to_string(), name);
        }
        assert!("klingon".parse::<Language>().unwrap_err().to_string().contains("german"));
        assert_eq!(
            Language::names().filter(|name| !name.parse::<Language>().unwrap().has_stop_words()).count(),
            5
        );
    }
}
