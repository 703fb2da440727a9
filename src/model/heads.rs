//! Forward and backward of the heads on top of the encoder: MLM on the masked rows; QDPP or a relevance score
//! on the [CLS] rows, after the pooler.

use super::bert::Bert;
use super::options::{Mode, Objective, missing_part};
use crate::Result;
use crate::data::batch::Batch;
use crate::engine::op::{self, Aggregate, Epilogue, LossScale, RankLoss};
use crate::engine::{Engine, Rows};

impl<E: Engine> Bert<E> {
    // ---- forward ---------------------------------------------------------------------------------

    pub(super) fn mlm_forward(&mut self, scale: LossScale) -> Result<()> {
        let Some(head) = &self.layout.mlm else { return Err(missing_part("MLM")) };
        let output = &self.acts.x[self.output_index()];
        let (engine, weights, batch) = (&self.engine, &self.weights, &self.batch);
        let (rows, hidden) = (Rows::Masked(batch.masked), self.layout.shape.hidden);
        let a = &mut self.acts.heads;

        let picked = &batch.masked_rows;
        engine.run(op::GatherRows { x: output, picked, rows, hidden, out: &mut a.masked })?;

        let (x, at, pre) = (&a.masked, head.transform, &mut a.transform_pre);
        engine.run(op::LinearGelu { x, weights, at, rows, pre, act: &mut a.transform_act })?;

        let (x, at, row_stats) = (&a.transform_act, head.norm, &mut a.transform_stats);
        engine.run(op::Norm { x, weights, at, rows, row_stats, out: &mut a.transformed })?;

        let (x, at, epilogue) = (&a.transformed, head.decoder, Epilogue::None);
        engine.run(op::Linear { x, weights, at, rows, epilogue, out: &mut a.logits })?;

        engine.run(op::MlmLoss {
            weights,
            bias: head.decoder.b,
            vocab: head.decoder.n,
            labels: &batch.masked_labels,
            rows,
            scale,
            logits: &mut a.logits,
            grads: &mut self.grads,
            sums: &mut self.sums,
        })
    }

    /// The pooler's product without its bias, into `heads.pooled`.
    fn pool(&mut self) -> Result<()> {
        let output = &self.acts.x[self.output_index()];
        let (engine, weights, batch) = (&self.engine, &self.weights, &self.batch);
        let (rows, hidden) = (Rows::Sequences(batch.sequences), self.layout.shape.hidden);
        let a = &mut self.acts.heads;

        let picked = &batch.cu_seqlens;
        engine.run(op::GatherRows { x: output, picked, rows, hidden, out: &mut a.cls })?;

        let (x, at, epilogue) = (&a.cls, self.layout.pooler, Epilogue::None);
        engine.run(op::Linear { x, weights, at, rows, epilogue, out: &mut a.pooled })
    }

    pub(super) fn pair_forward(&mut self, scale: LossScale) -> Result<()> {
        self.pool()?;
        let Some(at) = self.layout.pair else { return Err(missing_part("QDPP")) };
        let (batch, a) = (&self.batch, &mut self.acts.heads);
        self.engine.run(op::QdppHead {
            weights: &self.weights,
            at,
            labels: &batch.pair_labels,
            factors: &batch.pair_weights,
            rows: Rows::Sequences(batch.sequences),
            scale,
            pre: &mut a.pooled,
            logits: &mut a.pair_logits,
            grads: &mut self.grads,
            sums: &mut self.sums,
        })
    }

    pub(super) fn score_forward(&mut self, mode: Mode) -> Result<()> {
        self.pool()?;
        let drop = self.dropout(mode, 1 + 3 * self.layout.shape.layers);
        let Some(at) = self.layout.rank else { return Err(missing_part("ranking")) };
        let (batch, weights, a) = (&self.batch, &self.weights, &mut self.acts.heads);
        let (pre, scores) = (&mut a.pooled, &mut a.scores);
        self.engine.run(op::ScoreHead { batch, weights, at, drop, pre, scores })
    }

    /// The ranking loss of the scores, and its gradient with respect to them.
    pub(super) fn rank(&mut self, loss: RankLoss, how: Option<Aggregate>, scale: LossScale) -> Result<()> {
        let (engine, batch, a, sums) = (&self.engine, &self.batch, &mut self.acts.heads, &mut self.sums);
        debug_assert_eq!(how.is_some(), batch.documents > 0);
        let (scores, dscores) = (&a.scores, &mut a.dscores);
        let Some(how) = how else {
            return engine.run(op::GroupLoss { loss, batch, scores, scale, dscores, sums });
        };
        let (documents, ddocuments) = (&mut a.documents, &mut a.ddocuments);
        engine.run(op::AggregateScores { how, batch, scores, documents })?;
        engine.run(op::GroupLoss { loss, batch, scores: documents, scale, dscores: ddocuments, sums })?;
        engine.run(op::AggregateScoresBackward { how, batch, scores, ddocuments, dscores })
    }

