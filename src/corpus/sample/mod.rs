//! Corpora to try things on: one that every Debian machine already has, and one of any size that is made up.

pub mod debian;
pub mod synthetic;
