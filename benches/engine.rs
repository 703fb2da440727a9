//! Speed of the CPU engine's operations in f32 and in bf16, at the sizes of the small models that run on it and at
//! BERT-base's. The cases are those that `doctor` and the tests compare (`engine::cases`). "Throughput" is FLOP/s
//! of products and attention, bytes/s that must move of everything else. `RAYON_NUM_THREADS=1` measures one thread.
//!
//! `cargo bench --bench engine`, or some: `cargo bench --bench engine -- 'attention.*bf16'`.

use std::ops::Range;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ctune_dist::Result;
use ctune_dist::engine::cases::{Left, Sizes, Visitor, visit};
use ctune_dist::engine::cpu::{Cpu, Operand};
use ctune_dist::engine::{Compute, Engine, Operation};

/// Hands every case to criterion.
struct Bench<'a> {
    criterion: &'a mut Criterion,
    sizes: &'a Sizes,
    kind: &'static str,
    seen: Vec<&'static str>,
}

impl<E: Engine> Visitor<E> for Bench<'_> {
    fn meet<O>(&mut self, engine: &E, case: &'static str, mut op: O) -> Result<()>
    where
        O: Operation<E>,
        E: Compute<O>,
    {
        if self.seen.contains(&case) {
            return Ok(());
        }
        self.seen.push(case);
        let (cost, sizes) = (op.cost(), self.sizes);
        let length = sizes.lengths.first().copied().unwrap_or(0);
        let name = format!("{case} {}: {}x{length} H={}", self.kind, sizes.sequences(), sizes.hidden);
        let work = if cost.flops > 0.0 { cost.flops } else { cost.bytes };
        let mut group = self.criterion.benchmark_group(name);
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1));
        group.throughput(Throughput::Elements(work as u64));
        group.bench_function("run", |b| b.iter(|| engine.compute(&mut op)));
        group.finish();
        Ok(())
    }

    fn left(&mut self, _: &E, _: &'static str, _: Left<'_, E>, _: Range<usize>) -> Result<()> {
        Ok(())
    }
}

/// MiniLM's width on packs of pairs, and BERT-base's on full sequences.
fn sizes() -> [Sizes; 2] {
    [Sizes::even(8, 256, [384, 12, 1536, 30_522]), Sizes::even(2, 512, [768, 12, 3072, 30_522])]
}

fn operations<R: Operand>(criterion: &mut Criterion)
where
    Cpu<R>: Engine,
{
    for sizes in sizes() {
        let mut bench = Bench { criterion, sizes: &sizes, kind: R::NAME, seen: Vec::new() };
        visit(&Cpu::<R>::default(), &sizes, &mut bench).expect("the CPU has every size");
    }
}

criterion_group!(wide, operations::<f32>);
criterion_group!(narrow, operations::<half::bf16>);
criterion_main!(wide, narrow);
