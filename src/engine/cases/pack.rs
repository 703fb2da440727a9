//! What all cases use: a pack on the device, an arena with every kind of tensor, and buffers of random
//! values. Also the case that masks the pack.

use super::sizes::Sizes;
use super::visitor::{Left, Visitor};
use crate::Result;
use crate::engine::op::{Dropout, EmbedAt, HeadAt, Heads, LinearAt, MaskRule, MaskTokens, NormAt};
use crate::engine::{DeviceBatch, Engine, Floats, PackCounts, Reals, Rows, Words};
use crate::random::philox;

/// Special tokens of the made-up vocabulary, and its first ordinary one.
const CLS: u32 = 2;
const SEP: u32 = 3;
const MASK: u32 = 4;
const FIRST: u32 = 5;
/// Extra rows of each buffer, which operations must not touch.
const SLACK: usize = 20;
/// Sequences of a ranking group, at most.
const GROUP: usize = 3;

/// Masking over queries and documents.
pub fn rule(sizes: &Sizes) -> MaskRule {
    MaskRule {
        seed: 5,
        threshold: (f64::from(sizes.mask_rate) * 2f64.powi(32)) as u32,
        segments: 3,
        whole_word: false,
        vocab: sizes.vocab as u32,
        cls: CLS,
        sep: SEP,
        mask: MASK,
    }
}

/// Where each tensor lies in the arena; starts are multiples of 8.
pub(super) struct Arena {
    pub embed: EmbedAt,
    /// FFN up: weight [I, H], bias [I].
    pub up: LinearAt,
    pub norm: NormAt,
    /// Bias [H] of a layer whose product goes into a LayerNorm.
    pub bias: usize,
    /// Bias [3H] of q, k, v.
    pub qkv_bias: usize,
    /// The decoder's bias [V].
    pub mlm_bias: usize,
    /// Two outputs.
    pub pair: HeadAt,
    /// One output.
    pub rank: HeadAt,
    pub len: usize,
}

impl Arena {
    fn new(sizes: &Sizes) -> Self {
        let (h, i, v) = (sizes.hidden, sizes.intermediate, sizes.vocab);
        let positions = sizes.lengths.iter().copied().max().unwrap_or(1);
        let mut len = 0;
        let mut place = |n: usize| {
            let at = len;
            len += n.next_multiple_of(8);
            at
        };
        let (word, position, segment) = (place(v * h), place(positions * h), place(2 * h));
        let norm = NormAt { gamma: place(h), beta: place(h), hidden: h, eps: 1e-12 };
        let up = LinearAt { w: place(i * h), b: place(i), n: i, k: h };
        let (bias, qkv_bias, mlm_bias) = (place(h), place(3 * h), place(v));
        let pool_bias = place(h);
        let pair = HeadAt { pool_bias, w: place(2 * h), b: place(2), hidden: h };
        let rank = HeadAt { pool_bias, w: place(h), b: place(1), hidden: h };
        let embed = EmbedAt { word, position, segment, norm, vocab: v, positions, segments: 2 };
        Self { embed, up, norm, bias, qkv_bias, mlm_bias, pair, rank, len }
    }
}

/// An engine with a pack begun and random weights.
pub struct Room<'a, E: Engine> {
    pub(super) engine: E,
    pub(super) sizes: &'a Sizes,
    pub(super) at: Arena,
    pub(super) weights: Reals<E>,
    pub(super) batch: DeviceBatch<E>,
    pub(super) drop: Dropout,
    pub(super) heads: Heads,
    /// T, S, M
    pub(super) t: Rows,
    pub(super) s: Rows,
    pub(super) m: Rows,
}

