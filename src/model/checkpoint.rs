//! Loads Hugging Face model folders: `config.json`, `model.safetensors` and the tokenizer's files, as
//! `transformers` writes them, so that a model may come from anywhere. Loading names every tensor that is
//! missing or unexpected; nothing is dropped silently. `save` writes such folders.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

use super::bert::Bert;
use super::config_file::{ModelConfig, Origin};
use super::config_keys::{PAIR, UNTRAINED};
use super::init::initial;
use super::layout::Param;
pub use super::save::{Image, export, export_gradients, save};
use super::shape::Shape;
pub use super::tensor_file::Tensors;
pub use crate::config::HeadStart;
use crate::engine::Engine;
use crate::{Error, Result, allow_list, files, journal};

/// The MLM head's matrix and bias under their own names; some programs save them a second time.
const DECODER: &str = "cls.predictions.decoder.weight";
const BIAS: &str = "cls.predictions.bias";
const DECODER_BIAS: &str = "cls.predictions.decoder.bias";
/// Constants that old checkpoints carry.
const CONSTANTS: [&str; 2] = ["position_ids", "token_type_ids"];

/// A model folder, read.
pub struct Checkpoint {
    pub path: PathBuf,
    pub shape: Shape,
    pub tensors: Tensors,
    /// The MLM head's matrix is the word embedding.
    tied: bool,
    origin: Origin,
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
    /// Warns of tensors that the file lacks and of tensors in it that are not used, heads left out.
    pub fn warn(&self, path: &Path) {
        let drawn: Vec<&String> =
            self.missing.iter().filter(|name| !name.starts_with("classifier")).collect();
        let unused: Vec<&String> = self.unexpected.iter().filter(|name| name.starts_with("bert.")).collect();
        let lines = [("not in the file, drawn anew", drawn), ("in the file, not used", unused)];
        for (what, names) in lines.iter().filter(|(_, names)| !names.is_empty()) {
            journal::warn_once(&format!("{}: {what}: {}", path.display(), allow_list::list(names)));
        }
    }

    /// Prints the names of what was not simply copied.
    pub fn print(&self, path: &Path) {
        if !self.missing.is_empty() {
            tell!("{}: not in the file, drawn anew: {}", path.display(), allow_list::list(&self.missing));
        }
        if !self.unexpected.is_empty() {
            tell!("{}: in the file, not used: {}", path.display(), allow_list::list(&self.unexpected));
        }
    }
}

