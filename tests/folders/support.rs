//! A tiny BERT with made-up weights, written as transformers writes one, and its vocabulary.

use std::fs;
use std::path::Path;

use ctune_dist::data::batch::Batch;
use ctune_dist::engine::cpu::Cpu;
use ctune_dist::engine::op::RankLoss;
use ctune_dist::model::activations::Capacity;
use ctune_dist::model::bert::Options;
use ctune_dist::model::checkpoint::{Checkpoint, Fill, Tensors};
use ctune_dist::model::tensor_file::{Entry, write_tensors};
use ctune_dist::model::{Bert, HeadSet, Layout, Objective, Shape};
use ctune_dist::random::philox;
use ctune_dist::text::Special;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

pub const SPECIAL: Special = Special { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 };

const WORDS: &str = "heron otter badger lantern copper kettle walnut meadow ribbon thimble gravel lagoon pepper \
                     violin saddle anchor beacon cellar drizzle ember";

/// Special tokens, letters and words; `more` at the end.
pub fn pieces(more: &[&str]) -> Vec<String> {
    let mut pieces: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(Into::into).into();
    let letters = || ('a'..='z').chain('0'..='9');
    pieces.extend(letters().map(String::from));
    pieces.extend(letters().map(|letter| format!("##{letter}")));
    pieces.extend([".", ",", "'", "#", "-"].map(String::from));
    pieces.extend(WORDS.split_whitespace().chain(more.iter().copied()).map(String::from));
    pieces
}

pub fn shape() -> Shape {
    Shape {
        vocab: pieces(&[]).len(),
        hidden: 16,
        layers: 2,
        heads: 2,
        intermediate: 32,
        positions: 64,
        segments: 2,
        norm_eps: Shape::NORM_EPS,
    }
}

/// Weights whose scores differ well; embeddings so small that an epsilon shows.
pub fn tensors(shape: &Shape, heads: HeadSet) -> Tensors {
    let value = |name: &str, i: usize| {
        let draw = philox([7, crc32fast::hash(name.as_bytes())], [i as u32, 0, 0, 0])[0];
        let centred = f64::from(draw) / 2f64.powi(31) - 1.0;
        let scale = match name {
            _ if name.contains("LayerNorm.weight") => return 1.0 + 0.05 * centred as f32,
            _ if name.contains("embeddings") => 0.02,
            _ if name.ends_with("bias") => 0.05,
            _ => 0.5,
        };
        (scale * centred) as f32
    };
    let params = Layout::new(shape, heads).unwrap().params;
    let tensor = |name: &str, n: usize| (0..n).map(|i| value(name, i)).collect();
    params.iter().map(|p| (p.name.clone(), (p.shape.clone(), tensor(&p.name, p.len())))).collect()
}

/// What transformers writes for a model of this shape.
pub fn config(shape: &Shape) -> Map<String, Value> {
    let config = json!({
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "type_vocab_size": shape.segments,
        "layer_norm_eps": shape.norm_eps,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": null,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "transformers_version": "4.57.6",
        "use_cache": true,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    });
    let Value::Object(config) = config else { unreachable!() };
    config
}

pub fn write_json(path: &Path, object: &Map<String, Value>) {
    fs::write(path, serde_json::to_string_pretty(object).unwrap()).unwrap();
}

pub fn write_weights(folder: &Path, tensors: &Tensors) {
    write_weights_as(folder, tensors, Dtype::F32, |values| bytemuck::cast_slice(values).to_vec());
}

/// The same in another type; `bytes` makes the file's of a tensor's values.
pub fn write_weights_as(folder: &Path, tensors: &Tensors, dtype: Dtype, bytes: impl Fn(&[f32]) -> Vec<u8>) {
    let bytes: Vec<Vec<u8>> = tensors.values().map(|(_, values)| bytes(values)).collect();
    let mut entries = Vec::new();
    for ((name, (shape, _)), bytes) in tensors.iter().zip(&bytes) {
        entries.push(Entry { name, dtype, shape: shape.clone(), bytes });
    }
    write_tensors(&folder.join("model.safetensors"), &entries, Default::default()).unwrap();
}

/// Writes a model folder, without a tokenizer.
pub fn write(folder: &Path, config: &Map<String, Value>, tensors: &Tensors) {
    fs::create_dir_all(folder).unwrap();
    write_json(&folder.join("config.json"), config);
    write_weights(folder, tensors);
}

/// Query and document pairs of several lengths.
pub fn batch() -> Batch {
    let mut batch = Batch::default();
    for (i, (query, document)) in [(2, 5), (1, 30), (4, 1), (3, 17)].into_iter().enumerate() {
        let words = |from: usize, n: usize| -> Vec<u32> {
            (from..from + n).map(|j| 5 + (j * 7 + i * 13) as u32 % 90).collect()
        };
        batch.push(SPECIAL, i as u32, &words(0, query), Some(&words(50, document)));
    }
    batch.cu_groups = vec![0, 2, 4];
    batch.targets = vec![1.0, 0.0, 1.0, 0.0];
    batch.step_pairs = 2;
    batch
}

pub fn options(objective: Objective, heads: HeadSet) -> Options {
    Options {
        objective,
        heads,
        capacity: Capacity { tokens: 256, sequences: 16, masked: 64 },
        train: true,
        dropout: 0.0,
        seed: 3,
        rule: None,
        continues: Vec::new(),
    }
}

/// A model with a ranking head of these sizes, zeroed.
pub fn ranker(shape: &Shape) -> Bert<Cpu> {
    Bert::new(Cpu::new(), shape, options(Objective::Ranking(RankLoss::Lce, None), HeadSet::RANKING)).unwrap()
}

/// A model with the heads of pre-training, zeroed.
pub fn pretrainer(shape: &Shape) -> Bert<Cpu> {
    let both = Objective::Pretraining { mlm: 1.0, qdpp: 1.0 };
    Bert::new(Cpu::new(), shape, options(both, HeadSet::PRETRAINING)).unwrap()
}

/// Scores of `batch()` by the folder's model.
pub fn scores(folder: &Path) -> Vec<f32> {
    let checkpoint = Checkpoint::read(folder).unwrap();
    let mut model = ranker(&checkpoint.shape);
    checkpoint.fill(&mut model, Fill::AsSaved, 1).unwrap();
    model.scores(&batch()).unwrap()
}

/// Largest difference as a share of the largest value.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let size = b.iter().fold(0f32, |most, x| most.max(x.abs()));
    a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / size
}

/// The line of a refusal: one line that fits a terminal.
pub fn refusal<T>(result: ctune_dist::Result<T>) -> String {
    let error = result.err().expect("refused");
    let text = error.to_string();
    assert!(
        !text.contains('\n') && text.chars().count() <= 300,
        "{} characters: {text}",
        text.chars().count()
    );
    text
}
