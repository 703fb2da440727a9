//! Holds a plan against the keys that a plan may have: each must exist, be of its type and lie in its range. The
//! first fault found is told in one line, with the place where the value was written.

use toml::{Table, Value};

use super::keys::{Key, Kind, Range, Section};

/// How alike two names must be for one to be taken for a slip of the other.
const ALIKE: f64 = 0.6;
/// Characters of a name, a value or a flag that an error repeats.
const SHOWN: usize = 80;

/// A step from a table to a value in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Item(usize),
}

/// What is wrong with a plan.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The value that is to be mended; several where a rule between them is broken.
    pub at: Vec<Vec<Step>>,
    /// The key, with its value where the value is wrong; none where the text names them.
    pub subject: Option<String>,
    pub text: String,
}

impl Fault {
    /// `text` speaks of the values of these keys (`a.b`).
    pub fn about<const N: usize>(keys: [&str; N], text: impl Into<String>) -> Self {
        let steps = |key: &str| key.split('.').map(|name| Step::Key(name.to_owned())).collect();
        Self { at: keys.map(steps).into(), subject: None, text: text.into() }
    }
}

/// The steps as a key, `a.b`; which item of a list it is in, its line says.
pub fn dotted(at: &[Step]) -> String {
    let names = at.iter().filter_map(|step| match step {
        Step::Key(name) => Some(name.as_str()),
        Step::Item(_) => None,
    });
    names.collect::<Vec<_>>().join(".")
}

/// The beginning of `text`, on one line.
pub fn cut(text: &str) -> String {
    let line = one_line(text);
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// The check of one table.
pub struct Check<'k> {
    /// Every key of a plan, among which a slip is looked for.
    plan: &'k Section,
    at: Vec<Step>,
    /// Whether keys may be missing: another table has them.
    part: bool,
}

impl<'k> Check<'k> {
    /// The check of a whole plan.
    pub fn of(plan: &'k Section) -> Self {
        Self { plan, at: Vec::new(), part: false }
    }

    /// The check of a table that is laid over another; `at` leads to it.
    pub fn of_part(plan: &'k Section, at: &[&str]) -> Self {
        let at = at.iter().map(|name| Step::Key((*name).to_owned())).collect();
        Self { plan, at, part: true }
    }

    /// # Errors
    /// The first key of `table` that does not exist, is missing, or has a value that cannot be.
    pub fn table(&mut self, section: &Section, table: &Table) -> Result<(), Fault> {
        for (name, value) in table {
            self.at.push(Step::Key(name.clone()));
            match section.keys.iter().find(|key| key.name == name) {
                Some(key) => self.value(&key.kind, value)?,
                None => return Err(self.fault(cut(&dotted(&self.at)), unknown(self.plan, section, name))),
            }
            self.at.pop();
        }
        match section.keys.iter().find(|key| !key.optional && !table.contains_key(key.name)) {
            _ if self.part => Ok(()),
            Some(key) => Err(self.fault(format!("{}.{}", dotted(&self.at), key.name), "is missing".into())),
            None => Ok(()),
        }
    }

    fn value(&mut self, kind: &Kind, value: &Value) -> Result<(), Fault> {
        match (kind, value) {
            (Kind::Whole(range), Value::Integer(number)) if range.holds(*number as f64) => Ok(()),
            (Kind::Number { range, short }, _) if number(value).is_some_and(|x| fits(x, *range, *short)) => {
                Ok(())
            }
            (Kind::Flag, Value::Boolean(_)) => Ok(()),
            (Kind::Text | Kind::Path, Value::String(_)) => Ok(()),
            (Kind::Choice(words), Value::String(text)) if words.iter().any(|word| word.word == text) => {
                Ok(())
            }
            (Kind::List { of, length: None }, Value::String(_)) if matches!(**of, Kind::Path) => Ok(()),
            (Kind::List { of, length }, Value::Array(items)) if length.is_none_or(|n| n == items.len()) => {
                for (i, item) in items.iter().enumerate() {
                    self.at.push(Step::Item(i));
                    self.value(of, item)?;
                    self.at.pop();
                }
                Ok(())
            }
            (Kind::Names, Value::Table(names)) if names.values().all(Value::is_str) => Ok(()),
            (Kind::Table(section), Value::Table(table)) => self.table(section, table),
            _ => Err(self.wrong(kind, value)),
        }
    }

