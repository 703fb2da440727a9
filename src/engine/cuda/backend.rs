//! `Backend` on a GPU: memory, products and segments here, every other operation by its launcher in
//! `ops`. In debug mode (`run.check`) each operation's result is looked at before the next one starts,
//! so that the first NaN is met where it is made.

use std::ops::Range;

use cudarc::driver::result as driver;

use super::device::{Event, check};
use super::gemm::{Form, Operands, Product};
use super::upload::{Uploader, download_now, upload_now};
use super::{Cuda, CudaBuf, Real, ops};
use crate::Result;
use crate::engine::{
    AdamW, Aggregate, Backend, DeviceBatch, Dropout, Elem, EmbedAt, Epilogue, Fetch, HeadAt, Heads, LinearAt,
    LossScale, MaskRule, Memory, NormAt, PackCounts, ParamGroup, RankLoss, Rows, Segment,
};

/// Weights that are converted and copied at once, to and from the host.
const CHUNK: usize = 1 << 20;

fn tokens<R: Real>(batch: &DeviceBatch<Cuda<R>>) -> Rows {
    Rows::Tokens(batch.tokens)
}

impl<R: Real> Cuda<R> {
    /// Queues a product of `at` over `rows`; `read` are the activations that are read as rows.
    fn product(&self, form: Form, at: LinearAt, rows: Rows, operands: Operands) -> Result<()> {
        self.flush()?;
        let narrow = size_of::<R>() == 2;
        let product = Product { form, rows: self.capacity(rows), n: at.n, k: at.k, narrow };
        self.inner.shared.gemm.borrow_mut().run(product, operands)
    }

    /// The address of the first `rows` rows of `width` elements, as far as launches cover them.
    fn rows_of<T: Elem>(&self, what: &str, buf: &CudaBuf<T>, rows: Rows, width: usize) -> Result<u64> {
        Ok(buf.span(what, 0..self.capacity(rows) * width)?.0)
    }
}

#[allow(clippy::too_many_arguments)]
impl<R: Real> Backend for Cuda<R> {
    type Real = R;
    type Buf<T: Elem> = CudaBuf<T>;
    const WORKS_BEHIND: bool = true;

    fn describe(&self) -> String {
        let card = &self.inner.shared.device.card;
        format!("cuda:{} ({}, {})", self.inner.shared.device.ordinal, card.name, R::NAME)
    }

    // ---- memory ------------------------------------------------------------------------------
    fn zeros<T: Elem>(&self, len: usize) -> Result<CudaBuf<T>> {
        CudaBuf::zeros(&self.inner.shared.device, len)
    }

    fn upload<T: Elem>(&self, src: &[T], dst: &mut CudaBuf<T>, at: usize) -> Result<()> {
        let (to, _) = dst.span("upload", at..at + src.len())?;
        if src.is_empty() || self.inner.uploads.borrow_mut().gather(bytemuck::cast_slice(src), to) {
            return Ok(());
        }
        self.flush()?;
        upload_now(&self.inner.shared.device, src, to)
    }

    fn download<T: Elem>(&self, src: &CudaBuf<T>, range: Range<usize>) -> Result<Vec<T>> {
        self.flush()?;
        let len = range.len();
        let (from, _) = src.span("download", range)?;
        download_now(&self.inner.shared.device, from, len)
    }

    fn clear<T: Elem>(&self, dst: &mut CudaBuf<T>, range: Range<usize>) -> Result<()> {
        self.flush()?;
        let (at, bytes) = dst.span("clear", range)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range was checked.
        let answer = unsafe { driver::memset_d8_async(at, 0, bytes, self.inner.shared.device.compute.raw()) };
        check("clear", answer)
    }

    fn clear_rows(&self, dst: &mut CudaBuf<R>, rows: Rows, width: usize) -> Result<()> {
        self.clear(dst, 0..self.capacity(rows) * width)
    }

    fn on_host(
        &self,
        buf: &mut CudaBuf<f32>,
        range: Range<usize>,
        work: &mut dyn FnMut(&mut [f32]),
    ) -> Result<()> {
        let mut values = self.download(buf, range.clone())?;
        work(&mut values);
        self.upload(&values, buf, range.start)
    }

    fn upload_weights(&self, src: &[f32], dst: &mut CudaBuf<R>, at: usize) -> Result<()> {
        self.flush()?;
        for (i, part) in src.chunks(CHUNK).enumerate() {
            let values: Vec<R> = part.iter().map(|v| R::from_f32(*v)).collect();
            let start = at + i * CHUNK;
            let (to, _) = dst.span("upload of weights", start..start + part.len())?;
            upload_now(&self.inner.shared.device, &values, to)?;
        }
        Ok(())
    }

