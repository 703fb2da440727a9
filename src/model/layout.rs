//! The parameter table: which tensor lies where in the flat arenas of weights, gradients and
//! moments. It is the single source for initialisation, checkpoints, weight decay, all-reduce
//! buckets and the offsets that the engine works on.
//!
//! Tensors keep their Hugging Face names and shapes. Query, key and value are contiguous, so that one product
//! over [3H, H] serves all three and nothing is split or joined in checkpoints.

use std::ops::Range;

use super::adapter::{AdapterAt, Block, Place};
use super::shape::Shape;
use crate::config::Lora;
use crate::engine::op::{EmbedAt, HeadAt, LinearAt, NormAt};
use crate::{Error, Result};

/// Every tensor starts at a multiple of this many elements: 16 bytes in bf16, so that device code
/// may load 16 bytes at a time.
pub(super) const ALIGN: usize = 8;

/// Which heads a model has besides the encoder and the pooler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSet {
    /// MLM: transform, LayerNorm, tied decoder with its own bias.
    pub mlm: bool,
    /// QDPP: the 2-way head that BERT calls next-sentence prediction.
    pub pair: bool,
    /// Ranking: one relevance score.
    pub rank: bool,
}

impl HeadSet {
    /// What `pretrain` and `coarse` train.
    pub const PRETRAINING: Self = Self { mlm: true, pair: true, rank: false };
    /// What `fine` trains.
    pub const RANKING: Self = Self { mlm: false, pair: false, rank: true };
}

/// One tensor of the arena.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Hugging Face name.
    pub name: String,
    pub shape: Vec<usize>,
    pub offset: usize,
    /// Weight decay applies (not to biases and LayerNorms).
    pub decay: bool,
    /// Belongs to a head that starts fresh in fine-tuning, with its own learning rate.
    pub head: bool,
    /// 0 for the embeddings, l + 1 for layer l, L + 1 for pooler and heads.
    pub depth: usize,
    /// Whether it learns; false if it is frozen.
    pub trained: bool,
    /// Which part of a low-rank adapter's tensor is in use; `None` for a model's own tensors.
    pub block: Option<Block>,
}

impl Param {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Never true: every tensor has elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Place in the arena.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// Its ranges in the arena, ascending, each with whether it learns.
    pub fn parts(&self) -> Vec<(Range<usize>, bool)> {
        match &self.block {
            Some(block) if self.trained => block.parts(self.offset, &self.shape),
            _ => vec![(self.range(), self.trained)],
        }
    }
}

/// Offsets of one encoder layer.
#[derive(Clone, Debug)]
pub struct LayerAt {
    /// [3H, H]
    pub qkv: LinearAt,
    /// [H, H]
    pub output: LinearAt,
    pub attention_norm: NormAt,
    /// [I, H]
    pub up: LinearAt,
    /// [H, I]
    pub down: LinearAt,
    pub output_norm: NormAt,
    /// Low-rank adapters of its linear layers.
    pub adapters: Vec<AdapterAt>,
    /// Everything of this layer: one bucket.
    pub range: Range<usize>,
}

/// Offsets of the MLM head.
#[derive(Clone, Debug)]
pub struct MlmAt {
    /// [H, H]
    pub transform: LinearAt,
    pub norm: NormAt,
    /// [V, H]: the word embedding itself; its bias is `cls.predictions.bias`.
    pub decoder: LinearAt,
}

/// The whole table.
#[derive(Clone, Debug)]
pub struct Layout {
    pub shape: Shape,
    pub params: Vec<Param>,
    /// Arena length, padding included.
    pub len: usize,
    pub embed: EmbedAt,
    pub layers: Vec<LayerAt>,
    /// [H, H]
    pub pooler: LinearAt,
    pub mlm: Option<MlmAt>,
    /// Head weight [2, H].
    pub pair: Option<HeadAt>,
    /// Head weight [1, H].
    pub rank: Option<HeadAt>,
    /// Embeddings: one bucket, complete last.
    pub embed_range: Range<usize>,
    /// Pooler and heads: one bucket, complete first.
    pub heads_range: Range<usize>,
}

/// Appends tensors one after another.
pub(super) struct Table {
    params: Vec<Param>,
    next: usize,
    /// Depth of the parameters that are added next.
    depth: usize,
}

