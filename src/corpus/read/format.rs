//! Which format a file is in. Names of files say little (`.txt` may be anything), so the first lines decide
//! where nothing is given, and what is given is held against them: a wrong guess would read nothing, silently.

use std::collections::BTreeMap;
use std::path::Path;

use super::columns::Tabs;
use super::rows::{COUNT, MOST_COLUMNS, Role};
use super::tags;
pub use crate::config::Format;
use crate::files;
use crate::ir::qrels;
use crate::{Error, Result};

/// Bytes of a file that are looked at: a first document is nearly always whole in it.
pub(crate) const HEAD: usize = 1 << 16;

/// How the records of a file are found and parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parser {
    /// Tab-separated lines.
    Tabs(Tabs),
    /// Lines of columns between any white space.
    Spaces(Tabs),
    /// JSON lines: the key of each column of the role.
    Json(Vec<String>),
    /// `<DOC>` ... `</DOC>`; with HTML where `web`.
    Sgml { web: bool },
}

/// What the first bytes look like, whatever the file is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Syntax {
    Sgml,
    Json,
    Lines,
}

impl Format {
    fn syntax(self, role: Role) -> Syntax {
        match (self, role) {
            (Self::Trec | Self::Trecweb, Role::Documents) => Syntax::Sgml,
            (Self::Beir, Role::Qrels) => Syntax::Lines,
            (Self::MsmarcoV2 | Self::Beir | Self::Jsonl, _) => Syntax::Json,
            _ => Syntax::Lines,
        }
    }

    fn has(self, role: Role) -> bool {
        match self {
            Self::Orcas => matches!(role, Role::Clicks),
            Self::MsmarcoV1 | Self::MsmarcoV2 | Self::Trecweb => role == Role::Documents,
            Self::Trec => matches!(role, Role::Documents | Role::Qrels),
            Self::Beir => role != Role::Clicks,
            Self::Jsonl | Self::Tsv => true,
        }
    }
}

/// Decides format and parser from `head`, the first bytes of the text of `path`, and what is given.
///
/// # Errors
/// `Error::Data` where the file is empty, or its format cannot be told or is not the given one;
/// `Error::Config` for a format that does not have the role and columns that are not there.
pub(crate) fn resolve(
    path: &Path,
    role: Role,
    given: Option<Format>,
    columns: &BTreeMap<String, String>,
    head: &[u8],
) -> Result<(Format, Parser)> {
    let name = path.display();
    if let Some(what) = files::wide(head) {
        return Err(Error::data(format!("{name}: {what}")));
    }
    let text = String::from_utf8_lossy(head);
    if let Some(format) = given.filter(|format| !format.has(role)) {
        return Err(Error::config(format!("{name}: format {format} does not hold {role:?}").to_lowercase()));
    }
    if let Some(wrong) = columns.keys().find(|key| !role.columns().contains(&key.as_str())) {
        let names = role.columns().join(", ");
        return Err(Error::config(format!("{name}: no column {wrong:?} in this role; columns are {names}")));
    }
    let comment = |line: &str| role == Role::Qrels && line.starts_with('#');
    let Some(line) = text.lines().find(|line| !line.trim().is_empty() && !comment(line)) else {
        let due = due(role);
        return Err(Error::data(format!("{name}: is empty; expected rows of {due}")));
    };
    let syntax = syntax_of(&text);
    if let Some(what) = files::lone_returns(head).filter(|_| syntax != Syntax::Sgml) {
        return Err(Error::data(format!("{name}: {what}")));
    }
    let found = detect(role, syntax, line, &text, !columns.is_empty());
    let format = match (given, found) {
        (Some(format), _) if format.syntax(role) != syntax => {
            let looks = found.map_or_else(|| "something else".into(), |format| format!("{format}"));
            return Err(Error::data(format!(
                "{name}: format = \"{format}\", but the file begins with {:?}, which looks like {looks}",
                start(line)
            )));
        }
        (Some(format), _) | (None, Some(format)) => format,
        (None, None) => {
            return Err(Error::data(format!(
                "{name}: its format cannot be told from {:?}; expected rows of {}. Name it: [[source]] \
                format = \
                 ... and, for tsv and jsonl, columns = {{ ... }}",
                start(line),
                due(role)
            )));
        }
    };
    let parser = match syntax {
        Syntax::Sgml => Parser::Sgml { web: format == Format::Trecweb },
        Syntax::Json => Parser::Json(keys(role, format, columns)),
        Syntax::Lines => lines_parser(path, role, format, columns, line)?,
    };
    Ok((format, parser))
}

fn start(line: &str) -> String {
    line.chars().take(60).collect()
}

/// What rows of a role are, for messages.
pub(crate) fn due(role: Role) -> &'static str {
    match role {
        Role::Documents => "docid, url, title, body",
        Role::Clicks => "qid, query, did, url",
        Role::Queries => "qid, query",
        Role::Qrels => "topic, iteration, document, label",
    }
}

fn syntax_of(text: &str) -> Syntax {
    let text = text.trim_start();
    // XML-minded collections put a declaration or a root element before the first document.
    let sgml = text.starts_with('<') && tags::find_opening(text.as_bytes(), 0, b"DOC").is_some();
    match text.as_bytes().first() {
        _ if sgml => Syntax::Sgml,
        Some(b'{') => Syntax::Json,
        _ => Syntax::Lines,
    }
}

