//! Words of text that is more than ASCII: one form for each character, then cuts as Unicode's word rules (UAX 29)
//! make them. Scripts that put no space between words are cut into their letters, for no rule without a
//! dictionary finds words there. Apart from `words`, because it knows nothing of search, and passages and
//! filters count words with it too.

use std::iter::once;
use std::ops::Range;

use unicode_normalization::char::is_combining_mark;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};
use unicode_segmentation::UnicodeSegmentation;

/// Letters of scripts without spaces between words: Han, kana and their like, and those of South East Asia
/// (Unicode's line breaking class SA). Blocks, first and last.
const UNSPACED: [(char, char); 21] = [
    ('\u{e00}', '\u{eff}'),     // Thai, Lao
    ('\u{1000}', '\u{109f}'),   // Myanmar
    ('\u{1780}', '\u{17ff}'),   // Khmer
    ('\u{1950}', '\u{19df}'),   // Tai Le, New Tai Lue
    ('\u{1a20}', '\u{1aaf}'),   // Tai Tham
    ('\u{2e80}', '\u{2fdf}'),   // radicals
    ('\u{3005}', '\u{3007}'),   // marks that repeat or stand for an ideograph
    ('\u{3021}', '\u{3029}'),   // numerals
    ('\u{3031}', '\u{303b}'),   // kana repeat marks
    ('\u{3041}', '\u{30ff}'),   // hiragana, katakana
    ('\u{31f0}', '\u{31ff}'),   // small katakana
    ('\u{3400}', '\u{4dbf}'),   // Han, extension A
    ('\u{4e00}', '\u{9fff}'),   // Han
    ('\u{a9e0}', '\u{a9ff}'),   // Myanmar
    ('\u{aa60}', '\u{aadf}'),   // Myanmar, Tai Viet
    ('\u{f900}', '\u{faff}'),   // Han for compatibility
    ('\u{17000}', '\u{18dff}'), // Tangut, Khitan
    ('\u{1aff0}', '\u{1b16f}'), // historic kana
    ('\u{1b170}', '\u{1b2ff}'), // Nushu
    ('\u{20000}', '\u{2fa1f}'), // Han, extensions
    ('\u{30000}', '\u{3347f}'), // Han, extensions
];

/// Syllables and letters of Korean, which has spaces, but around phrases.
const HANGUL: [(char, char); 5] = [
    ('\u{1100}', '\u{11ff}'),
    ('\u{3130}', '\u{318f}'),
    ('\u{a960}', '\u{a97f}'),
    ('\u{ac00}', '\u{d7a3}'),
    ('\u{d7b0}', '\u{d7ff}'),
];

fn within(blocks: &[(char, char)], c: char) -> bool {
    let at = blocks.partition_point(|&(_, last)| last < c);
    blocks.get(at).is_some_and(|&(first, _)| first <= c)
}

/// A letter of a script without spaces between words.
fn is_unspaced(c: char) -> bool {
    c >= '\u{e00}' && within(&UNSPACED, c) && c.is_alphabetic() && !is_mark(c)
}

/// A letter that is searched for in pairs, as Lucene's CJK analyser does.
fn is_paired(c: char) -> bool {
    is_unspaced(c) || (c >= '\u{1100}' && within(&HANGUL, c))
}

/// Invisible characters within words, which Unicode's caseless match leaves out: soft hyphen, joiners, marks of
/// direction, selectors of a glyph. A keycap's frame goes too. The zero-width space is none: it parts words.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200c}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{20e3}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{e0001}'..='\u{e007f}' | '\u{e0100}'..='\u{e01ef}')
}

/// Latin letters that are composed, and signs that cut: most of what English text has besides ASCII. Neither the
/// normal form nor UAX 29 needs to be asked about them.
fn is_plain(c: char) -> bool {
    matches!(c, '\0'..='\u{ac}' | '\u{ae}'..='\u{b6}' | '\u{b8}'..='\u{2af}' | '\u{2010}'..='\u{2017}'
        | '\u{2019}'..='\u{2023}' | '\u{2025}' | '\u{2026}' | '\u{20a0}'..='\u{20bf}' | '\u{2122}')
}

