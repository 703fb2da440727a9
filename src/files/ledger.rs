//! Where every byte of an input went. Each reader adds the length of what it just decided on (a line, a document,
//! the gap between two), so that at the end of a file the sum is the file's length: what was neither used nor
//! counted as left out cannot exist. Counting costs one addition a record.

use serde::{Deserialize, Serialize};

/// What became of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They are a row that was passed on.
    Used,
    /// They are a row that was left out: another number of columns is due, ...
    Columns,
    /// ... it is not in the syntax of the file, ...
    Syntax,
    /// ... it has no id, ...
    NoId,
    /// ... a value cannot be used, ...
    Value,
    /// ... the file ends within it, ...
    Unclosed,
    /// ... or it is longer than a record can be.
    TooLong,
    /// They are outside rows: a byte order mark, ...
    Mark,
    /// ... white space, ...
    Blank,
    /// ... the names of the columns, ...
    Header,
    /// ... a comment, ...
    Comment,
    /// ... or text or markup between documents or topics.
    Between,
}

impl Fate {
    pub const ALL: [Self; 12] = [
        Self::Used,
        Self::Columns,
        Self::Syntax,
        Self::NoId,
        Self::Value,
        Self::Unclosed,
        Self::TooLong,
        Self::Mark,
        Self::Blank,
        Self::Header,
        Self::Comment,
        Self::Between,
    ];

    /// The bytes are of a row that was left out.
    pub fn is_dropped(self) -> bool {
        matches!(
            self,
            Self::Columns | Self::Syntax | Self::NoId | Self::Value | Self::Unclosed | Self::TooLong
        )
    }

    /// The bytes are of no row.
    pub fn is_outside(self) -> bool {
        !self.is_dropped() && self != Self::Used
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Used => "rows that were used",
            Self::Columns => "rows with another number of columns",
            Self::Syntax => "rows in another syntax",
            Self::NoId => "documents without an id",
            Self::Value => "rows with a value that cannot be used",
            Self::Unclosed => "a row that the file ends within",
            Self::TooLong => "rows longer than any record",
            Self::Mark => "byte order mark",
            Self::Blank => "white space",
            Self::Header => "header",
            Self::Comment => "comments",
            Self::Between => "text or markup between rows",
        }
    }

    /// Of bytes between two rows: `Blank` where they are nothing but white space.
    pub fn of_gap(gap: &[u8]) -> Self {
        if gap.iter().all(u8::is_ascii_whitespace) { Self::Blank } else { Self::Between }
    }
}

/// Bytes by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    bytes: [u64; Fate::ALL.len()],
}

impl Ledger {
    pub fn add(&mut self, fate: Fate, bytes: usize) {
        self.bytes[fate as usize] += bytes as u64;
    }

    pub fn of(&self, fate: Fate) -> u64 {
        self.bytes[fate as usize]
    }

    pub fn total(&self) -> u64 {
        self.bytes.iter().sum()
    }

    pub fn dropped(&self) -> u64 {
        self.sum(Fate::is_dropped)
    }

    pub fn outside(&self) -> u64 {
        self.sum(Fate::is_outside)
    }

    fn sum(&self, which: fn(Fate) -> bool) -> u64 {
        Fate::ALL.iter().filter(|fate| which(**fate)).map(|fate| self.of(*fate)).sum()
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.bytes.iter_mut().zip(&other.bytes).for_each(|(mine, more)| *mine += more);
    }

    /// What lies outside rows, where that is more than a hundredth of the input: a line for people.
    pub fn notable(&self) -> Option<String> {
        let outside = self.outside();
        if outside * 100 <= self.total() {
            return None;
        }
        let parts = Fate::ALL.iter().filter(|fate| fate.is_outside() && self.of(**fate) > 0);
        let parts: Vec<String> = parts.map(|fate| format!("{} of {}", self.of(*fate), fate.name())).collect();
        Some(format!(
            "{outside} of {} bytes ({:.1} %) are outside rows: {}",
            self.total(),
            100.0 * outside as f64 / self.total() as f64,
            parts.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fate_has_a_place_of_its_own() {
        let mut ledger = Ledger::default();
        for (i, fate) in Fate::ALL.into_iter().enumerate() {
            assert_eq!(fate as usize, i);
            ledger.add(fate, 1 << i);
            assert_eq!(ledger.of(fate), 1 << i);
        }
        assert_eq!(ledger.total(), (1 << Fate::ALL.len()) - 1);
        assert_eq!(ledger.of(Fate::Used) + ledger.dropped() + ledger.outside(), ledger.total());
        ledger.merge(&ledger.clone());
        assert_eq!(ledger.of(Fate::Comment), 2 << Fate::Comment as usize);
    }

    #[test]
    fn what_is_not_tiny_is_told() {
        let mut ledger = Ledger::default();
        ledger.add(Fate::Used, 990);
        ledger.add(Fate::Blank, 10);
        assert_eq!(ledger.notable(), None);
        ledger.add(Fate::Between, 100);
        let text = ledger.notable().unwrap();
        assert!(text.starts_with("110 of 1100 bytes (10.0 %)"), "{text}");
        assert!(text.ends_with("10 of white space, 100 of text or markup between rows"), "{text}");
    }
}
