//! Every operation of an engine on one small pack, with what came out: run on two engines, the
//! results compare operation by operation. Inputs are pure functions of a seed, rounded to bf16, so
//! that an engine in bf16 starts from the same numbers as one in f32.

use crate::Result;
use crate::data::batch::Batch;
use crate::engine::{
    AdamW, Aggregate, Backend, DeviceBatch, Dropout, Epilogue, Heads, LossScale, MaskRule, PackCounts,
    RankLoss, Rows, stats,
};
use crate::model::activations::{Capacity, device_batch, put};
use crate::model::layout::{HeadSet, Layout};
use crate::model::shape::Shape;
use crate::model::trained::Rates;
use crate::random::philox;
use crate::text::Special;

/// What one operation left behind.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The operation and which of its results.
    pub name: String,
    pub values: Vec<f32>,
}

/// Sizes of the trial: one head of 64 columns and one of 32 would not share a model, so each is tried.
pub fn shapes() -> [Shape; 2] {
    let shape = |heads| Shape {
        vocab: 301, // no multiple of 8, as BERT's 30522
        hidden: 64,
        layers: 1,
        heads,
        intermediate: 136,
        positions: 160,
        segments: 2,
    };
    [shape(1), shape(2)]
}

/// Sequences of one token and more, of one attention block and more, in two ranking groups.
pub fn pack(vocab: usize) -> Batch {
    let special = Special { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 };
    let mut batch = Batch { epoch: 3, step_masked: 40, step_pairs: 9, ..Batch::default() };
    for (i, (first, second)) in
        [(2, Some(5)), (17, None), (3, Some(60)), (30, Some(100)), (1, None)].iter().enumerate()
    {
        let words = |from: u32, n: usize| -> Vec<u32> {
            let draw = |j: u32| 5 + philox([7, i as u32], [from + j, 0, 0, 0])[0] % (vocab as u32 - 5);
            (0..n as u32).map(draw).collect()
        };
        let second = second.map(|n| words(1000, n));
        batch.push(special, 50 + i as u32, &words(0, *first), second.as_deref());
    }
    batch.pair_labels = vec![0, 1, 1, 0, 1];
    batch.pair_weights = vec![1.0, 0.5, 2.0, 1.25, 1.0];
    batch.cu_documents = vec![0, 1, 3, 5];
    batch.cu_groups = vec![0, 1, 3];
    batch.targets = vec![1.0, 0.0, 2.0];
    batch.masked = crate::data::mask::count_masked(&rule(vocab), &batch, &vec![0; vocab]);
    batch
}

/// One token in five, over queries and documents.
pub fn rule(vocab: usize) -> MaskRule {
    MaskRule {
        seed: 5,
        threshold: u32::MAX / 5,
        segments: 3,
        whole_word: false,
        vocab: vocab as u32,
        cls: 2,
        sep: 3,
        mask: 4,
    }
}

/// Values in -1..1, representable in bf16.
fn values(seed: u32, len: usize) -> Vec<f32> {
    let draw = |i: usize| philox([seed, 77], [i as u32, 0, 0, 0])[0] as f32 / 2f32.powi(31) - 1.0;
    (0..len).map(|i| half::bf16::from_f32(draw(i)).to_f32()).collect()
}

type Real<B> = <B as Backend>::Buf<<B as Backend>::Real>;

/// One engine at work.
struct Trial<B: Backend> {
    b: B,
    layout: Layout,
    weights: Real<B>,
    batch: DeviceBatch<B>,
    drop: Dropout,
    /// T, S, M
    t: Rows,
    s: Rows,
    m: Rows,
    outcomes: Vec<Outcome>,
}

