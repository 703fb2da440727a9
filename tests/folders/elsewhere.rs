//! The same tokens in transformers, if its Python package is installed for `CTUNE_PYTHON` or `python3`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ctune_dist::data::batch::Batch;
use ctune_dist::model::checkpoint;
use ctune_dist::text::Tokenizer;
use serde_json::{Value, json};

use crate::skip::python;

use super::support::{SPECIAL, ranker, shape, write_json};
use super::tokenizer::{TEXTS, ids, object, settings, tokenizer_json, write_vocabulary};

/// Reads {"folders", "texts", "pair"}; prints for each folder the ids of the texts, and ids and segments of the pair.
const SCRIPT: &str = r#"
import json, os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from transformers import AutoTokenizer, BertTokenizerFast
asked, found = json.load(sys.stdin), []
for folder in asked["folders"]:
    named = any(os.path.exists(os.path.join(folder, name)) for name in ("tokenizer_config.json", "config.json"))
    tokenizer = (AutoTokenizer if named else BertTokenizerFast).from_pretrained(folder)
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked["texts"]]
    pair = tokenizer(*asked["pair"])
    found.append([texts, pair["input_ids"], pair["token_type_ids"], tokenizer.model_max_length])
print(json.dumps(found))
"#;

fn ask(python: &str, folders: &[PathBuf]) -> Vec<Value> {
    let mut child = Command::new(python)
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let asked = json!({"folders": folders, "texts": TEXTS, "pair": ["Schön heron", "MÖGEN otter 北京"]});
    child.stdin.take().unwrap().write_all(asked.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// This program's answer in the script's form, except for the length.
fn here(folder: &Path) -> [Value; 3] {
    let tokenizer = Tokenizer::load(folder).unwrap();
    let pair = tokenizer.encode_batch(&["Schön heron", "MÖGEN otter 北京"], usize::MAX).unwrap();
    let mut batch = Batch::default();
    batch.push(SPECIAL, 0, &pair[0], Some(&pair[1]));
    [json!(ids(&tokenizer)), json!(batch.ids), json!(batch.segments)]
}

/// Given folders of every setting and kind, what `prepare` writes for each, and what training writes.
#[test]
fn written_folders_tokenise_alike_in_transformers() {
    let Some(python) = python("transformers", "transformers") else { return };
    let place = tempfile::tempdir().unwrap();
    let (mut written, mut given) = (Vec::new(), Vec::new());
    for (i, (lower, strip, chinese)) in settings().enumerate() {
        let named = json!({"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": chinese,
                           "tokenizer_class": "BertTokenizer"});
        for kind in ["vocabulary", "both", "json", "fast"] {
            let from = place.path().join(format!("{kind}-{i}"));
            std::fs::create_dir_all(&from).unwrap();
            match kind {
                "vocabulary" => write_vocabulary(&from),
                _ => write_json(&from.join("tokenizer.json"), &tokenizer_json(lower, strip, chinese)),
            }
            if matches!(kind, "vocabulary" | "both") {
                write_json(&from.join("tokenizer_config.json"), &object(named.clone()));
                given.push(from.clone());
            } else if kind == "fast" {
                let class = json!({"tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "[CLS]", "sep_token": "[SEP]",
                                   "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]",
                                   "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]});
                write_json(&from.join("tokenizer_config.json"), &object(class));
                given.push(from.clone());
            }
            let shards = place.path().join(format!("{kind}-{i}-shards"));
            std::fs::create_dir_all(&shards).unwrap();
            Tokenizer::load(&from).unwrap().save(&shards).unwrap();
            for (name, source) in [("coarse", &shards), ("fine", &from)] {
                let model = place.path().join(format!("{kind}-{i}-{name}"));
                checkpoint::save(&ranker(&shape()), &model, Some(source)).unwrap();
                written.push(model);
            }
            assert_eq!(here(&shards), here(&from), "{kind} {lower} {strip:?} {chinese}");
            written.push(shards);
        }
    }
    let folders = [&given[..], &written].concat();
    let found = ask(&python, &folders);
    assert_eq!(found.len(), 36 + 144);
    for (folder, found) in folders.iter().zip(&found) {
        let [texts, pair, segments] = here(folder);
        assert_eq!(found[0], texts, "{}", folder.display());
        assert_eq!((&found[1], &found[2]), (&pair, &segments), "{}", folder.display());
    }
}