impl Checkpoint {
    /// Reads a model folder.
    ///
    /// # Errors
    /// `Error::Data` naming the file and what is wrong with it; `Error::Config` that names a key of
    /// `config.json` whose value the engine does not follow.
    pub fn read(path: &Path) -> Result<Self> {
        let config = ModelConfig::read(&path.join("config.json"))?;
        let file = path.join("model.safetensors");
        if !file.exists() {
            return Err(no_weights(path, &file));
        }
        let bad = |e: candle_core::Error| {
            Error::data(format!("{}: cannot be read as safetensors: {e}", file.display()))
        };
        let wrong = |name: &str, why: &str| Error::data(format!("{}: tensor {name} {why}", file.display()));
        let mut tensors = Tensors::new();
        for (name, tensor) in candle_core::safetensors::load(&file, &Device::Cpu).map_err(bad)? {
            if CONSTANTS.iter().any(|end| name.ends_with(end)) {
                continue;
            }
            if tensor.dtype().is_int() {
                return Err(wrong(
                    &name,
                    "holds whole numbers: save the weights as float32, float16 or bfloat16",
                ));
            }
            let values = tensor.to_dtype(DType::F32).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1());
            let values: Vec<f32> = values.map_err(bad)?;
            if !values.iter().all(|value| value.is_finite()) {
                return Err(wrong(
                    &name,
                    "holds a value that is not finite: the training that made it failed",
                ));
            }
            if tensors.insert(canonical(&name), (tensor.dims().to_vec(), values)).is_some() {
                return Err(wrong(&name, "is in the file under two names"));
            }
        }
        if !tensors.contains_key(BIAS)
            && let Some(bias) = tensors.remove(DECODER_BIAS)
        {
            tensors.insert(BIAS.into(), bias);
        }
        let ModelConfig { shape, tied, origin, .. } = config;
        Ok(Self { path: path.to_owned(), shape, tensors, tied, origin })
    }

    /// Refuses a tokenizer of more pieces than the word table has rows, and sequences longer than the
    /// position table. A table may have more rows: many are padded to a round number.
    ///
    /// # Errors
    /// `Error::Config` with both numbers.
    pub fn check_fits(&self, pieces: usize, max_tokens: usize) -> Result<()> {
        let path = self.path.display();
        if self.shape.vocab < pieces {
            return Err(Error::config(format!(
                "{path}: the word table has {} rows, the tokenizer {pieces} pieces: take the tokenizer that the \
                 model was trained with, or add rows (resize_token_embeddings in transformers)",
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
        self.check_shape(&param.name, shape, &param.shape)?;
        Ok(Some(values.clone()))
    }

    fn check_shape(&self, name: &str, found: &[usize], wanted: &[usize]) -> Result<()> {
        if found == wanted {
            return Ok(());
        }
        Err(Error::data(format!(
            "{}: tensor {name} has shape {found:?}, the model needs {wanted:?}",
            self.path.display()
        )))
    }

    /// Row 0 minus row 1 of the QDPP head's tensor of the same kind.
    fn rank_from_pair(&self, param: &Param) -> Result<Vec<f32>> {
        let name = param.name.replace("classifier", PAIR);
        if self.origin.untrained_pair {
            return Err(Error::config(format!(
                "{}: its QDPP head was never trained (config.json: {UNTRAINED}), so it cannot rank: coarse-tune with \
                 objective.qdpp above 0, or fine-tune with start = \"new-head\" first",
                self.path.display()
            )));
        }
        let Some((shape, values)) = self.tensors.get(&name) else {
            return Err(Error::config(format!(
                "{}: has no {name}: start = \"qdpp-head\" needs a coarse-tuned model; use start = \"new-head\"",
                self.path.display()
            )));
        };
        self.check_shape(&name, shape, &[&[2], &param.shape[1..]].concat())?;
        let (clicked, negative) = values.split_at(values.len() / 2);
        Ok(clicked.iter().zip(negative).map(|(a, b)| a - b).collect())
    }

    /// Puts the weights into `model`. If the file lacks what training will learn anyway (a new head, the
    /// pooler under it), that is drawn from `seed` and named in the report.
    ///
    /// # Errors
    /// `Error::Data` when a tensor of the embeddings or the encoder is missing: a model that is partly random
    /// would train and rank without a warning. `Error::Config` when a head is to rank and it, or the pooler
    /// under it, is not in the file; when the MLM head is not the one that the engine computes.
    pub fn fill<E: Engine>(&self, model: &mut Bert<E>, start: Fill, seed: u32) -> Result<LoadReport> {
        if model.layout.mlm.is_some() {
            self.check_decoder()?;
        }
        let mut report = LoadReport::default();
        for param in &model.layout.params {
            let values = match start {
                _ if param.block.is_some() => Some(initial(param, seed)), // never part of a model folder
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
        self.check_missing(&report.missing, start)?;
        let drawn = report.missing.iter().any(|name| name.starts_with(PAIR) || is_pooler(name));
        model.origin = self.origin.clone();
        model.origin.untrained_pair = model.options.leaves_pair() && (self.origin.untrained_pair || drawn);
        let known = |name: &String| {
            let decoder = model.layout.mlm.is_some() && (name == DECODER || name == DECODER_BIAS);
            decoder || model.layout.find(name).is_some()
        };
        report.unexpected = self.tensors.keys().filter(|name| !known(name)).cloned().collect();
        Ok(report)
    }

    /// Refuses what must not be random.
    fn check_missing(&self, missing: &[String], start: Fill) -> Result<()> {
        let path = self.path.display();
        let body = |name: &&String| name.starts_with("bert.e"); // embeddings, encoder
        let lacking: Vec<&String> = missing.iter().filter(body).collect();
        if !lacking.is_empty() {
            let why = self.prefix(&lacking).map_or_else(
                || format!("so it is not the weights of this config.json: {}", allow_list::list(&lacking)),
                |prefix| {
                    format!(
                        "because its names begin with \"{prefix}\", where transformers' begin with \"bert.\": save the \
                         model inside that wrapper, or rename the tensors"
                    )
                },
            );
            let count = lacking.len();
            return Err(Error::data(format!(
                "{path}: model.safetensors lacks {count} of the model's tensors, {why}"
            )));
        }
        let ranks_at_once = matches!(start, Fill::AsSaved | Fill::Head(HeadStart::QdppHead));
        match missing.first() {
            Some(name) if ranks_at_once => Err(Error::config(format!(
                "{path}: has no {name}, so its scores would be random: fine-tune it with start = \"new-head\", which \
                 draws what is missing and trains it"
            ))),
            _ => Ok(()),
        }
    }

    /// The prefix of the file's names, if that is why `lacking` were not found.
    fn prefix(&self, lacking: &[&String]) -> Option<String> {
        let bare = |name: &str| name.strip_prefix("bert.").unwrap_or(name).to_owned();
        let first = bare(lacking.first()?);
        let before = self.tensors.keys().find_map(|name| name.strip_suffix(&first))?;
        let others =
            lacking.iter().filter(|name| self.tensors.contains_key(&format!("{before}{}", bare(name))));
        let prefix = before.strip_suffix("bert.").unwrap_or(before);
        (!prefix.is_empty() && 2 * others.count() > lacking.len()).then(|| prefix.to_owned())
    }

    /// The MLM head is computed with the word embedding as its matrix and one bias.
    fn check_decoder(&self) -> Result<()> {
        let path = self.path.display();
        if !self.tied {
            return Err(Error::config(format!(
                "{path}: config.json: tie_word_embeddings = false: an MLM head with its own matrix is not \
                 supported; set it to true to use the word embedding as the matrix"
            )));
        }
        let values = |name: &str| self.tensors.get(name).map(|(_, values)| values);
        let same = |a: &str, b: &str| values(a).is_none_or(|a| values(b) == Some(a));
        if !same(DECODER_BIAS, BIAS) {
            return Err(Error::data(format!(
                "{path}: {DECODER_BIAS} and {BIAS} differ, and an MLM head has one bias: remove the \
                 one that the model was not trained with"
            )));
        }
        if !same(DECODER, "bert.embeddings.word_embeddings.weight") {
            journal::warn_once(&format!(
                "{path}: {DECODER} is not the word embedding; as in transformers the word embedding is used, because \
                 config.json does not say tie_word_embeddings = false"
            ));
        }
        Ok(())
    }

    /// The ranking head that the file holds: one label, or two of which the second is "relevant".
    fn saved_head(&self, param: &Param) -> Result<Option<Vec<f32>>> {
        let Some((shape, values)) = self.tensors.get(&param.name) else {
            // half a ranking head is none, and must not be completed from another
            let own = ["classifier.weight", "classifier.bias"];
            let half = own.iter().any(|name| self.tensors.contains_key(*name));
            let pair = !half && self.tensors.contains_key(&format!("{PAIR}.weight"));
            return pair.then(|| self.rank_from_pair(param)).transpose();
        };
        let labels = *shape.first().unwrap_or(&0);
        if let 1 | 2 = labels {
            self.check_shape(&param.name, shape, &[&[labels], &param.shape[1..]].concat())?;
        }
        match labels {
            1 => Ok(Some(values.clone())),
            2 => {
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

/// CRC-32 of a model folder's weights: a stored result is valid only for the model that made it.
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
    model.origin.untrained_pair = model.options.leaves_pair();
    Ok(())
}

/// Why there is nothing to read, and what to do with the files that are there.
fn no_weights(path: &Path, file: &Path) -> Error {
    let has = |name: &str| path.join(name).exists();
    let hint = if has("model.safetensors.index.json") {
        "the weights are in several files: save them as one (max_shard_size in transformers)"
    } else if has("pytorch_model.bin") {
        "convert pytorch_model.bin to safetensors (save_pretrained in transformers)"
    } else {
        "a model folder holds config.json and model.safetensors"
    };
    Error::data(format!("{}: no such file: {hint}", file.display()))
}

fn is_pooler(name: &str) -> bool {
    name.starts_with("bert.pooler.")
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
    Ok(ModelConfig::read(path)?.shape)
}