/// A combining mark: it belongs to the character before it.
fn is_mark(c: char) -> bool {
    c >= '\u{300}' && is_combining_mark(c)
}

/// Whether `fold` has more to do than to compose.
fn is_folded(c: char) -> bool {
    c >= '\u{ad}' && (c == 'ς' || matches!(c, '\u{ff01}'..='\u{ffee}') || is_invisible(c))
}

/// Appends `text` in the form in which words are compared: composed (NFC), without invisible characters, full and
/// half width as usual width (Lucene's `CJKWidthFilter`), final sigma as any sigma. ASCII stays as it is.
pub(crate) fn fold(text: &str, out: &mut String) {
    let composed = || is_nfc_quick(text.chars()) == IsNormalized::Yes;
    if text.chars().all(is_plain) || (composed() && !text.chars().any(is_folded)) {
        out.push_str(text);
        return;
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            _ if is_invisible(c) => {}
            'ς' => plain.push('σ'),
            '\u{ff01}'..='\u{ffee}' => plain.extend(once(c).nfkc()),
            _ => plain.push(c),
        }
    }
    out.extend(plain.nfc());
}

pub(super) fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '\u{2019}' | '\u{ff07}')
}

/// What of UAX 29 is done otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rules {
    /// An apostrophe ends a word, as French and Italian elide ("l'eau").
    pub elides: bool,
}

impl Rules {
    /// Whether an ASCII character or an apostrophe between these two keeps a word together. (UAX 29 WB6, WB7, WB11,
    /// WB12, but that a full stop between letters and an underscore cut.)
    pub fn joins(self, before: char, joint: char, after: char) -> bool {
        if is_apostrophe(joint) {
            !self.elides && before.is_alphabetic() && after.is_alphabetic()
        } else {
            matches!(joint, '.' | ',') && before.is_numeric() && after.is_numeric()
        }
    }
}

/// What is open while text is cut.
enum Open {
    Nothing,
    /// Start of a word of letters and digits.
    Word(usize),
    /// Starts of the last two letters of a script that is searched for in pairs.
    Letters(Option<usize>, usize),
}

/// Appends the words of a folded text: words of letters and digits, and of paired scripts each pair of neighbours,
/// or a letter alone.
pub(super) fn cut(text: &str, rules: Rules, words: &mut Vec<Range<usize>>) {
    let mut bounds = None;
    let mut characters = text.char_indices().peekable();
    let (mut open, mut before) = (Open::Nothing, '\0');
    while let Some((at, c)) = characters.next() {
        if is_mark(c) && !matches!(open, Open::Nothing) {
            continue;
        }
        open = match open {
            Open::Letters(previous, last) if is_paired(c) => {
                words.extend(previous.map(|start| start..at));
                Open::Letters(Some(last), at)
            }
            Open::Word(start) if c.is_alphanumeric() && !is_paired(c) => Open::Word(start),
            Open::Word(start) if !c.is_alphanumeric() => {
                let after = characters.peek().map_or('\0', |&(_, after)| after);
                let joined = if c.is_ascii() || is_apostrophe(c) {
                    rules.joins(before, c, after)
                } else {
                    !is_plain(c) && !is_connector(c) && {
                        let indices = || text.split_word_bound_indices().map(|(at, _)| at).peekable();
                        let bounds = bounds.get_or_insert_with(indices);
                        while bounds.next_if(|&bound| bound < at).is_some() {}
                        bounds.peek() != Some(&at)
                    }
                };
                if joined { Open::Word(start) } else { close(text, Open::Word(start), at, words) }
            }
            other => {
                close(text, other, at, words);
                match c {
                    _ if is_paired(c) => Open::Letters(None, at),
                    _ if c.is_alphanumeric() => Open::Word(at),
                    _ => Open::Nothing,
                }
            }
        };
        before = c;
    }
    close(text, open, text.len(), words);
}

