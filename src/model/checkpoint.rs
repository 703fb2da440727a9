//! Hugging Face model folders in and out: `config.json`, `model.safetensors` and the tokenizer's
//! files, as `transformers` reads and writes them, so that a model comes from anywhere and goes
//! anywhere. Loading names every tensor that is missing or unexpected; nothing is dropped in silence.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::bert::Bert;
use super::init::initial;
use super::layout::{HeadSet, Layout, Param};
use super::shape::Shape;
use super::tensor_file::{Entry, Written, write_synced, write_tensors};
pub use crate::config::HeadStart;
use crate::engine::{Elem, Engine};
use crate::files;
use crate::{Error, Result};

/// Files beside the weights that make a folder loadable elsewhere.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"];

/// The QDPP head's tensors begin with this name, as BERT's next-sentence head's do.
const PAIR: &str = "cls.seq_relationship";
/// Key of `config.json` that lists heads which are in the file and were never trained; others overlook it.
const UNTRAINED: &str = "untrained_heads";

/// Tensors by Hugging Face name: shape and f32 values in row-major order.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A model folder, read.
pub struct Checkpoint {
    pub path: PathBuf,
    pub shape: Shape,
    pub tensors: Tensors,
    /// The QDPP head has its initial values: the training that made the model had no QDPP.
    pub untrained_pair: bool,
}

/// What loading did besides copying.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Parameters that the file does not have; drawn anew.
    pub missing: Vec<String>,
    /// Tensors of the file that this model has no place for.
    pub unexpected: Vec<String>,
}

impl LoadReport {
    /// Names on the terminal what was not simply copied.
    pub fn print(&self, path: &Path) {
        if !self.missing.is_empty() {
            tell!("{}: not in the file, drawn anew: {}", path.display(), self.missing.join(", "));
        }
        if !self.unexpected.is_empty() {
            tell!("{}: in the file, not used: {}", path.display(), self.unexpected.join(", "));
        }
    }
}

