//! Words much as Lucene's analysers see them. tantivy's own tokeniser cuts at every apostrophe, so "women's" would be
//! searched as "women" and "s", and the letter s would score; and at vowel signs, so no word of Hindi would be whole.
//! Unlike Lucene's, a full stop between letters cuts, so that the words of a URL can be found.

use std::ops::Range;

use tantivy::tokenizer::{Token, TokenStream, Tokenizer};

use super::segment::{Rules, cut, fold, is_apostrophe};

/// Cuts text into runs of letters and digits with their marks. An apostrophe between two letters, and a full stop
/// or comma between two digits, do not end a word (`segment` has the rules); a possessive 's at a word's
/// end is dropped. Chinese, Japanese, Korean and the scripts of South East Asia become pairs of neighbouring
/// letters.
#[derive(Clone, Default)]
pub struct Words {
    token: Token,
    rules: Rules,
    /// What is between two white spaces, folded, where it is not ASCII.
    chunk: String,
    /// The chunk's words.
    words: Vec<Range<usize>>,
    /// How many of them were handed out.
    given: usize,
}

/// The words of one text.
pub struct WordStream<'a> {
    text: &'a str,
    /// Byte offset of what is not yet cut.
    from: usize,
    state: &'a mut Words,
}

impl Words {
    /// Words of a language that elides: apostrophes cut.
    pub fn elided() -> Self {
        Self { rules: Rules { elides: true }, ..Self::default() }
    }
}

impl Tokenizer for Words {
    type TokenStream<'a> = WordStream<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> WordStream<'a> {
        self.token.reset();
        self.words.clear();
        self.given = 0;
        WordStream { text, from: 0, state: self }
    }
}

/// Where the ASCII word at the start of `text` ends; `None` where other characters decide.
fn ascii_word(text: &[u8], rules: Rules) -> Option<usize> {
    let mut at = 0;
    loop {
        match text.get(at) {
            Some(c) if c.is_ascii_alphanumeric() => at += 1,
            Some(c) if !c.is_ascii() || at == 0 => return None,
            Some(&c) if matches!(c, b'\'' | b'.' | b',') => {
                let (before, after) = (text[at - 1], text.get(at + 1).copied().unwrap_or(0));
                if !after.is_ascii() {
                    return None;
                }
                if !rules.joins(before.into(), c.into(), after.into()) {
                    return Some(at);
                }
                at += 1;
            }
            _ => return Some(at),
        }
    }
}

/// `word` without a possessive 's.
fn without_possessive(word: &str) -> &str {
    let stem = word.strip_suffix(['s', 'S']).unwrap_or(word);
    if stem.len() < word.len() { stem.strip_suffix(is_apostrophe).unwrap_or(word) } else { word }
}

impl WordStream<'_> {
    /// The next word of the chunk, for which `token` keeps the chunk's place.
    fn next_of_chunk(&mut self) -> bool {
        let Words { token, chunk, words, given, .. } = &mut *self.state;
        let Some(range) = words.get(*given) else { return false };
        *given += 1;
        token.text.clear();
        token.text.push_str(without_possessive(&chunk[range.clone()]));
        token.position = token.position.wrapping_add(1);
        true
    }

    /// Cuts the text up to the next white space.
    fn cut_chunk(&mut self) {
        let rest = &self.text[self.from..];
        let length = rest.bytes().position(|c| c.is_ascii_whitespace()).unwrap_or(rest.len());
        let Words { token, rules, chunk, words, given, .. } = &mut *self.state;
        chunk.clear();
        words.clear();
        *given = 0;
        fold(&rest[..length], chunk);
        cut(chunk, *rules, words);
        token.offset_from = self.from;
        token.offset_to = self.from + length;
        self.from += length;
    }
}

