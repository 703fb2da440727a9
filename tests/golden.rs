//! The PyTorch-made results in `tests/assets/golden` (see `make_golden.py` there) as the types of
//! this crate, for every test that compares a model with them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ctune_dist::data::batch::Batch;
use ctune_dist::model::shape::Shape;
use ctune_dist::reference::Tensors;
use safetensors::SafeTensors;
use serde::Deserialize;

/// What PyTorch was given and what it computed, in float64 and rounded to f32.
pub struct Golden {
    pub shape: Shape,
    /// Encoder, pooler, MLM and QDPP heads.
    pub pretraining_weights: Tensors,
    /// Encoder, pooler and ranking head.
    pub ranking_weights: Tensors,
    /// Masked ids and QDPP classes.
    pub pretraining_batch: Batch,
    /// The same sequences without masks, in two groups.
    pub ranking_batch: Batch,
    /// [M]
    pub masked_rows: Vec<u32>,
    /// [M]
    pub masked_labels: Vec<u32>,
    /// (rate, seed) of the cases with dropout.
    pub dropout: (f32, u32),
    pub steps: Steps,
    /// The same steps by PyTorch in float32.
    pub steps_float32: StepsFloat32,
    outputs: Tensors,
    losses: BTreeMap<String, BTreeMap<String, f64>>,
    float32_errors: BTreeMap<String, BTreeMap<String, f64>>,
}

/// A forward and backward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Case {
    Pretraining,
    PretrainingDropout,
    Ranking,
    /// Scores and loss only.
    RankingDropout,
}

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::Pretraining => "pretraining",
            Self::PretrainingDropout => "pretraining_dropout",
            Self::Ranking => "ranking",
            Self::RankingDropout => "ranking_dropout",
        }
    }
}

/// Ten steps of `torch.optim.AdamW` on `pretraining_batch`, clipped by global norm, with the linear
/// schedule of transformers (the first learning rate is 0); no decay on biases and LayerNorms.
#[derive(Deserialize)]
pub struct Steps {
    /// MLM + QDPP before each update.
    pub losses: Vec<f64>,
    pub grad_norms: Vec<f64>,
    pub learning_rates: Vec<f64>,
    pub final_loss: f64,
    pub weight_decay: f64,
    pub clip_norm: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
}

#[derive(Deserialize)]
pub struct StepsFloat32 {
    pub losses: Vec<f64>,
    pub final_loss: f64,
}

#[derive(Deserialize)]
struct File {
    pack: Pack,
    dropout: Rule,
    losses: BTreeMap<String, BTreeMap<String, f64>>,
    steps: Steps,
    steps_float32: StepsFloat32,
    float32_errors: BTreeMap<String, BTreeMap<String, f64>>,
}

#[derive(Deserialize)]
struct Rule {
    rate: f32,
    seed: u32,
}

#[derive(Deserialize)]
struct Pack {
    ids: Vec<u32>,
    masked_ids: Vec<u32>,
    positions: Vec<u32>,
    segments: Vec<u32>,
    row_sample: Vec<u32>,
    cu_seqlens: Vec<u32>,
    masked_rows: Vec<u32>,
    masked_labels: Vec<u32>,
    samples: Vec<u32>,
    pair_labels: Vec<u32>,
    cu_groups: Vec<u32>,
    epoch: u32,
}

/// The folder: a checkpoint as transformers saves `BertForPreTraining`, and the results.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/assets/golden")
}