/// Runs every operation on `backend` and returns what came out, in a fixed order.
pub fn run<B: Backend>(backend: &B, shape: &Shape) -> Result<Vec<Outcome>> {
    let pack = pack(shape.vocab);
    let capacity =
        Capacity { tokens: pack.tokens() + 20, sequences: pack.sequences() + 3, masked: pack.masked + 9 };
    let most = PackCounts { groups: 4, ..capacity.counts() };
    let b = backend.for_packs(&most)?;
    let layout = Layout::new(shape, HeadSet { mlm: true, pair: true, rank: true })?;
    let mut start = values(1, layout.len);
    for param in layout.params.iter().filter(|p| p.name.ends_with("LayerNorm.weight")) {
        start[param.range()].iter_mut().for_each(|w| *w = 1.0 + 0.25 * *w);
    }
    let mut weights = b.zeros(layout.len)?;
    b.upload_weights(&start, &mut weights, 0)?;
    let mut batch = device_batch(&b, capacity)?;
    put(&b, &pack, &mut batch)?;
    let (t, s, m) =
        (Rows::Tokens(batch.tokens), Rows::Sequences(batch.sequences), Rows::Masked(batch.masked));
    let drop = Dropout::new(0.1, 11, 2);
    let mut trial = Trial { b, layout, weights, batch, drop, t, s, m, outcomes: Vec::new() };
    trial.masking()?;
    trial.products()?;
    trial.embedding()?;
    trial.norms()?;
    trial.gathering()?;
    trial.attention()?;
    trial.mlm()?;
    trial.heads()?;
    trial.ranking()?;
    trial.passages()?;
    trial.optimiser()?;
    trial.forgetting()?;
    Ok(trial.outcomes)
}

impl<B: Backend> Trial<B> {
    /// Room for `rows` (with slack behind them, as capacities have) x `width`, of drawn values.
    fn drawn(&self, seed: u32, rows: Rows, width: usize) -> Result<Real<B>> {
        let mut buf = self.b.zeros((rows.count() + 20) * width)?;
        self.b.upload_weights(&values(seed, rows.count() * width), &mut buf, 0)?;
        Ok(buf)
    }

    fn empty(&self, rows: Rows, width: usize) -> Result<Real<B>> {
        self.b.zeros((rows.count() + 20) * width)
    }

    /// f32 values on the device, as gradients and statistics are.
    fn single(&self, rows: Rows, width: usize) -> Result<B::Buf<f32>> {
        self.b.zeros((rows.count() + 20) * width)
    }

    fn grads(&self) -> Result<B::Buf<f32>> {
        self.b.zeros(self.layout.len)
    }

    fn keep(&mut self, name: &str, buf: &Real<B>, len: usize) -> Result<()> {
        let values = self.b.download_weights(buf, 0..len)?;
        self.outcomes.push(Outcome { name: name.into(), values });
        Ok(())
    }

    fn keep_single(&mut self, name: &str, buf: &B::Buf<f32>, len: usize) -> Result<()> {
        let values = self.b.download(buf, 0..len)?;
        self.outcomes.push(Outcome { name: name.into(), values });
        Ok(())
    }

    fn keep_words(&mut self, name: &str, words: Vec<u32>) {
        self.outcomes
            .push(Outcome { name: name.into(), values: words.into_iter().map(|w| w as f32).collect() });
    }

    fn keep_gradient(&mut self, name: &str, grads: &B::Buf<f32>, at: usize, len: usize) -> Result<()> {
        let values = self.b.download(grads, at..at + len)?;
        self.outcomes.push(Outcome { name: name.into(), values });
        Ok(())
    }

    fn masking(&mut self) -> Result<()> {
        let vocab = self.layout.shape.vocab;
        let continues: B::Buf<u32> = self.b.zeros(vocab)?;
        self.b.mask_tokens(&mut self.batch, &rule(vocab), &continues)?;
        let (t, m) = (self.t.count(), self.m.count());
        let ids = self.b.download(&self.batch.ids, 0..t)?;
        let rows = self.b.download(&self.batch.masked_rows, 0..m)?;
        let labels = self.b.download(&self.batch.masked_labels, 0..m)?;
        self.keep_words("mask_tokens: ids", ids);
        self.keep_words("mask_tokens: rows", rows);
        self.keep_words("mask_tokens: labels", labels);
        Ok(())
    }

