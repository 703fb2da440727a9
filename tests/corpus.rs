//! The corpus: raw files, tokenizer, shards, all on small data made in a temporary folder. What needs
//! the shared data folder says so when the folder is missing, and replaces nothing that runs everywhere.

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

use std::path::PathBuf;

use ctune_dist::text::Tokenizer;

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

/// A file of the shared data folder, `None` (and a line that says so) where there is no such folder.
fn shared(path: &str) -> Option<PathBuf> {
    let folder =
        std::env::var_os("CTUNE_SHARED_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
    let file = folder.join(path);
    if !file.exists() {
        eprintln!("skipped: {} is missing (set CTUNE_SHARED_DATA)", file.display());
        return None;
    }
    Some(file)
}

/// The one line of an error.
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
