//! The layers of a plan: the file, its `[stage.NAME]` table for this command, and `--set` on top. Values are merged
//! first and checked after; the place where a wrong one was written is looked up then.

use std::fs;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::check::{Fault, Step, cut, dotted, one_line};
use crate::{Error, Result};

/// Where a plan comes from.
pub struct Layers<'a> {
    /// The file and its text.
    file: Option<(&'a Path, String)>,
    /// The file without its stages.
    base: Table,
    /// `[stage.NAME]` of the file.
    stages: Table,
    stage: &'a str,
    /// `a.b=c`, each over the ones before it.
    overrides: &'a [String],
}

impl<'a> Layers<'a> {
    /// # Errors
    /// `Error::Config` when the file cannot be read, and with its line where it is not TOML.
    pub fn read(path: Option<&'a Path>, stage: &'a str, overrides: &'a [String]) -> Result<Self> {
        let mut layers = Self { file: None, base: Table::new(), stages: Table::new(), stage, overrides };
        let Some(path) = path else { return Ok(layers) };
        let text = fs::read_to_string(path)
            .map_err(|e| Error::config(format!("{}: cannot be read: {e}", path.display())))?;
        layers.base = text.parse().map_err(|e: toml::de::Error| {
            let line = e.span().map_or(1, |span| line_of(&text, span.start));
            Error::config(format!("{}:{line}: {}", path.display(), one_line(e.message())))
        })?;
        layers.file = Some((path, text));
        match layers.base.remove("stage") {
            None => {}
            Some(Value::Table(stages)) => layers.stages = stages,
            Some(_) => return Err(layers.error(&Fault::about(["stage"], "stage: must be a table"))),
        }
        Ok(layers)
    }

    pub fn stages(&self) -> &Table {
        &self.stages
    }

    /// The file, the table of this command on it, and the overrides on top.
    ///
    /// # Errors
    /// `Error::Config` that names the flag.
    pub fn merged(&self) -> Result<Table> {
        let mut table = self.base.clone();
        if let Some(Value::Table(over)) = self.stages.get(self.stage) {
            merge(&mut table, over);
        }
        self.overrides.iter().try_for_each(|text| set(&mut table, text))?;
        Ok(table)
    }

    /// The error of a fault, with the flag or the file and line where a value at fault was written.
    pub fn error(&self, Fault { at, subject, text }: &Fault) -> Error {
        let in_full = subject.as_ref().map_or(text.clone(), |subject| format!("{subject}: {text}"));
        if let Some((flag, exactly)) = at.iter().find_map(|at| self.flag(&dotted(at))) {
            let text = if exactly { text } else { &in_full };
            return Error::config(format!("--set {}: {text}", cut(flag)));
        }
        let Some((path, _)) = &self.file else { return Error::config(in_full) };
        match at.iter().find_map(|at| self.line(at)) {
            Some(line) => Error::config(format!("{}:{line}: {in_full}", path.display())),
            None => Error::config(format!("{}: {in_full}", path.display())),
        }
    }

    /// The last flag that wrote `key`, a table that it is in or a key in it, and whether it was `key` itself.
    fn flag(&self, key: &str) -> Option<(&str, bool)> {
        let within = |inner: &str, outer| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
        self.overrides.iter().rev().find_map(|flag| {
            let name = flag.split_once('=').map_or("", |(name, _)| name.trim());
            (name == key || within(key, name) || within(name, key)).then_some((flag.as_str(), name == key))
        })
    }

    /// The line of the file that wrote a value: in the table of this command, or outside.
    fn line(&self, at: &[Step]) -> Option<usize> {
        let (_, source) = self.file.as_ref()?;
        let own = [Step::Key("stage".into()), Step::Key(self.stage.into())];
        line_in(source, &[&own, at].concat()).or_else(|| line_in(source, at))
    }
}

/// Line of the value that the steps lead to, from 1; `None` where there is none.
fn line_in(source: &str, at: &[Step]) -> Option<usize> {
    let table = DeTable::parse(source).ok()?;
    let mut here: Option<&Spanned<DeValue<'_>>> = None;
    let mut start = None;
    for step in at {
        let (span, next) = match (step, here.map(Spanned::get_ref)) {
            (Step::Key(name), None) => entry(table.get_ref(), name)?,
            (Step::Key(name), Some(DeValue::Table(inner))) => entry(inner, name)?,
            (Step::Item(i), Some(DeValue::Array(items))) => {
                let item = items.get(*i)?;
                (item.span().start, item)
            }
            _ => return None,
        };
        (start, here) = (Some(span), Some(next));
    }
    start.map(|start| line_of(source, start))
}

/// Where a key is written, and its value.
fn entry<'t, 'i>(table: &'t DeTable<'i>, name: &str) -> Option<(usize, &'t Spanned<DeValue<'i>>)> {
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
    Some((key.span().start, value))
}

fn line_of(source: &str, start: usize) -> usize {
    source.bytes().take(start).filter(|&byte| byte == b'\n').count() + 1
}

/// Lays `over` on `base`: tables are merged, everything else is replaced.
fn merge(base: &mut Table, over: &Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Table(inner)), Value::Table(over)) => merge(inner, over),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Applies one `a.b=c`. The value is TOML where it parses as such, else a string.
fn set(table: &mut Table, text: &str) -> Result<()> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Error::config(format!(
            "--set {}: must be KEY=VALUE, as in --set train.lr=1e-4",
            cut(text)
        )));
    };
    let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
    let value = parsed.unwrap_or_else(|| Value::String(value.to_owned()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let mut at = table;
    for part in parts {
        let entry = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = entry
            .as_table_mut()
            .ok_or_else(|| Error::config(format!("--set {}: {part} is a value, not a table", cut(text))))?;
    }
    at.insert(last.to_owned(), value);
    Ok(())
}
