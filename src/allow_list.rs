//! Allow-lists for the JSON files that come with a model (`config.json`, `tokenizer_config.json`,
//! `tokenizer.json`). Other programs write them, and an overlooked key can silently change scores. So a table
//! says what every key means and which of its values are followed. A value that is not followed is an error
//! that names it; a key in no table is named in a warning.
//!
//! The tables stand beside the code that follows them: `model/config_keys.rs`, `text/tokenizer_keys.rs`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result, files};

/// Characters of a value that a message quotes.
const QUOTED: usize = 60;
/// Characters of a list of names in a message.
const LISTED: usize = 120;

/// Keys with one meaning. `C` is what judging a value needs besides the value.
pub struct Key<C: 'static> {
    pub names: &'static [&'static str],
    /// What it means to the programs that write it.
    pub meaning: &'static str,
    pub rule: Rule<C>,
}

/// What is done with a key's values.
pub enum Rule<C: 'static> {
    /// A whole number in this range is followed, anything else refused.
    Count(u64, u64),
    /// A number that is above 0 and finite in 32 bits is followed, anything else refused.
    Positive,
    /// These values (as JSON) are followed, any other is refused with this advice.
    OneOf(&'static [&'static str], &'static str),
    /// No result depends on it, for this reason.
    NoEffect(&'static str),
    /// A setting of this program decides instead; values other than the usual ones (as JSON) are warned of.
    Overruled { by: &'static str, usual: &'static [&'static str] },
    /// The value alone does not decide.
    Ask(fn(&Value, &C) -> Verdict),
}

/// What is done with one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The program does what it says.
    Followed,
    /// Nothing depends on it.
    NoEffect,
    /// The program does something else, which this names, and continues.
    Warned(String),
    /// The program would do something else, which this names, and stops.
    Refused(String),
}

impl Verdict {
    pub fn warned(text: impl Into<String>) -> Self {
        Self::Warned(text.into())
    }

    pub fn refused(text: impl Into<String>) -> Self {
        Self::Refused(text.into())
    }
}

impl<C> Key<C> {
    /// What is done with `value`.
    pub fn judge(&self, value: &Value, context: &C) -> Verdict {
        match &self.rule {
            Rule::Count(least, most) => match value.as_u64() {
                Some(n) if (*least..=*most).contains(&n) => Verdict::Followed,
                _ if *most == u64::MAX => Verdict::Refused(format!("must be a whole number from {least}")),
                _ => Verdict::Refused(format!("must be a whole number from {least} to {most}")),
            },
            Rule::Positive => match value.as_f64().map(|number| number as f32) {
                Some(number) if number > 0.0 && number.is_finite() => Verdict::Followed,
                _ => Verdict::refused("must be a number above 0 and finite in 32 bits"),
            },
            Rule::OneOf(values, _) if among(values, value) => Verdict::Followed,
            Rule::OneOf(values, advice) => {
                Verdict::Refused(format!("only {} can be used; {advice}", values.join(" or ")))
            }
            Rule::NoEffect(_) => Verdict::NoEffect,
            Rule::Overruled { usual, .. } if among(usual, value) => Verdict::NoEffect,
            Rule::Overruled { by, .. } => Verdict::Warned(format!("has no effect: {by} decides")),
            Rule::Ask(judge) => judge(value, context),
        }
    }
}

/// The key of this name in the tables.
pub fn find<'t, C>(tables: &[&'t [Key<C>]], name: &str) -> Option<&'t Key<C>> {
    tables.iter().copied().flatten().find(|key| key.names.contains(&name))
}

/// Judges every key of `object`, which was read from `file`. Returns the warnings, each one line.
///
/// # Errors
/// `Error::Config` that names the first refused key, its value and what to do.
pub fn check<C>(
    tables: &[&[Key<C>]],
    file: &Path,
    object: &Map<String, Value>,
    context: &C,
) -> Result<Vec<String>> {
    let (mut warnings, mut unknown) = (Vec::new(), Vec::new());
    for (name, value) in object {
        let Some(key) = find(tables, name) else {
            unknown.push(name.as_str());
            continue;
        };
        let line = |said: &str| format!("{}: {name} = {}: {said}", file.display(), quoted(value));
        match key.judge(value, context) {
            Verdict::Followed | Verdict::NoEffect => {}
            Verdict::Warned(said) => warnings.push(line(&said)),
            Verdict::Refused(said) => return Err(Error::config(line(&said))),
        }
    }
    if !unknown.is_empty() {
        let names = list(&unknown);
        warnings.push(format!("{}: unknown keys, which have no effect: {names}", file.display()));
    }
    Ok(warnings)
}

/// Reads a JSON object.
///
/// # Errors
/// `Error::Data` that names the file.
pub fn read_object(file: &Path) -> Result<Map<String, Value>> {
    match serde_json::from_slice(&files::read(file)?) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::data(format!("{}: holds no JSON object", file.display()))),
        Err(cause) => Err(Error::data(format!("{}: not JSON: {cause}", file.display()))),
    }
}

/// The value as JSON, shortened for a message.
pub fn quoted(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The first names, and how many more there are, on one line.
pub fn list<S: AsRef<str>>(names: &[S]) -> String {
    let mut text = String::new();
    for (i, name) in names.iter().enumerate() {
        let name = name.as_ref();
        if i > 0 && text.len() + name.len() > LISTED {
            return format!("{text} and {} more", names.len() - i);
        }
        let short: String = name.chars().take(LISTED).collect();
        text.push_str(if i > 0 { ", " } else { "" });
        text.push_str(&short);
    }
    text
}

fn among(values: &[&str], value: &Value) -> bool {
    values.iter().any(|text| serde_json::from_str::<Value>(text).is_ok_and(|known| known == *value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_and_values_fit_a_line() {
        assert_eq!(list(&["a", "b"]), "a, b");
        let many: Vec<String> = (0..400).map(|i| format!("module.encoder.layer.{i}.weight")).collect();
        let text = list(&many);
        assert!(text.len() < 200 && text.ends_with(" more"), "{text}");
        let said = text.matches("module.").count();
        assert!(text.ends_with(&format!(" and {} more", 400 - said)), "{text}");
        assert!(list(&["x".repeat(1000)]).len() <= LISTED);
        assert!(quoted(&json!("ä".repeat(500))).chars().count() <= QUOTED + 3);
        assert_eq!(quoted(&json!(0.5)), "0.5");
    }
}
