//! The measurements as a printed table.

use std::fmt::Write;

use super::report::Report;

/// The whole text.
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    let _ = write(&mut out, report); // writing to a String cannot fail
    out
}

fn write(out: &mut String, r: &Report) -> std::fmt::Result {
    let (w, s) = (&r.workload, &r.workload.shape);
    writeln!(out, "machine   {}; {} rank(s) x {} thread(s), {}", r.machine, r.ranks, r.threads, r.device)?;
    writeln!(
        out,
        "work      {} layers x {}, {} heads, FFN {}, vocabulary {}; packs of {} tokens, sequences of {}",
        s.layers, s.hidden, s.heads, s.intermediate, s.vocab, w.pack_tokens, w.length
    )?;
    writeln!(
        out,
        "peaks     {:.1} GFLOP/s in the best product, {:.1} GB/s in the best copy; of one rank, measured\n",
        r.peaks.flops / 1e9,
        r.peaks.bandwidth / 1e9
    )?;
    writeln!(out, "{:<30} {:>10} {:>10} {:>8} {:>10}", "operation", "ms", "GFLOP/s", "GB/s", "% of light")?;
    for op in &r.operations {
        let rate = |x: f64| if x > 0.0 { format!("{:.1}", x / op.ms * 1e3 / 1e9) } else { "-".into() };
        writeln!(
            out,
            "{:<30} {:>10.3} {:>10} {:>8} {:>10.0}",
            op.name,
            op.ms,
            rate(op.flops),
            rate(op.bytes),
            100.0 * op.share_of_light
        )?;
    }
    let t = &r.step;
    writeln!(
        out,
        "\nstep        {:.1} ms (median of {}), {:.1} ms of it waiting for data",
        t.step_ms, t.steps, t.waited_ms
    )?;
    writeln!(
        out,
        "            {:.0} tokens/s, {:.2} MFLOP a token: {:.1} % MFU of the measured peak",
        t.tokens_per_s,
        t.flops_per_token / 1e6,
        100.0 * t.mfu
    )?;
    writeln!(out, "loader      {:.0} tokens/s of one rank", r.loader_tokens_per_s)?;
    match &r.all_reduce {
        Some(a) => writeln!(
            out,
            "all-reduce  {:.1} MB in {:.1} ms: {:.2} GB/s on the bus",
            a.bytes as f64 / 1e6,
            a.ms,
            a.bus_bytes_per_s / 1e9
        ),
        None => writeln!(out, "all-reduce  none: one rank"),
    }
}
