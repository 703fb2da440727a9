//! External ids as numbers in the order of first sight. ORCAS has 10.4 M query ids; a table of strings of
//! their own would take 1 GB, all of them end to end with a table of numbers takes a quarter of that.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::{Error, Result};

/// The largest number of an id; above lie the marks of `log`.
pub(crate) const LAST: u32 = u32::MAX - 16;

/// A set of ids, each with its slot.
#[derive(Default)]
pub(crate) struct Ids {
    /// All ids end to end.
    text: Vec<u8>,
    /// First byte after each id.
    ends: Vec<u64>,
    slots: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Ids {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The id of a slot.
    pub(crate) fn bytes(&self, slot: u32) -> &[u8] {
        id_at(&self.text, &self.ends, slot)
    }

    pub(crate) fn get(&self, id: &str) -> Option<u32> {
        let same = |slot: &u32| self.bytes(*slot) == id.as_bytes();
        self.slots.find(self.hasher.hash_one(id.as_bytes()), same).copied()
    }

    /// The slot of an id, and whether it is new.
    ///
    /// # Errors
    /// `Error::Data` where there are too many; `kind` says of what.
    pub(crate) fn insert(&mut self, id: &str, kind: &str) -> Result<(u32, bool)> {
        let Self { text, ends, slots, hasher } = self;
        let hash = hasher.hash_one(id.as_bytes());
        if let Some(slot) = slots.find(hash, |slot| id_at(text, ends, *slot) == id.as_bytes()) {
            return Ok((*slot, false));
        }
        let slot = u32::try_from(ends.len()).ok().filter(|&slot| slot < LAST);
        let slot = slot.ok_or_else(|| Error::data(format!("more than {LAST} {kind}")))?;
        text.extend_from_slice(id.as_bytes());
        ends.push(text.len() as u64);
        slots.insert_unique(hash, slot, |slot| hasher.hash_one(id_at(text, ends, *slot)));
        Ok((slot, true))
    }
}

fn id_at<'a>(text: &'a [u8], ends: &[u64], slot: u32) -> &'a [u8] {
    let start = slot.checked_sub(1).map_or(0, |before| ends[before as usize]);
    &text[start as usize..ends[slot as usize] as usize]
}