    fn products(&mut self) -> Result<()> {
        let (t, at) = (self.t, self.layout.layers[0].up);
        let x = self.drawn(2, t, at.k)?;
        let dy = self.drawn(3, t, at.n)?;
        let (mut out, mut act) = (self.empty(t, at.n)?, self.empty(t, at.n)?);
        for (name, epilogue) in [("linear", Epilogue::None), ("linear with bias", Epilogue::Bias)] {
            self.b.linear(&x, &self.weights, at, t, epilogue, &mut out)?;
            self.keep(name, &out, t.count() * at.n)?;
        }
        self.b.linear_gelu(&x, &self.weights, at, t, &mut out, &mut act)?;
        self.keep("linear_gelu", &act, t.count() * at.n)?;
        self.b.gelu(&out, t, at.n, &mut act)?;
        self.keep("gelu", &act, t.count() * at.n)?;
        let mut d = self.drawn(3, t, at.n)?;
        let mut grads = self.grads()?;
        self.b.gelu_backward(&out, &mut d, t, at.n, Some(at.b), &mut grads)?;
        self.keep("gelu_backward", &d, t.count() * at.n)?;
        self.keep_gradient("gelu_backward: bias", &grads, at.b, at.n)?;
        let mut dx = self.drawn(4, t, at.k)?;
        for (name, add) in [("linear_backward_input, added", true), ("linear_backward_input", false)] {
            self.b.linear_backward_input(&dy, &self.weights, at, t, add, &mut dx)?;
            self.keep(name, &dx, t.count() * at.k)?;
        }
        for _ in 0..2 {
            self.b.linear_backward_weight(&dy, &x, at, t, &mut grads)?; // packs add up
        }
        self.keep_gradient("linear_backward_weight", &grads, at.w, at.n * at.k)
    }

    fn embedding(&mut self) -> Result<()> {
        let (t, at) = (self.t, self.layout.embed);
        let h = at.norm.hidden;
        let (mut sum, mut out, mut stats) = (self.empty(t, h)?, self.empty(t, h)?, self.single(t, 2)?);
        self.b.embed(&self.batch, &self.weights, at, self.drop, &mut sum, &mut stats, &mut out)?;
        self.keep("embed", &out, t.count() * h)?;
        self.keep_single("embed: statistics", &stats, t.count() * 2)?;
        let (mut dout, mut grads) = (self.drawn(5, t, h)?, self.grads()?);
        self.b.embed_backward(
            &self.batch,
            &self.weights,
            at,
            self.drop,
            &sum,
            &stats,
            &mut dout,
            &mut grads,
        )?;
        let range = self.layout.embed_range.clone();
        self.keep_gradient("embed_backward", &grads, range.start, range.len())
    }

