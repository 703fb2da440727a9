//! The model: forward and backward of a BERT encoder with its heads, written out operation by
//! operation in the order of the paper (Devlin et al. 2019), over buffers that exist once.

use std::ops::Range;

use super::activations::{Activations, Recompute, device_batch, put, sums};
use super::config_file::Origin;
use super::layout::Layout;
use super::options::missing_part;
pub use super::options::{Mode, Objective, Options, Tuning};
use super::shape::Shape;
use crate::data::batch::Batch;
use crate::engine::op::{self, Dropout, Heads, LossScale};
use crate::engine::{DeviceBatch, Engine, Fetch, Floats, Reals, Segment, Words, stats};
use crate::{Error, Result};

/// Called with the gradient arena when a range of it is complete.
pub type Ready<'a, E> = &'a mut dyn FnMut(&E, &mut Floats<E>, Range<usize>) -> Result<()>;

/// A BERT on one device.
pub struct Bert<E: Engine> {
    pub engine: E,
    pub layout: Layout,
    pub options: Options,
    /// Parameters, [layout.len]
    pub weights: Reals<E>,
    /// What its folder says about where it comes from.
    pub(super) origin: Origin,
    /// Their gradients, [layout.len] (empty without training)
    pub grads: Floats<E>,
    /// Losses and counts since the last `take_sums`, [stats::SLOTS]
    pub sums: Floats<E>,
    /// [V]
    continues: Words<E>,
    pub(super) recompute: Recompute,
    pub(super) acts: Activations<E>,
    pub(super) batch: DeviceBatch<E>,
}

impl<E: Engine> Bert<E> {
    /// A model with zeroed weights; `checkpoint` and `init` fill them.
    pub fn new(engine: E, shape: &Shape, options: Options) -> Result<Self> {
        Self::tuned(engine, shape, options, &Tuning::default())
    }

    /// The same with adapters, frozen parts or recomputation.
    ///
    /// # Errors
    /// As `Tuning::layout`.
    pub fn tuned(engine: E, shape: &Shape, options: Options, tuning: &Tuning) -> Result<Self> {
        Self::laid_out(engine, tuning.layout(shape, options.heads)?, options, tuning.recompute)
    }

    /// The same from its parameter table.
    ///
    /// # Errors
    /// Any error of the engine.
    pub fn laid_out(engine: E, layout: Layout, options: Options, recompute: Recompute) -> Result<Self> {
        let engine = engine.for_packs(&options.capacity.counts())?;
        let mut continues = engine.zeros(layout.shape.vocab)?;
        // rows of the word table beyond the tokenizer's pieces are padding
        let pieces = options.continues.len().min(layout.shape.vocab);
        if pieces > 0 {
            engine.upload(&options.continues[..pieces], &mut continues, 0)?;
        }
        Ok(Self {
            origin: Origin::default(),
            weights: engine.zeros(layout.len)?,
            grads: engine.zeros(if options.train { layout.len } else { 0 })?,
            sums: sums(&engine)?,
            acts: Activations::new(&engine, &layout, &options, recompute)?,
            recompute,
            batch: device_batch(&engine, options.capacity)?,
            continues,
            engine,
            layout,
            options,
        })
    }

    /// The losses and counts since the last call, as `engine::stats` orders them, on their way to the
    /// host.
    pub fn send_sums(&mut self) -> Result<Fetch> {
        let sums = self.engine.fetch(&self.sums, 0..stats::SLOTS)?;
        self.engine.clear(&mut self.sums, 0..stats::SLOTS)?;
        Ok(sums)
    }

    /// The same; waits for them.
    pub fn take_sums(&mut self) -> Result<[f64; stats::SLOTS]> {
        Ok(stats::read(&self.send_sums()?.wait()?))
    }

