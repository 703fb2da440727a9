//! The model: forward and backward of a BERT encoder with its heads, written out operation by
//! operation in the order of the paper (Devlin et al. 2019), over buffers that exist once.

use std::ops::Range;

use super::activations::{Activations, Capacity, Recompute, device_batch, put, sums};
use super::layout::{HeadSet, Layout};
use super::lora::Lora;
use super::shape::Shape;
use crate::data::batch::Batch;
use crate::engine::{
    Aggregate, Backend, DeviceBatch, Dropout, Epilogue, Fetch, Heads, LossScale, MaskRule, RankLoss, Rows,
    Segment, stats,
};
use crate::{Error, Result};

/// What the model is trained for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// loss = `mlm` * MLM + `qdpp` * QDPP; a weight of 0 leaves the part out.
    Pretraining { mlm: f32, qdpp: f32 },
    /// A loss over ranking groups; with an `Aggregate`, over documents whose score comes from their
    /// passages' scores.
    Ranking(RankLoss, Option<Aggregate>),
}

/// Whether a forward prepares a backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Dropout on; losses leave their gradients behind.
    Train,
    /// Dropout off; losses are only measured.
    Measure,
}

/// How a model is to be run.
#[derive(Clone, Debug)]
pub struct Options {
    pub objective: Objective,
    pub heads: HeadSet,
    pub capacity: Capacity,
    /// Keep activations and gradients for training.
    pub train: bool,
    /// Dropout rate of every site while training.
    pub dropout: f32,
    /// Keys dropout.
    pub seed: u32,
    /// Masking; `None` leaves ids as they are.
    pub rule: Option<MaskRule>,
    /// [V]: 1 for pieces that continue a word.
    pub continues: Vec<u32>,
}

impl Options {
    /// Whether training leaves the QDPP head, which the model has, as it is.
    pub(super) fn leaves_pair(&self) -> bool {
        matches!(self.objective, Objective::Pretraining { qdpp, .. } if qdpp <= 0.0)
    }
}

/// What training adds, freezes and computes twice; by default nothing.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Low-rank adapters, beside a frozen encoder.
    pub lora: Option<Lora>,
    /// Parts that keep their weights, as `Layout::freeze` names them.
    pub freeze: Vec<String>,
    pub recompute: Recompute,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { lora: None, freeze: Vec::new(), recompute: Recompute::None }
    }
}

impl Tuning {
    /// The parameter table of a model that is trained so.
    ///
    /// # Errors
    /// As `Layout::with` and `Layout::freeze`.
    pub fn layout(&self, shape: &Shape, heads: HeadSet) -> Result<Layout> {
        let mut layout = Layout::with(shape, heads, self.lora.as_ref())?;
        layout.freeze(&self.freeze)?;
        Ok(layout)
    }
}

/// Called with the gradient arena when a range of it is complete.
pub type Ready<'a, B> = &'a mut dyn FnMut(&B, &mut <B as Backend>::Buf<f32>, Range<usize>) -> Result<()>;

/// A BERT on one device.
pub struct Bert<B: Backend> {
    pub backend: B,
    pub layout: Layout,
    pub options: Options,
    /// Parameters, [layout.len]
    pub weights: B::Buf<B::Real>,
    /// The QDPP head has its initial values and will keep them.
    pub(super) untrained_pair: bool,
    /// Their gradients, [layout.len] (empty without training)
    pub grads: B::Buf<f32>,
    /// Losses and counts since the last `take_sums`, [stats::SLOTS]
    pub sums: B::Buf<f32>,
    /// [V]
    continues: B::Buf<u32>,
    pub(super) recompute: Recompute,
    pub(super) acts: Activations<B>,
    pub(super) batch: DeviceBatch<B>,
}

impl<B: Backend> Bert<B> {
    /// A model with zeroed weights; `checkpoint` and `init` fill them.
    pub fn new(backend: B, shape: &Shape, options: Options) -> Result<Self> {
        Self::tuned(backend, shape, options, &Tuning::default())
    }