    fn norms(&mut self) -> Result<()> {
        let (t, layer) = (self.t, self.layout.layers[0].clone());
        let (norm, bias) = (layer.output_norm, layer.down.b);
        let h = norm.hidden;
        let residual = self.drawn(6, t, h)?;
        let (mut y, mut out, mut stats) = (self.drawn(7, t, h)?, self.empty(t, h)?, self.single(t, 2)?);
        let (b, w, batch) = (&self.b, &self.weights, &self.batch);
        b.residual_norm(batch, w, bias, norm, self.drop, &residual, &mut y, &mut stats, &mut out)?;
        let dout = self.drawn(8, t, h)?;
        let (mut dresidual, mut dy, mut grads) = (self.empty(t, h)?, self.empty(t, h)?, self.grads()?);
        b.residual_norm_backward(
            batch,
            w,
            bias,
            norm,
            self.drop,
            &y,
            &stats,
            &dout,
            &mut dresidual,
            &mut dy,
            &mut grads,
        )?;
        self.keep("residual_norm", &out, t.count() * h)?;
        self.keep("residual_norm: sum", &y, t.count() * h)?;
        self.keep("residual_norm_backward: dresidual", &dresidual, t.count() * h)?;
        self.keep("residual_norm_backward: dy", &dy, t.count() * h)?;
        self.keep_gradient("residual_norm_backward: bias", &grads, bias, h)?;
        self.keep_gradient("residual_norm_backward: gamma", &grads, norm.gamma, h)?;
        self.keep_gradient("residual_norm_backward: beta", &grads, norm.beta, h)?;

        let m = self.m;
        let x = self.drawn(9, m, h)?;
        let (mut out, mut stats) = (self.empty(m, h)?, self.single(m, 2)?);
        self.b.norm(&x, &self.weights, norm, m, &mut stats, &mut out)?;
        let (mut d, mut grads) = (self.drawn(10, m, h)?, self.grads()?);
        self.b.norm_backward(&x, &self.weights, norm, m, &stats, &mut d, &mut grads)?;
        self.keep("norm", &out, m.count() * h)?;
        self.keep("norm_backward", &d, m.count() * h)?;
        self.keep_gradient("norm_backward: gamma", &grads, norm.gamma, h)?;
        self.keep_gradient("norm_backward: beta", &grads, norm.beta, h)
    }

    fn gathering(&mut self) -> Result<()> {
        let (t, m, h) = (self.t, self.m, self.layout.shape.hidden);
        let mut x = self.drawn(12, t, h)?;
        let mut out = self.empty(m, h)?;
        self.b.gather_rows(&x, &self.batch.masked_rows, m, h, &mut out)?;
        self.keep("gather_rows", &out, m.count() * h)?;
        let src = self.drawn(13, m, h)?;
        self.b.scatter_add_rows(&src, &self.batch.masked_rows, m, h, &mut x)?;
        self.keep("scatter_add_rows", &x, t.count() * h)
    }

    fn attention(&mut self) -> Result<()> {
        let (t, shape) = (self.t, &self.layout.shape);
        let (heads, h) = (Heads { heads: shape.heads, size: shape.head_size() }, shape.hidden);
        let qkv = self.drawn(14, t, 3 * h)?;
        let (mut lse, mut out) = (self.single(t, heads.heads)?, self.empty(t, h)?);
        self.b.attention(&self.batch, heads, self.drop, &qkv, &mut lse, &mut out)?;
        self.keep("attention", &out, t.count() * h)?;
        self.keep_single("attention: log-sum-exp", &lse, t.count() * heads.heads)?;
        let (dout, mut dqkv, mut grads) = (self.drawn(15, t, h)?, self.empty(t, 3 * h)?, self.grads()?);
        let bias = self.layout.layers[0].qkv.b;
        self.b.attention_backward(
            &self.batch,
            heads,
            self.drop,
            &qkv,
            &lse,
            &out,
            &dout,
            &mut dqkv,
            Some(bias),
            &mut grads,
        )?;
        self.keep("attention_backward", &dqkv, t.count() * 3 * h)?;
        self.keep_gradient("attention_backward: bias", &grads, bias, 3 * h)
    }

    fn mlm(&mut self) -> Result<()> {
        let Some(at) = self.layout.mlm.clone() else { return Ok(()) };
        let (m, vocab, bias) = (self.m, at.decoder.n, at.decoder.b);
        for (name, scale) in
            [("mlm_loss", LossScale::mean(0.5, 40)), ("mlm_loss, measured", LossScale::MEASURE)]
        {
            let (mut logits, mut grads) = (self.drawn(16, m, vocab)?, self.grads()?);
            let mut sums = self.b.zeros(stats::SLOTS)?;
            let labels = &self.batch.masked_labels;
            self.b.mlm_loss(
                &self.weights,
                bias,
                vocab,
                labels,
                m,
                scale,
                &mut logits,
                &mut grads,
                &mut sums,
            )?;
            self.keep(name, &logits, m.count() * vocab)?;
            self.keep_single(&format!("{name}: sums"), &sums, 3)?;
            self.keep_gradient(&format!("{name}: bias"), &grads, bias, vocab)?;
        }
        Ok(())
    }