impl Table {
    fn add(&mut self, name: &str, shape: &[usize], head: bool) -> usize {
        let offset = self.next;
        let decay = !(name.ends_with("bias") || name.contains("LayerNorm"));
        let (name, shape, depth) = (name.to_owned(), shape.to_vec(), self.depth);
        self.push(Param { name, shape, offset, decay, head, depth, trained: true, block: None })
    }

    /// Adds a tensor of an adapter.
    pub(super) fn adapter(&mut self, name: &str, shape: &[usize], block: Block) -> usize {
        let (name, shape, depth, offset) = (name.to_owned(), shape.to_vec(), self.depth, self.next);
        let (decay, head, trained, block) = (false, false, true, Some(block));
        self.push(Param { name, shape, offset, decay, head, depth, trained, block })
    }

    fn push(&mut self, param: Param) -> usize {
        let offset = param.offset;
        self.next = (offset + param.len()).next_multiple_of(ALIGN);
        self.params.push(param);
        offset
    }

    fn linear(&mut self, name: &str, n: usize, k: usize, head: bool) -> LinearAt {
        let w = self.add(&format!("{name}.weight"), &[n, k], head);
        let b = self.add(&format!("{name}.bias"), &[n], head);
        LinearAt { w, b, n, k }
    }

    fn norm(&mut self, name: &str, shape: &Shape) -> NormAt {
        let (hidden, eps) = (shape.hidden, shape.norm_eps as f32);
        let gamma = self.add(&format!("{name}.weight"), &[hidden], false);
        let beta = self.add(&format!("{name}.bias"), &[hidden], false);
        NormAt { gamma, beta, hidden, eps }
    }

    fn layer(&mut self, index: usize, shape: &Shape, lora: Option<&Lora>) -> LayerAt {
        let start = self.next;
        self.depth = index + 1;
        let h = shape.hidden;
        let name = format!("bert.encoder.layer.{index}");
        let parts = ["query", "key", "value"];
        let w = parts.map(|p| self.add(&format!("{name}.attention.self.{p}.weight"), &[h, h], false))[0];
        let b = parts.map(|p| self.add(&format!("{name}.attention.self.{p}.bias"), &[h], false))[0];
        let output = self.linear(&format!("{name}.attention.output.dense"), h, h, false);
        let attention_norm = self.norm(&format!("{name}.attention.output.LayerNorm"), shape);
        let up = self.linear(&format!("{name}.intermediate.dense"), shape.intermediate, h, false);
        let down = self.linear(&format!("{name}.output.dense"), h, shape.intermediate, false);
        let output_norm = self.norm(&format!("{name}.output.LayerNorm"), shape);
        let qkv = LinearAt { w, b, n: 3 * h, k: h };
        let places = [(Place::Qkv, qkv), (Place::Output, output), (Place::Up, up), (Place::Down, down)];
        let adapters = lora.map_or(Vec::new(), |lora| lora.place(self, &name, places));
        LayerAt { qkv, output, attention_norm, up, down, output_norm, adapters, range: start..self.next }
    }

    fn embeddings(&mut self, shape: &Shape) -> EmbedAt {
        let h = shape.hidden;
        let name = "bert.embeddings";
        EmbedAt {
            word: self.add(&format!("{name}.word_embeddings.weight"), &[shape.vocab, h], false),
            position: self.add(&format!("{name}.position_embeddings.weight"), &[shape.positions, h], false),
            segment: self.add(&format!("{name}.token_type_embeddings.weight"), &[shape.segments, h], false),
            norm: self.norm(&format!("{name}.LayerNorm"), shape),
            vocab: shape.vocab,
            positions: shape.positions,
            segments: shape.segments,
        }
    }

    fn mlm(&mut self, shape: &Shape, embed: &EmbedAt) -> MlmAt {
        let h = shape.hidden;
        let name = "cls.predictions";
        let transform = self.linear(&format!("{name}.transform.dense"), h, h, false);
        let norm = self.norm(&format!("{name}.transform.LayerNorm"), shape);
        let b = self.add(&format!("{name}.bias"), &[shape.vocab], false);
        MlmAt { transform, norm, decoder: LinearAt { w: embed.word, b, n: shape.vocab, k: h } }
    }

    fn head(&mut self, name: &str, classes: usize, pooler: &LinearAt, fresh: bool) -> HeadAt {
        let at = self.linear(name, classes, pooler.k, fresh);
        HeadAt { pool_bias: pooler.b, w: at.w, b: at.b, hidden: pooler.k }
    }
}

