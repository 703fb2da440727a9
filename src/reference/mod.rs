//! The oracle: the same BERT as `model/`, written with candle-nn and its autograd, so that no gradient of the
//! engine has to be taken on trust. It shares only the random decisions with the engine, no arithmetic. It
//! puts clarity before speed: every sequence of a pack is run on its own.
//!
//! Of candle-nn only operations with a gradient are used. `LayerNorm::forward` and `softmax_last_dim`
//! silently have none; [`Reference::gradients`] therefore refuses a loss that leaves a parameter without one.

mod bert;
mod dropout;
mod parameters;

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::log_softmax;

use crate::data::batch::Batch;
use crate::engine::op::Aggregate;
use crate::model::shape::Shape;
use crate::{Error, Result};
use bert::Weights;
use dropout::DropoutMasks;
use parameters::Head;
pub use parameters::Tensors;

/// A BERT encoder with the heads that its tensors hold.
pub struct Reference {
    shape: Shape,
    weights: Weights,
}

/// What [`Reference::pretraining`] computes.
pub struct Pretraining {
    /// Sum over the pack's masked tokens of the cross-entropy in nats / `step_masked`, scalar.
    pub mlm_loss: Tensor,
    /// Sum over the pack's sequences of the cross-entropy in nats / `step_pairs`, scalar; `None`
    /// for a pack without `pair_labels`.
    pub qdpp_loss: Option<Tensor>,
    /// [M, V], bias included.
    pub mlm_logits: Tensor,
    /// [S, 2]
    pub pair_logits: Option<Tensor>,
}

impl Pretraining {
    /// The sum of the losses, each with weight 1.
    pub fn total(&self) -> Result<Tensor> {
        match &self.qdpp_loss {
            Some(qdpp) => Ok((&self.mlm_loss + qdpp)?),
            None => Ok(self.mlm_loss.clone()),
        }
    }
}

/// What [`Reference::ranking`] computes.
pub struct Ranking {
    /// Relevance logits, [S].
    pub scores: Tensor,
    /// Sum over the pack's groups of the localised contrastive loss in nats / `step_pairs`, scalar.
    pub loss: Tensor,
}

impl Reference {
    /// A model in f32. `tensors` must hold the whole encoder. The MLM, QDPP and ranking heads are optional,
    /// but a head that is there must be complete.
    ///
    /// # Errors
    /// `Error::Data` that names a tensor that is missing, unexpected or of other dimensions.
    pub fn new(shape: &Shape, tensors: &Tensors) -> Result<Self> {
        Self::with_dtype(shape, tensors, DType::F32)
    }

    /// The same model in f64: what an f32 result's error is measured against.
    ///
    /// # Errors
    /// As [`Reference::new`].
    pub fn new_f64(shape: &Shape, tensors: &Tensors) -> Result<Self> {
        Self::with_dtype(shape, tensors, DType::F64)
    }

    fn with_dtype(shape: &Shape, tensors: &Tensors, dtype: DType) -> Result<Self> {
        shape.check()?;
        parameters::check(shape, tensors)?;
        let mut vars = BTreeMap::new();
        for (name, (dims, values)) in tensors {
            let tensor = Tensor::from_slice(values, dims.as_slice(), &Device::Cpu)?.to_dtype(dtype)?;
            vars.insert(name.clone(), Var::from_tensor(&tensor)?);
        }
        Ok(Self { shape: shape.clone(), weights: Weights { vars, dtype, norm_eps: shape.norm_eps as f32 } })
    }