    fn heads(&mut self) -> Result<()> {
        let (Some(pair), Some(rank)) = (self.layout.pair, self.layout.rank) else { return Ok(()) };
        let (s, h, range) = (self.s, self.layout.shape.hidden, self.layout.heads_range.clone());
        let (mut pre, mut logits) = (self.drawn(17, s, h)?, self.single(s, 2)?);
        let (mut grads, mut sums) = (self.grads()?, self.b.zeros(stats::SLOTS)?);
        let (w, labels, factors) = (&self.weights, &self.batch.pair_labels, &self.batch.pair_weights);
        let scale = LossScale::mean(1.0, 9);
        self.b.qdpp_head(w, pair, labels, factors, s, scale, &mut pre, &mut logits, &mut grads, &mut sums)?;
        self.keep("qdpp_head", &pre, s.count() * h)?;
        self.keep_single("qdpp_head: logits", &logits, s.count() * 2)?;
        self.keep_single("qdpp_head: sums", &sums, 6)?;
        self.keep_gradient("qdpp_head: gradients", &grads, range.start, range.len())?;

        let (mut pooled, mut scores, mut grads) = (self.drawn(18, s, h)?, self.single(s, 1)?, self.grads()?);
        self.b.score_head(&self.batch, &self.weights, rank, self.drop, &mut pooled, &mut scores)?;
        self.keep_single("score_head", &scores, s.count())?;
        let mut dscores = self.single(s, 1)?;
        self.b.upload(&values(19, s.count()), &mut dscores, 0)?;
        let (w, drop) = (&self.weights, self.drop);
        self.b.score_head_backward(&self.batch, w, rank, drop, &dscores, &mut pooled, &mut grads)?;
        self.keep("score_head_backward", &pooled, s.count() * h)?;
        self.keep_gradient("score_head_backward: gradients", &grads, range.start, range.len())
    }

    fn ranking(&mut self) -> Result<()> {
        let losses = [
            ("lce", RankLoss::Lce),
            ("pairwise-softmax", RankLoss::PairwiseSoftmax),
            ("hinge", RankLoss::Hinge { margin: 0.7 }),
            ("pointwise", RankLoss::Pointwise),
            ("listnet", RankLoss::ListNet),
            ("margin-mse", RankLoss::MarginMse),
        ];
        let s = self.s;
        for (name, loss) in losses {
            let (mut scores, mut dscores) = (self.single(s, 1)?, self.single(s, 1)?);
            self.b.upload(&values(20, s.count()), &mut scores, 0)?;
            let mut sums = self.b.zeros(stats::SLOTS)?;
            let scale = LossScale::mean(1.0, 9);
            self.b.rank_loss(loss, &self.batch, &scores, scale, &mut dscores, &mut sums)?;
            self.keep_single(&format!("rank_loss {name}"), &dscores, s.count())?;
            self.keep_single(&format!("rank_loss {name}: sums"), &sums, stats::SLOTS)?;
        }
        Ok(())
    }

    fn passages(&mut self) -> Result<()> {
        let s = self.s;
        let (mut scores, mut slopes) = (self.single(s, 1)?, self.single(s, 1)?);
        self.b.upload(&values(23, s.count()), &mut scores, 0)?;
        self.b.upload(&values(24, s.count()), &mut slopes, 0)?;
        let ways = [
            ("first-p", Aggregate::FirstP),
            ("max-p", Aggregate::MaxP),
            ("sum-p", Aggregate::SumP),
            ("avg-p", Aggregate::AvgP),
        ];
        for (name, how) in ways {
            let (mut documents, mut dscores) = (self.single(s, 1)?, self.single(s, 1)?);
            self.b.aggregate(how, &self.batch, &scores, &mut documents)?;
            self.b.aggregate_backward(how, &self.batch, &scores, &slopes, &mut dscores)?;
            self.keep_single(&format!("aggregate {name}"), &documents, s.count())?;
            self.keep_single(&format!("aggregate_backward {name}"), &dscores, s.count())?;
        }
        Ok(())
    }

