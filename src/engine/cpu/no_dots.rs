//! In the place of `dots` on processors that are no x86-64: there are no dot products of pairs.

use super::cell::Work;
use half::bf16;
use pulp::Arch;

/// Cannot be had.
#[derive(Clone, Copy)]
pub enum Dots {}

impl Dots {
    pub fn detect(_: Arch) -> Option<Self> {
        None
    }

    pub fn run<W: Work<bf16>>(self, _: W) -> W::Output {
        match self {}
    }
}