    /// The encoder's last hidden states, [T, H]. `dropout` is (rate, seed).
    ///
    /// # Errors
    /// `Error::Device` for ids, positions or segments outside the tables.
    pub fn encode(&self, batch: &Batch, dropout: Option<(f32, u32)>) -> Result<Tensor> {
        let masks = DropoutMasks::new(batch, dropout, self.weights.dtype);
        let sequences = (0..batch.sequences())
            .map(|sequence| bert::encode(&self.shape, &self.weights, batch, sequence, &masks))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&sequences, 0)?)
    }

    /// MLM and QDPP of one pack whose `ids` are already masked. `masked_rows` are the rows [M] of
    /// the masked tokens in the pack, `masked_labels` [M] their original ids. `dropout` is (rate,
    /// seed).
    ///
    /// # Errors
    /// `Error::Data` for a head that the tensors lack; else as [`Reference::encode`].
    pub fn pretraining(
        &self,
        batch: &Batch,
        masked_rows: &[u32],
        masked_labels: &[u32],
        dropout: Option<(f32, u32)>,
    ) -> Result<Pretraining> {
        let hidden = self.encode(batch, dropout)?;
        let (mlm_loss, mlm_logits) = self.mlm(batch, &hidden, masked_rows, masked_labels)?;
        if batch.pair_labels.is_empty() {
            return Ok(Pretraining { mlm_loss, qdpp_loss: None, mlm_logits, pair_logits: None });
        }
        let pair_logits = self.weights.linear(&self.pooled(batch, &hidden)?, "cls.seq_relationship")?;
        let factors = (!batch.pair_weights.is_empty()).then_some(&batch.pair_weights[..]);
        let qdpp_loss = cross_entropy(&pair_logits, &batch.pair_labels, factors, batch.step_pairs)?;
        Ok(Pretraining { mlm_loss, qdpp_loss: Some(qdpp_loss), mlm_logits, pair_logits: Some(pair_logits) })
    }

    /// Scores [S] = dropout(pooled) wᵀ + b and the localised contrastive loss (Gao et al. 2021) of the
    /// documents of `batch.cu_groups`, the first of a group being its positive. A document is a sequence, or
    /// the sequences of `batch.cu_documents` aggregated as `how` says.
    ///
    /// # Errors
    /// `Error::Data` for tensors without a ranking head; else as [`Reference::encode`].
    pub fn ranking(
        &self,
        batch: &Batch,
        how: Option<Aggregate>,
        dropout: Option<(f32, u32)>,
    ) -> Result<Ranking> {
        let masks = DropoutMasks::new(batch, dropout, self.weights.dtype);
        let pooled = self.pooled(batch, &self.encode(batch, dropout)?)?;
        let pooled = masks.pooled(&pooled, 1 + 3 * self.shape.layers as u32)?;
        let scores = self.weights.linear(&pooled, "classifier")?.squeeze(1)?;
        let documents = match how {
            Some(how) => aggregate(&scores, &batch.cu_documents, how)?,
            None => scores.clone(),
        };
        let mut loss = Tensor::zeros((), self.weights.dtype, &Device::Cpu)?;
        for group in batch.cu_groups.windows(2) {
            let (first, end) = (group[0] as usize, group[1] as usize);
            let group = log_softmax(&documents.narrow(0, first, end - first)?, 0)?;
            loss = (loss - group.get(0)?)?;
        }
        let loss = (loss / batch.step_pairs as f64)?;
        Ok(Ranking { scores, loss })
    }

    /// The gradient of `loss` with respect to every parameter that it depends on, by Hugging Face name.
    ///
    /// # Errors
    /// `Error::Data` that names a parameter which must have a gradient and has none: every one of
    /// the encoder, and every one of a head of which any has one.
    pub fn gradients(&self, loss: &Tensor) -> Result<BTreeMap<String, Vec<f32>>> {
        let narrow = |gradient: Vec<f64>| gradient.into_iter().map(|g| g as f32).collect();
        Ok(self.gradients_f64(loss)?.into_iter().map(|(name, g)| (name, narrow(g))).collect())
    }

    /// As [`Reference::gradients`], in f64: unrounded for a model made by [`Reference::new_f64`], the same
    /// values for one in f32.
    ///
    /// # Errors
    /// As [`Reference::gradients`].
    pub fn gradients_f64(&self, loss: &Tensor) -> Result<BTreeMap<String, Vec<f64>>> {
        let store = loss.backward()?;
        let mut gradients = BTreeMap::new();
        for (name, var) in &self.weights.vars {
            if let Some(gradient) = store.get(var.as_tensor()) {
                let values = gradient.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
                gradients.insert(name.clone(), values);
            }
        }
        self.refuse_lost(&gradients)?;
        Ok(gradients)
    }

    /// Names a parameter of the encoder, or of a head in use, without a gradient.
    fn refuse_lost(&self, gradients: &BTreeMap<String, Vec<f64>>) -> Result<()> {
        let used: Vec<Head> = gradients.keys().filter_map(|name| Head::of(name)).collect();
        let lost = self.weights.vars.keys().find(|name| {
            let must = match Head::of(name) {
                Some(head) => used.contains(&head),
                None => !parameters::is_pooler(name) || used.iter().any(|head| head.pools()),
            };
            must && !gradients.contains_key(*name)
        });
        match lost {
            None => Ok(()),
            Some(name) => Err(Error::data(format!(
                "reference model: `{name}` has no gradient: an operation between it and the loss has no backward"
            ))),
        }
    }

    /// (loss, logits [M, V]) of the MLM head at `rows` of `hidden` [T, H]. The decoder is the word
    /// embedding, as BERT ties it.
    fn mlm(&self, batch: &Batch, hidden: &Tensor, rows: &[u32], labels: &[u32]) -> Result<(Tensor, Tensor)> {
        let w = &self.weights;
        if rows.is_empty() {
            let nothing = Tensor::zeros((0, self.shape.vocab), w.dtype, &Device::Cpu)?;
            return Ok((Tensor::zeros((), w.dtype, &Device::Cpu)?, nothing));
        }
        let masked = hidden.index_select(&indices(rows)?, 0)?;
        let transformed = bert::gelu(&w.linear(&masked, "cls.predictions.transform.dense")?)?;
        let transformed = w.norm(&transformed, "cls.predictions.transform.LayerNorm")?;
        let decoder = w.get("bert.embeddings.word_embeddings.weight")?;
        let logits = transformed.matmul(&decoder.t()?)?.broadcast_add(w.get("cls.predictions.bias")?)?;
        let loss = cross_entropy(&logits, labels, None, batch.step_masked)?;
        Ok((loss, logits))
    }

    /// tanh of the pooler at every sequence's first row, [S, H].
    fn pooled(&self, batch: &Batch, hidden: &Tensor) -> Result<Tensor> {
        let first = hidden.index_select(&indices(&batch.cu_seqlens[..batch.sequences()])?, 0)?;
        Ok(self.weights.linear(&first, "bert.pooler.dense")?.tanh()?)
    }
}

