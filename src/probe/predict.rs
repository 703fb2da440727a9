//! Predictions of masked query words, packed like all other model input.

use rayon::prelude::*;

use super::pairs::{Pair, Pairs};
use crate::Result;
use crate::data::batch::Batch;
use crate::engine::Engine;
use crate::model::activations::Capacity;
use crate::model::bert::Options;
use crate::model::{Bert, HeadSet, Mode, Objective};
use crate::ranks::World;

/// What a model said about one masked piece.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// Rank of the true piece among all, from 1; ties count against it.
    pub rank: u32,
    /// -ln of the true piece's probability.
    pub nats: f64,
}

/// One masked sequence.
struct Masked<'a> {
    pair: &'a Pair,
    /// Index in `pair.words`.
    word: usize,
    /// Whether the document stands beside the query.
    document: bool,
    /// Place of its first piece in the list of predictions.
    at: usize,
}

impl Masked<'_> {
    fn len(&self) -> usize {
        let document = if self.document { 1 + self.pair.document.len() } else { 0 };
        2 + self.pair.query.len() + document
    }

    fn pieces(&self) -> std::ops::Range<usize> {
        self.pair.words[self.word].pieces.clone()
    }
}

/// Options of a model that only predicts masked pieces.
pub fn options(pack_tokens: usize, seed: u32) -> Options {
    let tokens = pack_tokens;
    Options {
        objective: Objective::Pretraining { mlm: 1.0, qdpp: 0.0 },
        heads: HeadSet::PRETRAINING,
        // Nearly every sequence masks one or two pieces, and none is shorter than three tokens.
        capacity: Capacity { tokens, sequences: tokens.div_ceil(3), masked: (tokens / 4).max(64) },
        train: false,
        dropout: 0.0,
        seed,
        rule: None,
        continues: Vec::new(),
    }
}

/// Predicts every word of every pair: for each, its pieces from the query alone, then its pieces with
/// the document. Ranks share the packs; all of them return all predictions.
pub fn predict<E: Engine>(model: &mut Bert<E>, pairs: &Pairs, world: &World) -> Result<Vec<Prediction>> {
    let (mut items, mut at) = (Vec::new(), 0);
    for pair in &pairs.list {
        for word in 0..pair.words.len() {
            for document in [false, true] {
                items.push(Masked { pair, word, document, at });
                at += pair.words[word].pieces.len();
            }
        }
    }
    items.sort_by_key(|item| (item.len(), item.at));
    let mut values = vec![0.0f64; 2 * at];
    let mut rest = &items[..];
    let mut turn = 0;
    while !rest.is_empty() {
        let (pack, after) = rest.split_at(fits(rest, model.options.capacity));
        if turn % world.size() == world.rank() {
            predict_pack(model, pairs, pack, &mut values)?;
        }
        (rest, turn) = (after, turn + 1);
    }
    // one rank sets each value; it is 0 on the others
    world.sum_f64(&mut values);
    Ok(values.chunks_exact(2).map(|v| Prediction { rank: v[0] as u32, nats: v[1] }).collect())
}

/// How many of `items` fit into a pack; at least one.
fn fits(items: &[Masked], room: Capacity) -> usize {
    let (mut tokens, mut masked) = (0, 0);
    let fit = items.iter().take(room.sequences).take_while(|item| {
        tokens += item.len();
        masked += item.pieces().len();
        tokens <= room.tokens && masked <= room.masked
    });
    fit.count().max(1)
}

fn predict_pack<E: Engine>(
    model: &mut Bert<E>,
    pairs: &Pairs,
    pack: &[Masked],
    values: &mut [f64],
) -> Result<()> {
    let mut batch = Batch::default();
    let (mut rows, mut labels, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for (i, item) in pack.iter().enumerate() {
        let mut query = item.pair.query.clone();
        let first = batch.tokens() + 1; // after [CLS]
        for (k, piece) in item.pieces().enumerate() {
            rows.push((first + piece) as u32);
            labels.push(query[piece]);
            places.push(item.at + k);
            query[piece] = pairs.special.mask;
        }
        let document = item.document.then_some(item.pair.document.as_slice());
        batch.push(pairs.special, i as u32, &query, document);
    }
    batch.masked = rows.len();
    batch.step_masked = rows.len();
    model.forward_masked(&batch, &rows, &labels, Mode::Measure)?;
    let logits = model.mlm_logits()?; // [M, V]
    let vocab = logits.len() / rows.len();
    let found: Vec<Prediction> = logits
        .par_chunks_exact(vocab)
        .zip(&labels)
        .map(|(logits, &label)| place(logits, label as usize))
        .collect();
    for (place, prediction) in places.into_iter().zip(found) {
        values[2 * place] = f64::from(prediction.rank);
        values[2 * place + 1] = prediction.nats;
    }
    Ok(())
}

/// Rank and -ln probability of `label` in one row of logits, [V].
fn place(logits: &[f32], label: usize) -> Prediction {
    let truth = logits[label];
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&x| f64::from(x - top).exp()).sum();
    let rank = logits.iter().filter(|&&x| x >= truth).count() as u32;
    Prediction { rank, nats: total.ln() - f64::from(truth - top) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_label() {
        let found = place(&[0.0, 2.0, 1.0, 1.0], 2);
        assert_eq!(found.rank, 3, "the tie counts against the label");
        let total = 1.0 + 2f64.exp() + 2.0 * 1f64.exp();
        assert!((found.nats - (total.ln() - 1.0)).abs() < 1e-12);
        assert_eq!(place(&[0.0, 2.0], 1).rank, 1);
    }
}