    fn wrong(&self, kind: &Kind, value: &Value) -> Fault {
        let mut text = format!("must be {}", due(kind));
        let mut hint = None;
        match (kind, value) {
            (Kind::Number { range, short: true }, _)
                if let Some(x) = number(value).filter(|&x| range.holds(x)) =>
            {
                text += &format!(" ({x:e} is {} in 32 bits)", x as f32);
            }
            (Kind::Whole(_), Value::Float(x)) if x.fract() == 0.0 && x.abs() < 1e15 => {
                hint = Some(x.to_string())
            }
            (Kind::Whole(_), Value::String(text)) => hint = text.parse::<i64>().ok().map(|x| x.to_string()),
            (Kind::Number { .. }, Value::String(text)) => {
                hint = text.parse::<f64>().ok().filter(|x| x.is_finite()).map(|x| format!("{x:?}"));
            }
            _ => {}
        }
        if let Some(number) = hint {
            text += &format!("; write it as {number}");
        }
        self.fault(format!("{} = {}", cut(&dotted(&self.at)), cut(&value.to_string())), text)
    }

    fn fault(&self, subject: String, text: String) -> Fault {
        Fault { at: vec![self.at.clone()], subject: Some(subject), text }
    }
}

fn number(value: &Value) -> Option<f64> {
    value.as_float().or(value.as_integer().map(|whole| whole as f64))
}

/// Whether `x` is in `range`, and still is after it was rounded to 32 bits where it is `short`.
fn fits(x: f64, range: Range, short: bool) -> bool {
    range.holds(x) && (!short || range.holds(f64::from(x as f32)))
}

/// What a value must be, for "must be ...".
fn due(kind: &Kind) -> String {
    match kind {
        Kind::Whole(range) => format!("a whole number {range}"),
        Kind::Number { range, .. } if *range == Range::FINITE => "a number, not inf or nan".into(),
        Kind::Number { range, .. } => format!("a number {range}"),
        Kind::Flag => "true or false".into(),
        Kind::Text => "text".into(),
        Kind::Path => "a path".into(),
        Kind::Choice(words) => {
            let words: Vec<String> = words.iter().map(|word| format!("\"{}\"", word.word)).collect();
            format!("one of {}", words.join(", "))
        }
        Kind::List { of, length: None } if matches!(**of, Kind::Path) => "a path or a list of paths".into(),
        Kind::List { of, length: Some(length) } => format!("a list of {length}, each {}", due(of)),
        Kind::List { of, length: None } => format!("a list, each {}", due(of)),
        Kind::Names => "a table of names and texts, as { id = \"1\" }".into(),
        Kind::Table(_) => "a table".into(),
    }
}

/// What to say of a key that does not exist: the one that was meant, where it can be told.
fn unknown(plan: &Section, section: &Section, name: &str) -> String {
    let alike = |key: &&Key| strsim::normalized_damerau_levenshtein(key.name, name);
    let here = section.keys.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    if let Some(key) = here.filter(|key| alike(key) >= ALIKE) {
        return format!("unknown key; did you mean {}?", key.name);
    }
    match elsewhere(plan, name) {
        Some(path) => format!("unknown key; did you mean {path}?"),
        None => "unknown key; docs/config.md lists all keys".into(),
    }
}

/// Where in the plan there is a key of this very name.
fn elsewhere(section: &Section, name: &str) -> Option<String> {
    section.keys.iter().find_map(|key| {
        if key.name == name {
            return Some(name.to_owned());
        }
        match &key.kind {
            Kind::Table(inner) => elsewhere(inner, name).map(|path| format!("{}.{path}", key.name)),
            _ => None,
        }
    })
}

/// TOML errors span lines (a picture of the place); the user gets one.
pub fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}
