//! Packs: every sample once, full, mixed, and made fast enough.

use ctune_dist::data::pack::Packer;
use ctune_dist::data::{Batch, SampleSource};
use ctune_dist::random::philox;
use ctune_dist::{Error, Result};

use super::SPECIAL;

/// Lengths alone, as packing sees them.
struct Lengths(Vec<u32>);

impl SampleSource for Lengths {
    fn samples(&self) -> u32 {
        self.0.len() as u32
    }
    fn length(&self, sample: u32, _: u32) -> usize {
        self.0[sample as usize] as usize
    }
    fn pairs(&self, _: u32) -> usize {
        0
    }
    fn push(&self, sample: u32, _: u32, batch: &mut Batch) -> Result<()> {
        batch.push(SPECIAL, sample, &vec![9; self.0[sample as usize] as usize - 2], None);
        Ok(())
    }
}

/// Lengths of a click log at 512 tokens: a third of the documents are cut, the rest are spread
/// log-uniformly over 40 to 512 tokens.
fn typical(samples: u32) -> Lengths {
    let length = |i| {
        let u = f64::from(philox([3, 3], [i, 0, 0, 0])[0]) / 4_294_967_296.0;
        ((40.0 * (512.0f64 / 40.0).powf(u * 1.5)) as u32).min(512)
    };
    Lengths((0..samples).map(length).collect())
}

/// Fill of an epoch, after checking that its packs hold every sample once within the budget.
fn fill(source: &Lengths, budget: usize) -> f64 {
    let packer = Packer::new(source, 1, budget).unwrap();
    let mut seen = vec![false; source.0.len()];
    let (mut packs, mut tokens) = (0, 0);
    for window in 0..packer.windows() {
        for pack in packer.window(source, 0, window).unwrap() {
            let filled: usize = pack.iter().map(|&s| source.length(s, 0)).sum();
            assert!(filled <= budget && !pack.is_empty());
            assert!(pack.iter().all(|&s| !std::mem::replace(&mut seen[s as usize], true)));
            (packs, tokens) = (packs + 1, tokens + filled);
        }
    }
    assert!(seen.iter().all(|&s| s), "every sample once");
    tokens as f64 / (packs * budget) as f64
}

#[test]
fn packs_hold_every_sample_once_and_are_full() {
    let source = typical(120_000);
    for budget in [2_048, 4_096, 16_384, 32_768] {
        let fill = fill(&source, budget);
        println!("{budget}-token packs: {:.2} % full", fill * 100.0);
        assert!(fill >= 0.98, "{budget}: {fill}");
    }
    // Small budgets cannot be filled as well, but nothing may be lost.
    assert!(fill(&source, 512) > 0.85);
    assert!(fill(&Lengths(vec![512; 3]), 512) == 1.0);
    assert!(fill(&typical(1), 16_384) > 0.0);
}

#[test]
fn packs_of_an_even_window_mix_lengths() {
    let source = typical(20_000);
    let packs = Packer::new(&source, 1, 16_384).unwrap().window(&source, 0, 0).unwrap();
    let sizes: Vec<_> = packs.iter().map(Vec::len).collect();
    let (least, most) = (*sizes.iter().min().unwrap(), *sizes.iter().max().unwrap());
    assert!(most <= least + least / 4, "{least} to {most} samples a pack");
}

#[test]
fn a_sample_longer_than_a_pack_names_both_numbers() {
    let error = Packer::new(&Lengths(vec![100, 600]), 1, 512).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Config(_)) && text.contains("600") && text.contains("512"), "{text}");
}