impl<'a, E: Engine> Room<'a, E> {
    pub(super) fn new(engine: &E, sizes: &'a Sizes) -> Result<Self> {
        let host = Host::new(sizes);
        let (t, s, m) = (sizes.tokens(), sizes.sequences(), host.masked);
        let most = PackCounts {
            tokens: (t + SLACK) as u32,
            sequences: (s + SLACK) as u32,
            masked: (m + SLACK) as u32,
            groups: (s + SLACK) as u32,
            ..PackCounts::default()
        };
        let engine = engine.for_packs(&most)?;
        let at = Arena::new(sizes);
        let mut start = values(1, at.len);
        start[at.norm.gamma..at.norm.gamma + sizes.hidden].iter_mut().for_each(|w| *w = 1.0 + 0.25 * *w);
        let mut weights = engine.zeros(at.len)?;
        engine.upload_weights(&start, &mut weights, 0)?;
        let batch = host.put(&engine)?;
        Ok(Self {
            drop: Dropout::new(sizes.dropout, 11, 2),
            heads: Heads { heads: sizes.heads, size: sizes.head_size() },
            t: Rows::Tokens(t),
            s: Rows::Sequences(s),
            m: Rows::Masked(m),
            engine,
            sizes,
            at,
            weights,
            batch,
        })
    }

    /// [rows, width] of random values, and slack after them as in a buffer made at capacity.
    pub(super) fn drawn(&self, seed: u32, rows: Rows, width: usize) -> Result<Reals<E>> {
        let mut buffer = self.empty(rows, width)?;
        self.engine.upload_weights(&values(seed, rows.count() * width), &mut buffer, 0)?;
        Ok(buffer)
    }

    /// Zeros for [rows, width].
    pub(super) fn empty(&self, rows: Rows, width: usize) -> Result<Reals<E>> {
        self.engine.zeros((rows.count() + SLACK) * width)
    }

    /// f32 zeros for [rows, width], as statistics and scores are.
    pub(super) fn floats(&self, rows: Rows, width: usize) -> Result<Floats<E>> {
        self.engine.zeros((rows.count() + SLACK) * width)
    }

    /// f32 values for [rows].
    pub(super) fn drawn_floats(&self, seed: u32, rows: Rows) -> Result<Floats<E>> {
        let mut buffer = self.floats(rows, 1)?;
        self.engine.upload(&values(seed, rows.count()), &mut buffer, 0)?;
        Ok(buffer)
    }

    /// An arena of zeroed gradients.
    pub(super) fn grads(&self) -> Result<Floats<E>> {
        self.engine.zeros(self.at.len)
    }
}

/// The pack on the host.
#[derive(Default)]
struct Host {
    ids: Vec<u32>,
    positions: Vec<u32>,
    segments: Vec<u32>,
    row_sample: Vec<u32>,
    cu_seqlens: Vec<u32>,
    masked: usize,
}

/// Epoch of the pack.
const EPOCH: u32 = 3;
/// Number of the pack's first sample.
const SAMPLE: u32 = 50;

impl Host {
    /// Each sequence is `[CLS] query [SEP] document [SEP]`; a quarter of it is the query.
    fn new(sizes: &Sizes) -> Self {
        let rule = rule(sizes);
        let mut host = Self { cu_seqlens: vec![0], ..Self::default() };
        for (s, &length) in sizes.lengths.iter().enumerate() {
            let (sample, query) = (SAMPLE + s as u32, length / 4);
            for i in 0..length {
                let drawn = philox([7, sample], [i as u32, 0, 0, 0])[0] % (sizes.vocab as u32 - FIRST);
                let id = match i {
                    0 => CLS,
                    i if i == query || i + 1 == length => SEP,
                    _ => FIRST + drawn,
                };
                let segment = u32::from(i > query);
                let chosen = rule.allows(id, segment) && rule.chooses(sample, i as u32, EPOCH);
                host.masked += usize::from(chosen);
                host.ids.push(id);
                host.positions.push(i as u32);
                host.segments.push(segment);
                host.row_sample.push(sample);
            }
            host.cu_seqlens.push(host.ids.len() as u32);
        }
        host
    }

