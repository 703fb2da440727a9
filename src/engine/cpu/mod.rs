//! The CPU engine: every operation of `Backend` on rayon's threads, with vector code chosen at run
//! time (AVX-512, AVX2 or the target's baseline). All arithmetic is f32; weights and activations are
//! kept in f32 or in bf16, which is widened when it is read and rounded when it is stored.
//!
//! Results are the same bits on any number of threads and with any of these instruction sets: sums
//! run over chunks of a fixed size and lanes of a fixed number, partial sums are added in their
//! order, and where two roundings become one, the code says so (`mul_add`). One thing differs from
//! machine to machine: products of bf16 use dot products of pairs where the processor has them
//! (`machine`), which add in another order than the multiply-adds in their place elsewhere.
//!
//! This file checks sizes and forwards; the arithmetic is in the modules below.

mod adamw;
mod attention;
mod buffer;
mod checks;
#[cfg_attr(not(target_arch = "x86_64"), path = "no_dots.rs")]
mod dots;
mod dropout;
mod elementwise;
mod embed;
mod gemm;
mod heads;
mod kernels;
mod lamb;
mod loss;
mod machine;
mod mask;
mod math;
mod norm;
mod rank;
mod tasks;
mod tile;
mod widen;

use super::{
    AdamW, Aggregate, Backend, DeviceBatch, Dropout, Elem, EmbedAt, Epilogue, HeadAt, Heads, LinearAt,
    LossScale, MaskRule, NormAt, PackCounts, ParamGroup, RankLoss, Real, Rows, Slice, slices, stats,
};
use crate::Result;
pub use buffer::Buffer;
use checks::{
    add_head, affine, check_below, check_ends, cu_documents, head, keys, layout, parameters, part, part_mut,
};
use gemm::{AddBias, BiasGelu, Plain, Product};
use machine::Machine;
pub use machine::Operand;
use pulp::Arch;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tasks::Shared;
use tile::View;

/// The CPU as a device that keeps weights and activations in R (f32 or bf16). Cheap to make; one a
/// process is enough, and clones share their scratch.
#[derive(Clone)]
pub struct Cpu<R = f32> {
    machine: Machine,
    pool: Arc<buffer::Pool>,
    /// Scratch of the embedding gradient: table rows and pack rows, to be sorted.
    sorted: Arc<Mutex<Vec<u64>>>,
    kind: PhantomData<R>,
}

impl Cpu {
    /// In f32, on rayon's current thread pool, with the best instruction set that the machine has.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<R: Operand> Cpu<R> {
    /// With a given instruction set; below AVX-512 there are no dot products of bf16 pairs.
    pub fn with(arch: Arch) -> Self {
        let machine = Machine::new(arch);
        Self { machine, pool: Arc::default(), sorted: Arc::default(), kind: PhantomData }
    }

    /// Products of bf16 as on machines without dot products of pairs.
    pub fn widening(self) -> Self {
        Self { machine: self.machine.widening(), ..self }
    }
}

impl<R: Operand> Default for Cpu<R> {
    fn default() -> Self {
        Self::with(Arch::new())
    }
}

impl<R: Operand> Backend for Cpu<R> {
    type Real = R;
    type Buf<T: Elem> = Buffer<T>;

