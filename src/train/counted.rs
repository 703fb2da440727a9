//! What a run launches, moves, computes and allocates, counted by running its model, its optimiser and packs
//! of its sizes on the engine that only counts. `plan`, a run's memory forecast and the FLOPs of its step
//! line use it.

use std::ops::Range;

use super::optimiser::Optimiser;
use crate::Result;
use crate::config::{Precision, Train};
use crate::data::batch::Batch;
use crate::engine::dry::{Counts, Dry, DryBuf};
use crate::engine::{Device, Real};
use crate::model::activations::{Capacity, Recompute};
use crate::model::bert::Options;
use crate::model::layout::Layout;
use crate::model::{Bert, Mode, Objective};
use crate::ranks::Collective;

/// What is counted.
#[derive(Clone)]
pub struct Setup<'a> {
    pub layout: &'a Layout,
    pub options: Options,
    /// `recompute` is the only key of these that changes what the model does.
    pub train: &'a Train,
    pub rank: usize,
    pub ranks: usize,
}

/// Bytes of a rank's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Bytes {
    pub weights: usize,
    pub gradients: usize,
    /// f32 copies of narrower weights.
    pub master: usize,
    pub moments: usize,
    /// What forward keeps and backward writes, the pack itself, sums and scratch.
    pub activations: usize,
}

impl Bytes {
    pub fn total(&self) -> usize {
        self.weights + self.gradients + self.master + self.moments + self.activations
    }
}

/// The result.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Of all packs.
    pub packs: Counts,
    /// Of one update.
    pub update: Counts,
    pub bytes: Bytes,
}

impl Setup<'_> {
    /// One step of `packs` on `dry`.
    ///
    /// # Errors
    /// As the model's: sizes that no kernel takes, packs beyond the capacity.
    pub fn count<R: Real>(&self, dry: &Dry<R>, packs: &[Batch]) -> Result<Counted> {
        let before = dry.bytes();
        let (layout, options) = (self.layout.clone(), self.options.clone());
        let mut model = Bert::laid_out(dry.clone(), layout, options, self.train.recompute)?;
        let mut optimiser = Optimiser::new(&model, self.rank, self.ranks, self.train)?;
        let narrow = self.train.reduce == Precision::Bf16 && self.ranks > 1;
        let longest = model.layout.buckets().iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        let mut collective = Unheard { _narrow: dry.zeros(if narrow { longest } else { 0 })? };
        let _ = dry.take_counts(); // clearing at the start is not part of a step
        for pack in packs {
            model.forward(pack, Mode::Train)?;
            model.backward(pack, &mut |_, _, _| Ok(()))?;
        }
        let packs = dry.take_counts();
        optimiser.join(&mut collective, &mut model)?;
        optimiser.step(&mut collective, &mut model, 1.0)?.wait()?;
        let update = dry.take_counts();
        let state = &optimiser.state;
        let mut bytes = Bytes {
            weights: model.weights.bytes(),
            gradients: model.grads.bytes(),
            master: state.master.bytes(),
            moments: state.moment1.bytes() + state.moment2.bytes(),
            activations: 0,
        };
        bytes.activations = dry.most_bytes() - before - bytes.total();
        Ok(Counted { packs, update, bytes })
    }

    /// The same with a single pack that fills the capacity.
    ///
    /// # Errors
    /// As `count`.
    pub fn count_full<R: Real>(&self, dry: &Dry<R>) -> Result<Counted> {
        self.count(dry, &[full(&self.options)])
    }
}

/// A pack as large as `options` allow.
fn full(options: &Options) -> Batch {
    let Capacity { tokens, sequences, masked } = options.capacity;
    let end = |i: usize| i * tokens / sequences;
    let even: Vec<usize> = (0..sequences).map(|i| end(i + 1) - end(i)).collect();
    for_objective(made_up(&even, masked), options.objective)
}

/// `pack` with what the objective needs: ranking groups of one, documents of one passage.
fn for_objective(mut pack: Batch, objective: Objective) -> Batch {
    let sequences = pack.sequences();
    if let Objective::Ranking(_, how) = objective {
        let ends: Vec<u32> = (0..=sequences as u32).collect();
        (pack.pair_labels, pack.targets) = (Vec::new(), vec![0.0; sequences]);
        pack.cu_documents = if how.is_some() { ends.clone() } else { Vec::new() };
        pack.cu_groups = ends;
    }
    pack
}

/// A pack of sequences of these lengths, of which `masked` tokens are masked. Its contents are never read.
pub fn made_up(lengths: &[usize], masked: usize) -> Batch {
    let tokens: usize = lengths.iter().sum();
    let mut cu_seqlens = vec![0];
    cu_seqlens.extend(lengths.iter().scan(0, |end, length| {
        *end += *length as u32;
        Some(*end)
    }));
    Batch {
        ids: vec![0; tokens],
        positions: vec![0; tokens],
        segments: vec![0; tokens],
        row_sample: vec![0; tokens],
        cu_seqlens,
        samples: vec![0; lengths.len()],
        pair_labels: vec![0; lengths.len()],
        masked,
        step_masked: masked,
        step_pairs: lengths.len(),
        ..Batch::default()
    }
}