fn detect(role: Role, syntax: Syntax, line: &str, text: &str, named: bool) -> Option<Format> {
    let columns = line.split('\t').count();
    let format = match (syntax, role) {
        (Syntax::Sgml, Role::Documents) if tags::find_opening(text.as_bytes(), 0, b"DOCHDR").is_some() => {
            Format::Trecweb
        }
        (Syntax::Sgml, _) => Format::Trec,
        (Syntax::Json, _) if named => Format::Jsonl,
        (Syntax::Json, _) if line.contains("\"_id\"") => Format::Beir,
        (Syntax::Json, _) if line.contains("\"docid\"") => Format::MsmarcoV2,
        (Syntax::Json, _) => return None,
        (Syntax::Lines, Role::Qrels) => match line.split_whitespace().count() {
            _ if named => Format::Tsv,
            3 => Format::Beir,
            4 => Format::Trec,
            _ => return None,
        },
        (Syntax::Lines, _) if named || columns > 1 && is_header(line) && role != Role::Clicks => Format::Tsv,
        (Syntax::Lines, Role::Documents) => match columns {
            2 | 3 => Format::Tsv,
            // Tabs beyond the third belong to the body.
            4.. => Format::MsmarcoV1,
            _ => return None,
        },
        (Syntax::Lines, Role::Clicks) if columns >= 3 => Format::Orcas,
        (Syntax::Lines, Role::Queries) if columns >= 2 => Format::Tsv,
        _ => return None,
    };
    format.has(role).then_some(format)
}

/// Names that the first column of a header line has in the files that are about.
fn is_header(line: &str) -> bool {
    let first = line.split(['\t', ' ']).next().unwrap_or_default().trim().to_ascii_lowercase();
    ["id", "_id", "docid", "doc_id", "docno", "did", "qid", "query_id", "query-id"].contains(&first.as_str())
}

/// The JSON key of each column.
fn keys(role: Role, format: Format, columns: &BTreeMap<String, String>) -> Vec<String> {
    let default = |column: &str| {
        match (format, column) {
            (Format::MsmarcoV2, "id") => "docid",
            (Format::Beir, "id") => "_id",
            (Format::Beir, "body") => "text",
            (Format::Beir, "url") | (_, COUNT) => "",
            _ => return column.to_owned(),
        }
        .to_owned()
    };
    let key = |column: &&str| columns.get(*column).cloned().unwrap_or_else(|| default(column));
    role.columns().iter().map(key).collect()
}

fn lines_parser(
    path: &Path,
    role: Role,
    format: Format,
    columns: &BTreeMap<String, String>,
    line: &str,
) -> Result<Parser> {
    let found = line.split('\t').count();
    let mut tabs = Tabs {
        at: [Some(0), Some(1), Some(2), None],
        least: 3,
        most: Some(4),
        header: false,
        due: due(role).into(),
    };
    match (format, role) {
        (Format::Orcas, _) => {
            // A header announces as many columns as it has; without one, at most a url follows.
            let names: Vec<&str> = line.split('\t').map(str::trim).collect();
            if names.first() == Some(&"qid") && names.get(2) == Some(&"did") {
                (tabs.header, tabs.most) = (true, Some(found));
            }
        }
        (Format::MsmarcoV1, _) => (tabs.at, tabs.least, tabs.most) = ([0, 1, 2, 3].map(Some), 4, None),
        (Format::Trec, _) => {
            let columns: Vec<&str> = line.split_ascii_whitespace().collect();
            tabs.header = qrels::is_header(&columns);
            (tabs.at, tabs.least, tabs.most) = ([Some(0), Some(2), Some(3), None], 4, Some(4));
            return Ok(Parser::Spaces(tabs));
        }
        (Format::Beir, _) => {
            let columns: Vec<&str> = line.split_ascii_whitespace().collect();
            (tabs.header, tabs.most) = (qrels::is_header(&columns), Some(3));
            tabs.due = "query-id, corpus-id, score".into();
            return Ok(Parser::Spaces(tabs));
        }
        _ => named_columns(path, role, columns, line, &mut tabs)?,
    }
    Ok(Parser::Tabs(tabs))
}

/// Columns of a TSV of the user's own: by number from 1, by name in a header, or, with none named, the usual order.
fn named_columns(
    path: &Path,
    role: Role,
    columns: &BTreeMap<String, String>,
    line: &str,
    tabs: &mut Tabs,
) -> Result<()> {
    let names: Vec<&str> = line.split('\t').map(str::trim).collect();
    let by_name = columns.values().any(|name| name.parse::<usize>().is_err());
    tabs.header = by_name || is_header(line);
    tabs.at = [None; MOST_COLUMNS];
    let usual: &[&str] = match (role, names.len()) {
        (Role::Documents, 2) => &["id", "body"],
        (Role::Documents, 3) => &["id", "title", "body"],
        _ => role.columns(),
    };
    for (column, place) in role.columns().iter().zip(&mut tabs.at) {
        let wanted = columns.get(*column);
        *place = match wanted.map(|name| (name, name.parse::<usize>())) {
            Some((_, Ok(number))) => number.checked_sub(1),
            Some((name, Err(_))) => {
                let found = names.iter().position(|known| known == name);
                Some(found.ok_or_else(|| {
                    Error::config(format!("{}: no column {name:?} in its header {names:?}", path.display()))
                })?)
            }
            None if !columns.is_empty() || *column == COUNT => None,
            None if tabs.header && names.contains(column) => names.iter().position(|known| known == column),
            None => usual.iter().position(|known| known == column).filter(|&at| at < names.len()),
        };
    }
    if tabs.at[0].is_none() {
        let first = role.columns()[0];
        return Err(Error::config(format!("{}: columns must name {first:?}", path.display())));
    }
    tabs.least = tabs.at.iter().flatten().max().map_or(1, |most| most + 1);
    // Tabs in the last column's text stay in it where that is the file's last column.
    let last = names.len() == tabs.least && names.len() <= MOST_COLUMNS;
    tabs.most = if last { None } else { Some(names.len().max(tabs.least)) };
    tabs.due = format!("{} (tab-separated)", role.columns().join(", "));
    Ok(())
}
