//! The optimiser's passes over the arenas: the gradient norm, AdamW and LAMB. A launch is told what
//! to work on by a table of slices on the device (kernels/slices.cuh); tables are uploaded when they
//! are new and kept, for they are the same in every step.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use super::super::device::Device;
use super::super::launch::Arg;
use super::super::upload::upload_now;
use super::super::{Cuda, CudaBuf, Real};
use crate::engine::{AdamW, Backend, ParamGroup, Slice, slices};
use crate::{Error, Result};

/// Elements of one block, and its threads.
const TILE: usize = 4096;
const BLOCK: u32 = 256;
/// Blocks of `sum_squares`, at most.
const SUM_BLOCKS: u32 = 1024;
/// Words of one slice of the table.
const WORDS: usize = 8;
/// Tables that are kept: a run needs one for the norm and one for the update.
const KEPT: usize = 8;

/// What launches are told to work on, on the host and on the device.
struct Table {
    words: Vec<u32>,
    on_device: CudaBuf<u32>,
}

/// The tables that were needed so far.
#[derive(Default)]
pub struct Tables(RefCell<Vec<Table>>);

/// What a launch needs to know of its table.
#[derive(Clone, Copy)]
struct Work {
    table: Arg,
    slices: Arg,
    /// First tile of each group.
    groups: Arg,
    tiles: u32,
}

/// A table of slices [n, 8], then of the first tile of each group [groups + 1]; and the number of tiles.
/// `groups` are those that slices name.
fn words(list: &[Slice], groups: &[ParamGroup]) -> Result<(Vec<u32>, u32)> {
    let fit = |x: usize| {
        u32::try_from(x).map_err(|_| {
            Error::device("an arena of 2^32 elements or more: run.device = \"cuda\" takes smaller models")
        })
    };
    let mut words = Vec::with_capacity(list.len() * WORDS + groups.len() + 1);
    let mut firsts = vec![0; groups.len() + 1];
    let mut tiles = 0;
    for slice in list {
        fit(slice.range.end)?;
        let (start, length, state) = (fit(slice.range.start)?, fit(slice.range.len())?, fit(slice.moment)?);
        let group = &groups[slice.group];
        let (scale, decay) = (group.lr_scale.to_bits(), u32::from(group.decay));
        words.extend([start, length, state, tiles, scale, decay, slice.group as u32, 0]);
        tiles += slice.range.len().div_ceil(TILE) as u32;
        firsts[slice.group + 1] = tiles;
    }
    // a group without slices ends where the one before ended
    let mut end = 0;
    for first in &mut firsts {
        end = end.max(*first);
        *first = end;
    }
    words.extend(firsts);
    Ok((words, tiles))
}

impl Tables {
    fn get(&self, device: &Arc<Device>, list: &[Slice], groups: &[ParamGroup]) -> Result<Work> {
        let (words, tiles) = words(list, groups)?;
        let firsts = list.len() * WORDS;
        let table = self.on_device(device, words)?;
        Ok(Work {
            table: Arg::Ptr(table),
            slices: Arg::U32(list.len() as u32),
            groups: Arg::Ptr(table + (firsts * size_of::<u32>()) as u64),
            tiles,
        })
    }

    /// The address of `words` on the device.
    fn on_device(&self, device: &Arc<Device>, words: Vec<u32>) -> Result<u64> {
        let mut tables = self.0.borrow_mut();
        let found = tables.iter().position(|table| table.words == words);
        let place = match found {
            Some(place) => place,
            None => {
                if tables.len() == KEPT {
                    tables.remove(0);
                }
                let on_device = CudaBuf::zeros(device, words.len())?;
                upload_now(device, &words, on_device.span("slices", 0..words.len())?.0)?;
                tables.push(Table { words, on_device });
                tables.len() - 1
            }
        };
        let on_device = &tables[place].on_device;
        Ok(on_device.span("a table", 0..on_device.len())?.0)
    }
}

