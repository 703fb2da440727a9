//! What a plan may say, and what the program says of a bad one.

mod examples;
mod places;
mod ranges;
mod reference;

use ctune_dist::config::keys::{Kind, Section};
use ctune_dist::config::plan;

/// A key of the plan with its tables, such as `fine.lora.rank`.
pub struct Found {
    pub path: String,
    pub kind: Kind,
    pub text: &'static str,
}

/// Every key of the plan that is not a table, in the order of the sections, including keys in lists of
/// tables.
pub fn every_key() -> Vec<Found> {
    let mut found = Vec::new();
    collect("", &plan(), &mut found);
    found
}

fn collect(prefix: &str, section: &Section, found: &mut Vec<Found>) {
    for key in &section.keys {
        let path = format!("{prefix}{}", key.name);
        match inner(&key.kind) {
            Some(section) => collect(&format!("{path}."), section, found),
            None => found.push(Found { path, kind: key.kind.clone(), text: key.text }),
        }
    }
}

/// The keys of a table, or of the tables of a list.
pub fn inner(kind: &Kind) -> Option<&Section> {
    match kind {
        Kind::Table(section) => Some(section),
        Kind::List { of, .. } => inner(of),
        _ => None,
    }
}
