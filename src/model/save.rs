//! Saves models as Hugging Face folders that `transformers` reads, written whole or not at all. Copies of the
//! weights let files be written while training goes on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use safetensors::tensor::Dtype;

use super::bert::Bert;
use super::config_file::{Origin, config_json};
use super::layout::{HeadSet, Layout, Param};
use super::tensor_file::{Entry, Tensors, Written, write_synced, write_tensors};
use crate::engine::{Elem, Engine};
use crate::text::given;
use crate::{Error, Result};

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
    origin: Origin,
    /// [layout.len]
    weights: Vec<R>,
}

impl<R: Elem> Image<R> {
    /// Copies the weights of `model`; waits for the device.
    pub fn of<E: Engine<Real = R>>(model: &Bert<E>) -> Result<Self> {
        let weights = model.engine.download(&model.weights, 0..model.layout.len)?;
        let (heads, origin) = (model.options.heads, model.origin.clone());
        Ok(Self { layout: model.layout.clone(), heads, origin, weights })
    }

    /// The weights as a model without adapters needs them.
    fn merged<E: Engine>(model: &Bert<E>) -> Result<Image<f32>> {
        let mut weights = model.engine.download_weights(&model.weights, 0..model.layout.len)?;
        model.layout.merge_adapters(&mut weights);
        let finite = |param: &&Param| weights[param.range()].iter().all(|weight| weight.is_finite());
        if let Some(param) = model.layout.params.iter().find(|param| !finite(param)) {
            let name = &param.name;
            return Err(Error::data(format!(
                "{name} has weights that are not finite: the model is not saved"
            )));
        }
        let mut layout = model.layout.clone();
        layout.params.retain(|param| param.block.is_none());
        Ok(Image { layout, heads: model.options.heads, origin: model.origin.clone(), weights })
    }

    /// Writes and syncs the files of a model folder into `dir`, which exists; returns their names with
    /// size and checksum. `tokenizer` is a folder to copy the tokenizer's files from.
    ///
    /// # Errors
    /// `Error::Data` with the file that cannot be written.
    pub fn write(&self, dir: &Path, tokenizer: Option<&Path>) -> Result<BTreeMap<String, Written>> {
        // 16-bit weights are saved as they are: the f32 ones belong to the optimiser
        let dtype = if size_of::<R>() == 2 { Dtype::BF16 } else { Dtype::F32 };
        let entry = |p| tensor(p, dtype, &self.weights);
        let entries: Vec<Entry> = self.layout.params.iter().map(entry).collect();
        // transformers refuses files without this entry
        let format = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
        let mut files = BTreeMap::new();
        let name = "model.safetensors";
        files.insert(name.to_owned(), write_tensors(&dir.join(name), &entries, format)?);
        let config = format!("{:#}\n", config_json(&self.layout.shape, self.heads, &self.origin, dtype));
        files.insert("config.json".into(), write_synced(&dir.join("config.json"), &[config.as_bytes()])?);
        if let Some(from) = tokenizer {
            for (name, bytes) in given::for_model(from, self.layout.shape.positions)? {
                files.insert(name.to_owned(), write_synced(&dir.join(name), &[&bytes])?);
            }
        }
        Ok(files)
    }
}

fn tensor<'a, R: Elem>(param: &'a Param, dtype: Dtype, arena: &'a [R]) -> Entry<'a> {
    let bytes = bytemuck::cast_slice(&arena[param.range()]);
    Entry { name: &param.name, dtype, shape: param.shape.clone(), bytes }
}

/// Writes a model folder under a temporary name beside its place, then renames it, so that a folder of this
/// name is always complete. Adapters are merged. An existing folder is replaced. `tokenizer` is a folder to
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
