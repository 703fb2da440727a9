//! How fast each operation runs on this machine's GPU, as a share of what its memory and its arithmetic
//! allow, beside how far its results are from the CPU's: a driver, a clock limit or a broken library
//! that costs speed shows as one line.

use std::fmt::Write;
use std::time::Duration;

use super::trial::{self, Outcome};
use super::{allowed, difference};
use crate::Result;
use crate::bench::{Operation, Peaks, Workload, operations};
use crate::engine::Real;
use crate::engine::cpu::Cpu;
use crate::engine::cuda::{Card, Cuda};
use crate::model::Shape;

/// Time for each operation.
const BUDGET: Duration = Duration::from_millis(20);

/// Devices slower than this (the software device of the tests) get a small load: their speed means nothing.
const SLOW: f64 = 1e12;

/// What a card must be held to: its data where they are plausible, else what was measured.
fn allows(data: f64, measured: f64) -> f64 {
    if data >= measured { data } else { measured }
}

/// One layer of BERT-base with its heads, in packs of 16,384; or something small.
fn workload(peaks: Peaks) -> Workload {
    let small = peaks.flops < SLOW;
    let (hidden, vocab, length, pack_tokens) =
        if small { (64, 301, 64, 256) } else { (768, 30_522, 512, 16_384) };
    let (layers, heads) = (if small { 1 } else { 12 }, hidden / 64);
    let shape =
        Shape { vocab, hidden, layers, heads, intermediate: 4 * hidden, positions: length, segments: 2 };
    Workload { shape, pack_tokens, length, mask_rate: 0.15, dropout: 0.1, packs_per_step: 1 }
}

/// The method of `Backend` that an outcome is of.
fn method(outcome: &str) -> &str {
    outcome.split([' ', ':', ',']).next().unwrap_or(outcome)
}

/// Whether an operation of the benchmark is that method: LAMB's two halves have one outcome.
fn same(op: &Operation, outcome: &str) -> bool {
    let method = method(outcome);
    op.op == method || method == "lamb" && op.op.starts_with("lamb_")
}

/// What was found on one GPU in one precision.
pub struct Findings {
    card: Card,
    /// Whether it was bf16, on tensor cores.
    narrow: bool,
    peaks: Peaks,
    work: Workload,
    operations: Vec<Operation>,
    /// Every result with its difference from the CPU engine's.
    errors: Vec<(String, f64)>,
    /// What rounding may leave of it.
    limit: f64,
}

/// Runs every operation on `gpu` for its results and for its speed.
pub fn examine<R: Real>(gpu: &Cuda<R>) -> Result<Findings> {
    let mut errors: Vec<(String, f64)> = Vec::new();
    for shape in trial::shapes() {
        let named = |o: &Outcome| format!("{} (D = {})", o.name, shape.head_size());
        let (expected, got) = (trial::run(&Cpu::new(), &shape)?, trial::run(gpu, &shape)?);
        errors.extend(expected.iter().zip(&got).map(|(e, g)| (named(g), difference(e, g))));
    }
    let peaks = operations::peaks(gpu, BUDGET)?;
    let work = workload(peaks);
    Ok(Findings {
        card: gpu.device().card.clone(),
        narrow: size_of::<R>() == 2,
        operations: operations::measure(gpu, &work, peaks, BUDGET)?,
        peaks,
        work,
        errors,
        limit: allowed::<R>(),
    })
}

impl Findings {
    /// Results that are further from the CPU's than rounding explains.
    pub fn wrong(&self) -> impl Iterator<Item = String> {
        let wrong = self.errors.iter().filter(|(_, error)| *error > self.limit);
        wrong.map(|(name, error)| format!("{name}: {error:.1e}"))
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = self.write(&mut out); // writing to a String cannot fail
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let (card, peaks, data) = (&self.card, self.peaks, self.card.flops(self.narrow));
        let (bandwidth, flops) = (allows(card.bandwidth, peaks.bandwidth), allows(data, peaks.flops));
        writeln!(
            out,
            "  memory {:.0} GB/s in a copy, {:.0} by the card's data; products {:.2} TFLOP/s, {:.2} by its data; \
             packs of {} tokens, hidden {}",
            peaks.bandwidth / 1e9,
            card.bandwidth / 1e9,
            peaks.flops / 1e12,
            data / 1e12,
            self.work.pack_tokens,
            self.work.shape.hidden
        )?;
        writeln!(
            out,
            "  {:<30} {:>8} {:>9} {:>8} {:>5} {:>8} {:>5}   worst result",
            "operation", "error", "ms", "GB/s", "%", "TFLOP/s", "%"
        )?;
        let mut slowest = ("", f64::INFINITY);
        for op in &self.operations {
            let own = self.errors.iter().filter(|(name, _)| same(op, name));
            let worst = own.max_by(|a, b| a.1.total_cmp(&b.1));
            let (name, error) = worst.map_or(("-", f64::NAN), |(name, error)| (name.as_str(), *error));
            let rate = |work: f64| work / op.ms * 1e3;
            let [memory, products] = [rate(op.bytes) / bandwidth, rate(op.flops) / flops];
            if op.bytes > 1e6 && memory.max(products) < slowest.1 {
                slowest = (op.name, memory.max(products));
            }
            writeln!(
                out,
                "  {:<30} {error:>8.1e} {:>9.4} {:>8.1} {:>5.1} {:>8.3} {:>5.1}   {name}{}",
                op.name,
                op.ms,
                rate(op.bytes) / 1e9,
                100.0 * memory,
                rate(op.flops) / 1e12,
                100.0 * products,
                if error <= self.limit { "" } else { "  <- wrong" }
            )?;
        }
        if slowest.1.is_finite() {
            let share = 100.0 * slowest.1;
            writeln!(out, "  furthest from what the card allows: {}, at {share:.1} %", slowest.0)?;
        }
        Ok(())
    }
}
