//! The optimiser's passes over the arenas: the gradient norm, AdamW, LAMB, and zeros after a step that was
//! not finite (kernels/forget.cu says why and how). A table of slices on the device says what a launch works
//! on (kernels/slices.cuh). New tables are uploaded and kept, because they are the same in every step.

use std::ops::Range;

use super::super::CudaBuf;
use super::super::launch::{Arg, Extra, Gpu, Launch, Launches};
use crate::engine::op::{
    AdamWUpdate, Forget, LambApply, LambDirection, ParamGroup, Slice, SumSquares, UpdateRule, slices,
};
use crate::engine::{Floats, Reals};
use crate::{Error, Result};

/// Elements of one block, and its threads.
const TILE: usize = 4096;
const BLOCK: u32 = 256;
/// Blocks of `sum_squares`, at most.
const SUM_BLOCKS: u32 = 1024;
/// Words of one slice of the table.
const WORDS: usize = 8;
/// Threads of a block of `forget`.
const FORGET_BLOCK: u32 = 256;
/// Bytes that a thread clears at once.
const VECTOR: usize = 16;
/// Vectors of 16 bytes that each thread clears before another block is added.
const EACH: usize = 16;
/// Blocks a multiprocessor for each buffer, at most.
const BLOCKS: u32 = 4;
/// Buffers of a launch.
const BUFFERS: usize = 8;

/// What a launch needs to know about its table.
#[derive(Clone, Copy)]
struct Work {
    table: Arg,
    slices: Arg,
    /// First tile of each group.
    groups: Arg,
    tiles: u32,
}

impl Work {
    fn new<G: Gpu>(gpu: &G, list: &[Slice], groups: &[ParamGroup]) -> Result<Self> {
        let (words, tiles) = words(list, groups)?;
        let table = Arg::Ptr(gpu.table(words)?);
        let groups = table.after(list.len() * WORDS * size_of::<u32>());
        Ok(Self { table, slices: Arg::U32(list.len() as u32), groups, tiles })
    }
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

/// 1 - beta^t.
fn correction(beta: f32, step: u32) -> Arg {
    Arg::F64(1.0 - f64::from(beta).powi(step.min(i32::MAX as u32) as i32))
}

/// The rest of the groups' ranges, as few ranges as possible: frozen groups, and what other ranks own, which
/// holds this rank's part of a sum.
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

/// The arenas that an update works on: weights, master and gradients.
struct Arenas<'a, G: Gpu> {
    weights: &'a Reals<G>,
    master: &'a Floats<G>,
    grads: &'a Floats<G>,
}

impl<G: Gpu> Arenas<'_, G> {
    /// Their addresses and those of the moments, checked against the slices.
    fn checked(&self, list: &[Slice], moments: &[&Floats<G>]) -> Result<Vec<Arg>> {
        for slice in list {
            let state = slice.moment..slice.moment + slice.range.len();
            G::span("weights", self.weights, slice.range.clone())?;
            G::span("gradients", self.grads, slice.range.clone())?;
            for moment in moments {
                G::span("moments", moment, state.clone())?;
            }
            if size_of::<G::Real>() != size_of::<f32>() {
                G::span("master weights", self.master, state)?;
            }
        }
        let mut args = vec![
            G::span("weights", self.weights, 0..0)?,
            G::span("master weights", self.master, 0..0)?,
            G::span("gradients", self.grads, 0..0)?,
        ];
        for moment in moments {
            args.push(G::span("moments", moment, 0..0)?);
        }
        Ok(args)
    }
}

/// Scratch: the blocks' sums [blocks] f64.
impl<G: Gpu> Launches<G> for SumSquares<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let group = ParamGroup { range: 0..G::elements(self.src), decay: false, lr_scale: 1.0 };
        let list: Vec<Slice> = self
            .ranges
            .iter()
            .filter(|range| !range.is_empty())
            .map(|range| Slice { group: 0, range: range.clone(), moment: 0 })
            .collect();
        for slice in &list {
            G::span("sum_squares", self.src, slice.range.clone())?;
        }
        let out = G::span("sum_squares out", self.out, self.slot..self.slot + 1)?;
        let work = Work::new(gpu, &list, &[group])?;
        let blocks = work.tiles.min(SUM_BLOCKS);
        let sums = Arg::Ptr(gpu.scratch(2 * blocks.max(1) as usize)?);
        let src = G::span("sum_squares", self.src, 0..0)?;
        gpu.needs(Extra { bytes: 2.0 * 8.0 * f64::from(blocks), flops: 0.0 });
        let args = [src, work.table, work.slices, Arg::U32(work.tiles), sums];
        gpu.launch("sum_squares", (blocks, 1, 1), BLOCK, &args)?;
        gpu.launch("sum_squares_finish", (1, 1, 1), BLOCK, &[sums, Arg::U32(blocks), out])
    }
}

