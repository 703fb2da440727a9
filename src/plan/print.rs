//! The prediction as a printed table.

use std::fmt::Write;

use super::hardware;
use super::prediction::{Prediction, Report};
use crate::engine::op::Kind;

/// Bytes of a GB in the tables.
const GB: f64 = 1e9;

/// The whole text.
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = head(&mut out, report);
    let _ = memory(&mut out, report);
    for prediction in &report.predictions {
        let _ = gpu(&mut out, report, prediction);
    }
    let _ = summary(&mut out, report);
    out
}

fn head(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(out, "PREDICTION, NOT MEASURED: data sheets and the assumptions at the end.\n")?;
    let s = &r.pack.shape;
    writeln!(
        out,
        "model    {} parameters: {} layers x {}, {} heads, FFN {}, vocabulary {} ({})",
        r.parameters, s.layers, s.hidden, s.heads, s.intermediate, s.vocab, r.model
    )?;
    writeln!(
        out,
        "data     {} samples of {:.0} tokens on average, a token attends to {:.0} ({})",
        r.lengths.samples, r.lengths.mean_tokens, r.lengths.attended, r.lengths.source
    )?;
    writeln!(
        out,
        "pack     {:.0} tokens, {:.0} sequences, {:.0} masked",
        r.pack.tokens, r.pack.sequences, r.pack.masked
    )?;
    writeln!(
        out,
        "step     {} packs over {} GPU(s): {} each; {:.1} MFLOP a token\n",
        r.packs_per_step,
        r.gpus,
        r.packs_per_rank,
        r.flops_per_token / 1e6
    )
}

fn memory(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(out, "memory of one GPU (bf16 weights and activations)                 GB")?;
    let m = r.memory;
    let rows = [
        ("weights", m.weights),
        ("gradients (f32)", m.gradients),
        ("master weights (f32)", m.master),
        ("moments (f32)", m.moments),
        ("activations, packs and scratch", m.activations),
    ];
    for (name, bytes) in rows {
        writeln!(out, "  {name:<58} {:>8.3}", bytes as f64 / GB)?;
    }
    let rest = r.memory_bytes - m.total() as f64;
    writeln!(out, "  {:<58} {:>8.3}", "workspace, CUDA context, NCCL (assumed)", rest / GB)?;
    writeln!(out, "  {:<58} {:>8.3}\n", "all", r.memory_bytes / GB)
}

/// `linear [16384, 768] over 768`
fn name(operation: &super::roofline::Operation) -> String {
    match operation.kind {
        Kind::Product([m, n, k]) => format!("{} [{m}, {n}] over {k}", operation.name),
        _ => operation.name.to_owned(),
    }
}

fn gpu(out: &mut String, r: &Report, p: &Prediction) -> std::fmt::Result {
    let g = &p.gpu;
    writeln!(
        out,
        "{} x {} ({:.0} TFLOP/s bf16, {:.0} GB/s, {:.0} GiB): predicted, not measured",
        r.gpus,
        g.name,
        g.peak / 1e12,
        g.bandwidth / GB,
        g.memory / 1024f64.powi(3)
    )?;
    let fits = if p.fits { "fits" } else { "DOES NOT FIT" };
    writeln!(out, "  {fits}; largest pack_tokens that fits: {}", p.largest_pack_tokens)?;
    writeln!(
        out,
        "  {:<46} {:>6} {:>9} {:>9} {:>9} {:>8} {:>8} {:>6}",
        "operation (all its runs in a step)", "runs", "launches", "least GB", "moves GB", "TFLOP", "ms", "%"
    )?;
    for timed in &p.operations {
        let (tally, share) = (&timed.operation.tally, 100.0 * timed.ms / p.step_ms);
        writeln!(
            out,
            "  {:<46} {:>6} {:>9} {:>9.2} {:>9.2} {:>8.2} {:>8.2} {share:>6.1}",
            name(&timed.operation),
            tally.runs,
            tally.launches,
            tally.least_bytes / GB,
            tally.bytes / GB,
            tally.flops / 1e12,
            timed.ms
        )?;
    }
    let links: Vec<_> = p.links.iter().map(|(name, ms)| format!("{name} {ms:.1} ms")).collect();
    if !links.is_empty() {
        writeln!(
            out,
            "  all-reduce of {:.0} MB: {}; {:.1} ms of the first are not hidden",
            r.exchanged_bytes / 1e6,
            links.join(", "),
            p.exposed_ms
        )?;
    }
    writeln!(out, "  where the step's {:.1} ms go:", p.step_ms)?;
    for (what, share) in &p.costs {
        writeln!(out, "    {share:>5.1} %  {what}")?;
    }
    writeln!(out)
}

/// The project's targets on BERT-base at 512 tokens: MFU in per cent by GPU.
const TARGETS: [(&str, f64); 2] = [("a100", 50.0), ("h100", 40.0)];

fn summary(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(
        out,
        "{:<12} {:>9} {:>12} {:>7} {:>10} {:>12} {:>10}   (predicted)",
        "", "step ms", "tokens/s", "MFU %", "target %", "epoch hours", "cost"
    )?;
    for p in &r.predictions {
        let target = TARGETS.iter().find(|t| t.0 == p.gpu.name).map_or("-".into(), |t| format!("{:.0}", t.1));
        let cost = p.epoch_cost.map_or("-".into(), |cost| format!("{cost:.2}"));
        writeln!(
            out,
            "{:<12} {:>9.1} {:>12.0} {:>7.1} {:>10} {:>12.1} {:>10}",
            format!("{} x {}", r.gpus, p.gpu.name),
            p.step_ms,
            p.tokens_per_s,
            100.0 * p.mfu,
            target,
            p.epoch_hours,
            cost
        )?;
    }
    writeln!(out, "\nassumptions, not measurements:")?;
    for source in hardware::SOURCES {
        writeln!(out, "  * {source}")?;
    }
    Ok(())
}
