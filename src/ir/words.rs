//! Words much as Lucene's English analyser sees them. tantivy's own tokeniser cuts at every apostrophe,
//! so "women's" would be searched as "women" and "s", and the letter s would score. Unlike Lucene's, a
//! full stop between letters cuts, so that the words of a URL can be found.

use tantivy::tokenizer::{Token, TokenStream, Tokenizer};

/// Cuts text into runs of letters and digits. An apostrophe between two letters, and a full stop or
/// comma between two digits, do not end a word (Unicode's word rules, UAX 29 WB6, WB7, WB11, WB12);
/// a possessive 's at a word's end is dropped.
#[derive(Clone, Default)]
pub struct Words {
    token: Token,
}

/// The words of one text.
pub struct WordStream<'a> {
    text: &'a str,
    /// Byte offset of what is not yet cut.
    from: usize,
    token: &'a mut Token,
}

impl Tokenizer for Words {
    type TokenStream<'a> = WordStream<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> WordStream<'a> {
        self.token.reset();
        WordStream { text, from: 0, token: &mut self.token }
    }
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '\u{2019}' | '\u{ff07}')
}

/// Whether `joint` between these two characters keeps a word together.
fn joins(before: char, joint: char, after: char) -> bool {
    if is_apostrophe(joint) {
        before.is_alphabetic() && after.is_alphabetic()
    } else {
        matches!(joint, '.' | ',') && before.is_numeric() && after.is_numeric()
    }
}

/// The length in bytes of the word at the start of `text`.
fn word_length(text: &str) -> usize {
    let mut characters = text.char_indices().peekable();
    let mut before = '\0';
    while let Some((at, c)) = characters.next() {
        if !c.is_alphanumeric() {
            let after = characters.peek().map_or('\0', |&(_, after)| after);
            if !joins(before, c, after) {
                return at;
            }
        }
        before = c;
    }
    text.len()
}

/// `word` without a possessive 's.
fn without_possessive(word: &str) -> &str {
    let stem = word.strip_suffix(['s', 'S']).unwrap_or(word);
    if stem.len() < word.len() { stem.strip_suffix(is_apostrophe).unwrap_or(word) } else { word }
}

impl TokenStream for WordStream<'_> {
    fn advance(&mut self) -> bool {
        let rest = &self.text[self.from..];
        let Some(start) = rest.find(char::is_alphanumeric).map(|at| self.from + at) else {
            self.from = self.text.len();
            return false;
        };
        let length = word_length(&self.text[start..]);
        self.from = start + length;
        let word = without_possessive(&self.text[start..start + length]);
        self.token.text.clear();
        self.token.text.push_str(word);
        self.token.offset_from = start;
        self.token.offset_to = start + word.len();
        self.token.position = self.token.position.wrapping_add(1);
        true
    }

    fn token(&self) -> &Token {
        self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        self.token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        Words::default().token_stream(text).process(&mut |token| words.push(token.text.clone()));
        words
    }

    #[test]
    fn words_as_lucene_cuts_them() {
        assert_eq!(words("Women's health, don't o’clock"), ["Women", "health", "don't", "o’clock"]);
        assert_eq!(
            words("COVID-19 cost 1,000.5 US$. 3. a.b 'quoted'"),
            ["COVID", "19", "cost", "1,000.5", "US", "3", "a", "b", "quoted"]
        );
        assert_eq!(words(" -- "), [""; 0]);
        assert_eq!(words("é's ß's"), ["é", "ß"]);
    }
}