    /// The same with adapters, frozen parts or recomputation.
    ///
    /// # Errors
    /// As `Tuning::layout`.
    pub fn tuned(backend: B, shape: &Shape, options: Options, tuning: &Tuning) -> Result<Self> {
        let layout = tuning.layout(shape, options.heads)?;
        let backend = backend.for_packs(&options.capacity.counts())?;
        let mut continues = backend.zeros(shape.vocab)?;
        if options.continues.len() == shape.vocab {
            backend.upload(&options.continues, &mut continues, 0)?;
        }
        Ok(Self {
            untrained_pair: false,
            weights: backend.zeros(layout.len)?,
            grads: backend.zeros(if options.train { layout.len } else { 0 })?,
            sums: sums(&backend)?,
            acts: Activations::new(&backend, &layout, &options, tuning.recompute)?,
            recompute: tuning.recompute,
            batch: device_batch(&backend, options.capacity)?,
            continues,
            backend,
            layout,
            options,
        })
    }

    /// The losses and counts since the last call, as `engine::stats` orders them, on their way to the
    /// host.
    pub fn send_sums(&mut self) -> Result<Fetch> {
        let sums = self.backend.fetch(&self.sums, 0..stats::SLOTS)?;
        self.backend.clear(&mut self.sums, 0..stats::SLOTS)?;
        Ok(sums)
    }

    /// The same; waits for them.
    pub fn take_sums(&mut self) -> Result<[f64; stats::SLOTS]> {
        Ok(stats::read(&self.send_sums()?.wait()?))
    }

    /// Leaves nothing of a step whose `norm_sq` is not finite behind for the next.
    pub fn forget(&mut self, norm_sq: &B::Buf<f32>) -> Result<()> {
        let (heads, capacity) = (self.options.heads, self.options.capacity);
        self.backend.forget(norm_sq, self.acts.read_behind(&self.layout, heads, capacity))
    }

    /// Puts a pack on the device.
    ///
    /// # Errors
    /// `Error::Config` when the pack is larger than the capacity the model was made for.
    fn load(&mut self, batch: &Batch) -> Result<()> {
        let room = self.options.capacity;
        let device = &mut self.batch;
        for (what, used, most) in [
            ("tokens", batch.tokens(), room.tokens),
            ("sequences", batch.sequences(), room.sequences),
            ("masked tokens", batch.masked, room.masked),
        ] {
            if used > most {
                return Err(Error::config(format!(
                    "a pack has {used} {what}, room was made for {most}: raise train.pack_tokens or lower \
                     objective.mask_rate"
                )));
            }
        }
        if let Some(id) = batch.ids.iter().find(|id| **id as usize >= self.layout.shape.vocab) {
            return Err(Error::data(format!(
                "token id {id} in the data, but the model's vocabulary has {}: use the tokenizer that the \
                 model was trained with",
                self.layout.shape.vocab
            )));
        }
        put(&self.backend, batch, device)
    }

    pub(super) fn dropout(&self, mode: Mode, site: usize) -> Dropout {
        match mode {
            Mode::Train => Dropout::new(self.options.dropout, self.options.seed, site as u32),
            Mode::Measure => Dropout::OFF,
        }
    }

    /// A sequence of operations that a device may replay for packs like this one.
    fn segment(&self, name: &'static str, layer: usize, batch: &Batch) -> Segment {
        let (mlm, pair) = self.parts(batch);
        Segment { name, layer, variant: u32::from(mlm) | u32::from(pair) << 1 }
    }

    /// Whether the pack has MLM, and whether it has QDPP.
    fn parts(&self, batch: &Batch) -> (bool, bool) {
        match self.options.objective {
            Objective::Pretraining { mlm, qdpp } => {
                (mlm > 0.0 && batch.masked > 0, qdpp > 0.0 && !batch.pair_labels.is_empty())
            }
            Objective::Ranking(..) => (false, false),
        }
    }

    // ---- forward ---------------------------------------------------------------------------------

    /// Masks, encodes and computes the objective's losses of one pack into `sums`; in
    /// `Mode::Train`, `backward` of the same pack may follow.
    pub fn forward(&mut self, batch: &Batch, mode: Mode) -> Result<()> {
        self.load(batch)?;
        if mode == Mode::Measure {
            return self.mask_and_measure(batch, mode);
        }
        if !self.backend.begin_segment(self.segment("forward", 0, batch))? {
            self.mask_and_measure(batch, mode)?;
            self.backend.end_segment()?;
        }
        Ok(())
    }

