//! The same call gives the same bits: twice, on any number of threads, and with any instruction set. Every
//! case of every operation, including the widths of real models.

use ctune_dist::engine::Engine;
use ctune_dist::engine::cases::{Keep, Sizes, outcomes};
use ctune_dist::engine::cpu::{Cpu, Operand};
use ctune_dist::engine::op::{self, Dropout, Heads};

use super::support::*;

const HEADS: Heads = Heads { heads: 3, size: 32 };
const HIDDEN: usize = 96;

/// Everything that all operations leave at `sizes`, as bits.
fn bits<E: Engine>(engine: &E, sizes: &Sizes) -> Vec<(String, Vec<u32>)> {
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect();
    let kept = outcomes(engine, sizes, Keep::default()).unwrap();
    assert!(kept.len() > 60, "{} results", kept.len());
    kept.iter().map(|outcome| (outcome.name.clone(), bits(&outcome.values))).collect()
}

#[track_caller]
fn same(what: &str, sizes: &Sizes, first: &[(String, Vec<u32>)], second: &[(String, Vec<u32>)]) {
    assert_eq!(first.len(), second.len());
    for (a, b) in first.iter().zip(second) {
        assert!(a == b, "{}: other bits {what} ({})", a.0, sizes.describe());
    }
}

#[test]
fn same_bits_on_any_number_of_threads() {
    on_engines!(threads_case);
}

fn threads_case<E: Engine + Sync>(engine: &E) {
    for sizes in Sizes::small().into_iter().chain([Sizes::long()]) {
        let first = bits(engine, &sizes);
        same("the second time", &sizes, &first, &bits(engine, &sizes));
        for threads in [1, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            same(&format!("on {threads} threads"), &sizes, &first, &pool.install(|| bits(engine, &sizes)));
        }
    }
}

#[test]
fn same_bits_on_two_threads_at_the_widths_of_real_models() {
    let engine = Cpu::new();
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for sizes in Sizes::widths() {
        let first = alone.install(|| bits(&engine, &sizes));
        same("on the machine's threads", &sizes, &first, &bits(&engine, &sizes));
    }
}

/// Without AVX-512, and without any vectors at all.
#[test]
fn same_bits_with_any_instruction_set() {
    instructions_case(&Cpu::<f32>::default());
    instructions_case(&Cpu::<half::bf16>::default().widening());
}

fn instructions_case<R: Operand>(engine: &Cpu<R>)
where
    Cpu<R>: Engine,
{
    for sizes in Sizes::small().into_iter().chain(Sizes::widths()) {
        let best = bits(engine, &sizes);
        let plain = Cpu::<R>::with(pulp::Arch::Scalar);
        same("without vector instructions", &sizes, &best, &bits(&plain, &sizes));
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = pulp::x86::V3::try_new() {
            same("with AVX2", &sizes, &best, &bits(&Cpu::<R>::with(pulp::Arch::V3(v3)), &sizes));
        }
    }
}

/// A sequence's result does not depend on what it is packed with.
#[test]
fn packed_equals_alone() {
    on_engines!(packed_case);
}

fn packed_case<E: Engine>(cpu: &E) {
    let together = Pack::new(&[65, 64, 200], 50);
    let rows = random(3 * together.tokens() * HIDDEN, 5);
    let attend = |pack: &Pack, rows: &[f32]| {
        let t = pack.tokens();
        let (batch, qkv) = (&pack.device(cpu), &poisoned(cpu, rows));
        let (lse, out) = (&mut unwritten(cpu, t * HEADS.heads), &mut unwritten(cpu, t * HIDDEN));
        cpu.run(op::Attention { batch, heads: HEADS, drop: Dropout::new(0.1, 3, 1), qkv, lse, out }).unwrap();
        taken(cpu, out, t * HIDDEN)
    };
    let all = attend(&together, &rows);
    for i in 0..3 {
        let own = together.cu_seqlens[i] as usize..together.cu_seqlens[i + 1] as usize;
        let mut alone = Pack::new(&[own.len()], 50);
        alone.samples = vec![together.samples[i]];
        let got = attend(&alone, &rows[3 * own.start * HIDDEN..3 * own.end * HIDDEN]);
        assert!(got == all[own.start * HIDDEN..own.end * HIDDEN], "sequence {i}");
    }
}