/// Characters that UAX 29 takes into words (ExtendNumLet) and that cut here, as the underscore does. The narrow
/// space is among them, which stands before a French exclamation mark.
fn is_connector(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{203f}' | '\u{2040}' | '\u{2054}' | '\u{fe33}'..='\u{fe4f}')
}

fn close(text: &str, open: Open, at: usize, words: &mut Vec<Range<usize>>) -> Open {
    match open {
        Open::Nothing => {}
        Open::Word(start) => {
            let word = text[start..at].trim_end_matches(|c: char| !c.is_alphanumeric() && !is_mark(c));
            words.push(start..start + word.len());
        }
        Open::Letters(previous, last) => words.push(previous.unwrap_or(last)..at),
    }
    Open::Nothing
}

/// Words to count: what stands between white space, and in scripts without spaces each letter with its marks
/// and the punctuation after it.
pub(crate) fn counted(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace().flat_map(|chunk| {
        let mut rest = chunk;
        std::iter::from_fn(move || {
            let (word, after) = rest.split_at(first_counted(rest));
            rest = after;
            (!word.is_empty()).then_some(word)
        })
    })
}

/// Bytes of the first word of a text without white space.
fn first_counted(chunk: &str) -> usize {
    if chunk.is_ascii() {
        return chunk.len();
    }
    let mut letter = None;
    for (at, c) in chunk.char_indices() {
        if !c.is_alphanumeric() || is_mark(c) {
            continue;
        }
        let unspaced = is_unspaced(c);
        if letter == Some(true) || (letter == Some(false) && unspaced) {
            return at;
        }
        letter = Some(unspaced);
    }
    chunk.len()
}

/// Lower-cased words of letters and digits with one space between: what makes two texts the same.
pub(crate) fn normal(text: &str) -> String {
    let (mut folded, mut out) = (String::new(), String::with_capacity(text.len()));
    fold(&text.to_lowercase(), &mut folded);
    for word in folded.split(|c: char| !c.is_alphanumeric() && !is_mark(c)) {
        if !word.is_empty() {
            out.push_str(if out.is_empty() { "" } else { " " });
            out.push_str(word);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_in_order() {
        for blocks in [&UNSPACED[..], &HANGUL] {
            assert!(blocks.iter().all(|(first, last)| first <= last));
            assert!(blocks.windows(2).all(|two| two[0].1 < two[1].0));
        }
    }

    #[test]
    fn counted_words() {
        let words = |text| counted(text).collect::<Vec<_>>();
        assert_eq!(words(" don't stop,  C++ é!\u{3000}x "), ["don't", "stop,", "C++", "é!", "x"]);
        assert_eq!(words("北京，2024年 a"), ["北", "京，", "2024", "年", "a"]);
        assert_eq!(words("「東」ですね。"), ["「東」", "で", "す", "ね。"]);
        assert_eq!(words("ที่นี่"), ["ที่", "นี่"]);
        assert_eq!(words("한국어 हिन्दी"), ["한국어", "हिन्दी"], "these have spaces");
        assert_eq!(words("👩‍👩‍👧 👍🏽"), ["👩‍👩‍👧", "👍🏽"]);
        assert_eq!(words(" \n"), [""; 0]);
    }

    #[test]
    fn normal_forms() {
        assert_eq!(normal("  What's the C++_price?"), "what s the c price");
        assert_eq!(normal("Cafe\u{301}"), normal("CAFÉ!"));
        assert_eq!(normal("हिन्दी"), "हिन्दी");
        assert_eq!(normal("می‌خواهم"), normal("میخواهم"));
        assert_eq!(normal("ΛΌΓΟΣ"), normal("λόγος"));
        assert_eq!(normal("…"), "");
    }
}