/// Reads all of it.
pub fn load() -> Golden {
    let config: serde_json::Value = json("config.json");
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let shape = Shape {
        vocab: size("vocab_size"),
        hidden: size("hidden_size"),
        layers: size("num_hidden_layers"),
        heads: size("num_attention_heads"),
        intermediate: size("intermediate_size"),
        positions: size("max_position_embeddings"),
        segments: size("type_vocab_size"),
        norm_eps: config["layer_norm_eps"].as_f64().unwrap(),
    };
    let file: File = json("golden.json");
    let (pretraining_batch, ranking_batch) = batches(&file.pack);
    let pretraining_weights = tensors("model.safetensors");
    let outputs = tensors("outputs.safetensors");
    let head = outputs.iter().filter(|(name, _)| name.starts_with("classifier."));
    let encoder = pretraining_weights.iter().filter(|(name, _)| !name.starts_with("cls."));
    let ranking_weights = encoder.chain(head).map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    Golden {
        shape,
        pretraining_weights,
        ranking_weights,
        pretraining_batch,
        ranking_batch,
        masked_rows: file.pack.masked_rows,
        masked_labels: file.pack.masked_labels,
        dropout: (file.dropout.rate, file.dropout.seed),
        steps: file.steps,
        steps_float32: file.steps_float32,
        outputs,
        losses: file.losses,
        float32_errors: file.float32_errors,
    }
}

impl Golden {
    /// `mlm_loss`, `qdpp_loss` or (ranking) `loss`.
    pub fn loss(&self, case: Case, name: &str) -> f64 {
        self.losses[case.name()][name]
    }

    /// `mlm_logits` [M, V], `pair_logits` [S, 2], `scores` [S], or the gradient of the parameter `name`.
    pub fn output(&self, case: Case, name: &str) -> &[f32] {
        &self.outputs[&format!("{}/{name}", case.name())].1
    }

    /// Every gradient of the case (the losses summed), by parameter.
    pub fn gradients(&self, case: Case) -> BTreeMap<&str, &[f32]> {
        let prefix = format!("{}/", case.name());
        let of_case = self.outputs.iter().filter_map(|(name, (_, values))| {
            let name = name.strip_prefix(&prefix)?;
            name.contains('.').then_some((name, values.as_slice()))
        });
        of_case.collect()
    }

    /// max |actual - expected| / max |expected| of an output or gradient. Softmax does not see a
    /// shift, so the gradients of key biases and of the classifier's bias are 0: they are measured
    /// against the query bias and the classifier's weight.
    pub fn relative_error(&self, case: Case, name: &str, actual: &[f32]) -> f64 {
        let expected = self.output(case, name);
        assert_eq!(actual.len(), expected.len(), "{name}");
        let relative =
            name.replace("self.key.bias", "self.query.bias").replace("classifier.bias", "classifier.weight");
        let scale = self.output(case, &relative).iter().fold(0f32, |max, x| max.max(x.abs()));
        let errors = actual.iter().zip(expected).map(|(a, e)| (f64::from(*a) - f64::from(*e)).abs());
        // A NaN must not hide in `max`, which ignores it.
        let largest =
            errors.fold(0f64, |max, error| if error.is_nan() { f64::INFINITY } else { max.max(error) });
        largest / f64::from(scale)
    }

    /// How far off a float32 implementation may be, in terms of `relative_error`: twice the largest error of
    /// PyTorch's own float32 run over the outputs and gradients of the case.
    pub fn bound(&self, case: Case) -> f64 {
        2.0 * self.float32_errors[case.name()].values().fold(0.0, |max: f64, error| max.max(*error))
    }
}

fn batches(pack: &Pack) -> (Batch, Batch) {
    let bare = Batch {
        positions: pack.positions.clone(),
        segments: pack.segments.clone(),
        row_sample: pack.row_sample.clone(),
        cu_seqlens: pack.cu_seqlens.clone(),
        samples: pack.samples.clone(),
        epoch: pack.epoch,
        ..Batch::default()
    };
    let pretraining = Batch {
        ids: pack.masked_ids.clone(),
        pair_labels: pack.pair_labels.clone(),
        masked: pack.masked_rows.len(),
        step_masked: pack.masked_rows.len(),
        step_pairs: pack.samples.len(),
        ..bare.clone()
    };
    let groups = pack.cu_groups.len() - 1;
    let ranking =
        Batch { ids: pack.ids.clone(), cu_groups: pack.cu_groups.clone(), step_pairs: groups, ..bare };
    (pretraining, ranking)
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

fn tensors(name: &str) -> Tensors {
    let bytes = std::fs::read(folder().join(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    let tensors = file.tensors().into_iter();
    tensors.map(|(name, t)| (name, (t.shape().to_vec(), values(t.data())))).collect()
}
