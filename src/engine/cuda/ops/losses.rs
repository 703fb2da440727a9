//! Losses and the heads on the [CLS] rows: launches of kernels/{mlm,qdpp,rank}_loss.cu.

use super::super::launch::Arg;
use super::super::{Cuda, CudaBuf, Real};
use super::dropout_args;
use crate::engine::{Aggregate, DeviceBatch, Dropout, Elem, HeadAt, LossScale, RankLoss, Rows, stats};
use crate::{Error, Result};

/// Threads of a block of `mlm_loss`, and of all other kernels here.
const ROW_BLOCK: u32 = 512;
const BLOCK: u32 = 256;
/// Columns of a block of `mlm_bias_partials`, and rows.
const PARTIAL_COLUMNS: u32 = 512;
const PARTIAL_ROWS: u32 = 256;
/// Columns of a block of the heads' gradients.
const HEAD_COLUMNS: u32 = 64;

/// The pointers of a head of `outputs` scores in an arena: pooler bias, weight, bias.
fn head<T: Elem>(arena: &CudaBuf<T>, at: HeadAt, outputs: usize) -> Result<[Arg; 3]> {
    if !at.hidden.is_multiple_of(8) {
        return Err(Error::device(format!(
            "heads on a GPU take a width that is a multiple of 8, not {}",
            at.hidden
        )));
    }
    let pointer =
        |what: &str, at: usize, len: usize| arena.span(what, at..at + len).map(|span| Arg::Ptr(span.0));
    Ok([
        pointer("pooler bias", at.pool_bias, at.hidden)?,
        pointer("head weight", at.w, outputs * at.hidden)?,
        pointer("head bias", at.b, outputs)?,
    ])
}

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

/// The kernel's number for a way to put passages together.
fn aggregate_kind(how: Aggregate) -> Arg {
    Arg::U32(match how {
        Aggregate::FirstP => 0,
        Aggregate::MaxP => 1,
        Aggregate::SumP => 2,
        Aggregate::AvgP => 3,
    })
}

fn sums_arg(sums: &CudaBuf<f32>) -> Result<Arg> {
    Ok(Arg::Ptr(sums.span("statistics", 0..stats::SLOTS)?.0))
}

#[allow(clippy::too_many_arguments)]
impl<R: Real> Cuda<R> {
    /// Scratch: results [M, 2], then the bias's partial sums [M / 256, V].
    pub(in super::super) fn mlm_loss(
        &self,
        weights: &CudaBuf<R>,
        bias: usize,
        vocab: usize,
        labels: &CudaBuf<u32>,
        rows: Rows,
        scale: LossScale,
        logits: &mut CudaBuf<R>,
        grads: &mut CudaBuf<f32>,
        sums: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let capacity = self.capacity(rows);
        let train = scale.weight != 0.0;
        let chunks = if train { (capacity as u32).div_ceil(PARTIAL_ROWS) } else { 0 };
        let results = self.scratch(2 * capacity + chunks as usize * vocab)?;
        let partials = Arg::Ptr(results + 8 * capacity as u64);
        let results = Arg::Ptr(results);
        let logits = Arg::Ptr(logits.span("mlm logits", 0..capacity * vocab)?.0);
        let labels = Arg::Ptr(labels.span("mlm labels", 0..rows.count())?.0);
        let bias_at = bias..bias + vocab;
        let bias = Arg::Ptr(weights.span("mlm bias", bias_at.clone())?.0);
        let (width, weight) = (Arg::U32(vocab as u32), Arg::F32(scale.weight));
        let args = [self.counts(), labels, bias, logits, results, width, weight];
        self.launch("mlm_loss", (capacity as u32, 1, 1), ROW_BLOCK, 0, &args)?;
        if train {
            let grid = ((vocab as u32).div_ceil(PARTIAL_COLUMNS), chunks, 1);
            self.launch("mlm_bias_partials", grid, BLOCK, 0, &[self.counts(), logits, partials, width])?;
            let to = Arg::Ptr(grads.span("mlm bias gradient", bias_at)?.0);
            let args = [partials, Arg::U32(chunks), width, to, to, to];
            self.launch("add_partials", ((vocab as u32).div_ceil(32), 1, 1), BLOCK, 0, &args)?;
        }
        self.launch("mlm_stats", (1, 1, 1), BLOCK, 0, &[self.counts(), results, sums_arg(sums)?])
    }

    /// Scratch: results [S, 4].
    pub(in super::super) fn qdpp_head(
        &self,
        weights: &CudaBuf<R>,
        at: HeadAt,
        labels: &CudaBuf<u32>,
        factors: &CudaBuf<f32>,
        rows: Rows,
        scale: LossScale,
        pre: &mut CudaBuf<R>,
        logits: &mut CudaBuf<f32>,
        grads: &mut CudaBuf<f32>,
        sums: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let capacity = self.capacity(rows);
        let train = scale.weight != 0.0;
        let [pool_bias, w, b] = head(weights, at, 2)?;
        let results = Arg::Ptr(self.scratch(4 * capacity)?);
        let labels = Arg::Ptr(labels.span("qdpp labels", 0..rows.count())?.0);
        let factors = Arg::Ptr(factors.span("qdpp factors", 0..rows.count())?.0);
        let pre = Arg::Ptr(pre.span("qdpp pre", 0..capacity * at.hidden)?.0);
        let logits = Arg::Ptr(logits.span("qdpp logits", 0..2 * capacity)?.0);
        let (width, weight) = (Arg::U32(at.hidden as u32), Arg::F32(scale.weight));
        let args = [self.counts(), labels, factors, pool_bias, w, b, pre, logits, results, width, weight];
        self.launch("qdpp_logits", (capacity as u32, 1, 1), BLOCK, 0, &args)?;
        let [dpool_bias, dw, db] = if train { head(grads, at, 2)? } else { [Arg::Ptr(0); 3] };
        let blocks = if train { (at.hidden as u32).div_ceil(HEAD_COLUMNS) } else { 1 };
        let (sums, rows) = (sums_arg(sums)?, Arg::U32(capacity as u32));
        let args = [self.counts(), pool_bias, w, results, pre, dpool_bias, dw, db, sums, width, rows, weight];
        self.launch("qdpp_gradients", (blocks, 1, 1), BLOCK, 0, &args)
    }