impl Checkpoint {
    /// Reads a model folder.
    ///
    /// # Errors
    /// `Error::Data` naming the file and what is wrong with it; `Error::Config` when the model is
    /// no BERT of the kind the engine computes (erf GELU, absolute positions, post-LayerNorm).
    pub fn read(path: &Path) -> Result<Self> {
        let config = read_config(&path.join("config.json"))?;
        let shape = shape_of(&config, &path.join("config.json"))?;
        let untrained_pair = config[UNTRAINED] == json!([PAIR]);
        let file = path.join("model.safetensors");
        let bad = |e: candle_core::Error| {
            Error::data(format!("{}: cannot be read as safetensors: {e}", file.display()))
        };
        if !file.exists() {
            return Err(Error::data(format!(
                "{}: no such file: a model folder holds config.json and model.safetensors",
                file.display()
            )));
        }
        let mut tensors = Tensors::new();
        for (name, tensor) in candle_core::safetensors::load(&file, &Device::Cpu).map_err(bad)? {
            if tensor.dtype() == DType::I64 {
                continue; // position_ids: a constant that old checkpoints carry
            }
            let values = tensor.to_dtype(DType::F32).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1());
            tensors.insert(canonical(&name), (tensor.dims().to_vec(), values.map_err(bad)?));
        }
        Ok(Self { path: path.to_owned(), shape, tensors, untrained_pair })
    }

    /// Refuses a tokenizer with another vocabulary than the model's, and sequences longer than its
    /// position table.
    pub fn check_fits(&self, vocab: usize, max_tokens: usize) -> Result<()> {
        let path = self.path.display();
        if self.shape.vocab != vocab {
            return Err(Error::config(format!(
                "{path}: the model has {} tokens, the data's tokenizer {vocab}: run prepare with --tokenizer {path}",
                self.shape.vocab
            )));
        }
        if self.shape.positions < max_tokens {
            return Err(Error::config(format!(
                "data.max_tokens = {max_tokens}, but {path} has {} positions",
                self.shape.positions
            )));
        }
        Ok(())
    }

    /// Values of one parameter: from the file, from the QDPP head, or `None`.
    fn values(&self, param: &Param, start: HeadStart) -> Result<Option<Vec<f32>>> {
        if start == HeadStart::QdppHead && param.head {
            return self.rank_from_pair(param).map(Some);
        }
        if start == HeadStart::NewHead && param.head {
            return Ok(None);
        }
        let Some((shape, values)) = self.tensors.get(&param.name) else { return Ok(None) };
        if *shape != param.shape {
            return Err(Error::data(format!(
                "{}: tensor {} has shape {shape:?}, the model needs {:?}",
                self.path.display(),
                param.name,
                param.shape
            )));
        }
        Ok(Some(values.clone()))
    }

    /// Row 0 minus row 1 of the QDPP head's tensor of the same kind.
    fn rank_from_pair(&self, param: &Param) -> Result<Vec<f32>> {
        let name = param.name.replace("classifier", PAIR);
        if self.untrained_pair {
            return Err(Error::config(format!(
                "{}: its QDPP head was never trained (config.json: {UNTRAINED}), so it cannot rank: coarse-tune with \
                 objective.qdpp above 0, or fine-tune with start = \"new-head\" first",
                self.path.display()
            )));
        }
        let Some((_, values)) = self.tensors.get(&name) else {
            return Err(Error::config(format!(
                "{}: has no {name}: start = \"qdpp-head\" needs a coarse-tuned model; use start = \"new-head\"",
                self.path.display()
            )));
        };
        let (clicked, negative) = values.split_at(values.len() / 2);
        Ok(clicked.iter().zip(negative).map(|(a, b)| a - b).collect())
    }

    /// Puts the weights into `model`; a pooler or head that the file lacks is drawn from `seed`.
    ///
    /// # Errors
    /// `Error::Data` when a tensor of the embeddings or the encoder is missing: a model that is partly
    /// random would train and rank without a word.
    pub fn fill<E: Engine>(&self, model: &mut Bert<E>, start: Fill, seed: u32) -> Result<LoadReport> {
        let mut report = LoadReport::default();
        for param in &model.layout.params {
            if param.block.is_some() {
                let values = initial(param, seed); // an adapter is never part of a model folder
                model.engine.upload_weights(&values, &mut model.weights, param.offset)?;
                continue;
            }
            let values = match start {
                Fill::AsSaved if param.head => self.saved_head(param)?,
                Fill::AsSaved => self.values(param, HeadStart::NewHead)?,
                Fill::Head(start) => self.values(param, start)?,
            };
            let values = values.unwrap_or_else(|| {
                report.missing.push(param.name.clone());
                initial(param, seed)
            });
            model.engine.upload_weights(&values, &mut model.weights, param.offset)?;
        }
        let body = |name: &&String| name.starts_with("bert.e"); // embeddings, encoder
        if report.missing.iter().any(|name| body(&name)) {
            return Err(Error::data(format!(
                "{}: model.safetensors lacks {} of the model's tensors, so it is not the weights of this \
                 config.json: {}",
                self.path.display(),
                report.missing.len(),
                report.missing.join(", ")
            )));
        }
        let drawn = report.missing.iter().any(|name| name.starts_with(PAIR));
        model.untrained_pair = model.options.leaves_pair() && (self.untrained_pair || drawn);
        let known = |name: &String| model.layout.find(name).is_some();
        report.unexpected = self.tensors.keys().filter(|name| !known(name)).cloned().collect();
        Ok(report)
    }

    /// The ranking head that the file holds: one label, or two of which the second is "relevant".
    fn saved_head(&self, param: &Param) -> Result<Option<Vec<f32>>> {
        let Some((shape, values)) = self.tensors.get(&param.name) else {
            return if self.tensors.contains_key(&format!("{PAIR}.weight")) {
                self.rank_from_pair(param).map(Some)
            } else {
                Ok(None)
            };
        };
        match shape.first() {
            Some(1) => Ok(Some(values.clone())),
            Some(2) => {
                let (other, relevant) = values.split_at(values.len() / 2);
                Ok(Some(relevant.iter().zip(other).map(|(a, b)| a - b).collect()))
            }
            _ => Err(Error::data(format!(
                "{}: {} has shape {shape:?}: a re-ranker has 1 or 2 labels",
                self.path.display(),
                param.name
            ))),
        }
    }
}

/// CRC-32 of a model folder's weights: a kept result counts only for the very model that made it.
///
/// # Errors
/// `Error::Data` when the file cannot be read.
pub fn fingerprint(dir: &Path) -> Result<u32> {
    let file = dir.join("model.safetensors");
    Ok(crc32fast::hash(&files::read(&file)?))
}