    // ---- backward --------------------------------------------------------------------------------

    /// From the losses to the gradient of the encoder's output.
    pub(super) fn heads_backward(&mut self, batch: &Batch) -> Result<()> {
        let Some(d) = &mut self.acts.backward else { return Err(missing_part("backward")) };
        self.engine.clear_rows(&mut d.dx, self.batch.rows(), self.layout.shape.hidden)?;
        if matches!(self.options.objective, Objective::Ranking(..)) {
            self.score_backward()?;
            return self.pool_backward();
        }
        let (has_mlm, has_pair) = self.parts(batch);
        if has_mlm {
            self.mlm_backward()?;
        }
        if has_pair {
            self.pool_backward()?;
        }
        Ok(())
    }

    fn mlm_backward(&mut self) -> Result<()> {
        let (Some(head), Some(d)) = (&self.layout.mlm, &mut self.acts.backward) else {
            return Err(missing_part("MLM"));
        };
        let (engine, weights, batch) = (&self.engine, &self.weights, &self.batch);
        let (a, grads) = (&self.acts.heads, &mut self.grads);
        let (rows, hidden) = (Rows::Masked(batch.masked), self.layout.shape.hidden);

        // MlmLoss has added the decoder's bias gradient already
        let (dy, x, at, dx) = (&a.logits, &a.transformed, head.decoder, &mut d.dtransformed);
        if self.layout.trains(0) {
            engine.run(op::LinearBackwardWeight { dy, x, at, rows, grads })?;
        }
        engine.run(op::LinearBackwardInput { dy, weights, at, rows, accumulate: false, dx })?;

        let (x, at, row_stats) = (&a.transform_act, head.norm, &a.transform_stats);
        engine.run(op::NormBackward { x, weights, at, rows, row_stats, d: &mut d.dtransformed, grads })?;

        let (pre, width, bias) = (&a.transform_pre, hidden, Some(head.transform.b));
        engine.run(op::GeluBackward { pre, rows, width, bias, dact: &mut d.dtransformed, grads })?;

        let (dy, x, at, dx) = (&d.dtransformed, &a.masked, head.transform, &mut d.dmasked);
        engine.run(op::LinearBackwardWeight { dy, x, at, rows, grads })?;
        engine.run(op::LinearBackwardInput { dy, weights, at, rows, accumulate: false, dx })?;

        let (src, picked) = (&d.dmasked, &batch.masked_rows);
        engine.run(op::ScatterAddRows { src, picked, rows, hidden, x: &mut d.dx })
    }

    fn score_backward(&mut self) -> Result<()> {
        let drop = self.dropout(Mode::Train, 1 + 3 * self.layout.shape.layers);
        let Some(at) = self.layout.rank else { return Err(missing_part("ranking")) };
        let (batch, weights, grads) = (&self.batch, &self.weights, &mut self.grads);
        let (dscores, pooled) = (&self.acts.heads.dscores, &mut self.acts.heads.pooled);
        self.engine.run(op::ScoreHeadBackward { batch, weights, at, drop, dscores, pooled, grads })
    }

    /// From the gradient of the pooler's product (in `heads.pooled`) to the [CLS] rows.
    fn pool_backward(&mut self) -> Result<()> {
        let Some(d) = &mut self.acts.backward else { return Err(missing_part("pooler")) };
        let (engine, weights, batch) = (&self.engine, &self.weights, &self.batch);
        let (a, grads) = (&self.acts.heads, &mut self.grads);
        let (rows, hidden) = (Rows::Sequences(batch.sequences), self.layout.shape.hidden);

        // the head has added the pooler's bias gradient already
        let (dy, x, at, dx) = (&a.pooled, &a.cls, self.layout.pooler, &mut d.dcls);
        engine.run(op::LinearBackwardWeight { dy, x, at, rows, grads })?;
        engine.run(op::LinearBackwardInput { dy, weights, at, rows, accumulate: false, dx })?;

        let (src, picked) = (&d.dcls, &batch.cu_seqlens);
        engine.run(op::ScatterAddRows { src, picked, rows, hidden, x: &mut d.dx })
    }
}
