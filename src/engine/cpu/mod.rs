//! The CPU engine: every operation of `Backend` in f32, on rayon's threads, with vector code chosen
//! at run time (AVX-512, AVX2 or the target's baseline). Results are the same bits on any number
//! of threads and with any of these instruction sets: sums run over chunks of a fixed size and
//! lanes of a fixed number, partial sums are added in their order, and where two roundings become
//! one, the code says so (`mul_add`).
//!
//! This file checks sizes and forwards; the arithmetic is in the modules below.

mod adamw;
mod attention;
mod buffer;
mod checks;
mod dropout;
mod embed;
mod gemm;
mod heads;
mod lamb;
mod loss;
mod mask;
mod math;
mod norm;
mod rank;
mod tasks;
mod tile;

use super::{
    AdamW, Backend, DeviceBatch, Dropout, Elem, EmbedAt, Epilogue, HeadAt, Heads, LinearAt, LossScale,
    MaskRule, NormAt, PackCounts, ParamGroup, RankLoss, Rows, Slice, slices, stats,
};
use crate::{Error, Result};
pub use buffer::Buffer;
use checks::{add_head, affine, check_below, head, keys, layout, part, part_mut};
use gemm::{AddBias, BiasGelu, Plain, Product};
use pulp::Arch;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tasks::{Shared, vectorised};
use tile::View;

/// The CPU as a device. Cheap to make; one a process is enough, and clones share their scratch.
#[derive(Clone)]
pub struct Cpu {
    arch: Arch,
    pool: Arc<buffer::Pool>,
    /// Scratch of the embedding gradient: table rows and pack rows, to be sorted.
    sorted: Arc<Mutex<Vec<u64>>>,
}

impl Cpu {
    /// Uses rayon's current thread pool and the best instruction set that the machine has.
    pub fn new() -> Self {
        Self::with(Arch::new())
    }

