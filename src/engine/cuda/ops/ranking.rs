//! Ranking losses, and documents' scores from those of their passages: launches of kernels/rank_loss.cu.

use super::super::launch::{Arg, Gpu, Launches};
use super::heads::sums;
use crate::Result;
use crate::engine::DeviceBatch;
use crate::engine::op::{Aggregate, AggregateScores, AggregateScoresBackward, GroupLoss, RankLoss};

/// Threads of a block.
const BLOCK: u32 = 256;

/// The kernel's number for a loss, and its margin.
fn rank_kind(loss: RankLoss) -> (u32, f32) {
    match loss {
        RankLoss::Lce => (0, 0.0),
        RankLoss::PairwiseSoftmax => (1, 0.0),
        RankLoss::Hinge { margin } => (2, margin),
        RankLoss::Pointwise => (3, 0.0),
        RankLoss::ListNet => (4, 0.0),
        RankLoss::MarginMse => (5, 0.0),
    }
}

/// The kernel's number for a way to combine passages.
fn aggregate_kind(how: Aggregate) -> Arg {
    Arg::U32(match how {
        Aggregate::FirstP => 0,
        Aggregate::MaxP => 1,
        Aggregate::SumP => 2,
        Aggregate::AvgP => 3,
    })
}

fn document_ends<G: Gpu>(batch: &DeviceBatch<G>) -> Result<Arg> {
    G::span("cu_documents", &batch.cu_documents, 0..batch.documents + 1)
}

impl<G: Gpu> Launches<G> for AggregateScores<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let batch = self.batch;
        let scores = G::span("scores", self.scores, 0..batch.sequences)?;
        let documents = G::span("documents", self.documents, 0..batch.documents)?;
        let args = [gpu.counts(), document_ends(batch)?, scores, documents, aggregate_kind(self.how)];
        gpu.launch("aggregate_scores", (1, 1, 1), BLOCK, &args)
    }
}

impl<G: Gpu> Launches<G> for AggregateScoresBackward<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let batch = self.batch;
        let scores = G::span("scores", self.scores, 0..batch.sequences)?;
        let ddocuments = G::span("ddocuments", self.ddocuments, 0..batch.documents)?;
        let dscores = G::span("dscores", self.dscores, 0..batch.sequences)?;
        let how = aggregate_kind(self.how);
        let args = [gpu.counts(), document_ends(batch)?, scores, ddocuments, dscores, how];
        gpu.launch("aggregate_backward", (1, 1, 1), BLOCK, &args)
    }
}

impl<G: Gpu> Launches<G> for GroupLoss<'_, G> {
    fn launches(&mut self, gpu: &G) -> Result<()> {
        let (batch, n) = (self.batch, self.batch.ranked());
        let groups = G::span("cu_groups", &batch.cu_groups, 0..batch.groups + 1)?;
        let scores = G::span("scores", self.scores, 0..n)?;
        let targets = G::span("targets", &batch.targets, 0..n)?;
        let dscores = G::span("dscores", self.dscores, 0..n)?;
        let (kind, margin) = rank_kind(self.loss);
        let (kind, margin, weight) = (Arg::U32(kind), Arg::F32(margin), Arg::F32(self.scale.weight));
        let sums = sums::<G>(self.sums)?;
        let args = [gpu.counts(), groups, scores, targets, dscores, sums, kind, margin, weight];
        gpu.launch("rank_loss", (1, 1, 1), BLOCK, &args)
    }
}