impl<G: Gpu> Launches<G> for AdamWUpdate<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let list = slices(self.groups, self.owned);
        let arenas = Arenas::<G> { weights: self.weights, master: self.master, grads: self.grads };
        let state = arenas.checked(&list, &[self.moment1, self.moment2])?;
        let work = Work::new(gpu, &list, self.groups)?;
        let norm_sq = G::span("norm_sq", self.norm_sq, 0..1)?;
        let mut args = vec![work.table, work.slices, norm_sq];
        args.extend(state);
        args.push(Arg::F32(self.rule.lr));
        args.extend(constants(self.rule));
        gpu.launch("adamw", (work.tiles, 1, 1), BLOCK, &args)?;
        clear(gpu, self.grads, &untouched(self.groups, &list))
    }
}

/// Scratch: the tiles' sums [tiles, 2].
impl<G: Gpu> Launches<G> for LambDirection<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let list = slices(self.groups, self.owned);
        let arenas = Arenas::<G> { weights: self.weights, master: self.master, grads: self.grads };
        let state = arenas.checked(&list, &[self.moment1, self.moment2])?;
        let work = Work::new(gpu, &list, self.groups)?;
        let sums = Arg::Ptr(gpu.scratch(2 * work.tiles as usize)?);
        let norm_sq = G::span("norm_sq", self.norm_sq, 0..1)?;
        let mut args = vec![work.table, work.slices, norm_sq];
        args.extend(state);
        args.push(sums);
        args.extend(constants(self.rule));
        gpu.launch("lamb_direction", (work.tiles, 1, 1), BLOCK, &args)?;
        let groups = self.groups.len();
        let norms = G::span("norms", self.norms, 0..2 * groups)?;
        gpu.launch("lamb_norms", (groups as u32, 1, 1), BLOCK, &[sums, work.groups, norms])
    }
}

impl<G: Gpu> Launches<G> for LambApply<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let list = slices(self.groups, self.owned);
        let arenas = Arenas::<G> { weights: self.weights, master: self.master, grads: self.grads };
        let state = arenas.checked(&list, &[])?;
        let work = Work::new(gpu, &list, self.groups)?;
        let norms = G::span("norms", self.norms, 0..2 * self.groups.len())?;
        let mut args = vec![work.table, work.slices, norms];
        args.extend(state);
        args.push(Arg::F32(self.rule.lr));
        gpu.launch("lamb_apply", (work.tiles, 1, 1), BLOCK, &args)?;
        clear(gpu, self.grads, &untouched(self.groups, &list))
    }
}

fn clear<G: Gpu>(gpu: &G, grads: &mut Floats<G>, ranges: &[Range<usize>]) -> Result<()> {
    ranges.iter().try_for_each(|range| gpu.clear(grads, range.clone()))
}

impl<G: Gpu> Launches<G> for Forget<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let norm_sq = G::span("norm_sq", self.norm_sq, 0..1)?;
        let most = BLOCKS * gpu.card().multiprocessors.max(1) as u32;
        // part of a buffer's last vector may be padding, which belongs to the buffer
        let parts = self
            .buffers
            .iter()
            .filter(|(_, len)| *len > 0)
            .map(|(buffer, len)| {
                let vectors = CudaBuf::<G::Real>::size(*len) / VECTOR;
                Ok((G::span("forget", buffer, 0..*len)?, vectors))
            })
            .collect::<Result<Vec<_>>>()?;
        for parts in parts.chunks(BUFFERS) {
            let longest = parts.iter().map(|part| part.1).max().unwrap_or(0);
            let blocks = (longest.div_ceil(EACH * FORGET_BLOCK as usize) as u32).clamp(1, most);
            let mut args = vec![norm_sq];
            args.extend((0..BUFFERS).map(|i| parts.get(i).map_or(Arg::Ptr(0), |part| part.0)));
            args.extend((0..BUFFERS).map(|i| Arg::U32(parts.get(i).map_or(0, |part| part.1 as u32))));
            let grid = (blocks, parts.len() as u32, 1);
            gpu.enqueue(Launch { name: "forget", grid, block: FORGET_BLOCK, shared: 0, args: &args })?;
        }
        Ok(())
    }
}

/// The arguments that end the parameter lists of `adamw` and `lamb_direction`.
fn constants(rule: UpdateRule) -> [Arg; 7] {
    [
        Arg::F32(rule.beta1),
        Arg::F32(rule.beta2),
        Arg::F32(rule.eps),
        Arg::F32(rule.weight_decay),
        Arg::F32(rule.clip_norm),
        correction(rule.beta1, rule.step),
        correction(rule.beta2, rule.step),
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