    fn put<E: Engine>(&self, engine: &E) -> Result<DeviceBatch<E>> {
        let (t, s) = (self.ids.len(), self.cu_seqlens.len() - 1);
        let documents: Vec<u32> = (0..s as u32).step_by(2).chain([s as u32]).collect();
        let n = documents.len() - 1;
        let groups: Vec<u32> = (0..n as u32).step_by(GROUP).chain([n as u32]).collect();
        let list = |f: &dyn Fn(usize) -> f32, n: usize| -> Vec<f32> { (0..n).map(f).collect() };
        let counts = PackCounts {
            tokens: t as u32,
            sequences: s as u32,
            masked: self.masked as u32,
            groups: (groups.len() - 1) as u32,
            epoch: EPOCH,
            step_masked: self.masked as u32 + 7,
            step_pairs: s as u32 + 4,
            documents: n as u32,
        };
        engine.begin_pack(&counts)?;
        let lengths = self.cu_seqlens.windows(2).map(|ends| u64::from(ends[1] - ends[0]));
        Ok(DeviceBatch {
            tokens: t,
            sequences: s,
            masked: self.masked,
            groups: groups.len() - 1,
            documents: n,
            attended: lengths.map(|n| n * n).sum(),
            epoch: EPOCH,
            ids: words(engine, &self.ids)?,
            positions: words(engine, &self.positions)?,
            segments: words(engine, &self.segments)?,
            row_sample: words(engine, &self.row_sample)?,
            cu_seqlens: words(engine, &self.cu_seqlens)?,
            samples: words(engine, &(0..s as u32).map(|i| SAMPLE + i).collect::<Vec<_>>())?,
            pair_labels: words(engine, &(0..s as u32).map(|i| i % 2).collect::<Vec<_>>())?,
            pair_weights: floats(engine, &list(&|i| 0.5 + 0.25 * (i % 5) as f32, s))?,
            cu_documents: words(engine, &documents)?,
            cu_groups: words(engine, &groups)?,
            targets: floats(engine, &list(&|i| (i % 3) as f32, s))?,
            masked_rows: engine.zeros(self.masked + SLACK)?,
            masked_labels: engine.zeros(self.masked + SLACK)?,
        })
    }
}

fn words<E: Engine>(engine: &E, values: &[u32]) -> Result<Words<E>> {
    let mut buffer = engine.zeros(values.len() + SLACK)?;
    engine.upload(values, &mut buffer, 0)?;
    Ok(buffer)
}

fn floats<E: Engine>(engine: &E, values: &[f32]) -> Result<Floats<E>> {
    let mut buffer = engine.zeros(values.len() + SLACK)?;
    engine.upload(values, &mut buffer, 0)?;
    Ok(buffer)
}

/// Masks the pack; the cases after it work on the masked one.
pub(super) fn masking<E: Engine>(room: &mut Room<'_, E>, visitor: &mut impl Visitor<E>) -> Result<()> {
    let (e, t, m) = (room.engine.clone(), room.t.count(), room.m.count());
    let (rule, continues) = (rule(room.sizes), e.zeros(room.sizes.vocab)?);
    visitor.meet(
        &e,
        "mask_tokens",
        MaskTokens { batch: &mut room.batch, rule: &rule, continues: &continues },
    )?;
    visitor.left(&e, "ids", Left::Words(&room.batch.ids), 0..t)?;
    visitor.left(&e, "rows", Left::Words(&room.batch.masked_rows), 0..m)?;
    visitor.left(&e, "labels", Left::Words(&room.batch.masked_labels), 0..m)
}

/// Values in -1..1, representable in bf16.
pub(super) fn values(seed: u32, len: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(len.next_multiple_of(4));
    for block in 0..len.div_ceil(4) as u32 {
        let words = philox([seed, 77], [block, 0, 0, 0]);
        values.extend(words.map(|word| half::bf16::from_f32(word as f32 / 2f32.powi(31) - 1.0).to_f32()));
    }
    values.truncate(len);
    values
}
