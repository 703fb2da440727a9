//! Package lists as records: the stanza format of deb822 (Debian Policy, section 5.1), long descriptions
//! joined by `Description-md5`, debtags as a list.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::apt;
use crate::Result;
use crate::corpus::shard::SourceFile;

/// One package, its newest version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) homepage: String,
    pub(super) synopsis: String,
    /// Long description on one line, without the synopsis; empty where there is none.
    pub(super) body: String,
    /// `facet::tag`, sorted.
    pub(super) tags: Vec<String>,
}

/// All lists of one folder.
#[derive(Default)]
pub(super) struct Index {
    /// By name.
    pub(super) packages: BTreeMap<String, Package>,
    /// Release file -> its date.
    pub(super) releases: BTreeMap<String, String>,
    pub(super) files: Vec<SourceFile>,
}

impl Index {
    /// Keeps the newest version of a package. Tags belong to the name, and lists of security updates
    /// leave them out, so a version without tags has those of another.
    fn add(&mut self, package: Package) {
        let Some(known) = self.packages.get_mut(&package.name) else {
            self.packages.insert(package.name.clone(), package);
            return;
        };
        let mut other = package;
        if newer(&other.version, &known.version) {
            std::mem::swap(known, &mut other);
        }
        if known.tags.is_empty() {
            known.tags = other.tags;
        }
    }
}

/// Reads every package list, translation and Release file of a folder.
///
/// # Errors
/// `Error::Data` where the folder holds no package list or a file cannot be read.
pub(super) fn read(lists: &Path) -> Result<Index> {
    let names = apt::names(lists)?;
    let of = |kind: &'static str| names.iter().filter(move |name| apt::is_list(name, kind));
    let mut index = Index::default();
    let mut bodies: HashMap<String, String> = HashMap::new();
    for name in of("_Translation-en") {
        let path = lists.join(name);
        for stanza in stanzas(&apt::text(&path)?) {
            if let (Some(md5), Some(description)) =
                (stanza.get("Description-md5"), stanza.get("Description-en"))
            {
                bodies.entry(md5.to_owned()).or_insert_with(|| body(description));
            }
        }
        index.files.push(source(&path, name)?);
    }
    for name in of("_Packages") {
        let path = lists.join(name);
        for stanza in stanzas(&apt::text(&path)?) {
            if let Some(package) = package(&stanza, &bodies) {
                index.add(package);
            }
        }
        index.files.push(source(&path, name)?);
    }
    if index.packages.is_empty() {
        return Err(apt::alternatives(&format!("{} holds no package list (*_Packages)", lists.display())));
    }
    for name in names.iter().filter(|name| name.ends_with("_InRelease") || name.ends_with("_Release")) {
        let text = apt::text(&lists.join(name))?;
        if let Some(date) = text.lines().find_map(|line| line.strip_prefix("Date:")) {
            index.releases.insert(name.clone(), date.trim().to_owned());
        }
    }
    Ok(index)
}

/// The file under its bare name: the folder is a temporary one.
fn source(path: &Path, name: &str) -> Result<SourceFile> {
    Ok(SourceFile { path: name.to_owned(), ..SourceFile::of(path)? })
}

/// The fields of one stanza; a value keeps its line breaks.
struct Stanza<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Stanza<'a> {
    fn get(&self, field: &str) -> Option<&'a str> {
        self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(field)).map(|(_, value)| value.trim())
    }
}

/// Stanzas are separated by blank lines; a line that begins with a space goes on the field before.
fn stanzas(text: &str) -> impl Iterator<Item = Stanza<'_>> {
    text.split("\n\n").map(|block| {
        let mut fields = Vec::new();
        let mut start = 0;
        while start < block.len() {
            let mut end = start;
            // To the end of the first line that no line beginning with white space follows.
            loop {
                end = block[end..].find('\n').map_or(block.len(), |at| end + at + 1);
                if !block[end..].starts_with([' ', '\t']) {
                    break;
                }
            }
            if let Some((name, value)) = block[start..end].split_once(':') {
                fields.push((name.trim(), value));
            }
            start = end;
        }
        Stanza(fields)
    })
}

fn package(stanza: &Stanza<'_>, bodies: &HashMap<String, String>) -> Option<Package> {
    let description = stanza.get("Description").or_else(|| stanza.get("Description-en"))?;
    let translated = stanza.get("Description-md5").and_then(|md5| bodies.get(md5)).cloned();
    let mut tags: Vec<String> = stanza.get("Tag").map(tags).unwrap_or_default();
    tags.sort();
    tags.dedup();
    let synopsis = one_line(description.lines().next().unwrap_or_default());
    Some(Package {
        name: stanza.get("Package").filter(|name| !name.is_empty())?.to_owned(),
        version: stanza.get("Version").unwrap_or_default().to_owned(),
        homepage: one_line(stanza.get("Homepage").unwrap_or_default()),
        // A list without translations carries the long description itself.
        body: if synopsis.is_empty() {
            String::new()
        } else {
            translated.unwrap_or_else(|| body(description))
        },
        synopsis,
        tags,
    })
}