/// FLOPs of training, which are linear in the contents of packs. Only what the mathematics needs counts: not
/// the scores and activations that backward recomputes. What is frozen is not computed.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct FlopRates {
    pub token: f64,
    /// A pair of tokens that attend to each other.
    pub attended: f64,
    /// A masked token.
    pub masked: f64,
    /// A sequence whose [CLS] has a head.
    pub sequence: f64,
}

/// What a step computes, over all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// T
    pub tokens: usize,
    /// Sum over sequences of their squared length: pairs of tokens that attend to each other.
    pub attended: u64,
    /// M
    pub masked: usize,
    /// S
    pub sequences: usize,
}

impl FlopRates {
    /// The FLOPs of the model that `run` trains.
    ///
    /// # Errors
    /// As `Setup::count`.
    pub fn of(run: &Setup<'_>) -> Result<Self> {
        let train = Train { recompute: Recompute::None, ..run.train.clone() };
        let capacity = Capacity { tokens: 256, sequences: 64, masked: 64 };
        let options = Options { capacity, train: true, ..run.options.clone() };
        let run = Setup { options, train: &train, ..run.clone() };
        let masks = matches!(run.options.objective, Objective::Pretraining { mlm, .. } if mlm > 0.0);
        let flops = |lengths: &[usize], masked: usize| -> Result<f64> {
            let pack = for_objective(made_up(lengths, masked), run.options.objective);
            Ok(run.count(&Dry::<f32>::operations_only(), &[pack])?.packs.total().least_flops)
        };
        // (T, pairs, S): (64, 64^2, 1), (128, 128^2, 1), (128, 2 x 64^2, 2), (128, 96^2 + 32^2, 2)
        let [one, long, even, uneven] =
            [&[64][..], &[128], &[64, 64], &[96, 32]].map(|lengths| flops(lengths, 0));
        let (one, long, even, uneven) = (one?, long?, even?, uneven?);
        let attended = (uneven - even) / 2048.0;
        let sequence = 8192.0 * attended - (long - even);
        let token = (one - 4096.0 * attended - sequence) / 64.0;
        let masked = if masks { (flops(&[64], 64)? - one) / 64.0 } else { 0.0 };
        Ok(Self { token, attended, masked, sequence })
    }

    /// Training FLOPs of `work`.
    pub fn flops(&self, work: &Work) -> f64 {
        self.token * work.tokens as f64
            + self.attended * work.attended as f64
            + self.masked * work.masked as f64
            + self.sequence * work.sequences as f64
    }
}

/// A collective that exchanges nothing.
struct Unheard {
    /// Gradients on their way in bf16.
    _narrow: DryBuf<half::bf16>,
}

impl<R: Real> Collective<Dry<R>> for Unheard {
    fn all_reduce(&mut self, _: &Dry<R>, _: &mut DryBuf<f32>, _: Range<usize>) -> Result<()> {
        Ok(())
    }

    fn reduce_scatter(&mut self, _: &Dry<R>, _: &mut DryBuf<f32>, _: &[Range<usize>]) -> Result<()> {
        Ok(())
    }

    fn all_gather(&mut self, _: &Dry<R>, _: &mut DryBuf<R>, _: &[Range<usize>]) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, _: &Dry<R>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::op::MaskRule;
    use crate::model::{HeadSet, Shape};

    /// Chowdhery et al. 2022, appendix B, for an encoder: 3 (L (8 h^2 + 4 h i) + 4 L s h + p (2 h^2 + 2 h V))
    /// FLOPs a token of sequences of s, p of it masked. BERT-base: 587.9 MFLOP at 512 tokens, 545.4 at 128.
    /// The pooler's product, one row a sequence, is beyond the formula.
    #[test]
    fn flops_of_bert_base() {
        let shape = Shape {
            vocab: 30522,
            hidden: 768,
            layers: 12,
            heads: 12,
            intermediate: 3072,
            positions: 512,
            segments: 2,
            norm_eps: Shape::NORM_EPS,
        };
        let layout = Layout::new(&shape, HeadSet::PRETRAINING).unwrap();
        let options = Options {
            objective: Objective::Pretraining { mlm: 1.0, qdpp: 1.0 },
            heads: HeadSet::PRETRAINING,
            capacity: Capacity { tokens: 0, sequences: 0, masked: 0 },
            train: true,
            dropout: 0.1,
            seed: 0,
            rule: Some(MaskRule::default()),
            continues: Vec::new(),
        };
        let train = Train { recompute: Recompute::Layer, ..Train::default() };
        let rates =
            FlopRates::of(&Setup { layout: &layout, options, train: &train, rank: 0, ranks: 1 }).unwrap();
        assert_eq!(rates.sequence, 3.0 * 2.0 * 768.0 * 768.0);
        assert_eq!(rates.attended, 3.0 * 4.0 * 12.0 * 768.0);
        for (length, mega) in [(512, 587.9), (256, 559.5), (128, 545.4)] {
            let tokens = 1000 * length;
            let attended = 1000 * (length * length) as u64;
            let work = Work { tokens, attended, masked: tokens * 15 / 100, sequences: 0 };
            let per_token = rates.flops(&work) / tokens as f64 / 1e6;
            assert!((per_token - mega).abs() < 0.1, "{length}: {per_token}");
        }
    }
}