    fn describe(&self) -> String {
        match (R::NARROW, self.machine.has_dots()) {
            (false, _) => "cpu".into(),
            (true, true) => "cpu (bf16)".into(),
            (true, false) => "cpu (bf16, multiplied as f32)".into(),
        }
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

    fn upload_weights(&self, src: &[f32], dst: &mut Buffer<R>, at: usize) -> Result<()> {
        widen::round(src, part_mut("upload of weights", dst, at, src.len())?);
        Ok(())
    }

    fn download_weights(&self, src: &Buffer<R>, range: Range<usize>) -> Result<Vec<f32>> {
        let from = part("download of weights", src, range.start, range.len())?;
        Ok(widen::parameters(from).into_owned())
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
        x: &Buffer<R>,
        weights: &Buffer<R>,
        at: LinearAt,
        rows: Rows,
        epilogue: Epilogue,
        out: &mut Buffer<R>,
    ) -> Result<()> {
        let rows = rows.count();
        let a = View::rows(part("linear x", x, 0, rows * at.k)?, at.k);
        let b = View::transposed(part("linear weight", weights, at.w, at.n * at.k)?, at.k);
        let c = Shared::new(part_mut("linear out", out, 0, rows * at.n)?);
        let (m, n, k) = (rows, at.n, at.k);
        match epilogue {
            Epilogue::None => {
                let product = Product { m, n, k, a, b, c, add: false, epilogue: &Plain };
                (R::kernels().product)(&product, self.machine, &self.pool);
            }
            Epilogue::Bias => {
                let bias = parameters("linear bias", weights, at.b, n)?;
                let product = Product { m, n, k, a, b, c, add: false, epilogue: &AddBias(&bias) };
                (R::kernels().product_bias)(&product, self.machine, &self.pool);
            }
        }
        Ok(())
    }

    fn linear_gelu(
        &self,
        x: &Buffer<R>,
        weights: &Buffer<R>,
        at: LinearAt,
        rows: Rows,
        pre: &mut Buffer<R>,
        act: &mut Buffer<R>,
    ) -> Result<()> {
        let rows = rows.count();
        let a = View::rows(part("linear_gelu x", x, 0, rows * at.k)?, at.k);
        let b = View::transposed(part("linear_gelu weight", weights, at.w, at.n * at.k)?, at.k);
        let c = Shared::new(part_mut("linear_gelu pre", pre, 0, rows * at.n)?);
        let act = Shared::new(part_mut("linear_gelu act", act, 0, rows * at.n)?);
        let bias = parameters("linear_gelu bias", weights, at.b, at.n)?;
        let epilogue = BiasGelu { bias: &bias, act };
        let product = Product { m: rows, n: at.n, k: at.k, a, b, c, add: false, epilogue: &epilogue };
        (R::kernels().product_gelu)(&product, self.machine, &self.pool);
        Ok(())
    }

    fn linear_backward_input(
        &self,
        dy: &Buffer<R>,
        weights: &Buffer<R>,
        at: LinearAt,
        rows: Rows,
        accumulate: bool,
        dx: &mut Buffer<R>,
    ) -> Result<()> {
        let rows = rows.count();
        let a = View::rows(part("linear dy", dy, 0, rows * at.n)?, at.n);
        let b = View::rows(part("linear weight", weights, at.w, at.n * at.k)?, at.k);
        let c = Shared::new(part_mut("linear dx", dx, 0, rows * at.k)?);
        let product = Product { m: rows, n: at.k, k: at.n, a, b, c, add: accumulate, epilogue: &Plain };
        (R::kernels().product)(&product, self.machine, &self.pool);
        Ok(())
    }

    fn linear_backward_weight(
        &self,
        dy: &Buffer<R>,
        x: &Buffer<R>,
        at: LinearAt,
        rows: Rows,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let rows = rows.count();
        let dy = part("linear dy", dy, 0, rows * at.n)?;
        let b = View::rows(part("linear x", x, 0, rows * at.k)?, at.k);
        let c = Shared::new(part_mut("linear weight gradient", grads, at.w, at.n * at.k)?);
        let a = View::transposed(dy, at.n);
        let product = Product { m: at.n, n: at.k, k: rows, a, b, c, add: true, epilogue: &Plain };
        (R::kernels().product_to_gradient)(&product, self.machine, &self.pool);
        Ok(())
    }

    fn gelu(&self, pre: &Buffer<R>, rows: Rows, width: usize, act: &mut Buffer<R>) -> Result<()> {
        let len = rows.count() * width;
        let (pre, act) = (part("gelu pre", pre, 0, len)?, part_mut("gelu act", act, 0, len)?);
        (R::kernels().gelu)(self.machine.arch, pre, act);
        Ok(())
    }

    fn gelu_backward(
        &self,
        pre: &Buffer<R>,
        dact: &mut Buffer<R>,
        rows: Rows,
        width: usize,
        bias: Option<usize>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let len = rows.count() * width;
        let (pre, dact) = (part("gelu pre", pre, 0, len)?, part_mut("gelu dact", dact, 0, len)?);
        (R::kernels().gelu_backward)(self.machine.arch, pre, dact);
        if let Some(at) = bias {
            let grads = part_mut("GELU bias gradient", grads, at, width)?;
            (R::kernels().add_columns)(self.machine.arch, dact, grads);
        }
        Ok(())
    }

    fn embed(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Buffer<R>,
        at: EmbedAt,
        drop: Dropout,
        sum: &mut Buffer<R>,
        row_stats: &mut Buffer<f32>,
        out: &mut Buffer<R>,
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
        (R::kernels().embed)(
            self.machine.arch,
            &self.pool,
            keys,
            drop,
            tables,
            &affine(weights, at.norm)?,
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
        weights: &Buffer<R>,
        at: EmbedAt,
        drop: Dropout,
        sum: &Buffer<R>,
        row_stats: &Buffer<f32>,
        dout: &mut Buffer<R>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, at.norm.hidden);
        let keys = keys(batch)?;
        let ids = part("ids", &batch.ids, 0, t)?;
        let segments = part("segments", &batch.segments, 0, t)?;
        check_below("token id", ids, at.vocab)?;
        check_below("segment", segments, 2)?;
        let dout = part_mut("embed dout", dout, 0, t * h)?;
        let partials = (R::kernels().embed_backward)(
            self.machine.arch,
            &self.pool,
            keys,
            drop,
            &affine(weights, at.norm)?.gamma,
            part("embed sum", sum, 0, t * h)?,
            part("embed row_stats", row_stats, 0, 2 * t)?,
            dout,
        );
        norm::add_block(&partials, h, 0, part_mut("gamma gradient", grads, at.norm.gamma, h)?);
        norm::add_block(&partials, h, 1, part_mut("beta gradient", grads, at.norm.beta, h)?);
        let positions = keys.positions.iter().max().map_or(0, |&p| p as usize + 1);
        let mut sorted = self.sorted.lock().unwrap_or_else(PoisonError::into_inner);
        let word = part_mut("word gradient", grads, at.word, at.vocab * h)?;
        (R::kernels().add_rows)(self.machine.arch, ids, dout, h, &mut sorted, word);
        let position = part_mut("position gradient", grads, at.position, positions * h)?;
        (R::kernels().add_rows)(self.machine.arch, keys.positions, dout, h, &mut sorted, position);
        let segment = part_mut("segment gradient", grads, at.segment, 2 * h)?;
        (R::kernels().add_rows)(self.machine.arch, segments, dout, h, &mut sorted, segment);
        Ok(())
    }

    fn residual_norm(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Buffer<R>,
        bias: usize,
        norm: NormAt,
        drop: Dropout,
        residual: &Buffer<R>,
        y: &mut Buffer<R>,
        row_stats: &mut Buffer<f32>,
        out: &mut Buffer<R>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, norm.hidden);
        (R::kernels().residual_norm)(
            self.machine.arch,
            &self.pool,
            keys(batch)?,
            drop,
            &parameters("residual_norm bias", weights, bias, h)?,
            &affine(weights, norm)?,
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
        weights: &Buffer<R>,
        bias: usize,
        norm: NormAt,
        drop: Dropout,
        y: &Buffer<R>,
        row_stats: &Buffer<f32>,
        dout: &Buffer<R>,
        dresidual: &mut Buffer<R>,
        dy: &mut Buffer<R>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, norm.hidden);
        let partials = (R::kernels().residual_norm_backward)(
            self.machine.arch,
            &self.pool,
            keys(batch)?,
            drop,
            &affine(weights, norm)?.gamma,
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
        x: &Buffer<R>,
        weights: &Buffer<R>,
        at: NormAt,
        rows: Rows,
        row_stats: &mut Buffer<f32>,
        out: &mut Buffer<R>,
    ) -> Result<()> {
        let rows = rows.count();
        (R::kernels().norm)(
            self.machine.arch,
            &self.pool,
            part("norm x", x, 0, rows * at.hidden)?,
            &affine(weights, at)?,
            part_mut("norm row_stats", row_stats, 0, 2 * rows)?,
            part_mut("norm out", out, 0, rows * at.hidden)?,
        );
        Ok(())
    }

    fn norm_backward(
        &self,
        x: &Buffer<R>,
        weights: &Buffer<R>,
        at: NormAt,
        rows: Rows,
        row_stats: &Buffer<f32>,
        d: &mut Buffer<R>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let rows = rows.count();
        let partials = (R::kernels().norm_backward)(
            self.machine.arch,
            &self.pool,
            part("norm x", x, 0, rows * at.hidden)?,
            &affine(weights, at)?.gamma,
            part("norm row_stats", row_stats, 0, 2 * rows)?,
            part_mut("norm d", d, 0, rows * at.hidden)?,
        );
        norm::add_block(&partials, at.hidden, 0, part_mut("gamma gradient", grads, at.gamma, at.hidden)?);
        norm::add_block(&partials, at.hidden, 1, part_mut("beta gradient", grads, at.beta, at.hidden)?);
        Ok(())
    }

    fn gather_rows(
        &self,
        x: &Buffer<R>,
        rows: &Buffer<u32>,
        n: Rows,
        hidden: usize,
        out: &mut Buffer<R>,
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
        src: &Buffer<R>,
        rows: &Buffer<u32>,
        n: Rows,
        hidden: usize,
        x: &mut Buffer<R>,
    ) -> Result<()> {
        let n = n.count();
        let rows = part("scatter rows", rows, 0, n)?;
        check_below("scattered row", rows, x.len() / hidden)?;
        let src = part("scatter src", src, 0, n * hidden)?;
        for (src, &row) in src.chunks_exact(hidden).zip(rows) {
            for (x, &s) in x[row as usize * hidden..][..hidden].iter_mut().zip(src) {
                *x = R::from_f32(x.to_f32() + s.to_f32());
            }
        }
        Ok(())
    }

    fn attention(
        &self,
        batch: &DeviceBatch<Self>,
        heads: Heads,
        drop: Dropout,
        qkv: &Buffer<R>,
        lse: &mut Buffer<f32>,
        out: &mut Buffer<R>,
    ) -> Result<()> {
        let (t, h) = (batch.tokens, heads.heads * heads.size);
        (R::kernels().attention)(
            self.machine,
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
        qkv: &Buffer<R>,
        lse: &Buffer<f32>,
        out: &Buffer<R>,
        dout: &Buffer<R>,
        dqkv: &mut Buffer<R>,
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
        let layout = layout(batch, heads, drop)?;
        (R::kernels().attention_backward)(self.machine, &self.pool, layout, kept, dqkv);
        if let Some(at) = bias {
            let grads = part_mut("attention bias gradient", grads, at, 3 * h)?;
            (R::kernels().add_columns)(self.machine.arch, dqkv, grads);
        }
        Ok(())
    }

    fn mlm_loss(
        &self,
        weights: &Buffer<R>,
        bias: usize,
        vocab: usize,
        labels: &Buffer<u32>,
        rows: Rows,
        scale: LossScale,
        logits: &mut Buffer<R>,
        grads: &mut Buffer<f32>,
        sums: &mut Buffer<f32>,
    ) -> Result<()> {
        let rows = rows.count();
        let sums = part_mut("statistics", sums, 0, stats::SLOTS)?;
        let labels = part("mlm labels", labels, 0, rows)?;
        check_below("mlm label", labels, vocab)?;
        let logits = part_mut("mlm logits", logits, 0, rows * vocab)?;
        let weights = parameters("mlm bias", weights, bias, vocab)?;
        let (loss, right) =
            (R::kernels().mlm)(self.machine.arch, &self.pool, &weights, labels, scale.value, logits);
        if scale != LossScale::MEASURE {
            (R::kernels().add_columns)(
                self.machine.arch,
                logits,
                part_mut("mlm bias gradient", grads, bias, vocab)?,
            );
        }
        sums[stats::MLM_LOSS] += loss as f32;
        sums[stats::MLM_CORRECT] += right as f32;
        sums[stats::MLM_COUNT] += rows as f32;
        Ok(())
    }

    fn qdpp_head(
        &self,
        weights: &Buffer<R>,
        at: HeadAt,
        labels: &Buffer<u32>,
        factors: &Buffer<f32>,
        rows: Rows,
        scale: LossScale,
        pre: &mut Buffer<R>,
        logits: &mut Buffer<f32>,
        grads: &mut Buffer<f32>,
        sums: &mut Buffer<f32>,
    ) -> Result<()> {
        let rows = rows.count();
        let labels = part("qdpp labels", labels, 0, rows)?;
        check_below("qdpp label", labels, 2)?;
        let targets = (labels, part("qdpp factors", factors, 0, rows)?);
        let pre = part_mut("qdpp pre", pre, 0, rows * at.hidden)?;
        let logits = part_mut("qdpp logits", logits, 0, 2 * rows)?;
        let sums = part_mut("statistics", sums, 0, stats::SLOTS)?;
        match (R::kernels().qdpp)(
            self.machine.arch,
            &head(weights, at, 2)?,
            targets,
            scale.value,
            pre,
            logits,
            sums,
        ) {
            Some(gradients) => add_head(grads, at, &gradients),
            None => Ok(()),
        }
    }

    fn score_head(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Buffer<R>,
        at: HeadAt,
        drop: Dropout,
        pre: &mut Buffer<R>,
        scores: &mut Buffer<f32>,
    ) -> Result<()> {
        let s = batch.sequences;
        let samples = part("samples", &batch.samples, 0, s)?;
        let pre = part_mut("score pre", pre, 0, s * at.hidden)?;
        let scores = part_mut("scores", scores, 0, s)?;
        (R::kernels().score)(
            self.machine.arch,
            &head(weights, at, 1)?,
            drop,
            (samples, batch.epoch),
            pre,
            scores,
        );
        Ok(())
    }

    fn score_head_backward(
        &self,
        batch: &DeviceBatch<Self>,
        weights: &Buffer<R>,
        at: HeadAt,
        drop: Dropout,
        dscores: &Buffer<f32>,
        pooled: &mut Buffer<R>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let s = batch.sequences;
        let samples = part("samples", &batch.samples, 0, s)?;
        let dscores = part("dscores", dscores, 0, s)?;
        let pooled = part_mut("pooled", pooled, 0, s * at.hidden)?;
        let head = head(weights, at, 1)?;
        let gradients = (R::kernels().score_backward)(
            self.machine.arch,
            &head,
            drop,
            (samples, batch.epoch),
            dscores,
            pooled,
        );
        add_head(grads, at, &gradients)
    }

    fn aggregate(
        &self,
        how: Aggregate,
        batch: &DeviceBatch<Self>,
        scores: &Buffer<f32>,
        documents: &mut Buffer<f32>,
    ) -> Result<()> {
        let cu_documents = cu_documents(batch)?;
        let scores = part("scores", scores, 0, batch.sequences)?;
        rank::aggregate(how, cu_documents, scores, part_mut("documents", documents, 0, batch.documents)?);
        Ok(())
    }

    fn aggregate_backward(
        &self,
        how: Aggregate,
        batch: &DeviceBatch<Self>,
        scores: &Buffer<f32>,
        ddocuments: &Buffer<f32>,
        dscores: &mut Buffer<f32>,
    ) -> Result<()> {
        let cu_documents = cu_documents(batch)?;
        let scores = part("scores", scores, 0, batch.sequences)?;
        let slopes = part("ddocuments", ddocuments, 0, batch.documents)?;
        let dscores = part_mut("dscores", dscores, 0, batch.sequences)?;
        rank::aggregate_backward(how, cu_documents, scores, slopes, dscores);
        Ok(())
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
        let n = if batch.documents > 0 { batch.documents } else { batch.sequences };
        let groups = part("cu_groups", &batch.cu_groups, 0, batch.groups + 1)?;
        check_ends("cu_groups", groups, n)?;
        let values = (part("scores", scores, 0, n)?, part("targets", &batch.targets, 0, n)?);
        let dscores = part_mut("dscores", dscores, 0, n)?;
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
            sum += adamw::sum_squares(self.machine.arch, &self.pool, values);
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
        weights: &mut Buffer<R>,
        master: &mut Buffer<f32>,
        grads: &mut Buffer<f32>,
        moment1: &mut Buffer<f32>,
        moment2: &mut Buffer<f32>,
    ) -> Result<()> {
        let norm_sq = part("norm_sq", norm_sq, 0, 1)?[0];
        for Slice { group, range, moment } in slices(groups, owned) {
            let (at, len) = (range.start, range.len());
            let weights = (part_mut("weights", weights, at, len)?, master_part::<R>(master, moment, len)?);
            let grads = part_mut("gradients", grads, at, len)?;
            let moments =
                (part_mut("moment1", moment1, moment, len)?, part_mut("moment2", moment2, moment, len)?);
            (R::kernels().adamw)(self.machine.arch, update, &groups[group], norm_sq, weights, grads, moments);
        }
        clear_groups(groups, owned, grads)
    }

    fn lamb_direction(
        &self,
        update: AdamW,
        groups: &[ParamGroup],
        owned: &[Range<usize>],
        norm_sq: &Buffer<f32>,
        weights: &Buffer<R>,
        master: &Buffer<f32>,
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
            let weights = if R::NARROW {
                part("master weights", master, moment, len)?
            } else {
                bytemuck::cast_slice(part("weights", weights, at, len)?)
            };
            let values = (weights, part_mut("gradients", grads, at, len)?);
            let moments =
                (part_mut("moment1", moment1, moment, len)?, part_mut("moment2", moment2, moment, len)?);
            let [w, r] = lamb::direction(
                self.machine.arch,
                &self.pool,
                update,
                &groups[group],
                norm_sq,
                values,
                moments,
            );
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
        weights: &mut Buffer<R>,
        master: &mut Buffer<f32>,
        grads: &mut Buffer<f32>,
    ) -> Result<()> {
        let norms = part("norms", norms, 0, 2 * groups.len())?;
        for Slice { group, range, moment } in slices(groups, owned) {
            let step = lamb::step_size(update, &groups[group], [norms[2 * group], norms[2 * group + 1]]);
            let direction = part("gradients", grads, range.start, range.len())?;
            let weights = (
                part_mut("weights", weights, range.start, range.len())?,
                master_part::<R>(master, moment, range.len())?,
            );
            (R::kernels().lamb_apply)(self.machine.arch, step, weights, direction);
        }
        groups.iter().try_for_each(|group| self.clear(grads, group.range.clone()))
    }
}

/// The part of the master weights that an update writes, where there are any.
fn master_part<R: Real>(master: &mut Buffer<f32>, at: usize, len: usize) -> Result<&mut [f32]> {
    if R::NARROW { part_mut("master weights", master, at, len) } else { Ok(&mut []) }
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