    /// Clears what a step whose `norm_sq` is not finite would leave to the next.
    pub fn forget(&mut self, norm_sq: &Floats<E>) -> Result<()> {
        let buffers = self.acts.read_behind(&self.layout, self.options.heads, self.options.capacity);
        self.engine.run(op::Forget { norm_sq, buffers })
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
                    "a pack has {used} {what}, but the model has room for {most}: raise train.pack_tokens or \
                     lower objective.mask_rate"
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
        let positions = self.layout.shape.positions;
        if let Some(place) = batch.positions.iter().find(|place| **place as usize >= positions) {
            return Err(Error::data(format!(
                "a sequence reaches position {place}, but the model has {positions}: lower data.max_tokens"
            )));
        }
        put(&self.engine, batch, device)
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
    pub(super) fn parts(&self, batch: &Batch) -> (bool, bool) {
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
        let engine = self.engine.clone();
        engine.segment(self.segment("forward", 0, batch), || self.mask_and_measure(batch, mode))
    }

    fn mask_and_measure(&mut self, batch: &Batch, mode: Mode) -> Result<()> {
        if let Some(rule) = &self.options.rule {
            let (batch, continues) = (&mut self.batch, &self.continues);
            self.engine.run(op::MaskTokens { batch, rule, continues })?;
        }
        self.losses(batch, mode)
    }

    /// The same for a pack whose ids are masked already: `rows` and their original `labels`, [M].
    pub fn forward_masked(&mut self, batch: &Batch, rows: &[u32], labels: &[u32], mode: Mode) -> Result<()> {
        self.load(batch)?;
        self.engine.upload(rows, &mut self.batch.masked_rows, 0)?;
        self.engine.upload(labels, &mut self.batch.masked_labels, 0)?;
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

    /// Relevance scores (logits) of one pack's sequences, [S].
    pub fn scores(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.load(batch)?;
        self.encode(Mode::Measure)?;
        self.score_forward(Mode::Measure)?;
        self.engine.download(&self.acts.heads.scores, 0..batch.sequences())
    }

    /// MLM logits [M, V] of the pack that was last measured (`Mode::Measure`; training overwrites them).
    pub fn mlm_logits(&self) -> Result<Vec<f32>> {
        let len = self.batch.masked * self.layout.shape.vocab;
        self.engine.download_weights(&self.acts.heads.logits, 0..len)
    }

    /// QDPP logits [S, 2] of the last pack: "clicked" and "negative".
    pub fn pair_logits(&self) -> Result<Vec<f32>> {
        self.engine.download(&self.acts.heads.pair_logits, 0..2 * self.batch.sequences)
    }

    /// The last pack as it was encoded: ids [T] after masking, rows [M] of the masked tokens and their
    /// original ids [M].
    pub fn masked_pack(&self) -> Result<(Vec<u32>, Vec<u32>, Vec<u32>)> {
        let (engine, batch) = (&self.engine, &self.batch);
        let masked = if self.options.rule.is_some() { batch.masked } else { 0 };
        Ok((
            engine.download(&batch.ids, 0..batch.tokens)?,
            engine.download(&batch.masked_rows, 0..masked)?,
            engine.download(&batch.masked_labels, 0..masked)?,
        ))
    }

    fn encode(&mut self, mode: Mode) -> Result<()> {
        let drop = self.dropout(mode, 0);
        let acts = &mut self.acts;
        self.engine.run(op::Embed {
            batch: &self.batch,
            weights: &self.weights,
            at: self.layout.embed,
            drop,
            sum: &mut acts.embed_sum,
            row_stats: &mut acts.embed_stats,
            out: &mut acts.x[0],
        })?;
        for l in 0..self.layout.shape.layers {
            self.layer_forward(l, mode)?;
        }
        Ok(())
    }

    pub(super) fn heads(&self) -> Heads {
        Heads { heads: self.layout.shape.heads, size: self.layout.shape.head_size() }
    }

    /// Index in `acts.x` of the encoder's output.
    pub(super) fn output_index(&self) -> usize {
        self.layout.shape.layers % self.acts.x.len()
    }

    // ---- backward --------------------------------------------------------------------------------

    /// Adds the gradients of the pack that `forward` has just seen in `Mode::Train`. `ready` is
    /// called as soon as a range of the gradient arena is complete: heads, layers from last to
    /// first, embeddings; not for the parts below the lowest that learns.
    pub fn backward(&mut self, batch: &Batch, ready: Ready<'_, E>) -> Result<()> {
        if self.acts.backward.is_none() {
            return Err(Error::config("a model that was made for measuring cannot be trained"));
        }
        let engine = self.engine.clone();
        engine.segment(self.segment("backward of the heads", 0, batch), || self.heads_backward(batch))?;
        ready(&engine, &mut self.grads, self.layout.heads_range.clone())?;
        let lowest = self.layout.lowest_trained(); // nothing below it learns
        for l in (0..self.layout.shape.layers).rev().take_while(|l| *l + 1 >= lowest) {
            let segment = self.segment("backward of layer", l, batch);
            engine.segment(segment, || self.layer_backward(l, l + 1 > lowest))?;
            ready(&engine, &mut self.grads, self.layout.layers[l].range.clone())?;
        }
        if lowest > 0 {
            return Ok(());
        }
        engine.segment(self.segment("backward of the embeddings", 0, batch), || self.embed_backward())?;
        ready(&engine, &mut self.grads, self.layout.embed_range.clone())
    }

    fn embed_backward(&mut self) -> Result<()> {
        let drop = self.dropout(Mode::Train, 0);
        let Some(d) = &mut self.acts.backward else { return Err(missing_part("backward")) };
        self.engine.run(op::EmbedBackward {
            batch: &self.batch,
            weights: &self.weights,
            at: self.layout.embed,
            drop,
            sum: &self.acts.embed_sum,
            row_stats: &self.acts.embed_stats,
            dout: &mut d.dx,
            grads: &mut self.grads,
        })
    }
}

/// Factor of a loss whose mean is taken over `count` of the whole step.
fn scale(mode: Mode, weight: f32, count: usize) -> LossScale {
    match mode {
        Mode::Train => LossScale::mean(weight, count),
        Mode::Measure => LossScale::MEASURE,
    }
}