    fn download_weights(&self, src: &CudaBuf<R>, range: Range<usize>) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(range.len());
        for start in range.clone().step_by(CHUNK) {
            let values = self.download(src, start..(start + CHUNK).min(range.end))?;
            all.extend(values.into_iter().map(R::to_f32));
        }
        Ok(all)
    }

    fn fetch(&self, src: &CudaBuf<f32>, range: Range<usize>) -> Result<Fetch> {
        self.flush()?;
        self.inner.fetches.of(src, range)
    }

    fn memory(&self, most: &PackCounts) -> Result<Option<Memory>> {
        let device = &self.inner.shared.device;
        let (free, _) = device.memory()?;
        let engine = Uploader::bytes(most) + ops::scratch_bytes();
        Ok(Some(Memory { allocated: device.allocated(), free, engine }))
    }

    fn time(&self, times: usize, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
        self.flush()?;
        let compute = &self.inner.shared.device.compute;
        let marks = (0..=times).map(|_| Event::timed()).collect::<Result<Vec<_>>>()?;
        marks[0].record(compute)?;
        for mark in &marks[1..] {
            work()?;
            mark.record(compute)?;
        }
        marks[times].synchronize()?;
        marks.windows(2).map(|pair| pair[1].seconds_since(&pair[0])).collect()
    }

    // ---- packs -------------------------------------------------------------------------------
    fn for_packs(&self, most: &PackCounts) -> Result<Self> {
        self.with_room(*most)
    }

    fn begin_pack(&self, counts: &PackCounts) -> Result<()> {
        let (to, bytes) = self.inner.counts.span("counts", 0..self.inner.counts.len())?;
        let mut uploads = self.inner.uploads.borrow_mut();
        uploads.begin(&self.inner.shared.device)?;
        uploads.gather(&bytemuck::bytes_of(counts)[..bytes], to);
        self.inner.pack.set(*counts);
        Ok(())
    }

    fn begin_segment(&self, segment: Segment) -> Result<bool> {
        self.flush()?;
        self.inner.segment.set(Some(segment));
        if self.inner.trap.is_set() {
            return Ok(false); // looking at results waits for them, which a recording cannot do
        }
        let pack = self.inner.pack.get();
        let rounded = [
            Rows::Tokens(pack.tokens as usize),
            Rows::Sequences(pack.sequences as usize),
            Rows::Masked(pack.masked as usize),
        ]
        .map(|rows| self.capacity(rows));
        self.inner.graphs.borrow_mut().begin(&self.inner.shared.device, (segment, rounded))
    }

    fn check_results(&self, on: bool) {
        self.inner.trap.set(on);
    }

    fn end_segment(&self) -> Result<()> {
        self.inner.segment.set(None);
        self.inner.graphs.borrow_mut().end(&self.inner.shared.device)
    }

    // ---- matrix products ---------------------------------------------------------------------
    fn linear(
        &self,
        x: &CudaBuf<R>,
        weights: &CudaBuf<R>,
        at: LinearAt,
        rows: Rows,
        epilogue: Epilogue,
        out: &mut CudaBuf<R>,
    ) -> Result<()> {
        let bias = epilogue == Epilogue::Bias;
        let operands = Operands {
            rows: self.rows_of("linear x", x, rows, at.k)?,
            other: weights.span("linear weight", at.w..at.w + at.n * at.k)?.0,
            out: self.rows_of("linear out", out, rows, at.n)?,
            bias: if bias { weights.span("linear bias", at.b..at.b + at.n)?.0 } else { 0 },
        };
        self.product(Form::Forward { bias }, at, rows, operands)?;
        self.trap("linear", out, rows, at.n)
    }

    fn linear_gelu(
        &self,
        x: &CudaBuf<R>,
        weights: &CudaBuf<R>,
        at: LinearAt,
        rows: Rows,
        pre: &mut CudaBuf<R>,
        act: &mut CudaBuf<R>,
    ) -> Result<()> {
        self.linear(x, weights, at, rows, Epilogue::Bias, pre)?;
        Backend::gelu(self, pre, rows, at.n, act)
    }

    fn linear_backward_input(
        &self,
        dy: &CudaBuf<R>,
        weights: &CudaBuf<R>,
        at: LinearAt,
        rows: Rows,
        accumulate: bool,
        dx: &mut CudaBuf<R>,
    ) -> Result<()> {
        let operands = Operands {
            rows: self.rows_of("linear dy", dy, rows, at.n)?,
            other: weights.span("linear weight", at.w..at.w + at.n * at.k)?.0,
            out: self.rows_of("linear dx", dx, rows, at.k)?,
            bias: 0,
        };
        self.product(Form::BackwardInput { add: accumulate }, at, rows, operands)?;
        self.trap("linear_backward_input", dx, rows, at.k)
    }

    fn linear_backward_weight(
        &self,
        dy: &CudaBuf<R>,
        x: &CudaBuf<R>,
        at: LinearAt,
        rows: Rows,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        let operands = Operands {
            rows: self.rows_of("linear dy", dy, rows, at.n)?,
            other: self.rows_of("linear x", x, rows, at.k)?,
            out: grads.span("linear weight gradient", at.w..at.w + at.n * at.k)?.0,
            bias: 0,
        };
        self.product(Form::BackwardWeight, at, rows, operands)
    }

    // ---- kernels -----------------------------------------------------------------------------
    fn mask_tokens(
        &self,
        batch: &mut DeviceBatch<Self>,
        rule: &MaskRule,
        continues: &CudaBuf<u32>,
    ) -> Result<()> {
        self.mask_tokens(batch, rule, continues)
    }

    fn gelu(&self, pre: &CudaBuf<R>, rows: Rows, width: usize, act: &mut CudaBuf<R>) -> Result<()> {
        self.gelu(pre, rows, width, act)?;
        self.trap("gelu", act, rows, width)
    }

    fn gelu_backward(
        &self,
        pre: &CudaBuf<R>,
        dact: &mut CudaBuf<R>,
        rows: Rows,
        width: usize,
        bias: Option<usize>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.gelu_backward(pre, dact, rows, width, bias, grads)?;
        self.trap("gelu_backward", dact, rows, width)
    }

    fn embed(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &CudaBuf<R>,
        at: EmbedAt,
        drop: Dropout,
        sum: &mut CudaBuf<R>,
        row_stats: &mut CudaBuf<f32>,
        out: &mut CudaBuf<R>,
    ) -> Result<()> {
        self.embed(batch, weights, at, drop, sum, row_stats, out)?;
        self.trap("embed", out, tokens(batch), at.norm.hidden)
    }

    fn embed_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &CudaBuf<R>,
        at: EmbedAt,
        drop: Dropout,
        sum: &CudaBuf<R>,
        row_stats: &CudaBuf<f32>,
        dout: &mut CudaBuf<R>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.embed_backward(batch, weights, at, drop, sum, row_stats, dout, grads)
    }

    fn residual_norm(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &CudaBuf<R>,
        bias: usize,
        norm: NormAt,
        drop: Dropout,
        residual: &CudaBuf<R>,
        y: &mut CudaBuf<R>,
        row_stats: &mut CudaBuf<f32>,
        out: &mut CudaBuf<R>,
    ) -> Result<()> {
        self.residual_norm(batch, weights, bias, norm, drop, residual, y, row_stats, out)?;
        self.trap("residual_norm", out, tokens(batch), norm.hidden)
    }

    fn residual_norm_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &CudaBuf<R>,
        bias: usize,
        norm: NormAt,
        drop: Dropout,
        y: &CudaBuf<R>,
        row_stats: &CudaBuf<f32>,
        dout: &CudaBuf<R>,
        dresidual: &mut CudaBuf<R>,
        dy: &mut CudaBuf<R>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.residual_norm_backward(
            batch, weights, bias, norm, drop, y, row_stats, dout, dresidual, dy, grads,
        )?;
        self.trap("residual_norm_backward", dy, tokens(batch), norm.hidden)
    }

    fn norm(
        &self,
        x: &CudaBuf<R>,
        weights: &CudaBuf<R>,
        at: NormAt,
        rows: Rows,
        row_stats: &mut CudaBuf<f32>,
        out: &mut CudaBuf<R>,
    ) -> Result<()> {
        self.norm(x, weights, at, rows, row_stats, out)?;
        self.trap("norm", out, rows, at.hidden)
    }

    fn norm_backward(
        &self,
        x: &CudaBuf<R>,
        weights: &CudaBuf<R>,
        at: NormAt,
        rows: Rows,
        row_stats: &CudaBuf<f32>,
        d: &mut CudaBuf<R>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.norm_backward(x, weights, at, rows, row_stats, d, grads)?;
        self.trap("norm_backward", d, rows, at.hidden)
    }

    fn gather_rows(
        &self,
        x: &CudaBuf<R>,
        rows: &CudaBuf<u32>,
        n: Rows,
        hidden: usize,
        out: &mut CudaBuf<R>,
    ) -> Result<()> {
        self.gather_rows(x, rows, n, hidden, out)?;
        self.trap("gather_rows", out, n, hidden)
    }

    fn scatter_add_rows(
        &self,
        src: &CudaBuf<R>,
        rows: &CudaBuf<u32>,
        n: Rows,
        hidden: usize,
        x: &mut CudaBuf<R>,
    ) -> Result<()> {
        self.scatter_add_rows(src, rows, n, hidden, x)
    }

    fn attention(
        &self,
        batch: &DeviceBatch<Self>,
        heads: Heads,
        drop: Dropout,
        qkv: &CudaBuf<R>,
        lse: &mut CudaBuf<f32>,
        out: &mut CudaBuf<R>,
    ) -> Result<()> {
        self.attention(batch, heads, drop, qkv, lse, out)?;
        self.trap("attention", out, tokens(batch), heads.heads * heads.size)
    }

    fn attention_backward(
        &self,
        batch: &DeviceBatch<Self>,
        heads: Heads,
        drop: Dropout,
        qkv: &CudaBuf<R>,
        lse: &CudaBuf<f32>,
        out: &CudaBuf<R>,
        dout: &CudaBuf<R>,
        dqkv: &mut CudaBuf<R>,
        bias: Option<usize>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.attention_backward(batch, heads, drop, qkv, lse, out, dout, dqkv, bias, grads)?;
        self.trap("attention_backward", dqkv, tokens(batch), 3 * heads.heads * heads.size)
    }

    fn mlm_loss(
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
        self.mlm_loss(weights, bias, vocab, labels, rows, scale, logits, grads, sums)?;
        self.trap("mlm_loss", logits, rows, vocab)
    }

    fn qdpp_head(
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
        self.qdpp_head(weights, at, labels, factors, rows, scale, pre, logits, grads, sums)?;
        self.trap("qdpp_head", pre, rows, at.hidden)
    }

    fn score_head(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &CudaBuf<R>,
        at: HeadAt,
        drop: Dropout,
        pre: &mut CudaBuf<R>,
        scores: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.score_head(batch, weights, at, drop, pre, scores)?;
        self.trap("score_head", pre, Rows::Sequences(batch.sequences), at.hidden)
    }

    fn score_head_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &CudaBuf<R>,
        at: HeadAt,
        drop: Dropout,
        dscores: &CudaBuf<f32>,
        pooled: &mut CudaBuf<R>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.score_head_backward(batch, weights, at, drop, dscores, pooled, grads)?;
        self.trap("score_head_backward", pooled, Rows::Sequences(batch.sequences), at.hidden)
    }

    fn aggregate(
        &self,
        how: Aggregate,
        batch: &DeviceBatch<Self>,
        scores: &CudaBuf<f32>,
        documents: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.aggregate(how, batch, scores, documents)
    }

    fn aggregate_backward(
        &self,
        how: Aggregate,
        batch: &DeviceBatch<Self>,
        scores: &CudaBuf<f32>,
        ddocuments: &CudaBuf<f32>,
        dscores: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.aggregate_backward(how, batch, scores, ddocuments, dscores)
    }

    fn rank_loss(
        &self,
        loss: RankLoss,
        batch: &DeviceBatch<Self>,
        scores: &CudaBuf<f32>,
        scale: LossScale,
        dscores: &mut CudaBuf<f32>,
        sums: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.rank_loss(loss, batch, scores, scale, dscores, sums)
    }

    fn sum_squares(
        &self,
        src: &CudaBuf<f32>,
        ranges: &[Range<usize>],
        out: &mut CudaBuf<f32>,
        slot: usize,
    ) -> Result<()> {
        self.sum_squares(src, ranges, out, slot)
    }

    fn forget(&self, norm_sq: &CudaBuf<f32>, buffers: Vec<(&mut CudaBuf<R>, usize)>) -> Result<()> {
        self.forget(norm_sq, buffers)
    }

    fn adamw(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[Range<usize>],
        norm_sq: &CudaBuf<f32>,
        weights: &mut CudaBuf<R>,
        master: &mut CudaBuf<f32>,
        grads: &mut CudaBuf<f32>,
        moment1: &mut CudaBuf<f32>,
        moment2: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.adamw(update, groups, owned, norm_sq, weights, master, grads, moment1, moment2)
    }

    fn lamb_direction(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[Range<usize>],
        norm_sq: &CudaBuf<f32>,
        weights: &CudaBuf<R>,
        master: &CudaBuf<f32>,
        grads: &mut CudaBuf<f32>,
        moment1: &mut CudaBuf<f32>,
        moment2: &mut CudaBuf<f32>,
        norms: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.lamb_direction(update, groups, owned, norm_sq, weights, master, grads, moment1, moment2, norms)
    }

    fn lamb_apply(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[Range<usize>],
        norms: &CudaBuf<f32>,
        weights: &mut CudaBuf<R>,
        master: &mut CudaBuf<f32>,
        grads: &mut CudaBuf<f32>,
    ) -> Result<()> {
        self.lamb_apply(update, groups, owned, norms, weights, master, grads)
    }
}