    fn mask_and_measure(&mut self, batch: &Batch, mode: Mode) -> Result<()> {
        if let Some(rule) = &self.options.rule {
            self.backend.mask_tokens(&mut self.batch, rule, &self.continues)?;
        }
        self.losses(batch, mode)
    }

    /// The same for a pack whose ids are masked already: `rows` and their original `labels`, [M].
    pub fn forward_masked(&mut self, batch: &Batch, rows: &[u32], labels: &[u32], mode: Mode) -> Result<()> {
        self.load(batch)?;
        self.backend.upload(rows, &mut self.batch.masked_rows, 0)?;
        self.backend.upload(labels, &mut self.batch.masked_labels, 0)?;
        self.losses(batch, mode)
    }

    /// Encodes the loaded pack and computes its losses.
    fn losses(&mut self, batch: &Batch, mode: Mode) -> Result<()> {
        self.encode(mode)?;
        let (has_mlm, has_pair) = self.parts(batch);
        match self.options.objective {
            Objective::Pretraining { mlm, qdpp } => {
                if has_mlm {
                    self.mlm_forward(scale(mode, mlm, batch.step_masked))?;
                }
                if has_pair {
                    self.pair_forward(scale(mode, qdpp, batch.step_pairs))?;
                }
                Ok(())
            }
            Objective::Ranking(loss, how) => {
                self.score_forward(mode)?;
                self.rank(loss, how, scale(mode, 1.0, batch.step_pairs))
            }
        }
    }

    /// The ranking loss of the scores, and its gradient by them.
    fn rank(&mut self, loss: RankLoss, how: Option<Aggregate>, scale: LossScale) -> Result<()> {
        let (b, batch, a, sums) = (&self.backend, &self.batch, &mut self.acts.heads, &mut self.sums);
        debug_assert_eq!(how.is_some(), batch.documents > 0);
        let Some(how) = how else {
            return b.rank_loss(loss, batch, &a.scores, scale, &mut a.dscores, sums);
        };
        b.aggregate(how, batch, &a.scores, &mut a.documents)?;
        b.rank_loss(loss, batch, &a.documents, scale, &mut a.ddocuments, sums)?;
        b.aggregate_backward(how, batch, &a.scores, &a.ddocuments, &mut a.dscores)
    }

    /// Relevance scores (logits) of one pack's sequences, [S].
    pub fn scores(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.load(batch)?;
        self.encode(Mode::Measure)?;
        self.score_forward(Mode::Measure)?;
        self.backend.download(&self.acts.heads.scores, 0..batch.sequences())
    }

    /// MLM logits [M, V] of the pack that was last measured (`Mode::Measure`; training overwrites them).
    pub fn mlm_logits(&self) -> Result<Vec<f32>> {
        let len = self.batch.masked * self.layout.shape.vocab;
        self.backend.download_weights(&self.acts.heads.logits, 0..len)
    }

    /// QDPP logits [S, 2] of the last pack: "clicked" and "negative".
    pub fn pair_logits(&self) -> Result<Vec<f32>> {
        self.backend.download(&self.acts.heads.pair_logits, 0..2 * self.batch.sequences)
    }

    /// The last pack as it was encoded: ids [T] after masking, rows [M] of the masked tokens and their
    /// original ids [M].
    pub fn masked_pack(&self) -> Result<(Vec<u32>, Vec<u32>, Vec<u32>)> {
        let (b, batch) = (&self.backend, &self.batch);
        let masked = if self.options.rule.is_some() { batch.masked } else { 0 };
        Ok((
            b.download(&batch.ids, 0..batch.tokens)?,
            b.download(&batch.masked_rows, 0..masked)?,
            b.download(&batch.masked_labels, 0..masked)?,
        ))
    }

    fn encode(&mut self, mode: Mode) -> Result<()> {
        let drop = self.dropout(mode, 0);
        let (b, at) = (&self.backend, self.layout.embed);
        let acts = &mut self.acts;
        let (sum, row_stats) = (&mut acts.embed_sum, &mut acts.embed_stats);
        b.embed(&self.batch, &self.weights, at, drop, sum, row_stats, &mut acts.x[0])?;
        for l in 0..self.layout.shape.layers {
            self.layer_forward(l, mode)?;
        }
        Ok(())
    }

