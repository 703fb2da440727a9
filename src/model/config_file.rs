//! Reads `config.json` into what a model is made from, and writes it for a saved model. `config_keys` says
//! which keys are followed.

use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

use super::config_keys::{PAIR, TABLES, UNTRAINED};
use super::layout::HeadSet;
use super::shape::Shape;
use crate::{Error, Result, allow_list, journal};

/// Keys without effect here that are copied into the file of a saved model.
const KEPT: [&str; 5] = [
    "pad_token_id",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "initializer_range",
];

/// What a `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub file: PathBuf,
    pub shape: Shape,
    /// The MLM head's matrix is the word embedding.
    pub tied: bool,
    pub origin: Origin,
}

/// What a saved model says about the one that it was made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// The QDPP head has its initial values.
    pub untrained_pair: bool,
    /// Keys of `config.json` that are copied.
    pub kept: Map<String, Value>,
}

impl ModelConfig {
    /// Reads a `config.json`; warns of what has no effect.
    ///
    /// # Errors
    /// `Error::Data` for a file that cannot be read or lacks a size; `Error::Config` that names a key
    /// whose value cannot be followed.
    pub fn read(file: &Path) -> Result<Self> {
        let config = allow_list::read_object(file)?;
        let (found, warnings) = Self::judge(file, &config)?;
        warnings.iter().for_each(|line| journal::warn_once(line));
        Ok(found)
    }

    /// What `config`, the contents of `file`, says; and a line for each key without effect.
    ///
    /// # Errors
    /// As `read`.
    pub fn judge(file: &Path, config: &Map<String, Value>) -> Result<(Self, Vec<String>)> {
        let warnings = allow_list::check(TABLES, file, config, config)?;
        let size = |key: &str| {
            // the table has refused anything but numbers
            config
                .get(key)
                .and_then(Value::as_u64)
                .map(|size| size as usize)
                .ok_or_else(|| Error::data(format!("{}: key \"{key}\" is missing", file.display())))
        };
        let shape = Shape {
            vocab: size("vocab_size")?,
            hidden: size("hidden_size")?,
            layers: size("num_hidden_layers")?,
            heads: size("num_attention_heads")?,
            intermediate: size("intermediate_size")?,
            positions: size("max_position_embeddings")?,
            segments: size("type_vocab_size")?,
            norm_eps: config.get("layer_norm_eps").and_then(Value::as_f64).unwrap_or(Shape::NORM_EPS),
        };
        shape.check().map_err(|e| Error::config(format!("{}: {e}", file.display())))?;
        let kept = KEPT.iter().filter_map(|key| {
            let value = config.get(*key).filter(|value| !value.is_null())?;
            Some(((*key).to_owned(), value.clone()))
        });
        let untrained_pair = config.get(UNTRAINED).is_some_and(|heads| *heads == json!([PAIR]));
        let found = Self {
            file: file.to_owned(),
            shape,
            tied: config.get("tie_word_embeddings") != Some(&json!(false)),
            origin: Origin { untrained_pair, kept: kept.collect() },
        };
        Ok((found, warnings))
    }
}

/// The `config.json` of a model.
pub(super) fn config_json(shape: &Shape, heads: HeadSet, origin: &Origin, dtype: Dtype) -> Value {
    let mut config = json!({
        "architectures": [if heads.rank { "BertForSequenceClassification" } else { "BertForPreTraining" }],
        "model_type": "bert",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "type_vocab_size": shape.segments,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02, // init::STD, which is f32 and would print more digits
        "layer_norm_eps": shape.norm_eps,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "torch_dtype": if dtype == Dtype::BF16 { "bfloat16" } else { "float32" },
    });
    for (key, value) in &origin.kept {
        config[key] = value.clone();
    }
    if origin.untrained_pair {
        config[UNTRAINED] = json!([PAIR]);
    }
    if heads.rank {
        config["id2label"] = json!({"0": "LABEL_0"});
        config["label2id"] = json!({"LABEL_0": 0});
    }
    config
}