/// Which ranking head to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The one in the file (or, without one, the QDPP head's difference): for re-ranking.
    AsSaved,
    /// A start for fine-tuning.
    Head(HeadStart),
}

/// Draws every parameter anew.
pub fn fill_fresh<E: Engine>(model: &mut Bert<E>, seed: u32) -> Result<()> {
    for param in &model.layout.params {
        model.engine.upload_weights(&initial(param, seed), &mut model.weights, param.offset)?;
    }
    model.untrained_pair = model.options.leaves_pair();
    Ok(())
}

/// Names as `BertForPreTraining` has them, whatever wrote the file.
fn canonical(name: &str) -> String {
    let name =
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
    let bare = ["embeddings.", "encoder.", "pooler."].iter().any(|prefix| name.starts_with(prefix));
    if bare { format!("bert.{name}") } else { name }
}

/// Reads the sizes from a `config.json`.
pub fn read_shape(path: &Path) -> Result<Shape> {
    shape_of(&read_config(path)?, path)
}

fn read_config(path: &Path) -> Result<Value> {
    let text = files::read_text(path)?;
    serde_json::from_str(&text).map_err(|e| Error::data(format!("{}: not JSON: {e}", path.display())))
}

fn shape_of(config: &Value, path: &Path) -> Result<Shape> {
    let size = |key: &str| {
        config[key].as_u64().map(|v| v as usize).ok_or_else(|| {
            Error::data(format!("{}: key \"{key}\" is missing or not a number", path.display()))
        })
    };
    let must = |key: &str, wanted: &str| match config[key].as_str() {
        None => Ok(()),
        Some(value) if value == wanted => Ok(()),
        Some(value) => Err(Error::config(format!(
            "{}: {key} = \"{value}\": only \"{wanted}\" is supported",
            path.display()
        ))),
    };
    must("model_type", "bert")?;
    must("hidden_act", "gelu")?;
    must("position_embedding_type", "absolute")?;
    let shape = Shape {
        vocab: size("vocab_size")?,
        hidden: size("hidden_size")?,
        layers: size("num_hidden_layers")?,
        heads: size("num_attention_heads")?,
        intermediate: size("intermediate_size")?,
        positions: size("max_position_embeddings")?,
        segments: size("type_vocab_size")?,
    };
    shape.check()?;
    Ok(shape)
}

/// The `config.json` of a model.
fn config_json(shape: &Shape, heads: HeadSet, untrained_pair: bool, dtype: Dtype) -> Value {
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
        "initializer_range": super::init::STD,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "torch_dtype": if dtype == Dtype::BF16 { "bfloat16" } else { "float32" },
    });
    if untrained_pair {
        config[UNTRAINED] = json!([PAIR]);
    }
    if heads.rank {
        config["id2label"] = json!({"0": "LABEL_0"});
        config["label2id"] = json!({"LABEL_0": 0});
    }
    config
}

/// All parameters on the host, by Hugging Face name; adapters merged into the matrices beside them.
pub fn export<E: Engine>(model: &Bert<E>) -> Result<Tensors> {
    let mut tensors = by_name(&model.layout, &merged(model)?);
    let own = |name: &String| model.layout.find(name).is_some_and(|param| param.block.is_none());
    tensors.retain(|name, _| own(name));
    Ok(tensors)
}

/// The arena as a model without adapters needs it, [layout.len].
fn merged<E: Engine>(model: &Bert<E>) -> Result<Vec<f32>> {
    let mut all = model.engine.download_weights(&model.weights, 0..model.layout.len)?;
    model.layout.merge_adapters(&mut all);
    Ok(all)
}

/// All gradients on the host, by Hugging Face name (an adapter's by its own).
pub fn export_gradients<E: Engine>(model: &Bert<E>) -> Result<Tensors> {
    let all = model.engine.download(&model.grads, 0..model.layout.len)?;
    Ok(by_name(&model.layout, &all))
}

fn by_name(layout: &Layout, arena: &[f32]) -> Tensors {
    let tensor = |p: &Param| (p.name.clone(), (p.shape.clone(), arena[p.range()].to_vec()));
    layout.params.iter().map(tensor).collect()
}