impl Layout {
    /// The table of a model with `shape` and `heads`.
    ///
    /// # Errors
    /// `Error::Config` when the sizes cannot be a BERT (`Shape::check`), or when `hidden` is not a multiple
    /// of 8 (query, key and value would not be contiguous).
    pub fn new(shape: &Shape, heads: HeadSet) -> Result<Self> {
        Self::with(shape, heads, None)
    }

    /// The same with low-rank adapters; everything but them, the pooler and the heads is frozen.
    pub fn with(shape: &Shape, heads: HeadSet, lora: Option<&Lora>) -> Result<Self> {
        shape.check()?;
        if !shape.hidden.is_multiple_of(ALIGN) {
            return Err(Error::config(format!(
                "[model] hidden = {}: must be a multiple of {ALIGN}",
                shape.hidden
            )));
        }
        let mut table = Table { params: Vec::new(), next: 0, depth: 0 };
        let embed = table.embeddings(shape);
        let embed_range = 0..table.next;
        let layers: Vec<_> = (0..shape.layers).map(|l| table.layer(l, shape, lora)).collect();
        let heads_start = table.next;
        table.depth = shape.layers + 1;
        let pooler = table.linear("bert.pooler.dense", shape.hidden, shape.hidden, false);
        let mlm = heads.mlm.then(|| table.mlm(shape, &embed));
        let pair = heads.pair.then(|| table.head("cls.seq_relationship", 2, &pooler, false));
        let rank = heads.rank.then(|| table.head("classifier", 1, &pooler, true));
        let heads_range = heads_start..table.next;
        let shape = shape.clone();
        let (mut params, len) = (table.params, table.next);
        if lora.is_some() {
            let base = |p: &&mut Param| p.depth <= shape.layers && p.block.is_none();
            params.iter_mut().filter(base).for_each(|p| p.trained = false);
        }
        Ok(Self { shape, params, len, embed, layers, pooler, mlm, pair, rank, embed_range, heads_range })
    }

    /// Parameters, without padding.
    pub fn parameters(&self) -> usize {
        self.params.iter().map(Param::len).sum()
    }

    /// Parameters that learn.
    pub fn trained_parameters(&self) -> usize {
        let parts = self.params.iter().flat_map(Param::parts);
        parts.filter(|(_, trained)| *trained).map(|(range, _)| range.len()).sum()
    }

    /// The ranges that `Bert::backward` completes, in its order: heads, layers from last to first,
    /// embeddings. Together they are the whole arena.
    pub fn buckets(&self) -> Vec<Range<usize>> {
        let layers = self.layers.iter().rev().map(|layer| layer.range.clone());
        std::iter::once(self.heads_range.clone())
            .chain(layers)
            .chain(std::iter::once(self.embed_range.clone()))
            .collect()
    }

    /// The tensor of this name.
    pub fn find(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|p| p.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            vocab: 101,
            hidden: 16,
            layers: 2,
            heads: 2,
            intermediate: 40,
            positions: 32,
            segments: 2,
            norm_eps: Shape::NORM_EPS,
        }
    }

    #[test]
    fn tensors_do_not_overlap_and_qkv_is_contiguous() {
        let layout = Layout::new(&shape(), HeadSet { mlm: true, pair: true, rank: true }).unwrap();
        for pair in layout.params.windows(2) {
            assert!(pair[0].range().end <= pair[1].offset, "{} runs into {}", pair[0].name, pair[1].name);
            assert_eq!(pair[1].offset % ALIGN, 0);
        }
        let key = layout.find("bert.encoder.layer.1.attention.self.key.weight").unwrap();
        assert_eq!(key.offset, layout.layers[1].qkv.w + 16 * 16);
        let value = layout.find("bert.encoder.layer.1.attention.self.value.bias").unwrap();
        assert_eq!(value.offset, layout.layers[1].qkv.b + 2 * 16);
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let bad = Shape { heads: 3, ..shape() };
        assert!(Layout::new(&bad, HeadSet::RANKING).unwrap_err().to_string().contains("heads = 3"));
        let odd = Shape { hidden: 12, heads: 2, ..shape() };
        assert!(Layout::new(&odd, HeadSet::RANKING).unwrap_err().to_string().contains("multiple of 8"));
    }
}
