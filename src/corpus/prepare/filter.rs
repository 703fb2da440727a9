//! What may be left out of a corpus besides damage: texts of other languages, too short, too long, or seen
//! before. Nothing is left out unless it is asked for, and everything that is is counted by its reason.

pub use crate::config::Filter;
use crate::ir::segment::counted;
use crate::{Error, Result};

/// Bytes of a document from which its language is told.
const SAMPLE: usize = 600;

impl Filter {
    /// # Errors
    /// `Error::Config` for a language that does not exist.
    pub(crate) fn check(&self) -> Result<()> {
        match self.languages.iter().find(|code| whatlang::Lang::from_code(code.as_str()).is_none()) {
            Some(code) => Err(Error::config(format!(
                "prepare.filter.languages: unknown code {code:?}; use ISO 639-3 codes such as \"eng\""
            ))),
            None => Ok(()),
        }
    }

    /// Why a query is left out.
    pub(crate) fn query(&self, text: &str) -> Option<&'static str> {
        if self.min_query_words > 0 && counted(text).take(self.min_query_words).count() < self.min_query_words
        {
            return Some("clicks whose query has too few words");
        }
        if self.max_query_words > 0 && counted(text).nth(self.max_query_words).is_some() {
            return Some("clicks whose query has too many words");
        }
        self.foreign(text).then_some("clicks whose query is in another language")
    }

    /// Why a document is left out; `parts` are its fields.
    pub(crate) fn document(&self, parts: &[&str]) -> Option<&'static str> {
        let words = || parts.iter().flat_map(|part| counted(part));
        if self.min_document_words > 0
            && words().take(self.min_document_words).count() < self.min_document_words
        {
            return Some("documents with too few words");
        }
        let longest = parts.iter().max_by_key(|part| part.len()).copied().unwrap_or_default();
        let mut end = longest.len().min(SAMPLE);
        while !longest.is_char_boundary(end) {
            end -= 1;
        }
        self.foreign(&longest[..end]).then_some("documents in another language")
    }

    fn foreign(&self, text: &str) -> bool {
        if self.languages.is_empty() {
            return false;
        }
        let found = whatlang::detect(text).filter(whatlang::Info::is_reliable);
        found.is_some_and(|found| !self.languages.iter().any(|code| code == found.lang().code()))
    }
}
