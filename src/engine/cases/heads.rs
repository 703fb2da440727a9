//! Cases of the heads and the losses.

use super::pack::Room;
use super::visitor::{Left, Visitor};
use crate::Result;
use crate::engine::op::{
    Aggregate, AggregateScores, AggregateScoresBackward, GroupLoss, LossScale, MlmLoss, QdppHead, RankLoss,
    ScoreHead, ScoreHeadBackward,
};
use crate::engine::{Engine, Rows, stats};

pub(super) fn visit<E: Engine>(room: &Room<'_, E>, visitor: &mut impl Visitor<E>) -> Result<()> {
    mlm(room, visitor)?;
    pair(room, visitor)?;
    score(room, visitor)?;
    ranking(room, visitor)?;
    passages(room, visitor)
}

fn mlm<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    let (e, weights, vocab, bias, rows) =
        (&room.engine, &room.weights, room.sizes.vocab, room.at.mlm_bias, room.m);
    let mean = LossScale::mean(0.5, rows.count() + 7);
    for (case, scale) in [("mlm_loss", mean), ("mlm_loss, measured", LossScale::MEASURE)] {
        let (mut logits, mut grads) = (room.drawn(16, rows, vocab)?, room.grads()?);
        let (mut sums, labels) = (e.zeros(stats::SLOTS)?, &room.batch.masked_labels);
        let op = MlmLoss {
            weights,
            bias,
            vocab,
            labels,
            rows,
            scale,
            logits: &mut logits,
            grads: &mut grads,
            sums: &mut sums,
        };
        v.meet(e, case, op)?;
        v.left(e, "", Left::Reals(&logits), 0..rows.count() * vocab)?;
        v.left(e, "sums", Left::Floats(&sums), 0..stats::SLOTS)?;
        v.left(e, "bias", Left::Floats(&grads), bias..bias + vocab)?;
    }
    Ok(())
}

fn pair<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    let (e, weights, at, rows, batch) = (&room.engine, &room.weights, room.at.pair, room.s, &room.batch);
    let (mut pre, mut logits) = (room.drawn(17, rows, at.hidden)?, room.floats(rows, 2)?);
    let (mut grads, mut sums) = (room.grads()?, e.zeros(stats::SLOTS)?);
    let op = QdppHead {
        weights,
        at,
        labels: &batch.pair_labels,
        factors: &batch.pair_weights,
        rows,
        scale: LossScale::mean(1.0, rows.count() + 4),
        pre: &mut pre,
        logits: &mut logits,
        grads: &mut grads,
        sums: &mut sums,
    };
    v.meet(e, "qdpp_head", op)?;
    v.left(e, "", Left::Reals(&pre), 0..rows.count() * at.hidden)?;
    v.left(e, "logits", Left::Floats(&logits), 0..rows.count() * 2)?;
    v.left(e, "sums", Left::Floats(&sums), 0..stats::SLOTS)?;
    v.left(e, "gradients", Left::Floats(&grads), at.pool_bias..at.b + 2)
}

fn score<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    let (e, weights, at, rows, batch) = (&room.engine, &room.weights, room.at.rank, room.s, &room.batch);
    let (drop, all) = (room.drop, 0..rows.count() * at.hidden);
    let (mut pooled, mut scores) = (room.drawn(18, rows, at.hidden)?, room.floats(rows, 1)?);
    let op = ScoreHead { batch, weights, at, drop, pre: &mut pooled, scores: &mut scores };
    v.meet(e, "score_head", op)?;
    v.left(e, "", Left::Floats(&scores), 0..rows.count())?;
    v.left(e, "pooled", Left::Reals(&pooled), all.clone())?;
    let (dscores, mut grads) = (room.drawn_floats(19, rows)?, room.grads()?);
    let op = ScoreHeadBackward {
        batch,
        weights,
        at,
        drop,
        dscores: &dscores,
        pooled: &mut pooled,
        grads: &mut grads,
    };
    v.meet(e, "score_head_backward", op)?;
    v.left(e, "", Left::Reals(&pooled), all)?;
    v.left(e, "gradients", Left::Floats(&grads), at.pool_bias..at.b + 1)
}

fn ranking<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    let losses = [
        ("rank_loss lce", RankLoss::Lce),
        ("rank_loss pairwise-softmax", RankLoss::PairwiseSoftmax),
        ("rank_loss hinge", RankLoss::Hinge { margin: 0.7 }),
        ("rank_loss pointwise", RankLoss::Pointwise),
        ("rank_loss listnet", RankLoss::ListNet),
        ("rank_loss margin-mse", RankLoss::MarginMse),
    ];
    let (e, batch) = (&room.engine, &room.batch);
    let n = Rows::Sequences(batch.ranked());
    let scores = room.drawn_floats(20, n)?;
    for (case, loss) in losses {
        let (mut dscores, mut sums) = (room.floats(n, 1)?, e.zeros(stats::SLOTS)?);
        let scale = LossScale::mean(1.0, room.s.count() + 4);
        let op = GroupLoss { loss, batch, scores: &scores, scale, dscores: &mut dscores, sums: &mut sums };
        v.meet(e, case, op)?;
        v.left(e, "", Left::Floats(&dscores), 0..n.count())?;
        v.left(e, "sums", Left::Floats(&sums), 0..stats::SLOTS)?;
    }
    Ok(())
}

fn passages<E: Engine>(room: &Room<'_, E>, v: &mut impl Visitor<E>) -> Result<()> {
    let ways = [
        (["aggregate first-p", "aggregate_backward first-p"], Aggregate::FirstP),
        (["aggregate max-p", "aggregate_backward max-p"], Aggregate::MaxP),
        (["aggregate sum-p", "aggregate_backward sum-p"], Aggregate::SumP),
        (["aggregate avg-p", "aggregate_backward avg-p"], Aggregate::AvgP),
    ];
    let (e, batch, s, n) = (&room.engine, &room.batch, room.s, room.batch.documents);
    let (scores, ddocuments) = (room.drawn_floats(23, s)?, room.drawn_floats(24, s)?);
    for ([forward, backward], how) in ways {
        let (mut documents, mut dscores) = (room.floats(s, 1)?, room.floats(s, 1)?);
        v.meet(e, forward, AggregateScores { how, batch, scores: &scores, documents: &mut documents })?;
        v.left(e, "", Left::Floats(&documents), 0..n)?;
        let op = AggregateScoresBackward {
            how,
            batch,
            scores: &scores,
            ddocuments: &ddocuments,
            dscores: &mut dscores,
        };
        v.meet(e, backward, op)?;
        v.left(e, "", Left::Floats(&dscores), 0..s.count())?;
    }
    Ok(())
}