    fn optimiser(&mut self) -> Result<()> {
        let len = self.layout.len;
        let all = 0..len;
        let owned = std::slice::from_ref(&all);
        let mut norm = self.b.zeros(1)?;
        for lamb in [false, true] {
            let name = if lamb { "lamb" } else { "adamw" };
            let groups = self.layout.groups(Rates { head: 3.0, layer_decay: 1.0 }, lamb);
            let mut grads = self.grads()?;
            self.b.upload(&values(21, len), &mut grads, 0)?;
            let [mut first, mut second, mut master] = [self.grads()?, self.grads()?, self.master()?];
            let mut weights = self.b.zeros(len)?;
            let start = self.b.download_weights(&self.weights, 0..len)?;
            self.b.upload_weights(&start, &mut weights, 0)?;
            let mut norms = self.b.zeros(2 * groups.len())?;
            for step in 1..=2 {
                self.b.sum_squares(&grads, owned, &mut norm, 0)?;
                let update = update(step);
                let b = &self.b;
                if lamb {
                    b.lamb_direction(
                        update,
                        &groups,
                        owned,
                        &norm,
                        &weights,
                        &master,
                        &mut grads,
                        &mut first,
                        &mut second,
                        &mut norms,
                    )?;
                    b.lamb_apply(update, &groups, owned, &norms, &mut weights, &mut master, &mut grads)?;
                } else {
                    b.adamw(
                        update,
                        &groups,
                        owned,
                        &norm,
                        &mut weights,
                        &mut master,
                        &mut grads,
                        &mut first,
                        &mut second,
                    )?;
                }
                self.b.upload(&values(22, len), &mut grads, 0)?;
            }
            self.keep_single(&format!("sum_squares of {name}"), &norm, 1)?;
            self.keep(&format!("{name}: weights"), &weights, len)?;
            self.keep_single(&format!("{name}: first moment"), &first, len)?;
            self.keep_single(&format!("{name}: second moment"), &second, len)?;
        }
        Ok(())
    }

    /// Values stay after a step whose norm is finite and are gone after another.
    fn forgetting(&mut self) -> Result<()> {
        let (t, h) = (self.t, self.layout.shape.hidden);
        let len = t.count() * h;
        for (name, norm_sq) in [("forget nothing", 2.0), ("forget", f32::NAN)] {
            // more than one launch takes, each to a length of its own
            let mut kept = (0..11).map(|i| self.drawn(23 + i, t, h)).collect::<Result<Vec<_>>>()?;
            let lengths = (1..=11).map(|i| len * i / 11 / 8 * 8);
            let mut norm = self.b.zeros(1)?;
            self.b.upload(&[norm_sq], &mut norm, 0)?;
            self.b.forget(&norm, kept.iter_mut().zip(lengths).collect())?;
            kept.iter().try_for_each(|buffer| self.keep(name, buffer, len))?;
        }
        Ok(())
    }

    /// The weights in f32 where the engine's are narrower, else nothing.
    fn master(&self) -> Result<B::Buf<f32>> {
        if size_of::<B::Real>() == size_of::<f32>() {
            return self.b.zeros(0);
        }
        let mut master = self.grads()?;
        let start = self.b.download_weights(&self.weights, 0..self.layout.len)?;
        self.b.upload(&start, &mut master, 0)?;
        Ok(master)
    }
}

fn update(step: u32) -> AdamW {
    AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: 0.01, step, clip_norm: 1.0 }
}