/// f64 as a kernel's argument.
fn double(x: f64) -> Arg {
    Arg::U64(x.to_bits())
}

/// 1 - beta^t.
fn correction(beta: f32, step: u32) -> Arg {
    double(1.0 - f64::from(beta).powi(step.min(i32::MAX as u32) as i32))
}

/// What is left of the groups' ranges, as few ranges as can be: frozen groups, and what other ranks
/// own, which holds this rank's part of a sum.
fn untouched(groups: &[ParamGroup], list: &[Slice]) -> Vec<Range<usize>> {
    let mut left: Vec<Range<usize>> = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let mut at = group.range.start;
        for slice in list.iter().filter(|slice| slice.group == index) {
            left.push(at..slice.range.start);
            at = slice.range.end;
        }
        left.push(at..group.range.end);
    }
    left.retain(|range| !range.is_empty());
    left.sort_by_key(|range| range.start);
    left.dedup_by(|next, range| {
        let joins = range.end == next.start;
        if joins {
            range.end = next.end;
        }
        joins
    });
    left
}

#[allow(clippy::too_many_arguments)]
impl<R: Real> Cuda<R> {
    /// What an update reads and writes, checked against its slices: weights, master, gradients and
    /// the two moments.
    fn state(
        &self,
        list: &[Slice],
        weights: &CudaBuf<R>,
        master: &CudaBuf<f32>,
        grads: &CudaBuf<f32>,
        moments: &[&CudaBuf<f32>],
    ) -> Result<[Arg; 3]> {
        for slice in list {
            let state = slice.moment..slice.moment + slice.range.len();
            weights.span("weights", slice.range.clone())?;
            grads.span("gradients", slice.range.clone())?;
            for moment in moments {
                moment.span("moments", state.clone())?;
            }
            if size_of::<R>() != size_of::<f32>() {
                master.span("master weights", state)?;
            }
        }
        Ok([weights.at(0), master.at(0), grads.at(0)])
    }

    /// Scratch: the blocks' sums [blocks] f64.
    pub(in super::super) fn sum_squares(
        &self,
        src: &CudaBuf<f32>,
        ranges: &[Range<usize>],
        out: &mut CudaBuf<f32>,
        slot: usize,
    ) -> Result<()> {
        let group = ParamGroup { range: 0..src.len(), decay: false, lr_scale: 1.0 };
        let list: Vec<Slice> = ranges
            .iter()
            .filter(|range| !range.is_empty())
            .map(|range| Slice { group: 0, range: range.clone(), moment: 0 })
            .collect();
        for slice in &list {
            src.span("sum_squares", slice.range.clone())?;
        }
        let out = Arg::Ptr(out.span("sum_squares out", slot..slot + 1)?.0);
        let work = self.inner.tables.get(self.device(), &list, &[group])?;
        let blocks = work.tiles.min(SUM_BLOCKS);
        let sums = Arg::Ptr(self.scratch(2 * blocks.max(1) as usize)?);
        let args = [src.at(0), work.table, work.slices, Arg::U32(work.tiles), sums];
        self.launch("sum_squares", (blocks, 1, 1), BLOCK, 0, &args)?;
        self.launch("sum_squares_finish", (1, 1, 1), BLOCK, 0, &[sums, Arg::U32(blocks), out])
    }

    pub(in super::super) fn adamw(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[Range<usize>],
        norm_sq: &CudaBuf<f32>,
        weights: &mut CudaBuf<R>,
        master: &mut CudaBuf<f32>,
        grads: &mut CudaBuf<f32>,
        moment1: &mut CudaBuf<f32>,
        moment2: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let list = slices(groups, owned);
        let [weights, master, gradients] = self.state(&list, weights, master, grads, &[moment1, moment2])?;
        let work = self.inner.tables.get(self.device(), &list, groups)?;
        let norm_sq = Arg::Ptr(norm_sq.span("norm_sq", 0..1)?.0);
        let mut args = vec![work.table, work.slices, norm_sq, weights, master, gradients];
        args.extend([moment1.at(0), moment2.at(0), Arg::F32(update.lr)]);
        args.extend(constants(update));
        self.launch("adamw", (work.tiles, 1, 1), BLOCK, 0, &args)?;
        self.clear_ranges(grads, &untouched(groups, &list))
    }

