//! Checks what must be the same on all ranks before they begin: ranks with different plans, data or programs
//! would silently train nonsense, hang, or overwrite each other's memory.

use super::world::World;
use crate::{Error, Result};

/// Keys and values, in the order in which they are compared.
pub type Facts = Vec<(String, String)>;

/// The longest part of a value that is shown.
const SHOWN: usize = 60;

impl World {
    /// Compares this rank's facts with those of the others; without others, `facts` is not called.
    ///
    /// # Errors
    /// On every rank: `Error::Config` with the first key that differs, its values and the ranks that have
    /// them; or the error of a rank that cannot tell.
    pub fn same(&self, facts: impl FnOnce() -> Result<Facts>) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let own = self.agree_all(facts())?;
        let text = serde_json::to_string(&own).unwrap_or_default(); // pairs of strings always have a text
        let marks = self.gather_f64(&[mark(&text)]);
        let Some(other) = marks.iter().position(|mark| *mark != marks[0]) else { return Ok(()) };
        let [first, second] = [0, other].map(|rank| {
            let mut text = if rank == self.rank() { text.clone() } else { String::new() };
            self.broadcast_from(rank, &mut text);
            serde_json::from_str::<Facts>(&text).unwrap_or_default()
        });
        let (key, more) = difference(&first, &second);
        let values = self.gather_f64(&[value(&own, &key).map_or(-1.0, mark)]);
        let with = |rank: usize| {
            let same = values.iter().enumerate().filter(|(_, value)| **value == values[rank]);
            ranks(&same.map(|(rank, _)| rank).collect::<Vec<_>>())
        };
        let [a, b] = apart(value(&first, &key), value(&second, &key));
        Err(self.agreed(Error::config(format!(
            "{key} is {a} on {} and {b} on {}{}: start all ranks with one program, one plan and the same files",
            with(0),
            with(other),
            if more > 0 { format!(" ({more} more keys differ)") } else { String::new() },
        ))))
    }
}

/// A number that stands for a text, because ranks exchange numbers.
fn mark(text: &str) -> f64 {
    f64::from(crc32fast::hash(text.as_bytes()))
}

fn value<'a>(facts: &'a Facts, key: &str) -> Option<&'a str> {
    facts.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

/// The first key whose values differ, and how many more there are.
fn difference(a: &Facts, b: &Facts) -> (String, usize) {
    let only_b = b.iter().filter(|(key, _)| value(a, key).is_none());
    let mut keys = a.iter().chain(only_b).map(|(key, _)| key).filter(|key| value(a, key) != value(b, key));
    let first = keys.next().cloned().unwrap_or_else(|| "the program".into());
    (first, keys.count())
}

/// Two values, shortened to show where they differ.
fn apart(a: Option<&str>, b: Option<&str>) -> [String; 2] {
    let [short_a, short_b] = [a, b].map(Option::unwrap_or_default);
    let common = short_a.chars().zip(short_b.chars()).take_while(|(a, b)| a == b).count();
    let longest = short_a.chars().count().max(short_b.chars().count());
    let skip = if longest > SHOWN { common.saturating_sub(10) } else { 0 };
    [a, b].map(|value| {
        let Some(value) = value else { return "not set".into() };
        let mut shown: String = value.chars().skip(skip).take(SHOWN).collect();
        if skip > 0 {
            shown.insert_str(0, "...");
        }
        if value.chars().count() > skip + SHOWN {
            shown.push_str("...");
        }
        shown
    })
}

/// `rank 0`, `ranks 1, 2 and 3`, `ranks 0, 1, 2 and 5 more`.
fn ranks(list: &[usize]) -> String {
    const NAMED: usize = 4;
    let names: Vec<String> = list.iter().map(ToString::to_string).collect();
    match names.as_slice() {
        [] => "no rank".into(),
        [one] => format!("rank {one}"),
        [some @ .., last] if names.len() <= NAMED => format!("ranks {} and {last}", some.join(", ")),
        all => format!("ranks {} and {} more", all[..NAMED - 1].join(", "), all.len() + 1 - NAMED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(pairs: &[(&str, &str)]) -> Facts {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_first_key_that_differs_is_found_wherever_it_is_missing() {
        let a = facts(&[("seed", "1"), ("train.lr", "0.1"), ("train.steps", "3")]);
        let b = facts(&[("seed", "1"), ("train.lr", "0.2"), ("train.steps", "4")]);
        assert_eq!(difference(&a, &b), ("train.lr".into(), 1));
        assert_eq!(difference(&a, &facts(&[("seed", "1"), ("train.lr", "0.1")])), ("train.steps".into(), 0));
        assert_eq!(difference(&facts(&[]), &facts(&[("seed", "1")])), ("seed".into(), 0));
    }

    #[test]
    fn long_values_are_cut_to_where_they_differ() {
        let path = "/scratch/".repeat(20);
        let [a, b] = apart(Some(&format!("{path}one")), Some(&format!("{path}two")));
        assert!(a.starts_with("...") && a.ends_with("one") && a.len() < 80, "{a}");
        assert!(b.ends_with("two"), "{b}");
        assert_eq!(apart(Some("1"), None), ["1", "not set"]);
        let [a, _] = apart(Some(&"x".repeat(200)), Some("y"));
        assert_eq!(a, format!("{}...", "x".repeat(SHOWN)));
    }

    #[test]
    fn ranks_are_listed_and_many_are_counted() {
        assert_eq!(ranks(&[2]), "rank 2");
        assert_eq!(ranks(&[0, 3]), "ranks 0 and 3");
        assert_eq!(ranks(&[0, 1, 2, 3]), "ranks 0, 1, 2 and 3");
        assert_eq!(ranks(&[0, 1, 2, 3, 4]), "ranks 0, 1, 2 and 2 more");
    }
}