/// The lines after the synopsis on one line. A lone dot is an empty line.
fn body(description: &str) -> String {
    let lines = description.lines().skip(1).map(str::trim).filter(|line| *line != ".");
    one_line(&lines.collect::<Vec<_>>().join(" "))
}

/// White space, also within a line, becomes single spaces: a tab or a line end would break the row.
fn one_line(text: &str) -> String {
    text.split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// `a::b, c::{d,e}` -> `a::b`, `c::d`, `c::e`.
fn tags(text: &str) -> Vec<String> {
    let mut tags = Vec::new();
    let mut rest = text.split_whitespace().collect::<String>();
    while let (Some(open), Some(close)) = (rest.find('{'), rest.find('}')) {
        if close < open {
            break;
        }
        let start = rest[..open].rfind(',').map_or(0, |at| at + 1);
        let facet = rest[start..open].to_owned();
        tags.extend(rest[open + 1..close].split(',').map(|tag| format!("{facet}{tag}")));
        rest.replace_range(start..=close, "");
    }
    tags.extend(rest.split(',').map(ToOwned::to_owned));
    tags.retain(|tag| !tag.is_empty());
    tags
}

fn newer(a: &str, b: &str) -> bool {
    compare_versions(a, b) == Ordering::Greater
}

/// Debian Policy, section 5.6.12: epoch, then upstream version, then revision.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let parts = |version: &str| {
        let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        (epoch.parse::<u64>().unwrap_or(0), upstream.to_owned(), revision.to_owned())
    };
    let ((epoch_a, upstream_a, revision_a), (epoch_b, upstream_b, revision_b)) = (parts(a), parts(b));
    epoch_a
        .cmp(&epoch_b)
        .then_with(|| compare_part(upstream_a.as_bytes(), upstream_b.as_bytes()))
        .then_with(|| compare_part(revision_a.as_bytes(), revision_b.as_bytes()))
}

/// Alternating runs of non-digits (letters before other characters, `~` before the end) and numbers.
fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    let rank = |byte: Option<&u8>| match byte {
        Some(b'~') => -1,
        None => 0,
        Some(byte) if byte.is_ascii_digit() => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(byte) => i32::from(*byte) + 256,
    };
    while !a.is_empty() || !b.is_empty() {
        while a.first().is_some_and(|c| !c.is_ascii_digit()) || b.first().is_some_and(|c| !c.is_ascii_digit())
        {
            let order = rank(a.first()).cmp(&rank(b.first()));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (a.get(1..).unwrap_or_default(), b.get(1..).unwrap_or_default());
        }
        let (number_a, number_b) = (take_number(&mut a), take_number(&mut b));
        let order = number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(number_b));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// The digits at the start, without leading zeros.
fn take_number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    *text = rest;
    &number[number.iter().position(|c| *c != b'0').unwrap_or(end)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_the_policy_says() {
        let ascending = [
            "1.0~rc1-1",
            "1.0-1~deb12u1",
            "1.0-1",
            "1.0-1+b1",
            "1.0-2",
            "1.0-10",
            "1.0a-1",
            "1.0+git-1",
            "1.2",
            "1.10",
            "1:0.1",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare_versions(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
        assert_eq!(compare_versions("1.01", "1.1"), Ordering::Equal);
        assert_eq!(compare_versions("0:1.1", "1.1"), Ordering::Equal);
    }

    #[test]
    fn stanzas_keep_continued_lines() {
        let all: Vec<Stanza> = stanzas("A: 1\nB: x\n y\n\tz\nC:\n\n\nA: 2\nno field\n").collect();
        assert_eq!(
            (all[0].get("a"), all[0].get("B"), all[0].get("C")),
            (Some("1"), Some("x\n y\n\tz"), Some(""))
        );
        assert_eq!((all[1].get("A"), all[1].get("B")), (Some("2"), None));
    }

    #[test]
    fn tags_are_split_and_braces_opened() {
        assert_eq!(
            tags("use::viewing,\n works-with::{image, text}, x::y"),
            ["works-with::image", "works-with::text", "use::viewing", "x::y"]
        );
        assert_eq!(tags("a}b{"), ["a}b{"]);
    }

    #[test]
    fn descriptions_become_one_line() {
        assert_eq!(body("synopsis\n First line\n  * an\titem\n .\n last"), "First line * an item last");
        assert_eq!(body("synopsis only"), "");
    }
}