    /// Scratch: the tiles' sums [tiles, 2].
    pub(in super::super) fn lamb_direction(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[Range<usize>],
        norm_sq: &CudaBuf<f32>,
        weights: &CudaBuf<R>,
        master: &CudaBuf<f32>,
        grads: &mut CudaBuf<f32>,
        moment1: &mut CudaBuf<f32>,
        moment2: &mut CudaBuf<f32>,
        norms: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let list = slices(groups, owned);
        let [weights, master, gradients] = self.state(&list, weights, master, grads, &[moment1, moment2])?;
        let work = self.inner.tables.get(self.device(), &list, groups)?;
        let sums = Arg::Ptr(self.scratch(2 * work.tiles as usize)?);
        let norm_sq = Arg::Ptr(norm_sq.span("norm_sq", 0..1)?.0);
        let mut args = vec![work.table, work.slices, norm_sq, weights, master, gradients];
        args.extend([moment1.at(0), moment2.at(0), sums]);
        args.extend(constants(update));
        self.launch("lamb_direction", (work.tiles, 1, 1), BLOCK, 0, &args)?;
        let norms = Arg::Ptr(norms.span("norms", 0..2 * groups.len())?.0);
        self.launch("lamb_norms", (groups.len() as u32, 1, 1), BLOCK, 0, &[sums, work.groups, norms])
    }

    pub(in super::super) fn lamb_apply(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[Range<usize>],
        norms: &CudaBuf<f32>,
        weights: &mut CudaBuf<R>,
        master: &mut CudaBuf<f32>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let list = slices(groups, owned);
        let [weights, master, gradients] = self.state(&list, weights, master, grads, &[])?;
        let work = self.inner.tables.get(self.device(), &list, groups)?;
        let norms = Arg::Ptr(norms.span("norms", 0..2 * groups.len())?.0);
        let args = [work.table, work.slices, norms, weights, master, gradients, Arg::F32(update.lr)];
        self.launch("lamb_apply", (work.tiles, 1, 1), BLOCK, 0, &args)?;
        self.clear_ranges(grads, &untouched(groups, &list))
    }

    fn clear_ranges(&self, grads: &mut CudaBuf<f32>, ranges: &[Range<usize>]) -> Result<()> {
        ranges.iter().try_for_each(|range| self.clear(grads, range.clone()))
    }
}

/// The arguments that end the parameter lists of `adamw` and `lamb_direction`.
fn constants(update: AdamW) -> [Arg; 7] {
    [
        Arg::F32(update.beta1),
        Arg::F32(update.beta2),
        Arg::F32(update.eps),
        Arg::F32(update.weight_decay),
        Arg::F32(update.clip_norm),
        correction(update.beta1, update.step),
        correction(update.beta2, update.step),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_count_tiles_and_what_is_left_is_found() {
        let group = |range, lr_scale| ParamGroup { range, decay: true, lr_scale };
        let groups = [group(0..5000, 1.0), group(5000..6000, 0.0), group(6008..20_000, 0.5)];
        let list = slices(&groups, &[1000..5500, 7000..30_000]);
        let (words, tiles) = words(&list, &groups).unwrap();
        // 4,000 and 13,000 elements: one tile and four
        assert_eq!(tiles, 5);
        assert_eq!(words[..8], [1000, 4000, 0, 0, 1.0f32.to_bits(), 1, 0, 0]);
        assert_eq!(words[8..16], [7000, 13_000, 4500, 1, 0.5f32.to_bits(), 1, 2, 0]);
        assert_eq!(words[16..], [0, 1, 1, 5]);
        assert_eq!(untouched(&groups, &list), [0..1000, 5000..6000, 6008..7000]);
    }
}
