//! A config's layers as TOML tables: the file, what lies over it, and `--set`.

use std::fs;
use std::path::Path;

use toml::{Table, Value};

use crate::{Error, Result};

/// The file as a table.
///
/// # Errors
/// `Error::Config` with the file, and line and column where it is no TOML.
pub fn read_table(path: &Path) -> Result<Table> {
    let text = fs::read_to_string(path)
        .map_err(|e| Error::config(format!("{}: cannot be read: {e}", path.display())))?;
    text.parse().map_err(|e: toml::de::Error| {
        Error::config(format!("{}: {}", path.display(), one_line(&e.to_string())))
    })
}

/// Lays `over` on `base`: tables are merged, everything else is replaced.
pub fn merge(base: &mut Table, over: &Table) {
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
pub fn set(table: &mut Table, text: &str) -> Result<()> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Error::config(format!("--set {text}: must be KEY=VALUE, as in --set train.lr=1e-4")));
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
            .ok_or_else(|| Error::config(format!("--set {text}: {part} is a value, not a table")))?;
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

/// TOML errors span lines (a picture of the place); the user gets one.
pub fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}
