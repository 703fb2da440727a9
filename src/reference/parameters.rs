//! Which tensors a BERT of a given shape has. This second list is deliberate: a mistake in the engine's own
//! table would otherwise go unseen.

use std::collections::BTreeMap;

use crate::model::shape::Shape;
use crate::{Error, Result};

/// Parameters or gradients by Hugging Face name: dimensions and values, row-major.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A head on the encoder; two of the heads sit on the pooler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Mlm,
    Qdpp,
    Ranking,
}

impl Head {
    const ALL: [Self; 3] = [Self::Mlm, Self::Qdpp, Self::Ranking];

    fn prefix(self) -> &'static str {
        match self {
            Self::Mlm => "cls.predictions.",
            Self::Qdpp => "cls.seq_relationship.",
            Self::Ranking => "classifier.",
        }
    }

    /// The head that a parameter belongs to; `None` for the encoder and the pooler.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|head| name.starts_with(head.prefix()))
    }

    /// Whether the head sits on the pooler.
    pub fn pools(self) -> bool {
        self != Self::Mlm
    }
}

pub(super) fn is_pooler(name: &str) -> bool {
    name.starts_with("bert.pooler.")
}

/// Refuses tensors that do not make up a model of `shape`.
pub(super) fn check(shape: &Shape, tensors: &Tensors) -> Result<()> {
    let table = table(shape);
    for (name, (dims, values)) in tensors {
        let Some((_, expected)) = table.iter().find(|(known, _)| known == name) else {
            return Err(Error::data(format!("reference model: unexpected tensor `{name}`")));
        };
        if dims != expected || values.len() != expected.iter().product::<usize>() {
            let count = values.len();
            return Err(Error::data(format!(
                "reference model: `{name}` is {dims:?} with {count} values, expected {expected:?}"
            )));
        }
    }
    let heads: Vec<Head> = tensors.keys().filter_map(|name| Head::of(name)).collect();
    for (name, _) in &table {
        let needed = match Head::of(name) {
            Some(head) => heads.contains(&head),
            None => !is_pooler(name) || heads.iter().any(|head| head.pools()),
        };
        if needed && !tensors.contains_key(name) {
            return Err(Error::data(format!("reference model: no tensor `{name}`")));
        }
    }
    Ok(())
}

/// Every parameter of encoder, pooler and heads with its dimensions. Linear weights are [out, in]; the
/// decoder is tied to the word embeddings, so it is not a parameter.
fn table(shape: &Shape) -> Vec<(String, Vec<usize>)> {
    let (hidden, wide) = (shape.hidden, shape.intermediate);
    let mut table = Vec::new();
    for (name, rows) in [("word", shape.vocab), ("position", shape.positions), ("token_type", shape.segments)]
    {
        table.push((format!("bert.embeddings.{name}_embeddings.weight"), vec![rows, hidden]));
    }
    norm(&mut table, "bert.embeddings.LayerNorm", hidden);
    for layer in 0..shape.layers {
        let at = |part: &str| format!("bert.encoder.layer.{layer}.{part}");
        for part in ["query", "key", "value"] {
            linear(&mut table, &at(&format!("attention.self.{part}")), hidden, hidden);
        }
        linear(&mut table, &at("attention.output.dense"), hidden, hidden);
        norm(&mut table, &at("attention.output.LayerNorm"), hidden);
        linear(&mut table, &at("intermediate.dense"), wide, hidden);
        linear(&mut table, &at("output.dense"), hidden, wide);
        norm(&mut table, &at("output.LayerNorm"), hidden);
    }
    linear(&mut table, "bert.pooler.dense", hidden, hidden);
    linear(&mut table, "cls.predictions.transform.dense", hidden, hidden);
    norm(&mut table, "cls.predictions.transform.LayerNorm", hidden);
    table.push(("cls.predictions.bias".into(), vec![shape.vocab]));
    linear(&mut table, "cls.seq_relationship", 2, hidden);
    linear(&mut table, "classifier", 1, hidden);
    table
}

fn linear(table: &mut Vec<(String, Vec<usize>)>, name: &str, outputs: usize, inputs: usize) {
    table.push((format!("{name}.weight"), vec![outputs, inputs]));
    table.push((format!("{name}.bias"), vec![outputs]));
}

fn norm(table: &mut Vec<(String, Vec<usize>)>, name: &str, size: usize) {
    table.push((format!("{name}.weight"), vec![size]));
    table.push((format!("{name}.bias"), vec![size]));
}
