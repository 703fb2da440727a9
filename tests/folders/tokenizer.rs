//! Every key of a tokenizer's files with every value of a list, and files that are written as they were read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ctune_dist::allow_list;
use ctune_dist::model::checkpoint;
use ctune_dist::text::tokenizer_keys::{CONFIG, JSON, NORMALIZER};
use ctune_dist::text::{Tokenizer, given};
use serde_json::{Map, Value, json};

use super::support::*;

/// With and without accents, small and large letters, ideographs.
const MORE: [&str; 9] = ["schön", "schon", "Schön", "mögen", "mogen", "MÖGEN", "北京", "北", "京"];
pub const TEXTS: [&str; 6] = [
    "Schön MÖGEN 北京 heron",
    "schon mogen 北 京 otter, badger!",
    "[MASK] heron[SEP]otter [CLS]",
    "x\u{1}y e\u{301}te\u{301} İ ß ﬁ",
    "kettle-walnut's ember #1 ##e",
    "",
];

pub fn vocabulary() -> Vec<String> {
    pieces(&MORE)
}

pub fn write_vocabulary(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("vocab.txt"), vocabulary().join("\n") + "\n").unwrap();
}

/// As transformers 4 saves it.
pub fn tokenizer_json(lowercase: bool, strip_accents: Option<bool>, chinese: bool) -> Map<String, Value> {
    let ids: BTreeMap<String, usize> = vocabulary().into_iter().enumerate().map(|(i, p)| (p, i)).collect();
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(|token| {
        json!({"id": ids[token], "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    });
    let part = |kind: &str, id: &str, segment: u8| json!({kind: {"id": id, "type_id": segment}});
    let token = |token: &str| json!({"id": token, "ids": [ids[token]], "tokens": [token]});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [part("SpecialToken", "[CLS]", 0), part("Sequence", "A", 0), part("SpecialToken", "[SEP]", 0)],
        "pair": [part("SpecialToken", "[CLS]", 0), part("Sequence", "A", 0), part("SpecialToken", "[SEP]", 0),
                 part("Sequence", "B", 1), part("SpecialToken", "[SEP]", 1)],
        "special_tokens": {"[CLS]": token("[CLS]"), "[SEP]": token("[SEP]")},
    });
    let Value::Object(json) = json!({
        "version": "1.0",
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null,
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": chinese,
                       "strip_accents": strip_accents, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": ids},
    }) else {
        unreachable!()
    };
    json
}

pub fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn place() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn words(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode_batch(&[text], usize::MAX).unwrap().remove(0);
    ids.into_iter().map(|id| tokenizer.piece(id).unwrap()).collect()
}

pub fn ids(tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
    tokenizer.encode_batch(&TEXTS, usize::MAX).unwrap()
}

#[test]
fn a_vocabularys_settings_are_followed() {
    let folder = place();
    write_vocabulary(folder.path());
    let read = |config: Value| {
        write_json(&folder.path().join("tokenizer_config.json"), &object(config));
        let (tokenizer, warnings) = Tokenizer::read(folder.path()).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        words(&tokenizer, "Schön MÖGEN 北京")
    };
    assert_eq!(read(json!({})), ["schon", "mogen", "北", "京"]);
    assert_eq!(read(json!({"strip_accents": false})), ["schön", "mögen", "北", "京"]);
    assert_eq!(read(json!({"strip_accents": true, "do_lower_case": false}))[2..], ["北", "京"]);
    assert_eq!(read(json!({"do_lower_case": false})), ["Schön", "MÖGEN", "北", "京"]);
    assert_eq!(
        read(json!({"do_lower_case": false, "tokenize_chinese_chars": false})),
        ["Schön", "MÖGEN", "北京"]
    );
    let all = json!({"do_lower_case": true, "strip_accents": false, "tokenize_chinese_chars": false});
    assert_eq!(read(all), ["schön", "mögen", "北京"]);
    // each is what tokenizer.json with the same settings gives
    for (lower, strip, chinese) in settings() {
        let config =
            json!({"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": chinese});
        read(config);
        let by_vocabulary = ids(&Tokenizer::load(folder.path()).unwrap());
        let other = place();
        write_json(&other.path().join("tokenizer.json"), &tokenizer_json(lower, strip, chinese));
        assert_eq!(
            by_vocabulary,
            ids(&Tokenizer::load(other.path()).unwrap()),
            "{lower} {strip:?} {chinese}"
        );
    }
}

pub fn settings() -> impl Iterator<Item = (bool, Option<bool>, bool)> {
    let strips = [None, Some(true), Some(false)];
    [true, false].into_iter().flat_map(move |lower| {
        strips.into_iter().flat_map(move |strip| [true, false].map(|chinese| (lower, strip, chinese)))
    })
}

#[test]
fn files_that_contradict_each_other_are_refused_by_name() {
    let folder = place();
    write_json(&folder.path().join("tokenizer.json"), &tokenizer_json(true, Some(false), false));
    let agree = json!({"do_lower_case": true, "strip_accents": false, "tokenize_chinese_chars": false});
    let read = |change: (&str, Value)| {
        let mut config = object(agree.clone());
        config.insert(change.0.into(), change.1);
        write_json(&folder.path().join("tokenizer_config.json"), &config);
        Tokenizer::read(folder.path())
    };
    let (plain, warnings) = read(("model_max_length", json!(64))).unwrap();
    assert_eq!((words(&plain, "Schön 北京"), warnings.len()), (vec!["schön".into(), "北京".into()], 0));
    for (name, value) in [
        ("do_lower_case", json!(false)),
        ("strip_accents", json!(true)),
        ("strip_accents", json!(null)),
        ("tokenize_chinese_chars", json!(true)),
    ] {
        let error = refusal(read((name, value.clone())));
        assert!(
            error.contains(&format!("{name} = {value}")) && error.contains("tokenizer.json says"),
            "{error}"
        );
        assert!(error.contains("make the two files agree"), "{error}");
        // a class that takes tokenizer.json as it is has nothing to overrule it with
        let mut config = object(agree.clone());
        config
            .extend([(name.to_owned(), value), ("tokenizer_class".into(), json!("PreTrainedTokenizerFast"))]);
        write_json(&folder.path().join("tokenizer_config.json"), &config);
        assert_eq!(ids(&Tokenizer::load(folder.path()).unwrap()), ids(&plain));
    }
    fs::write(folder.path().join("tokenizer_config.json"), "{\"do_lower_case\": fal").unwrap();
    assert!(refusal(Tokenizer::load(folder.path())).contains("tokenizer_config.json: not JSON"));
}

/// Given files are copied byte for byte; what they left to other programs' defaults is spelled out.
#[test]
fn a_written_folder_tokenises_as_the_given_one() {
    let mut count = 0;
    for (lower, strip, chinese) in settings() {
        for (json, config) in [(true, 0), (true, 1), (true, 2), (false, 0), (false, 2)] {
            let (from, to, again) = (place(), place(), place());
            if json {
                let tokenizer = tokenizer_json(lower, strip, chinese);
                write_json(&from.path().join("tokenizer.json"), &tokenizer);
            } else {
                write_vocabulary(from.path());
            }
            let named =
                json!({"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": chinese});
            let given = [None, Some(json!({"model_max_length": 64})), Some(named)][config].clone();
            if let Some(given) = &given {
                write_json(&from.path().join("tokenizer_config.json"), &object(given.clone()));
            }
            let special = json!({"mask_token": "[MASK]", "unk_token": {"content": "[UNK]", "lstrip": false}});
            write_json(&from.path().join("special_tokens_map.json"), &object(special));
            let (tokenizer, warnings) = Tokenizer::read(from.path()).unwrap();
            let standard = lower && strip != Some(false) && chinese;
            assert_eq!(warnings.len(), usize::from(config == 1 && !standard), "{warnings:?}");
            tokenizer.save(to.path()).unwrap();
            let (written, warnings) = Tokenizer::read(to.path()).unwrap();
            assert_eq!(warnings, Vec::<String>::new());
            assert!(written.same_tokens(&tokenizer) && ids(&written) == ids(&tokenizer));
            for file in fs::read_dir(from.path()).unwrap() {
                let name = file.unwrap().file_name();
                let bytes = |folder: &Path| fs::read(folder.join(&name)).unwrap();
                let completed = config == 1 && !standard && name == "tokenizer_config.json";
                assert_eq!(bytes(from.path()) == bytes(to.path()), !completed, "{name:?}");
            }
            if json && !standard || given.is_some_and(|given| given.get("do_lower_case").is_some()) {
                let config = allow_list::read_object(&to.path().join("tokenizer_config.json")).unwrap();
                assert_eq!(config["do_lower_case"], lower);
                assert_eq!(config.get("strip_accents").unwrap_or(&Value::Null), &json!(strip));
                assert_eq!(config.get("tokenize_chinese_chars").unwrap_or(&json!(true)), &json!(chinese));
            }
            // written again: nothing changes any more
            written.save(again.path()).unwrap();
            for name in given::NAMES.iter().filter(|name| to.path().join(name).exists()) {
                let bytes = |folder: &Path| fs::read(folder.join(name)).unwrap();
                assert_eq!(bytes(to.path()), bytes(again.path()), "{name}");
            }
            count += 1;
        }
    }
    assert_eq!(count, 60);
}

#[test]
fn a_models_folder_has_the_tokenizers_files_and_a_length_that_it_can_read() {
    let (from, to) = (place(), place());
    write_json(&from.path().join("tokenizer.json"), &tokenizer_json(true, Some(false), true));
    let config = |length: Value| {
        let config = json!({"do_lower_case": true, "strip_accents": false, "model_max_length": length});
        write_json(&from.path().join("tokenizer_config.json"), &object(config));
        let model = ranker(&shape());
        let saved = to.path().join("model");
        checkpoint::save(&model, &saved, Some(from.path())).unwrap();
        assert_eq!(
            fs::read(saved.join("tokenizer.json")).unwrap(),
            fs::read(from.path().join("tokenizer.json")).unwrap()
        );
        fs::read_to_string(saved.join("tokenizer_config.json")).unwrap()
    };
    let given = || fs::read_to_string(from.path().join("tokenizer_config.json")).unwrap();
    assert_eq!(config(json!(64)), given());
    assert_eq!(config(json!(16)), given());
    for long in [json!(512), json!(1e30)] {
        let written: Value = serde_json::from_str(&config(long)).unwrap();
        assert_eq!(written["model_max_length"], 64); // the rows of its position table
        assert_eq!(written["strip_accents"], false);
    }
    // a vocabulary alone stays one
    let (bare, to) = (place(), place());
    write_vocabulary(bare.path());
    let saved = to.path().join("model");
    checkpoint::save(&ranker(&shape()), &saved, Some(bare.path())).unwrap();
    assert!(!saved.join("tokenizer_config.json").exists());
    assert_eq!(ids(&Tokenizer::load(&saved).unwrap()), ids(&Tokenizer::load(bare.path()).unwrap()));
}

/// Values that say what BERT's tokenizer does anyway, so that following them changes nothing.
fn says_nothing_new(name: &str, value: &Value) -> bool {
    let nothing = [json!(null), json!([]), json!({})];
    let mask = [json!("[MASK]"), json!(["[MASK]"]), json!({"content": "[MASK]"})];
    let any = |lists: &[&[Value]]| lists.iter().any(|list| list.contains(value));
    match name {
        "tokenizer_class" => any(&[&[json!(null), json!("BertTokenizer")]]),
        "do_lower_case"
        | "tokenize_chinese_chars"
        | "do_basic_tokenize"
        | "clean_text"
        | "do_word_tokenize"
        | "do_subword_tokenize" => *value == json!(true),
        "strip_accents" => any(&[&[json!(null), json!(true)]]),
        "word_tokenizer_type" | "subword_tokenizer_type" => any(&[&[json!(null), json!("basic")]]),
        "wordpieces_prefix" => *value == json!("##"),
        "split_special_tokens" => any(&[&[json!(null), json!(false)]]),
        "auto_map" => any(&[&[json!(null), json!({})]]),
        "never_split" | "additional_special_tokens" | "extra_special_tokens" | "bos_token" | "eos_token" => {
            any(&[&nothing, &mask, &["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(|token| json!(token))])
                || any(&[&["4", "9"].map(|id| json!({id: {"content": "[MASK]"}}))])
        }
        "added_tokens_decoder" => any(&[&[json!(null), json!({}), json!({"4": {"content": "[MASK]"}})]]),
        "pad_token" => *value == json!("[PAD]"),
        "unk_token" => *value == json!("[UNK]"),
        "cls_token" => *value == json!("[CLS]"),
        "sep_token" => *value == json!("[SEP]"),
        "mask_token" => any(&[&mask[..1], &mask[2..]]),
        "model_input_names" => any(&[&[json!(null), json!(["input_ids", "token_type_ids"])]]),
        _ => false,
    }
}

#[test]
fn every_key_with_every_value_is_followed_refused_or_warned_of() {
    let values: Vec<Value> = serde_json::from_str(
        r###"[null, true, false, 0, 512, -1, 0.5, 1e30, "", "##", "x", "basic", "mecab", "BertTokenizer",
        "XLMRobertaTokenizer", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", {"content": "[MASK]"},
        {"content": "[MASK]", "lstrip": true}, [], {}, ["[MASK]"], ["<x>"], ["input_ids", "token_type_ids"],
        ["input_ids", "attention_mask"], {"4": {"content": "[MASK]"}}, {"9": {"content": "[MASK]"}},
        {"AutoTokenizer": ["x.Y", null]}]"###,
    )
    .unwrap();
    let folder = place();
    write_vocabulary(folder.path());
    let base = ids(&Tokenizer::load(folder.path()).unwrap());
    let (mut outcomes, mut keys) = ([0; 3], 0);
    for name in CONFIG.iter().flat_map(|key| key.names) {
        keys += 1;
        for value in &values {
            for file in ["tokenizer_config.json", "special_tokens_map.json"] {
                if file == "special_tokens_map.json" && !name.ends_with("_token") {
                    continue;
                }
                write_json(&folder.path().join(file), &object(json!({*name: value})));
                let named = format!("{file}: {name} = {}", allow_list::quoted(value));
                let no_effect =
                    matches!(allow_list::find(&[CONFIG], name).unwrap().rule, allow_list::Rule::NoEffect(_));
                match Tokenizer::read(folder.path()) {
                    Err(error) => {
                        let text = error.to_string();
                        assert!(text.contains(&named) && error.exit_code() == 2, "{named}: {text}");
                        assert!(text.len() <= 300 + folder.path().as_os_str().len(), "{text}");
                        assert!(!no_effect, "{text}");
                        outcomes[0] += 1;
                    }
                    Ok((tokenizer, warnings)) => {
                        assert_eq!(warnings, Vec::<String>::new(), "{named}");
                        let changed = ids(&tokenizer) != base;
                        let expected = !no_effect && !says_nothing_new(name, value);
                        assert_eq!(changed, expected, "{named}: passed");
                        outcomes[1 + usize::from(no_effect)] += 1;
                    }
                }
                fs::remove_file(folder.path().join(file)).unwrap();
            }
        }
    }
    assert!(keys > 50 && outcomes.iter().all(|&n| n > 50), "{keys} keys: {outcomes:?}");
}

#[test]
fn the_keys_of_tokenizer_json_too() {
    let folder = place();
    let file = folder.path().join("tokenizer.json");
    let whole = tokenizer_json(true, None, true);
    write_json(&file, &whole);
    let base = ids(&Tokenizer::load(folder.path()).unwrap());
    for name in NORMALIZER.iter().flat_map(|key| key.names) {
        for value in [json!(null), json!(true), json!(false), json!("NFC"), json!(1)] {
            let mut json = whole.clone();
            json["normalizer"][*name] = value.clone();
            write_json(&file, &json);
            match Tokenizer::read(folder.path()) {
                // the crate's words, which name the file
                Err(error) => assert!(error.to_string().contains("tokenizer.json"), "{error}"),
                Ok((tokenizer, warnings)) => {
                    assert_eq!(warnings, Vec::<String>::new());
                    // accents go by default where case does, and a kind that is no name is told by the other keys
                    let same = whole["normalizer"][*name] == value
                        || (*name, &value) == ("strip_accents", &json!(true))
                        || *name == "type" && !value.is_string();
                    assert_eq!(ids(&tokenizer) == base, same, "{name} = {value}");
                }
            }
        }
    }
    for (name, change, says) in [
        (
            "post_processor",
            json!({"type": "RobertaProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2],
                                  "trim_offsets": true, "add_prefix_space": false}),
            "[CLS] query [SEP] document",
        ),
        (
            "post_processor",
            json!({"type": "BertProcessing", "sep": ["[CLS]", 2], "cls": ["[SEP]", 3]}),
            "[CLS] query",
        ),
    ] {
        let mut json = whole.clone();
        json.insert(name.into(), change);
        write_json(&file, &json);
        let error = refusal(Tokenizer::load(folder.path()));
        assert!(error.contains(name) && error.contains(says), "{error}");
    }
    let change = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut json = whole.clone();
        change(&mut json);
        write_json(&file, &json);
        Tokenizer::read(folder.path())
    };
    assert!(
        change(&|json| json["post_processor"] =
            json!({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}))
        .is_ok()
    );
    let flat = |json: &mut Map<String, Value>| {
        json["post_processor"]["pair"][3]["Sequence"]["type_id"] = json!(0);
        json["post_processor"]["pair"][4]["SpecialToken"]["type_id"] = json!(0);
    };
    assert!(refusal(change(&flat)).contains("segment 0"));
    write_json(&folder.path().join("config.json"), &object(json!({"type_vocab_size": 1})));
    assert!(change(&flat).is_ok(), "a model of one segment");
    let (_, warnings) = change(&|json| json["post_processor"] = json!(null)).unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("post_processor = null"), "{warnings:?}");
    assert!(refusal(change(&|json| json["model"]["continuing_subword_prefix"] = json!("@@"))).contains("##"));
    assert!(refusal(change(&|json| json["model"]["unk_token"] = json!("[PAD]"))).contains("[UNK]"));
    match change(&|json| drop(json.insert("surprise".into(), json!(1)))) {
        Ok((_, warnings)) => assert!(warnings.len() == 1 && warnings[0].contains("surprise"), "{warnings:?}"),
        Err(error) => assert!(error.to_string().contains("not a tokenizer.json"), "{error}"), // the crate's word
    }
    assert!(JSON.iter().all(|key| key.names.iter().all(|name| whole.contains_key(*name))));
}

#[test]
fn tokens_that_the_vocabulary_does_not_keep_whole_are_refused() {
    let folder = place();
    write_vocabulary(folder.path());
    fs::write(folder.path().join("added_tokens.json"), r#"{"[MASK]": 4, "[unused9]": 120}"#).unwrap();
    let error = refusal(Tokenizer::load(folder.path()));
    assert!(error.contains("added_tokens.json") && error.contains("[unused9]"), "{error}");
    fs::write(folder.path().join("added_tokens.json"), r#"{"[MASK]": 4}"#).unwrap();
    Tokenizer::load(folder.path()).unwrap();
    // a tokenizer.json that adds the token has it
    let mut json = tokenizer_json(true, None, true);
    let added = json!({"id": 111, "content": "<doc>", "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": true});
    json["added_tokens"].as_array_mut().unwrap().push(added);
    write_json(&folder.path().join("tokenizer.json"), &json);
    let config = json!({"additional_special_tokens": ["<doc>"], "added_tokens_decoder": {"111": {"content": "<doc>"}}});
    write_json(&folder.path().join("tokenizer_config.json"), &object(config));
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(words(&tokenizer, "heron <doc> otter"), ["heron", "<doc>", "otter"]);
    assert_eq!(tokenizer.vocab(), 112);
}

#[test]
fn vocabularies_that_differ_are_told_apart() {
    let folder = place();
    write_json(&folder.path().join("tokenizer.json"), &tokenizer_json(true, None, true));
    write_vocabulary(folder.path());
    let (tokenizer, warnings) = Tokenizer::read(folder.path()).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    let mut other = vocabulary();
    other.swap(50, 51);
    fs::write(folder.path().join("vocab.txt"), other.join("\n")).unwrap();
    let (swapped, warnings) = Tokenizer::read(folder.path()).unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("vocab.txt: line 51"), "{warnings:?}");
    assert!(swapped.same_tokens(&tokenizer), "tokenizer.json counts");
    // the same pieces under another normaliser are other tokens
    let differ = |lower, strip, chinese| {
        let other = place();
        write_json(&other.path().join("tokenizer.json"), &tokenizer_json(lower, strip, chinese));
        !Tokenizer::load(other.path()).unwrap().same_tokens(&tokenizer)
    };
    assert!(differ(false, None, true) && differ(true, Some(false), true) && differ(true, None, false));
    assert!(!differ(true, Some(true), true), "said or left to lower-casing");
}