    pub(super) fn heads(&self) -> Heads {
        Heads { heads: self.layout.shape.heads, size: self.layout.shape.head_size() }
    }

    /// Index in `acts.x` of the encoder's output.
    fn output_index(&self) -> usize {
        self.layout.shape.layers % self.acts.x.len()
    }

    fn mlm_forward(&mut self, scale: LossScale) -> Result<()> {
        let Some(at) = &self.layout.mlm else { return Err(missing_head("MLM")) };
        let out = self.output_index();
        let (b, w, batch, a) = (&self.backend, &self.weights, &self.batch, &mut self.acts.heads);
        let (m, h) = (Rows::Masked(batch.masked), self.layout.shape.hidden);
        b.gather_rows(&self.acts.x[out], &batch.masked_rows, m, h, &mut a.masked)?;
        b.linear_gelu(&a.masked, w, at.transform, m, &mut a.transform_pre, &mut a.transform_act)?;
        b.norm(&a.transform_act, w, at.norm, m, &mut a.transform_stats, &mut a.transformed)?;
        b.linear(&a.transformed, w, at.decoder, m, Epilogue::None, &mut a.logits)?;
        let (bias, vocab, labels) = (at.decoder.b, at.decoder.n, &batch.masked_labels);
        b.mlm_loss(w, bias, vocab, labels, m, scale, &mut a.logits, &mut self.grads, &mut self.sums)
    }

    /// The pooler's product without its bias, into `heads.pooled`.
    fn pool(&mut self) -> Result<()> {
        let out = self.output_index();
        let (b, batch, a) = (&self.backend, &self.batch, &mut self.acts.heads);
        let (s, h) = (Rows::Sequences(batch.sequences), self.layout.shape.hidden);
        b.gather_rows(&self.acts.x[out], &batch.cu_seqlens, s, h, &mut a.cls)?;
        b.linear(&a.cls, &self.weights, self.layout.pooler, s, Epilogue::None, &mut a.pooled)
    }

    fn pair_forward(&mut self, scale: LossScale) -> Result<()> {
        self.pool()?;
        let Some(at) = self.layout.pair else { return Err(missing_head("QDPP")) };
        let (b, w, batch, a) = (&self.backend, &self.weights, &self.batch, &mut self.acts.heads);
        let (labels, factors, s) =
            (&batch.pair_labels, &batch.pair_weights, Rows::Sequences(batch.sequences));
        let logits = &mut a.pair_logits;
        b.qdpp_head(w, at, labels, factors, s, scale, &mut a.pooled, logits, &mut self.grads, &mut self.sums)
    }

    fn score_forward(&mut self, mode: Mode) -> Result<()> {
        self.pool()?;
        let drop = self.dropout(mode, 1 + 3 * self.layout.shape.layers);
        let Some(at) = self.layout.rank else { return Err(missing_head("ranking")) };
        let a = &mut self.acts.heads;
        self.backend.score_head(&self.batch, &self.weights, at, drop, &mut a.pooled, &mut a.scores)
    }

    // ---- backward --------------------------------------------------------------------------------

    /// Adds the gradients of the pack that `forward` has just seen in `Mode::Train`. `ready` is
    /// called as soon as a range of the gradient arena is complete: heads, layers from last to
    /// first, embeddings; not for the parts below the lowest that learns.
    pub fn backward(&mut self, batch: &Batch, ready: Ready<'_, B>) -> Result<()> {
        if self.acts.backward.is_none() {
            return Err(Error::config("a model that was made for measuring cannot be trained"));
        }
        if !self.backend.begin_segment(self.segment("backward of the heads", 0, batch))? {
            self.heads_backward(batch)?;
            self.backend.end_segment()?;
        }
        ready(&self.backend, &mut self.grads, self.layout.heads_range.clone())?;
        let lowest = self.layout.lowest_trained(); // nothing below it learns
        for l in (0..self.layout.shape.layers).rev().take_while(|l| *l + 1 >= lowest) {
            if !self.backend.begin_segment(self.segment("backward of layer", l, batch))? {
                self.layer_backward(l, l + 1 > lowest)?;
                self.backend.end_segment()?;
            }
            ready(&self.backend, &mut self.grads, self.layout.layers[l].range.clone())?;
        }
        if lowest > 0 {
            return Ok(());
        }
        if !self.backend.begin_segment(self.segment("backward of the embeddings", 0, batch))? {
            self.embed_backward()?;
            self.backend.end_segment()?;
        }
        ready(&self.backend, &mut self.grads, self.layout.embed_range.clone())
    }