/// Sum over rows of -log softmax(logits)[label] times the row's factor, in nats, / `divisor`.
fn cross_entropy(logits: &Tensor, labels: &[u32], factors: Option<&[f32]>, divisor: usize) -> Result<Tensor> {
    let mut likelihood = log_softmax(logits, D::Minus1)?.gather(&indices(labels)?.unsqueeze(1)?, 1)?;
    if let Some(factors) = factors {
        let factors = Tensor::from_slice(factors, (factors.len(), 1), &Device::Cpu)?;
        likelihood = (likelihood * factors.to_dtype(logits.dtype())?)?;
    }
    Ok((likelihood.sum_all()? / -(divisor as f64))?)
}

/// Scores of documents from scores [S] of their passages.
fn aggregate(scores: &Tensor, cu_documents: &[u32], how: Aggregate) -> Result<Tensor> {
    let document = |ends: &[u32]| -> Result<Tensor> {
        let passages = scores.narrow(0, ends[0] as usize, (ends[1] - ends[0]) as usize)?;
        Ok(match how {
            Aggregate::FirstP => passages.get(0)?,
            Aggregate::MaxP => passages.max(0)?,
            Aggregate::SumP => passages.sum(0)?,
            Aggregate::AvgP => passages.mean(0)?,
        })
    };
    let documents = cu_documents.windows(2).map(document).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::stack(&documents, 0)?)
}

fn indices(values: &[u32]) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, values.len(), &Device::Cpu)?)
}

/// The oracle runs beside a device to check it, so what candle refuses counts as a device failure.
impl From<candle_core::Error> for Error {
    fn from(cause: candle_core::Error) -> Self {
        Self::device(format!("reference model: {cause}"))
    }
}