impl TokenStream for WordStream<'_> {
    fn advance(&mut self) -> bool {
        while !self.next_of_chunk() {
            let bytes = &self.text.as_bytes()[self.from..];
            let starts = |c: &u8| c.is_ascii_alphanumeric() || !c.is_ascii();
            let Some(start) = bytes.iter().position(starts) else {
                self.from = self.text.len();
                return false;
            };
            self.from += start;
            let Some(length) = ascii_word(&bytes[start..], self.state.rules) else {
                self.cut_chunk();
                continue;
            };
            let word = without_possessive(&self.text[self.from..self.from + length]);
            let token = &mut self.state.token;
            token.text.clear();
            token.text.push_str(word);
            token.offset_from = self.from;
            token.offset_to = self.from + word.len();
            token.position = token.position.wrapping_add(1);
            self.from += length;
            return true;
        }
        true
    }

    fn token(&self) -> &Token {
        &self.state.token
    }

    fn token_mut(&mut self) -> &mut Token {
        &mut self.state.token
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut_by(mut rules: Words, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        rules.token_stream(text).process(&mut |token| words.push(token.text.clone()));
        words
    }

    fn words(text: &str) -> Vec<String> {
        cut_by(Words::default(), text)
    }

    /// The rules that published English baselines were made with: runs of letters and digits, joined by
    /// `Rules::joins`, whatever UAX 29 says.
    fn words_before(text: &str) -> Vec<String> {
        let characters: Vec<char> = text.chars().collect();
        let at = |i: usize| characters.get(i).copied().unwrap_or('\0');
        let (mut words, mut word) = (Vec::new(), String::new());
        for (i, &c) in characters.iter().enumerate() {
            let joins = |i: usize| i > 0 && Rules::default().joins(at(i - 1), at(i), at(i + 1));
            if c.is_alphanumeric() || !word.is_empty() && joins(i) {
                word.push(c);
            } else if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
        }
        words.extend(Some(word).filter(|word| !word.is_empty()));
        words.iter().map(|word| without_possessive(word).to_owned()).collect()
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
        assert_eq!(words("CO₂ 1½ 10² “well–known” naïve…"), ["CO₂", "1½", "10²", "well", "known", "naïve"]);
    }

    #[test]
    fn marks_and_joiners_are_inside_words() {
        assert_eq!(words("हिन्दी में क्षेत्र, शक्‍ति"), ["हिन्दी", "में", "क्षेत्र", "शक्ति"]);
        assert_eq!(words("العَرَبِيَّة ١٢٣"), ["العَرَبِيَّة", "١٢٣"]);
        assert_eq!(words("می‌خواهم"), ["میخواهم"], "a joiner is no letter and no end");
        assert_eq!(words("in\u{ad}formation \u{feff}a\u{200b}b"), ["information", "a", "b"]);
        assert_eq!(words("שלום צה״ל"), ["שלום", "צה״ל"]);
        assert_eq!(words("தமிழ் ქართული ሰላም፡ዓለም"), ["தமிழ்", "ქართული", "ሰላም", "ዓለም"]);
        assert_eq!(words("col·legi mot\u{202f}! a‿b x_y"), ["col·legi", "mot", "a", "b", "x", "y"]);
    }

    #[test]
    fn one_form_for_each_word() {
        assert_eq!(words("Cafe\u{301} Ångström A\u{30a}ngstro\u{308}m"), ["Café", "Ångström", "Ångström"]);
        assert_eq!(words("Ἀθῆναι Α\u{313}θη\u{342}ναι"), ["Ἀθῆναι", "Ἀθῆναι"]);
        assert_eq!(words("λόγος ΛΌΓΟΣ"), ["λόγοσ", "ΛΌΓΟΣ"], "which has the same lower case");
        assert_eq!(words("ＢＭ２５ Ｗｏｍｅｎ＇ｓ"), ["BM25", "Women"]);
        assert_eq!(words("ｶﾞｲﾄﾞ"), words("ガイド"));
        assert_eq!(words("한국"), words("\u{1112}\u{1161}\u{11ab}\u{1100}\u{116e}\u{11a8}"));
    }

    #[test]
    fn ideographs_and_their_like_are_pairs() {
        assert_eq!(words("北京大学, 京"), ["北京", "京大", "大学", "京"]);
        assert_eq!(words("東京タワーへ2024年"), ["東京", "京タ", "タワ", "ワー", "ーへ", "2024", "年"]);
        assert_eq!(words("한국어 LG전자"), ["한국", "국어", "LG", "전자"]);
        assert_eq!(words("ภาษา ๑๒"), ["ภา", "าษ", "ษา", "๑๒"]);
        assert_eq!(words("ที่นี่"), ["ที่นี่"], "marks stay with their letter");
        assert_eq!(words("か\u{3099}く"), ["がく"]);
        assert_eq!(words("𠮷野家"), ["𠮷野", "野家"]);
    }

    #[test]
    fn emoji_are_no_words() {
        assert_eq!(words("👩‍👩‍👧 a👍🏽b 🇬🇧 ❤️ 1️⃣"), ["a", "b", "1"]);
    }

    #[test]
    fn french_elides() {
        let french = |text| cut_by(Words::elided(), text);
        assert_eq!(french("l'eau d’été 3.5"), ["l", "eau", "d", "été", "3.5"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn ascii_is_cut_as_ever(text in "([a-zA-Z0-9]{0,3}['., _:;@\\x00-\\x7f]{0,2}[sS0-9a]?){0,12}") {
            prop_assert_eq!(words(&text), words_before(&text));
        }

        #[test]
        fn english_with_typography_too(text in "([a-z0-9éüßÆ½²]{0,3}[’'.,“”–— \u{a0}€™-]{0,2}[sS]?){0,12}") {
            prop_assert_eq!(words(&text), words_before(&text));
        }

        #[test]
        fn any_text_in_parts_is_the_text(parts in prop::collection::vec("\\PC{0,12}", 0..5)) {
            let whole = words(&parts.join(" "));
            prop_assert_eq!(whole, parts.iter().flat_map(|part| words(part)).collect::<Vec<_>>());
        }
    }
}
