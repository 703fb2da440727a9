//! Packs: lists of samples that fill a token budget, made from lengths alone so that every rank computes the
//! same lists. The epoch's order is cut into windows of equal sample counts, each packed by itself: a resumed
//! run packs one window, not the epoch before it.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::order::{Permutation, below};
use super::source::SampleSource;
use crate::random::{Purpose, philox};
use crate::{Error, Result};

/// Packs that a window should make: its last, half-empty pack then costs 0.4 % of the fill.
const PACKS_A_WINDOW: usize = 128;
/// Bounds of a window, in samples.
const WINDOW: std::ops::RangeInclusive<usize> = 4_096..=262_144;
/// Samples whose mean length sizes the windows.
const PROBES: u32 = 1024;
/// Budgets this many times the longest sample are filled evenly, smaller ones by best fit.
const EVEN_FROM: u32 = 8;

/// Cuts epochs into windows and windows into packs.
#[derive(Clone, Debug)]
pub struct Packer {
    seed: u32,
    /// Tokens that a pack holds.
    budget: usize,
    samples: u32,
    windows: u32,
}

impl Packer {
    /// # Errors
    /// `Error::Config` when the longest sample does not fit into `budget` tokens; `Error::Data`
    /// when there are no samples.
    pub fn new(source: &dyn SampleSource, seed: u32, budget: usize) -> Result<Self> {
        let samples = source.samples();
        if samples == 0 {
            return Err(Error::data("no samples to train on"));
        }
        let longest = source.longest();
        if longest > budget {
            return Err(Error::config(format!(
                "the longest sample has {longest} tokens and does not fit [train] pack_tokens = {budget}: \
                raise pack_tokens to at least {longest}, or lower [data] max_tokens"
            )));
        }
        let probes = samples.min(PROBES);
        let probed: usize = (0..probes)
            .map(|i| source.length((u64::from(i) * u64::from(samples) / u64::from(probes)) as u32, 0))
            .sum();
        let window =
            (PACKS_A_WINDOW * budget * probes as usize / probed.max(1)).clamp(*WINDOW.start(), *WINDOW.end());
        let windows = ((samples as usize + window / 2) / window).max(1) as u32;
        Ok(Self { seed, budget, samples, windows })
    }

    /// Windows of an epoch.
    pub fn windows(&self) -> u32 {
        self.windows
    }

    /// The packs of a window, each a list of sample ids, in the order in which they are used.
    ///
    /// # Errors
    /// `Error::Config` when a sample is longer than the budget.
    pub fn window(&self, source: &dyn SampleSource, epoch: u32, window: u32) -> Result<Vec<Vec<u32>>> {
        let edge = |w: u32| (u64::from(w) * u64::from(self.samples) / u64::from(self.windows)) as u32;
        let order = Permutation::new(self.samples, self.seed, epoch);
        let mut items = Vec::with_capacity((edge(window + 1) - edge(window)) as usize);
        for position in edge(window)..edge(window + 1) {
            let sample = order.at(position);
            let length = source.length(sample, epoch);
            if length > self.budget {
                return Err(Error::config(format!(
                    "sample {sample} has {length} tokens, more than [train] pack_tokens = {}",
                    self.budget
                )));
            }
            items.push((length as u32, sample));
        }
        let mut packs = fill(items, self.budget as u32);
        // Fisher-Yates: neither way of filling leaves the packs in random order.
        for last in (1..packs.len()).rev() {
            let random = philox(Purpose::Order.key(self.seed), [last as u32, window, epoch, 1])[0];
            packs.swap(last, below(random, last as u32 + 1) as usize);
        }
        Ok(packs)
    }
}

/// Packs (length, sample) items, none longer than `budget`.
///
/// Where samples are small beside the budget, each goes to the emptiest of as few packs as could hold them
/// all, longest first: every pack gets the same mix of long and short samples, so steps have even cost and no
/// pack consists of cut documents alone. Where that needs more than one extra pack, or samples are large,
/// best fit decreasing wastes less.
fn fill(mut items: Vec<(u32, u32)>, budget: u32) -> Vec<Vec<u32>> {
    items.sort_by_key(|&(length, _)| Reverse(length));
    let longest = items.first().map_or(0, |item| item.0);
    let total: u64 = items.iter().map(|item| u64::from(item.0)).sum();
    if longest.saturating_mul(EVEN_FROM) <= budget {
        let least = total.div_ceil(u64::from(budget)) as usize;
        if let Some(packs) =
            fill_evenly(&items, budget, least).or_else(|| fill_evenly(&items, budget, least + 1))
        {
            return packs;
        }
    }
    best_fit(&items, budget)
}

/// Into exactly `packs` packs, or `None` where the emptiest pack does not hold a sample.
fn fill_evenly(items: &[(u32, u32)], budget: u32, packs: usize) -> Option<Vec<Vec<u32>>> {
    let mut filled = vec![Vec::with_capacity(items.len() / packs.max(1) + 1); packs];
    let mut rooms: BinaryHeap<_> = (0..packs).map(|pack| (budget, Reverse(pack))).collect();
    for &(length, sample) in items {
        let mut room = rooms.peek_mut()?;
        room.0 = room.0.checked_sub(length)?;
        filled[room.1.0].push(sample);
    }
    Some(filled)
}

/// Each sample to the fullest pack that still holds it; `items` are longest first.
fn best_fit(items: &[(u32, u32)], budget: u32) -> Vec<Vec<u32>> {
    let mut filled: Vec<Vec<u32>> = Vec::new();
    let mut rooms = BTreeSet::new();
    for &(length, sample) in items {
        let (room, pack) = rooms.range((length, 0)..).next().copied().unwrap_or((budget, filled.len()));
        if pack == filled.len() {
            filled.push(Vec::new());
        }
        rooms.remove(&(room, pack));
        rooms.insert((room - length, pack));
        filled[pack].push(sample);
    }
    filled
}