    pub(in super::super) fn score_head(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &CudaBuf<R>,
        at: HeadAt,
        drop: Dropout,
        pre: &mut CudaBuf<R>,
        scores: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let capacity = self.capacity(Rows::Sequences(batch.sequences));
        let [pool_bias, w, b] = head(weights, at, 1)?;
        let pre = Arg::Ptr(pre.span("score pre", 0..capacity * at.hidden)?.0);
        let scores = Arg::Ptr(scores.span("scores", 0..batch.sequences)?.0);
        let width = Arg::U32(at.hidden as u32);
        let mut args = vec![self.counts(), batch.samples.at(0), pool_bias, w, b, pre, scores, width];
        args.extend(dropout_args(drop));
        self.launch("score_head", (capacity as u32, 1, 1), BLOCK, 0, &args)
    }

    pub(in super::super) fn score_head_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &CudaBuf<R>,
        at: HeadAt,
        drop: Dropout,
        dscores: &CudaBuf<f32>,
        pooled: &mut CudaBuf<R>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let capacity = self.capacity(Rows::Sequences(batch.sequences));
        let [_, w, _] = head(weights, at, 1)?;
        let [dpool_bias, dw, db] = head(grads, at, 1)?;
        let dscores = Arg::Ptr(dscores.span("dscores", 0..batch.sequences)?.0);
        let pooled = Arg::Ptr(pooled.span("pooled", 0..capacity * at.hidden)?.0);
        let (width, rows) = (Arg::U32(at.hidden as u32), Arg::U32(capacity as u32));
        let samples = batch.samples.at(0);
        let mut args = vec![self.counts(), samples, w, dscores, pooled, dpool_bias, dw, db, width, rows];
        args.extend(dropout_args(drop));
        let blocks = (at.hidden as u32).div_ceil(HEAD_COLUMNS);
        self.launch("score_head_backward", (blocks, 1, 1), BLOCK, 0, &args)
    }

    pub(in super::super) fn aggregate(
        &self,
        how: Aggregate,
        batch: &DeviceBatch<Self>,
        scores: &CudaBuf<f32>,
        documents: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let ends = Arg::Ptr(batch.cu_documents.span("cu_documents", 0..batch.documents + 1)?.0);
        let scores = Arg::Ptr(scores.span("scores", 0..batch.sequences)?.0);
        let documents = Arg::Ptr(documents.span("documents", 0..batch.documents)?.0);
        let args = [self.counts(), ends, scores, documents, aggregate_kind(how)];
        self.launch("aggregate_scores", (1, 1, 1), BLOCK, 0, &args)
    }

    pub(in super::super) fn aggregate_backward(
        &self,
        how: Aggregate,
        batch: &DeviceBatch<Self>,
        scores: &CudaBuf<f32>,
        ddocuments: &CudaBuf<f32>,
        dscores: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let ends = Arg::Ptr(batch.cu_documents.span("cu_documents", 0..batch.documents + 1)?.0);
        let scores = Arg::Ptr(scores.span("scores", 0..batch.sequences)?.0);
        let ddocuments = Arg::Ptr(ddocuments.span("ddocuments", 0..batch.documents)?.0);
        let dscores = Arg::Ptr(dscores.span("dscores", 0..batch.sequences)?.0);
        let args = [self.counts(), ends, scores, ddocuments, dscores, aggregate_kind(how)];
        self.launch("aggregate_backward", (1, 1, 1), BLOCK, 0, &args)
    }

    pub(in super::super) fn rank_loss(
        &self,
        loss: RankLoss,
        batch: &DeviceBatch<Self>,
        scores: &CudaBuf<f32>,
        scale: LossScale,
        dscores: &mut CudaBuf<f32>,
        sums: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let n = if batch.documents > 0 { batch.documents } else { batch.sequences };
        let groups = Arg::Ptr(batch.cu_groups.span("cu_groups", 0..batch.groups + 1)?.0);
        let scores = Arg::Ptr(scores.span("scores", 0..n)?.0);
        let targets = Arg::Ptr(batch.targets.span("targets", 0..n)?.0);
        let dscores = Arg::Ptr(dscores.span("dscores", 0..n)?.0);
        let (kind, margin) = rank_kind(loss);
        let (kind, margin, weight) = (Arg::U32(kind), Arg::F32(margin), Arg::F32(scale.weight));
        let args = [self.counts(), groups, scores, targets, dscores, sums_arg(sums)?, kind, margin, weight];
        self.launch("rank_loss", (1, 1, 1), BLOCK, 0, &args)
    }
}
