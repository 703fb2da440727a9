//! Single operations of the engine at the sizes of the workload, and the machine's own peaks.

use std::ops::Range;
use std::time::Duration;

use super::clock::time;
use super::report::{Operation, Peaks, Workload};
use crate::Result;
use crate::engine::cases::{self, Left, Sizes, Visitor};
use crate::engine::op::{Epilogue, GatherRows, Linear, LinearAt, SumSquares};
use crate::engine::{self, Compute, Engine, PackCounts, Reals, Rows};

/// Sides of the square products, the best of which is the peak; larger ones are left out when one product
/// takes longer than the budget.
const SIDES: [usize; 4] = [1024, 2048, 4096, 8192];
/// Elements that are copied to find the bandwidth: more than any cache holds, or fewer if these take a device
/// more than `ENOUGH` seconds.
const COPIED: [usize; 3] = [1 << 20, 8 << 20, 64 << 20];
const ENOUGH: f64 = 0.1;

/// The best product and the best copy of this rank's device.
pub fn peaks<E: Engine>(engine: &E, budget: Duration) -> Result<Peaks> {
    let mut flops = 0.0f64;
    for side in SIDES {
        let at = LinearAt { w: 0, b: side * side, n: side, k: side };
        let rows = Rows::Tokens(side);
        let engine = &prepared(engine, side)?;
        let (x, weights) = (filled(engine, side * side)?, filled(engine, side * side + side)?);
        let mut y: Reals<E> = engine.zeros(side * side)?;
        let mut op =
            Linear::<E> { x: &x, weights: &weights, at, rows, epilogue: Epilogue::None, out: &mut y };
        let (seconds, _) = time(engine, budget, || engine.compute(&mut op))?;
        flops = flops.max(2.0 * (side as f64).powi(3) / seconds);
        if 8.0 * seconds * 3.0 > budget.as_secs_f64().max(0.1) {
            break;
        }
    }
    Ok(Peaks { flops, bandwidth: bandwidth(engine, budget)? })
}

fn bandwidth<E: Engine>(engine: &E, budget: Duration) -> Result<f64> {
    let mut found = 0.0;
    for elements in COPIED {
        let (seconds, bandwidth) = bandwidth_of(engine, elements, budget)?;
        found = bandwidth; // only the largest counts: smaller ones may have come from a cache
        if seconds > ENOUGH {
            break;
        }
    }
    Ok(found)
}

/// Seconds of a copy of rows, and the better bandwidth of that copy and a sum of squares.
fn bandwidth_of<E: Engine>(engine: &E, elements: usize, budget: Duration) -> Result<(f64, f64)> {
    let hidden = 1024;
    let rows = elements / hidden;
    let engine = &prepared(engine, rows)?;
    let x: Reals<E> = engine.zeros(elements)?;
    let mut y: Reals<E> = engine.zeros(elements)?;
    let list: Vec<u32> = (0..rows as u32).collect();
    let mut picked = engine.zeros(rows)?;
    engine.upload(&list, &mut picked, 0)?;
    let mut op = GatherRows::<E> { x: &x, picked: &picked, rows: Rows::Tokens(rows), hidden, out: &mut y };
    let (copy, _) = time(engine, budget, || engine.compute(&mut op))?;
    drop((x, y));
    let (src, mut out) = (engine.zeros(elements)?, engine.zeros(1)?);
    let whole = 0..elements;
    let ranges = std::slice::from_ref(&whole);
    let mut op = SumSquares::<E> { src: &src, ranges, out: &mut out, slot: 0 };
    let (read, _) = time(engine, budget, || engine.compute(&mut op))?;
    let (elements, real) = (elements as f64, size_of::<E::Real>() as f64);
    Ok((copy, (2.0 * real * elements / copy).max(4.0 * elements / read)))
}

/// Times every case that it is shown.
struct Timed {
    budget: Duration,
    peaks: Peaks,
    gpu: bool,
    done: Vec<Operation>,
}

impl<E: Engine> Visitor<E> for Timed {
    fn wants(&self, op: &str, sizes: &Sizes) -> bool {
        !self.gpu || sizes.runs_on_gpu(op)
    }

    fn meet<O>(&mut self, engine: &E, case: &'static str, mut op: O) -> Result<()>
    where
        O: engine::Operation<E>,
        E: Compute<O>,
    {
        if self.done.iter().any(|done| done.name == case) {
            return Ok(()); // a later round of the same case
        }
        let (cost, name) = (op.cost(), op.name());
        let (seconds, calls) = time(engine, self.budget, || engine.compute(&mut op))?;
        let light = (cost.flops / self.peaks.flops).max(cost.bytes / self.peaks.bandwidth);
        self.done.push(Operation {
            name: case,
            op: name,
            ms: 1e3 * seconds,
            calls,
            flops: cost.flops,
            bytes: cost.bytes,
            share_of_light: light / seconds,
        });
        Ok(())
    }

    fn left(&mut self, _: &E, _: &'static str, _: Left<'_, E>, _: Range<usize>) -> Result<()> {
        Ok(())
    }
}

/// Times every operation at the sizes of the workload.
pub fn measure<E: Engine>(
    engine: &E,
    work: &Workload,
    peaks: Peaks,
    budget: Duration,
) -> Result<Vec<Operation>> {
    let mut timed = Timed { budget, peaks, gpu: E::ASYNCHRONOUS, done: Vec::new() };
    cases::visit(engine, &work.sizes(), &mut timed)?;
    Ok(timed.done)
}

/// A buffer of `len` weights with some values.
fn filled<E: Engine>(engine: &E, len: usize) -> Result<Reals<E>> {
    let values: Vec<f32> =
        (0..len as u32).map(|i| i.wrapping_mul(2_654_435_761) as f32 / 2f32.powi(31) - 1.0).collect();
    let mut buffer = engine.zeros(len)?;
    engine.upload_weights(&values, &mut buffer, 0)?;
    Ok(buffer)
}

/// The engine, prepared for a pack of `tokens` rows, all of them used.
fn prepared<E: Engine>(engine: &E, tokens: usize) -> Result<E> {
    let counts = PackCounts { tokens: tokens as u32, sequences: 1, masked: 1, ..PackCounts::default() };
    let engine = engine.for_packs(&counts)?;
    engine.begin_pack(&counts)?;
    Ok(engine)
}