    /// With a given instruction set; every one gives the same bits.
    pub fn with(arch: Arch) -> Self {
        Self { arch, pool: Arc::default(), sorted: Arc::default() }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Cpu {
    type Real = f32;
    type Buf<T: Elem> = Buffer<T>;

    fn describe(&self) -> String {
        "cpu".into()
    }

    fn zeros<T: Elem>(&self, len: usize) -> Result<Buffer<T>> {
        Ok(Buffer::zeros(len))
    }

    fn upload<T: Elem>(&self, src: &[T], dst: &mut Buffer<T>, at: usize) -> Result<()> {
        part_mut("upload", dst, at, src.len())?.copy_from_slice(src);
        Ok(())
    }

    fn download<T: Elem>(&self, src: &Buffer<T>, range: Range<usize>) -> Result<Vec<T>> {
        Ok(part("download", src, range.start, range.len())?.to_vec())
    }

    fn clear<T: Elem>(&self, dst: &mut Buffer<T>, range: Range<usize>) -> Result<()> {
        part_mut("clear", dst, range.start, range.len())?.fill(T::default());
        Ok(())
    }

    fn on_host(
        &self,
        buf: &mut Buffer<f32>,
        range: Range<usize>,
        work: &mut dyn FnMut(&mut [f32]),
    ) -> Result<()> {
        work(part_mut("on_host", buf, range.start, range.len())?);
        Ok(())
    }

    fn upload_weights(&self, src: &[f32], dst: &mut Buffer<f32>, at: usize) -> Result<()> {
        self.upload(src, dst, at)
    }

    fn download_weights(&self, src: &Buffer<f32>, range: Range<usize>) -> Result<Vec<f32>> {
        self.download(src, range)
    }

    fn begin_pack(&self, _counts: &PackCounts) -> Result<()> {
        Ok(())
    }

    fn mask_tokens(
        &self,
        batch: &mut DeviceBatch<Self>,
        rule: &MaskRule,
        continues: &Buffer<u32>,
    ) -> Result<()> {
        let tokens = mask::Tokens {
            ids: part_mut("ids", &mut batch.ids, 0, batch.tokens)?,
            positions: part("positions", &batch.positions, 0, batch.tokens)?,
            segments: part("segments", &batch.segments, 0, batch.tokens)?,
            samples: part("row_sample", &batch.row_sample, 0, batch.tokens)?,
            epoch: batch.epoch,
        };
        let rows = part_mut("masked_rows", &mut batch.masked_rows, 0, batch.masked)?;
        let labels = part_mut("masked_labels", &mut batch.masked_labels, 0, batch.masked)?;
        mask::mask(tokens, rule, continues, rows, labels)
    }

    fn linear(
        &self,
        x: &Buffer<f32>,
        weights: &Buffer<f32>,
        at: LinearAt,
        rows: Rows,
        epilogue: Epilogue,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        let rows = rows.count();
        let a = View::rows(part("linear x", x, 0, rows * at.k)?, at.k);
        let b = View::transposed(part("linear weight", weights, at.w, at.n * at.k)?, at.k);
        let c = Shared::new(part_mut("linear out", out, 0, rows * at.n)?);
        let (m, n, k) = (rows, at.n, at.k);
        match epilogue {
            Epilogue::None => {
                Product { m, n, k, a, b, c, add: false, epilogue: &Plain }.run(self.arch, &self.pool);
            }
            Epilogue::Bias => {
                let bias = AddBias(part("linear bias", weights, at.b, n)?);
                Product { m, n, k, a, b, c, add: false, epilogue: &bias }.run(self.arch, &self.pool);
            }
        }
        Ok(())
    }

    fn linear_gelu(
        &self,
        x: &Buffer<f32>,
        weights: &Buffer<f32>,
        at: LinearAt,
        rows: Rows,
        pre: &mut Buffer<f32>,
        act: &mut Buffer<f32>,
    ) -> Result<()> {
        let rows = rows.count();
        let a = View::rows(part("linear_gelu x", x, 0, rows * at.k)?, at.k);
        let b = View::transposed(part("linear_gelu weight", weights, at.w, at.n * at.k)?, at.k);
        let c = Shared::new(part_mut("linear_gelu pre", pre, 0, rows * at.n)?);
        let act = Shared::new(part_mut("linear_gelu act", act, 0, rows * at.n)?);
        let epilogue = BiasGelu { bias: part("linear_gelu bias", weights, at.b, at.n)?, act };
        Product { m: rows, n: at.n, k: at.k, a, b, c, add: false, epilogue: &epilogue }
            .run(self.arch, &self.pool);
        Ok(())
    }

    fn linear_backward_input(
        &self,
        dy: &Buffer<f32>,
        weights: &Buffer<f32>,
        at: LinearAt,
        rows: Rows,
        accumulate: bool,
        dx: &mut Buffer<f32>,
    ) -> Result<()> {
        let rows = rows.count();
        let a = View::rows(part("linear dy", dy, 0, rows * at.n)?, at.n);
        let b = View::rows(part("linear weight", weights, at.w, at.n * at.k)?, at.k);
        let c = Shared::new(part_mut("linear dx", dx, 0, rows * at.k)?);
        Product { m: rows, n: at.k, k: at.n, a, b, c, add: accumulate, epilogue: &Plain }
            .run(self.arch, &self.pool);
        Ok(())
    }

    fn linear_backward_weight(
        &self,
        dy: &Buffer<f32>,
        x: &Buffer<f32>,
        at: LinearAt,
        rows: Rows,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let rows = rows.count();
        let dy = part("linear dy", dy, 0, rows * at.n)?;
        let b = View::rows(part("linear x", x, 0, rows * at.k)?, at.k);
        let c = Shared::new(part_mut("linear weight gradient", grads, at.w, at.n * at.k)?);
        let a = View::transposed(dy, at.n);
        Product { m: at.n, n: at.k, k: rows, a, b, c, add: true, epilogue: &Plain }
            .run(self.arch, &self.pool);
        Ok(())
    }

    fn gelu(&self, pre: &Buffer<f32>, rows: Rows, width: usize, act: &mut Buffer<f32>) -> Result<()> {
        let len = rows.count() * width;
        let (pre, act) = (part("gelu pre", pre, 0, len)?, part_mut("gelu act", act, 0, len)?);
        tasks::each((tasks::In(pre, 1), tasks::Out(act, 1)), 1 << 14, &|_, (pre, act)| {
            vectorised(
                self.arch,
                #[inline(always)]
                || {
                    for (act, &x) in act.0.iter_mut().zip(pre.0) {
                        *act = math::gelu(x);
                    }
                },
            );
        });
        Ok(())
    }

    fn gelu_backward(
        &self,
        pre: &Buffer<f32>,
        dact: &mut Buffer<f32>,
        rows: Rows,
        width: usize,
        bias: Option<usize>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let len = rows.count() * width;
        let (pre, dact) = (part("gelu pre", pre, 0, len)?, part_mut("gelu dact", dact, 0, len)?);
        tasks::each((tasks::In(pre, 1), tasks::Out(dact, 1)), 1 << 14, &|_, (pre, dact)| {
            vectorised(
                self.arch,
                #[inline(always)]
                || {
                    for (d, &x) in dact.0.iter_mut().zip(pre.0) {
                        *d *= math::gelu_slope(x);
                    }
                },
            );
        });
        if let Some(at) = bias {
            loss::add_columns(self.arch, dact, part_mut("GELU bias gradient", grads, at, width)?);
        }
        Ok(())
    }

    fn embed(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Buffer<f32>,
        at: EmbedAt,
        drop: Dropout,
        sum: &mut Buffer<f32>,
        row_stats: &mut Buffer<f32>,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, at.norm.hidden);
        let keys = keys(batch)?;
        let ids = part("ids", &batch.ids, 0, t)?;
        let segments = part("segments", &batch.segments, 0, t)?;
        check_below("token id", ids, at.vocab)?;
        check_below("segment", segments, 2)?;
        let positions = keys.positions.iter().max().map_or(0, |&p| p as usize + 1);
        let tables = embed::Tables {
            word: part("word table", weights, at.word, at.vocab * h)?,
            position: part("position table", weights, at.position, positions * h)?,
            segment: part("segment table", weights, at.segment, 2 * h)?,
        };
        embed::forward(
            self.arch,
            &self.pool,
            keys,
            drop,
            tables,
            affine(weights, at.norm)?,
            (ids, segments),
            part_mut("embed sum", sum, 0, t * h)?,
            part_mut("embed row_stats", row_stats, 0, 2 * t)?,
            part_mut("embed out", out, 0, t * h)?,
        );
        Ok(())
    }

    fn embed_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Buffer<f32>,
        at: EmbedAt,
        drop: Dropout,
        sum: &Buffer<f32>,
        row_stats: &Buffer<f32>,
        dout: &mut Buffer<f32>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, at.norm.hidden);
        let keys = keys(batch)?;
        let ids = part("ids", &batch.ids, 0, t)?;
        let segments = part("segments", &batch.segments, 0, t)?;
        check_below("token id", ids, at.vocab)?;
        check_below("segment", segments, 2)?;
        let dout = part_mut("embed dout", dout, 0, t * h)?;
        let partials = embed::backward_norm(
            self.arch,
            &self.pool,
            keys,
            drop,
            affine(weights, at.norm)?.gamma,
            part("embed sum", sum, 0, t * h)?,
            part("embed row_stats", row_stats, 0, 2 * t)?,
            dout,
        );
        norm::add_block(&partials, h, 0, part_mut("gamma gradient", grads, at.norm.gamma, h)?);
        norm::add_block(&partials, h, 1, part_mut("beta gradient", grads, at.norm.beta, h)?);
        let positions = keys.positions.iter().max().map_or(0, |&p| p as usize + 1);
        let mut sorted = self.sorted.lock().unwrap_or_else(PoisonError::into_inner);
        let word = part_mut("word gradient", grads, at.word, at.vocab * h)?;
        embed::add_rows(self.arch, ids, dout, h, &mut sorted, word);
        let position = part_mut("position gradient", grads, at.position, positions * h)?;
        embed::add_rows(self.arch, keys.positions, dout, h, &mut sorted, position);
        let segment = part_mut("segment gradient", grads, at.segment, 2 * h)?;
        embed::add_rows(self.arch, segments, dout, h, &mut sorted, segment);
        Ok(())
    }

    fn residual_norm(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Buffer<f32>,
        bias: usize,
        norm: NormAt,
        drop: Dropout,
        residual: &Buffer<f32>,
        y: &mut Buffer<f32>,
        row_stats: &mut Buffer<f32>,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, norm.hidden);
        norm::residual_forward(
            self.arch,
            &self.pool,
            keys(batch)?,
            drop,
            part("residual_norm bias", weights, bias, h)?,
            affine(weights, norm)?,
            part("residual", residual, 0, t * h)?,
            part_mut("residual_norm y", y, 0, t * h)?,
            part_mut("residual_norm row_stats", row_stats, 0, 2 * t)?,
            part_mut("residual_norm out", out, 0, t * h)?,
        );
        Ok(())
    }

    fn residual_norm_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Buffer<f32>,
        bias: usize,
        norm: NormAt,
        drop: Dropout,
        y: &Buffer<f32>,
        row_stats: &Buffer<f32>,
        dout: &Buffer<f32>,
        dresidual: &mut Buffer<f32>,
        dy: &mut Buffer<f32>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, norm.hidden);
        let partials = norm::residual_backward(
            self.arch,
            &self.pool,
            keys(batch)?,
            drop,
            affine(weights, norm)?.gamma,
            part("residual_norm y", y, 0, t * h)?,
            part("residual_norm row_stats", row_stats, 0, 2 * t)?,
            part("residual_norm dout", dout, 0, t * h)?,
            part_mut("dresidual", dresidual, 0, t * h)?,
            part_mut("residual_norm dy", dy, 0, t * h)?,
        );
        for (block, at) in [norm.gamma, norm.beta, bias].into_iter().enumerate() {
            norm::add_block(&partials, h, block, part_mut("residual_norm gradient", grads, at, h)?);
        }
        Ok(())
    }

    fn norm(
        &self,
        x: &Buffer<f32>,
        weights: &Buffer<f32>,
        at: NormAt,
        rows: Rows,
        row_stats: &mut Buffer<f32>,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        let rows = rows.count();
        norm::forward(
            self.arch,
            part("norm x", x, 0, rows * at.hidden)?,
            affine(weights, at)?,
            part_mut("norm row_stats", row_stats, 0, 2 * rows)?,
            part_mut("norm out", out, 0, rows * at.hidden)?,
        );
        Ok(())
    }

    fn norm_backward(
        &self,
        x: &Buffer<f32>,
        weights: &Buffer<f32>,
        at: NormAt,
        rows: Rows,
        row_stats: &Buffer<f32>,
        d: &mut Buffer<f32>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let rows = rows.count();
        let partials = norm::backward(
            self.arch,
            &self.pool,
            part("norm x", x, 0, rows * at.hidden)?,
            affine(weights, at)?.gamma,
            part("norm row_stats", row_stats, 0, 2 * rows)?,
            part_mut("norm d", d, 0, rows * at.hidden)?,
        );
        norm::add_block(&partials, at.hidden, 0, part_mut("gamma gradient", grads, at.gamma, at.hidden)?);
        norm::add_block(&partials, at.hidden, 1, part_mut("beta gradient", grads, at.beta, at.hidden)?);
        Ok(())
    }

    fn gather_rows(
        &self,
        x: &Buffer<f32>,
        rows: &Buffer<u32>,
        n: Rows,
        hidden: usize,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        let n = n.count();
        let rows = part("gather rows", rows, 0, n)?;
        check_below("gathered row", rows, x.len() / hidden)?;
        let out = part_mut("gather out", out, 0, n * hidden)?;
        for (out, &row) in out.chunks_exact_mut(hidden).zip(rows) {
            out.copy_from_slice(&x[row as usize * hidden..][..hidden]);
        }
        Ok(())
    }

    fn scatter_add_rows(
        &self,
        src: &Buffer<f32>,
        rows: &Buffer<u32>,
        n: Rows,
        hidden: usize,
        x: &mut Buffer<f32>,
    ) -> Result<()> {
        let n = n.count();
        let rows = part("scatter rows", rows, 0, n)?;
        check_below("scattered row", rows, x.len() / hidden)?;
        let src = part("scatter src", src, 0, n * hidden)?;
        for (src, &row) in src.chunks_exact(hidden).zip(rows) {
            for (x, &s) in x[row as usize * hidden..][..hidden].iter_mut().zip(src) {
                *x += s;
            }
        }
        Ok(())
    }

    fn attention(
        &self,
        batch: &DeviceBatch<Self>,
        heads: Heads,
        drop: Dropout,
        qkv: &Buffer<f32>,
        lse: &mut Buffer<f32>,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, heads.heads * heads.size);
        attention::forward(
            self.arch,
            &self.pool,
            layout(batch, heads, drop)?,
            part("attention qkv", qkv, 0, 3 * t * h)?,
            part_mut("attention lse", lse, 0, t * heads.heads)?,
            part_mut("attention out", out, 0, t * h)?,
        );
        Ok(())
    }

    fn attention_backward(
        &self,
        batch: &DeviceBatch<Self>,
        heads: Heads,
        drop: Dropout,
        qkv: &Buffer<f32>,
        lse: &Buffer<f32>,
        out: &Buffer<f32>,
        dout: &Buffer<f32>,
        dqkv: &mut Buffer<f32>,
        bias: Option<usize>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, heads.heads * heads.size);
        let kept = attention::Kept {
            qkv: part("attention qkv", qkv, 0, 3 * t * h)?,
            lse: part("attention lse", lse, 0, t * heads.heads)?,
            out: part("attention out", out, 0, t * h)?,
            dout: part("attention dout", dout, 0, t * h)?,
        };
        let dqkv = part_mut("attention dqkv", dqkv, 0, 3 * t * h)?;
        attention::backward(self.arch, &self.pool, layout(batch, heads, drop)?, kept, dqkv);
        if let Some(at) = bias {
            loss::add_columns(self.arch, dqkv, part_mut("attention bias gradient", grads, at, 3 * h)?);
        }
        Ok(())
    }

    fn mlm_loss(
        &self,
        weights: &Buffer<f32>,
        bias: usize,
        vocab: usize,
        labels: &Buffer<u32>,
        rows: Rows,
        scale: LossScale,
        logits: &mut Buffer<f32>,
        grads: &mut Buffer<f32>,
        sums: &mut Buffer<f32>,
    ) -> Result<()> {
        let rows = rows.count();
        let sums = part_mut("statistics", sums, 0, stats::SLOTS)?;
        let labels = part("mlm labels", labels, 0, rows)?;
        check_below("mlm label", labels, vocab)?;
        let logits = part_mut("mlm logits", logits, 0, rows * vocab)?;
        let weights = part("mlm bias", weights, bias, vocab)?;
        let (loss, right) = loss::mlm(self.arch, &self.pool, weights, labels, scale.value, logits);
        if scale != LossScale::MEASURE {
            loss::add_columns(self.arch, logits, part_mut("mlm bias gradient", grads, bias, vocab)?);
        }
        sums[stats::MLM_LOSS] += loss as f32;
        sums[stats::MLM_CORRECT] += right as f32;
        sums[stats::MLM_COUNT] += rows as f32;
        Ok(())
    }

    fn qdpp_head(
        &self,
        weights: &Buffer<f32>,
        at: HeadAt,
        labels: &Buffer<u32>,
        rows: Rows,
        scale: LossScale,
        pre: &mut Buffer<f32>,
        logits: &mut Buffer<f32>,
        grads: &mut Buffer<f32>,
        sums: &mut Buffer<f32>,
    ) -> Result<()> {
        let rows = rows.count();
        let labels = part("qdpp labels", labels, 0, rows)?;
        check_below("qdpp label", labels, 2)?;
        let pre = part_mut("qdpp pre", pre, 0, rows * at.hidden)?;
        let logits = part_mut("qdpp logits", logits, 0, 2 * rows)?;
        let sums = part_mut("statistics", sums, 0, stats::SLOTS)?;
        match heads::qdpp(self.arch, head(weights, at, 2)?, labels, scale.value, pre, logits, sums) {
            Some(gradients) => add_head(grads, at, &gradients),
            None => Ok(()),
        }
    }

    fn score_head(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Buffer<f32>,
        at: HeadAt,
        drop: Dropout,
        pre: &mut Buffer<f32>,
        scores: &mut Buffer<f32>,
    ) -> Result<()> {
        let s = batch.sequences;
        let samples = part("samples", &batch.samples, 0, s)?;
        let pre = part_mut("score pre", pre, 0, s * at.hidden)?;
        let scores = part_mut("scores", scores, 0, s)?;
        heads::score(self.arch, head(weights, at, 1)?, drop, (samples, batch.epoch), pre, scores);
        Ok(())
    }

    fn score_head_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Buffer<f32>,
        at: HeadAt,
        drop: Dropout,
        dscores: &Buffer<f32>,
        pooled: &mut Buffer<f32>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let s = batch.sequences;
        let samples = part("samples", &batch.samples, 0, s)?;
        let dscores = part("dscores", dscores, 0, s)?;
        let pooled = part_mut("pooled", pooled, 0, s * at.hidden)?;
        let head = head(weights, at, 1)?;
        let gradients = heads::score_backward(self.arch, head, drop, (samples, batch.epoch), dscores, pooled);
        add_head(grads, at, &gradients)
    }

    fn rank_loss(
        &self,
        loss: RankLoss,
        batch: &DeviceBatch<Self>,
        scores: &Buffer<f32>,
        scale: LossScale,
        dscores: &mut Buffer<f32>,
        sums: &mut Buffer<f32>,
    ) -> Result<()> {
        let s = batch.sequences;
        let groups = part("cu_groups", &batch.cu_groups, 0, batch.groups + 1)?;
        let ascends = groups.windows(2).all(|ends| ends[0] < ends[1]);
        if !ascends || groups[batch.groups] as usize != s {
            return Err(Error::device(format!(
                "rank_loss: cu_groups does not ascend to the pack's {s} sequences"
            )));
        }
        let values = (part("scores", scores, 0, s)?, part("targets", &batch.targets, 0, s)?);
        let dscores = part_mut("dscores", dscores, 0, s)?;
        let sums = part_mut("statistics", sums, 0, stats::SLOTS)?;
        rank::rank(loss, groups, values, scale.value, dscores, sums);
        Ok(())
    }

    fn sum_squares(
        &self,
        src: &Buffer<f32>,
        ranges: &[Range<usize>],
        out: &mut Buffer<f32>,
        slot: usize,
    ) -> Result<()> {
        let mut sum = 0.0;
        for range in ranges {
            let values = part("sum_squares", src, range.start, range.len())?;
            sum += adamw::sum_squares(self.arch, &self.pool, values);
        }
        part_mut("sum_squares out", out, slot, 1)?[0] = sum as f32;
        Ok(())
    }

    fn adamw(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[Range<usize>],
        norm_sq: &Buffer<f32>,
        weights: &mut Buffer<f32>,
        _master: &mut Buffer<f32>,
        grads: &mut Buffer<f32>,
        moment1: &mut Buffer<f32>,
        moment2: &mut Buffer<f32>,
    ) -> Result<()> {
        let norm_sq = part("norm_sq", norm_sq, 0, 1)?[0];
        for Slice { group, range, moment } in slices(groups, owned) {
            let (at, len) = (range.start, range.len());
            let values = (part_mut("weights", weights, at, len)?, part_mut("gradients", grads, at, len)?);
            let moments =
                (part_mut("moment1", moment1, moment, len)?, part_mut("moment2", moment2, moment, len)?);
            adamw::update_slice(self.arch, update, &groups[group], norm_sq, values, moments);
        }
        clear_groups(groups, owned, grads)
    }

    fn lamb_direction(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[Range<usize>],
        norm_sq: &Buffer<f32>,
        weights: &Buffer<f32>,
        _master: &Buffer<f32>,
        grads: &mut Buffer<f32>,
        moment1: &mut Buffer<f32>,
        moment2: &mut Buffer<f32>,
        norms: &mut Buffer<f32>,
    ) -> Result<()> {
        let norm_sq = part("norm_sq", norm_sq, 0, 1)?[0];
        let norms = part_mut("norms", norms, 0, 2 * groups.len())?;
        let mut sums = vec![[0.0; 2]; groups.len()];
        for Slice { group, range, moment } in slices(groups, owned) {
            let (at, len) = (range.start, range.len());
            let values = (part("weights", weights, at, len)?, part_mut("gradients", grads, at, len)?);
            let moments =
                (part_mut("moment1", moment1, moment, len)?, part_mut("moment2", moment2, moment, len)?);
            let [w, r] =
                lamb::direction(self.arch, &self.pool, update, &groups[group], norm_sq, values, moments);
            sums[group][0] += w;
            sums[group][1] += r;
        }
        for (norm, sum) in norms.iter_mut().zip(sums.as_flattened()) {
            *norm = *sum as f32;
        }
        Ok(())
    }

    fn lamb_apply(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[Range<usize>],
        norms: &Buffer<f32>,
        weights: &mut Buffer<f32>,
        _master: &mut Buffer<f32>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let norms = part("norms", norms, 0, 2 * groups.len())?;
        for Slice { group, range, .. } in slices(groups, owned) {
            let step = lamb::step_size(update, &groups[group], [norms[2 * group], norms[2 * group + 1]]);
            let direction = part("gradients", grads, range.start, range.len())?;
            let weights = part_mut("weights", weights, range.start, range.len())?;
            lamb::apply(self.arch, step, weights, direction);
        }
        groups.iter().try_for_each(|group| self.clear(grads, group.range.clone()))
    }
}

/// Zeros the gradients that `adamw` has not passed: frozen groups, and what other ranks own, which
/// holds this rank's part of a sum.
fn clear_groups(groups: &[ParamGroup], owned: &[Range<usize>], grads: &mut Buffer<f32>) -> Result<()> {
    for ParamGroup { range, lr_scale, .. } in groups {
        let whole = owned.iter().any(|own| own.start <= range.start && range.end <= own.end);
        if !whole || *lr_scale == 0.0 {
            part_mut("gradients", grads, range.start, range.len())?.fill(0.0);
        }
    }
    Ok(())
}
