//! The corpus: raw files, tokenizer, shards, all on small data made in a temporary folder. Tests that need
//! the shared data folder say so when it is missing; what they cover is also tested without it.

pub mod accounts;
mod damage;
mod debian;
mod fetch;
pub mod formats;
mod odd;
mod prepare;
mod read;
mod resume;
mod shards;
mod tokenise;

use ctune_dist::text::Tokenizer;

use crate::skip::shared;

/// A few sentences with accents, punctuation and repeated words.
const TEXTS: [&str; 6] = [
    "The quick brown fox jumps over the lazy dog.",
    "A lazy dog is not a quick fox; quick foxes jump, lazy dogs sleep!",
    "Cafés in Paris serve naïve résumés of foxes",
    "jumping, jumped, jumps: the jumper jumps over jumpers",
    "sleeping dogs lie and lazy dogs sleep over there",
    "北京 has foxes too -- \u{201c}quick\u{201d} ones",
];

fn small_tokenizer(vocab: usize) -> Tokenizer {
    Tokenizer::train(TEXTS.iter().map(ToString::to_string), vocab).unwrap()
}

/// The text of an error, which must be one line.
fn message<T>(result: ctune_dist::Result<T>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n'), "more than one line: {text}");
            text
        }
    }
}
