//! How fast each operation runs on this machine's GPU, as a share of what its memory and arithmetic allow,
//! and how far its results are from the CPU's. A driver, a clock limit or a broken library that costs speed
//! shows as one line.

use std::fmt::Write;
use std::time::Duration;

use super::difference::{allowed, difference};
use crate::Result;
use crate::bench::{Operation, Peaks, Workload, operations};
use crate::engine::Card;
use crate::engine::Real;
use crate::engine::cases::{self, Keep, Sizes};
use crate::engine::cpu::Cpu;
use crate::engine::cuda::Cuda;
use crate::model::Shape;

/// Time for each operation.
const BUDGET: Duration = Duration::from_millis(20);

/// Devices slower than this (the software device of the tests) get a small load: their speed means nothing.
const SLOW: f64 = 1e12;

/// The speed that a card is held to: its data sheet's if plausible, else what was measured.
fn allows(data: f64, measured: f64) -> f64 {
    if data >= measured { data } else { measured }
}

/// One layer of BERT-base with its heads, in packs of 16,384; or something small.
fn workload(peaks: Peaks) -> Workload {
    let small = peaks.flops < SLOW;
    let (hidden, vocab, length, pack_tokens) =
        if small { (64, 301, 64, 256) } else { (768, 30_522, 512, 16_384) };
    let (layers, heads) = (if small { 1 } else { 12 }, hidden / 64);
    let shape = Shape {
        vocab,
        hidden,
        layers,
        heads,
        intermediate: 4 * hidden,
        positions: length,
        segments: 2,
        norm_eps: Shape::NORM_EPS,
    };
    Workload { shape, pack_tokens, length, mask_rate: 0.15, dropout: 0.1, packs_per_step: 1 }
}

/// The findings on one GPU in one precision.
pub struct Findings {
    card: Card,
    /// Whether it was bf16, on tensor cores.
    narrow: bool,
    peaks: Peaks,
    work: Workload,
    operations: Vec<Operation>,
    errors: Vec<Off>,
    /// Sizes that the GPU has no attention for.
    left_out: Vec<String>,
    /// The error that rounding may leave.
    limit: f64,
}

/// A result and how far it is from the CPU engine's.
struct Off {
    op: &'static str,
    /// The case, which of its results, and at which sizes.
    name: String,
    error: f64,
}

/// Every result at `sizes` on both engines.
fn compare<R: Real>(gpu: &Cuda<R>, sizes: &Sizes) -> Result<Vec<Off>> {
    // the CPU runs attention only at sizes that the GPU has
    let expected = cases::outcomes(&Cpu::new(), sizes, Keep::on_gpu())?;
    let got = cases::outcomes(gpu, sizes, Keep::on_gpu())?;
    let off = |(e, g): (&cases::Outcome, &cases::Outcome)| Off {
        op: e.op,
        name: format!("{} (H = {}, D = {})", e.name, sizes.hidden, sizes.head_size()),
        error: difference(e, g),
    };
    Ok(expected.iter().zip(&got).map(off).collect())
}

/// Runs every operation on `gpu`, for its results and for its speed. Slow devices get only the small sizes.
pub fn examine<R: Real>(gpu: &Cuda<R>) -> Result<Findings> {
    let peaks = operations::peaks(gpu, BUDGET)?;
    let sizes = if peaks.flops < SLOW { Sizes::small().to_vec() } else { Sizes::all() };
    let mut errors = Vec::new();
    for sizes in &sizes {
        errors.extend(compare(gpu, sizes)?);
    }
    let no_attention = sizes.iter().filter(|sizes| !sizes.attends_on_gpu());
    let work = workload(peaks);
    Ok(Findings {
        card: gpu.device().card.clone(),
        narrow: size_of::<R>() == 2,
        operations: operations::measure(gpu, &work, peaks, BUDGET)?,
        peaks,
        work,
        errors,
        left_out: no_attention.map(Sizes::describe).collect(),
        limit: allowed::<R>(),
    })
}

impl Findings {
    /// Results that are further from the CPU's than rounding explains.
    pub fn wrong(&self) -> impl Iterator<Item = String> {
        let wrong = self.errors.iter().filter(|off| off.error > self.limit);
        wrong.map(|off| format!("{}: {:.1e}", off.name, off.error))
    }

    /// The printed table.
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
            let own = self.errors.iter().filter(|off| off.op == op.op);
            let worst = own.max_by(|a, b| a.error.total_cmp(&b.error));
            let (name, error) = worst.map_or(("-", f64::NAN), |off| (off.name.as_str(), off.error));
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
        for sizes in &self.left_out {
            writeln!(out, "  not compared: attention at {sizes}: no kernel takes heads of this size")?;
        }
        if slowest.1.is_finite() {
            let share = 100.0 * slowest.1;
            writeln!(out, "  furthest from what the card allows: {}, at {share:.1} %", slowest.0)?;
        }
        Ok(())
    }
}
