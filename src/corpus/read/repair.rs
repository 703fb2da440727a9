//! Mis-decoded UTF-8, the commonest damage of text from the web: bytes of UTF-8 that some program took for
//! Windows-1252 and encoded again ("cafÃ©"). Undoing it is safe where it succeeds: a run of such characters is
//! by accident hardly ever valid UTF-8.

use std::borrow::Cow;

use encoding_rs::WINDOWS_1252;

/// Times that text was mis-decoded in a row, at most.
const ROUNDS: usize = 3;

/// The text as it was meant; borrowed where nothing can be repaired.
pub(crate) fn repaired(text: &str) -> Cow<'_, str> {
    let mut now = Cow::Borrowed(text);
    for _ in 0..ROUNDS {
        match once(&now) {
            Some(better) => now = Cow::Owned(better),
            None => break,
        }
    }
    now
}

/// Replaces every run of non-ASCII characters that is UTF-8 once more; `None` where there is none.
fn once(text: &str) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    let (mut out, mut rest, mut changed) = (String::new(), text, false);
    while let Some(start) = rest.find(|c: char| !c.is_ascii()) {
        let end = rest[start..].find(|c: char| c.is_ascii()).map_or(rest.len(), |length| start + length);
        out.push_str(&rest[..start]);
        let run = &rest[start..end];
        match decoded(run) {
            Some(better) => {
                out.push_str(&better);
                changed = true;
            }
            None => out.push_str(run),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    changed.then_some(out)
}

/// What the characters of a run spell as bytes, where that is UTF-8.
fn decoded(run: &str) -> Option<String> {
    let (bytes, _, unmappable) = WINDOWS_1252.encode(run);
    if unmappable {
        return None;
    }
    String::from_utf8(bytes.into_owned()).ok()
}