    /// From the losses to the gradient of the encoder's output.
    fn heads_backward(&mut self, batch: &Batch) -> Result<()> {
        let Some(back) = &mut self.acts.backward else { return Err(missing_head("backward")) };
        let (t, h) = (Rows::Tokens(self.batch.tokens), self.layout.shape.hidden);
        self.backend.clear_rows(&mut back.dx, t, h)?;
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
        let (Some(at), Some(d)) = (&self.layout.mlm, &mut self.acts.backward) else {
            return Err(missing_head("MLM"));
        };
        let (b, w, batch, a) = (&self.backend, &self.weights, &self.batch, &self.acts.heads);
        let grads = &mut self.grads;
        let (m, h) = (Rows::Masked(batch.masked), self.layout.shape.hidden);
        // mlm_loss has added the decoder's bias gradient already
        if self.layout.trains(0) {
            b.linear_backward_weight(&a.logits, &a.transformed, at.decoder, m, grads)?;
        }
        b.linear_backward_input(&a.logits, w, at.decoder, m, false, &mut d.dtransformed)?;
        let row_stats = &a.transform_stats;
        b.norm_backward(&a.transform_act, w, at.norm, m, row_stats, &mut d.dtransformed, grads)?;
        b.gelu_backward(&a.transform_pre, &mut d.dtransformed, m, h, Some(at.transform.b), grads)?;
        b.linear_backward_weight(&d.dtransformed, &a.masked, at.transform, m, grads)?;
        b.linear_backward_input(&d.dtransformed, w, at.transform, m, false, &mut d.dmasked)?;
        b.scatter_add_rows(&d.dmasked, &batch.masked_rows, m, h, &mut d.dx)
    }

    fn score_backward(&mut self) -> Result<()> {
        let drop = self.dropout(Mode::Train, 1 + 3 * self.layout.shape.layers);
        let Some(at) = self.layout.rank else { return Err(missing_head("ranking")) };
        let (b, w, batch, a) = (&self.backend, &self.weights, &self.batch, &mut self.acts.heads);
        b.score_head_backward(batch, w, at, drop, &a.dscores, &mut a.pooled, &mut self.grads)
    }

    /// From the gradient of the pooler's product (in `heads.pooled`) to the [CLS] rows.
    fn pool_backward(&mut self) -> Result<()> {
        let Some(d) = &mut self.acts.backward else { return Err(missing_head("pooler")) };
        let (b, batch, a) = (&self.backend, &self.batch, &self.acts.heads);
        let (s, h, at) = (Rows::Sequences(batch.sequences), self.layout.shape.hidden, self.layout.pooler);
        // the head has added the pooler's bias gradient already
        b.linear_backward_weight(&a.pooled, &a.cls, at, s, &mut self.grads)?;
        b.linear_backward_input(&a.pooled, &self.weights, at, s, false, &mut d.dcls)?;
        b.scatter_add_rows(&d.dcls, &batch.cu_seqlens, s, h, &mut d.dx)
    }

    fn embed_backward(&mut self) -> Result<()> {
        let drop = self.dropout(Mode::Train, 0);
        let Some(d) = &mut self.acts.backward else { return Err(missing_head("backward")) };
        let (b, w, at) = (&self.backend, &self.weights, self.layout.embed);
        let (sum, row_stats) = (&self.acts.embed_sum, &self.acts.embed_stats);
        b.embed_backward(&self.batch, w, at, drop, sum, row_stats, &mut d.dx, &mut self.grads)
    }
}

/// Factor of a loss whose mean is taken over `count` of the whole step.
fn scale(mode: Mode, weight: f32, count: usize) -> LossScale {
    match mode {
        Mode::Train => LossScale::mean(weight, count),
        Mode::Measure => LossScale::MEASURE,
    }
}

pub(super) fn missing_head(name: &str) -> Error {
    Error::config(format!("the model was made without the {name} part that this objective needs"))
}
