//! Long documents are cut into passages of words (`ir::segment` says what counts as one), which are scored one
//! by one; `engine::op::Aggregate` puts the scores together.

use crate::config::{Aggregate, Fine};
use crate::ir::segment::counted;

/// How text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Words of a passage; 0 leaves the document whole.
    pub words: usize,
    /// Words from one passage's start to the next's.
    pub stride: usize,
    /// Passages of a document that are used.
    pub most: usize,
}

impl Cut {
    /// As `[fine]` says; first-p needs only the first passage.
    pub fn of(fine: &Fine) -> Self {
        let most = if fine.aggregate == Aggregate::FirstP { 1 } else { fine.passages };
        Self { words: fine.passage_words, stride: fine.passage_stride, most }
    }
}

/// The passages of `text`: windows of `cut.words` words, a window every `cut.stride` words, until a
/// window reaches the end or `cut.most` are there. At least one, which may be empty.
pub fn passages(text: &str, cut: Cut) -> Vec<&str> {
    if cut.words == 0 {
        return vec![text];
    }
    let words: Vec<(usize, usize)> = counted(text)
        .map(|word| {
            let start = word.as_ptr() as usize - text.as_ptr() as usize;
            (start, start + word.len())
        })
        .collect();
    let mut parts = Vec::new();
    let mut first = 0;
    while parts.len() < cut.most.max(1) {
        let last = (first + cut.words).min(words.len());
        match words.get(first..last) {
            Some([from, .., to]) => parts.push(&text[from.0..to.1]),
            Some([only]) => parts.push(&text[only.0..only.1]),
            _ => parts.push(""),
        }
        if last == words.len() {
            break;
        }
        first += cut.stride.max(1);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_words() {
        let cut = Cut { words: 3, stride: 2, most: 16 };
        assert_eq!(passages("a b  c d\te f", cut), ["a b  c", "c d\te", "e f"]);
        assert_eq!(passages("a b c d e", cut), ["a b c", "c d e"], "the end is reached: no third window");
        assert_eq!(passages("a b", cut), ["a b"]);
        assert_eq!(passages(" \n", cut), [""]);
        assert_eq!(passages("a b c d e f g", Cut { most: 2, ..cut }), ["a b c", "c d e"]);
        assert_eq!(passages(" a b", Cut { words: 0, ..cut }), [" a b"], "whole");
        assert_eq!(passages("北京大学。x", cut), ["北京大", "大学。x"], "no spaces, and yet words");
        assert_eq!(passages("é ü ß", Cut { words: 1, stride: 1, most: 9 }), ["é", "ü", "ß"]);
    }
}
