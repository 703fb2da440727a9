//! The files of a given tokenizer, and which of them go into a folder that is written. They are copied byte
//! for byte, so that the folder tokenises as the given one did, here and elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::normaliser::Flags;
use super::tokenizer_keys::BERT_CLASSES;
use crate::{Error, Result, files};

pub(super) const JSON: &str = "tokenizer.json";
pub(super) const VOCABULARY: &str = "vocab.txt";
pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const SPECIAL: &str = "special_tokens_map.json";
pub(super) const ADDED: &str = "added_tokens.json";

/// All of them, in the order in which they are listed.
pub const NAMES: [&str; 5] = [JSON, VOCABULARY, CONFIG, SPECIAL, ADDED];

/// Names of files and their bytes.
pub type Files = BTreeMap<&'static str, Vec<u8>>;

/// The file that holds the tokenizer at `path`.
pub(crate) fn find(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    ["tokenizer.json", "vocab.txt"]
        .iter()
        .map(|name| path.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Error::data(format!("{}: holds neither tokenizer.json nor vocab.txt", path.display())))
}

/// The files that make up the tokenizer of `main` (a `tokenizer.json` or a vocabulary): `main` and the files
/// beside it, each with its name in a folder.
pub fn paths(main: &Path) -> Vec<(&'static str, PathBuf)> {
    let is_json = main.extension().is_some_and(|ending| ending == "json");
    let own = if is_json { JSON } else { VOCABULARY };
    let mut found = vec![(own, main.to_owned())];
    let beside = [CONFIG, SPECIAL, ADDED].into_iter().chain(is_json.then_some(VOCABULARY));
    found.extend(beside.map(|name| (name, main.with_file_name(name))).filter(|(_, path)| path.is_file()));
    found
}

/// Reads the files of `main`'s tokenizer.
///
/// # Errors
/// `Error::Data` that names the file.
pub fn read(main: &Path) -> Result<Files> {
    paths(main).into_iter().map(|(name, path)| Ok((name, files::read(&path)?))).collect()
}

/// The tokenizer files of the folder `from` as another folder gets them, for a model of `positions`
/// positions.
///
/// # Errors
/// `Error::Data` that names a file that cannot be read.
pub fn for_model(from: &Path, positions: usize) -> Result<Files> {
    let Ok(main) = find(from) else { return Ok(Files::new()) };
    let mut files = read(&main)?;
    let flags = flags(&files);
    complete(&mut files, flags)?;
    if let Some(mut config) = config(&files)? {
        let most = config.get("model_max_length").and_then(Value::as_f64);
        if most.is_some_and(|most| most > positions as f64) {
            // transformers cuts texts there, and longer ones have no position
            config.insert("model_max_length".into(), json!(positions));
            files.insert(CONFIG, pretty(config));
        }
    }
    Ok(files)
}

/// Makes `tokenizer_config.json` name the settings of `tokenizer.json` that transformers would otherwise
/// overrule.
pub(super) fn complete(files: &mut Files, flags: Option<Flags>) -> Result<()> {
    let Some(flags) = flags else { return Ok(()) };
    let given = config(files)?;
    if given.as_ref().is_some_and(|config| !overrules(config)) {
        return Ok(());
    }
    let taken = given.as_ref().map_or(Flags::default(), Flags::of_config);
    if !flags.same(&taken) {
        let mut config = given.unwrap_or_else(|| generated(Some(flags)));
        flags.name_in(&mut config, true);
        files.insert(CONFIG, pretty(config));
    }
    Ok(())
}

/// The `tokenizer_config.json` of a tokenizer that came without one: BERT's with these settings or, for
/// `None`, one that leaves everything to `tokenizer.json`.
pub(super) fn generated(flags: Option<Flags>) -> Map<String, Value> {
    let mut config = Map::new();
    let class = if flags.is_some() { "BertTokenizer" } else { "PreTrainedTokenizerFast" };
    config.insert("tokenizer_class".into(), json!(class));
    for (key, token) in [
        ("pad_token", "[PAD]"),
        ("unk_token", "[UNK]"),
        ("cls_token", "[CLS]"),
        ("sep_token", "[SEP]"),
        ("mask_token", "[MASK]"),
    ] {
        config.insert(key.into(), json!(token));
    }
    config.insert("model_max_length".into(), json!(512));
    match flags {
        Some(flags) => flags.name_in(&mut config, false),
        None => {
            // for such a class, transformers 5 gives models no segments unless they are named
            let names = json!(["input_ids", "token_type_ids", "attention_mask"]);
            config.insert("model_input_names".into(), names);
        }
    }
    config
}

/// Whether the class of this `tokenizer_config.json` overrules the normaliser of `tokenizer.json`.
pub(super) fn overrules(config: &Map<String, Value>) -> bool {
    match config.get("tokenizer_class").and_then(Value::as_str) {
        Some(class) => BERT_CLASSES.contains(&class),
        None => true, // transformers then takes the class of the model's family
    }
}

/// The settings of `tokenizer.json`'s normaliser, if it is BERT's.
fn flags(files: &Files) -> Option<Flags> {
    let json: Value = serde_json::from_slice(files.get(JSON)?).ok()?;
    let normalizer = &json["normalizer"];
    if normalizer["type"] != "BertNormalizer" {
        return None;
    }
    Some(Flags {
        lowercase: normalizer["lowercase"].as_bool()?,
        strip_accents: normalizer["strip_accents"].as_bool(),
        chinese: normalizer["handle_chinese_chars"].as_bool()?,
    })
}

fn config(files: &Files) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = files.get(CONFIG) else { return Ok(None) };
    serde_json::from_slice(bytes)
        .map(Some)
        .map_err(|cause| Error::data(format!("{CONFIG}: not JSON: {cause}")))
}

pub(super) fn pretty(object: Map<String, Value>) -> Vec<u8> {
    format!("{:#}\n", Value::Object(object)).into_bytes()
}