/// A model's weights on the host: a copy from which files can be written while training goes on.
pub struct Image<R: Elem> {
    layout: Layout,
    heads: HeadSet,
    untrained_pair: bool,
    /// [layout.len]
    weights: Vec<R>,
}

impl<R: Elem> Image<R> {
    /// Copies the weights of `model`; waits for the device.
    pub fn of<E: Engine<Real = R>>(model: &Bert<E>) -> Result<Self> {
        let weights = model.engine.download(&model.weights, 0..model.layout.len)?;
        let (heads, untrained_pair) = (model.options.heads, model.untrained_pair);
        Ok(Self { layout: model.layout.clone(), heads, untrained_pair, weights })
    }

    /// The weights as a model without adapters needs them.
    fn merged<E: Engine>(model: &Bert<E>) -> Result<Image<f32>> {
        let mut weights = model.engine.download_weights(&model.weights, 0..model.layout.len)?;
        model.layout.merge_adapters(&mut weights);
        if let Some(param) =
            model.layout.params.iter().find(|p| !weights[p.range()].iter().all(|w| w.is_finite()))
        {
            let name = &param.name;
            return Err(Error::data(format!(
                "{name} has weights that are not finite: the model is not saved"
            )));
        }
        let mut layout = model.layout.clone();
        layout.params.retain(|param| param.block.is_none());
        Ok(Image { layout, heads: model.options.heads, untrained_pair: model.untrained_pair, weights })
    }

    /// Writes and syncs the files of a model folder into `dir`, which exists; returns their names with
    /// size and checksum. `tokenizer` is a folder to copy the tokenizer's files from.
    ///
    /// # Errors
    /// `Error::Data` with the file that cannot be written.
    pub fn write(&self, dir: &Path, tokenizer: Option<&Path>) -> Result<BTreeMap<String, Written>> {
        // 16-bit weights are kept as they are: the f32 ones are the optimiser's
        let dtype = if size_of::<R>() == 2 { Dtype::BF16 } else { Dtype::F32 };
        let entry = |p| tensor(p, dtype, &self.weights);
        let entries: Vec<Entry> = self.layout.params.iter().map(entry).collect();
        // transformers refuses files without this entry
        let format = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
        let mut files = BTreeMap::new();
        let name = "model.safetensors";
        files.insert(name.to_owned(), write_tensors(&dir.join(name), &entries, format)?);
        let config =
            format!("{:#}\n", config_json(&self.layout.shape, self.heads, self.untrained_pair, dtype));
        files.insert("config.json".into(), write_synced(&dir.join("config.json"), &[config.as_bytes()])?);
        if let Some(from) = tokenizer {
            for file in TOKENIZER_FILES.iter().filter(|f| from.join(f).exists()) {
                let source = from.join(file);
                let bytes = files::read(&source)?;
                files.insert((*file).to_owned(), write_synced(&dir.join(file), &[&bytes])?);
            }
        }
        Ok(files)
    }
}

fn tensor<'a, R: Elem>(param: &'a Param, dtype: Dtype, arena: &'a [R]) -> Entry<'a> {
    let bytes = bytemuck::cast_slice(&arena[param.range()]);
    Entry { name: &param.name, dtype, shape: param.shape.clone(), bytes }
}

/// Writes a model folder: beside its place first, then renamed, so that a folder of this name is
/// always complete. Adapters are merged. An existing folder is replaced. `tokenizer` is a folder to
/// copy the tokenizer's files from.
///
/// # Errors
/// `Error::Data` with the file that cannot be written.
pub fn save<E: Engine>(model: &Bert<E>, dir: &Path, tokenizer: Option<&Path>) -> Result<()> {
    let parent = dir.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| Error::io("created", parent, e))?;
    let temporary = tempfile::Builder::new()
        .prefix(".model-")
        .permissions(fs::Permissions::from_mode(0o777)) // as mkdir: the umask has the last word
        .tempdir_in(parent)
        .map_err(|e| Error::io("written in", parent, e))?;
    Image::<f32>::merged(model)?.write(temporary.path(), tokenizer)?;
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(|e| Error::io("replaced", dir, e))?;
    }
    fs::rename(temporary.keep(), dir).map_err(|e| Error::io("written", dir, e))
}
