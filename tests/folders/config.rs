//! Every key of `config.json` with every value of a list: followed, refused by name, warned of or without
//! effect, never ignored silently.

use ctune_dist::allow_list::{self, Verdict};
use ctune_dist::model::Shape;
use ctune_dist::model::config_file::ModelConfig;
use ctune_dist::model::config_keys::TABLES;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::support::*;

/// Values that a key may have on purpose, by mistake or by another program's habit.
fn values() -> Vec<Value> {
    let text = r#"[null, true, false, 0, 1, 2, 3, 12, 512, -1, 0.0, 0.02, 0.1, 0.5, 1.0, 1e-5, 1e-12, 1e-60, 1e60,
        "", "gelu", "gelu_new", "gelu_python", "relu", "absolute", "relative_key", "bert", "roberta", "bidi", "uni",
        "first_token_transform", "single_label_classification", "multi_label_classification", "1e-12", "true",
        "BertTokenizer", "BertTokenizerFast", "BertJapaneseTokenizer", "float16", "torch.nn.modules.linear.Identity",
        "torch.nn.modules.activation.ReLU", [], [0], ["x"], ["BertModel"], ["HF_ColBERT"], ["cls.seq_relationship"],
        {}, {"0": [1, 2]}, {"0": "LABEL_0", "1": "LABEL_1"}, {"0": "relevant", "1": "other"},
        {"activation_fn": "torch.nn.modules.activation.Sigmoid"}, {"AutoModel": "modeling_x.XModel"}]"#;
    serde_json::from_str(text).unwrap()
}

/// Values that say what BERT does anyway, so that following them changes nothing.
fn says_nothing_new(name: &str, value: &Value) -> bool {
    let plain = json!({
        "model_type": ["bert"],
        "auto_map": [null, {}],
        "is_decoder": [false, null],
        "is_encoder_decoder": [false, null],
        "add_cross_attention": [false, null],
        "tie_encoder_decoder": [false, null],
        "cross_attention_hidden_size": [null],
        "tie_word_embeddings": [true],
        "pruned_heads": [null, {}],
        "quantization_config": [null],
        "compression_config": [null],
        "problem_type": [null, "single_label_classification", "multi_label_classification"],
        "tokenizer_class": [null, "BertTokenizer", "BertTokenizerFast"],
        "type_vocab_size": [2],
        "num_hidden_layers": [2],
        "num_attention_heads": [2],
        "layer_norm_eps": [1e-12],
        "hidden_act": ["gelu", "gelu_python"],
        "position_embedding_type": ["absolute"],
        "directionality": ["bidi"],
        "pooler_type": ["first_token_transform"],
        "untrained_heads": [[]],
    });
    plain[name].as_array().is_some_and(|values| values.contains(value))
}

fn judge(config: &Map<String, Value>) -> ctune_dist::Result<(ModelConfig, Vec<String>)> {
    ModelConfig::judge("folder/config.json".as_ref(), config)
}

#[test]
fn every_key_with_every_value_is_followed_refused_or_warned_of() {
    let (base, none) = judge(&config(&shape())).unwrap();
    assert_eq!(none, Vec::<String>::new());
    let (mut outcomes, mut keys) = ([0; 4], 0);
    for name in TABLES.iter().copied().flatten().flat_map(|key| key.names) {
        keys += 1;
        for value in values() {
            let mut config = config(&shape());
            config.insert((*name).into(), value.clone());
            let named = format!("folder/config.json: {name} = {}", allow_list::quoted(&value));
            let key = allow_list::find(TABLES, name).unwrap();
            match (key.judge(&value, &config), judge(&config)) {
                (Verdict::Refused(_), result) => {
                    let error = result.err().unwrap_or_else(|| panic!("{named}: passed"));
                    assert_eq!(error.exit_code(), 2, "{error}");
                    assert!(error.to_string().starts_with(&named), "{error}");
                    assert!(error.to_string().len() <= 300 && error.to_string().contains(": "), "{error}");
                    outcomes[0] += 1;
                }
                (Verdict::Warned(_), Ok((found, warnings))) => {
                    assert_eq!(warnings.len(), 1, "{named}: {warnings:?}");
                    assert!(warnings[0].starts_with(&named) && warnings[0].len() <= 300, "{}", warnings[0]);
                    assert_eq!((&found.shape, found.tied), (&base.shape, base.tied), "{named}");
                    outcomes[1] += 1;
                }
                (Verdict::NoEffect, Ok((found, warnings))) => {
                    assert_eq!(warnings, none, "{named}");
                    assert_eq!((&found.shape, found.tied), (&base.shape, base.tied), "{named} has an effect");
                    outcomes[2] += 1;
                }
                (Verdict::Followed, Ok((found, warnings))) => {
                    assert_eq!(warnings, none, "{named}");
                    let changed = found.shape != base.shape
                        || found.tied != base.tied
                        || found.origin.untrained_pair != base.origin.untrained_pair;
                    assert!(changed != says_nothing_new(name, &value), "{named}: said to be followed");
                    outcomes[3] += 1;
                }
                // sizes that are numbers and do not make a model together: the shape's own words
                (Verdict::Followed, Err(error)) => {
                    assert!(
                        error.exit_code() == 2 && error.to_string().starts_with("folder/config.json: "),
                        "{error}"
                    );
                    assert!(value.is_number(), "{error}");
                    outcomes[0] += 1;
                }
                (verdict, Err(error)) => panic!("{named}: {verdict:?}, but {error}"),
            }
        }
    }
    assert!(keys > 70 && outcomes.iter().all(|&n| n > 20), "{keys} keys: {outcomes:?}");
}

#[test]
fn tables_name_a_key_once_and_say_what_it_means() {
    let mut seen = std::collections::BTreeSet::new();
    for key in TABLES.iter().copied().flatten() {
        assert!(key.meaning.len() > 5, "{:?}", key.names);
        assert!(key.names.iter().all(|name| seen.insert(*name)), "{:?} twice", key.names);
    }
}

#[test]
fn what_changes_scores_is_refused_with_its_value() {
    for (name, value, says) in [
        ("hidden_act", json!("gelu_new"), "exact GELU"),
        ("hidden_act", json!("relu"), "exact GELU"),
        ("is_decoder", json!(true), "every token sees every other"),
        ("add_cross_attention", json!(true), "every token sees every other"),
        ("position_embedding_type", json!("relative_key_query"), "table"),
        ("type_vocab_size", json!(3), "from 1 to 2"),
        ("type_vocab_size", json!(0), "from 1 to 2"),
        ("layer_norm_eps", json!(0), "above 0"),
        ("layer_norm_eps", json!(-1e-5), "above 0"),
        ("layer_norm_eps", json!("1e-5"), "number"),
        ("layer_norm_eps", json!(1e-60), "32 bits"),
        ("model_type", json!("roberta"), "bert"),
        ("pruned_heads", json!({"1": [0]}), "num_attention_heads"),
        ("quantization_config", json!({"load_in_8bit": true}), "float32"),
        ("auto_map", json!({"AutoModel": "modeling_bert.JinaBertModel"}), "not run"),
        ("embedding_size", json!(128), "hidden_size"),
        ("pooler_type", json!("mean"), "[CLS]"),
        ("directionality", json!("left"), "every token sees every other"),
        ("vocab_size", json!("30522"), "whole number"),
        ("vocab_size", json!(30522.5), "whole number"),
        ("tokenizer_class", json!("BertJapaneseTokenizer"), "WordPiece"),
    ] {
        let mut config = config(&shape());
        config.insert(name.into(), value.clone());
        let error = refusal(judge(&config));
        assert!(error.contains(&format!("{name} = {value}")) && error.contains(says), "{error}");
    }
    let mut several = config(&shape());
    several.insert("problem_type".into(), json!("multi_label_classification"));
    several.insert("id2label".into(), json!({"0": "LABEL_0", "1": "LABEL_1"}));
    assert!(refusal(judge(&several)).contains("problem_type = \"multi_label_classification\""));
}

#[test]
fn missing_sizes_are_named() {
    for name in ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
    {
        let mut config = config(&shape());
        config.remove(name);
        assert!(refusal(judge(&config)).contains(&format!("\"{name}\" is missing")));
    }
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("config.json");
    for (text, says) in [("[]", "no JSON object"), ("{", "not JSON"), ("", "not JSON")] {
        std::fs::write(&file, text).unwrap();
        assert!(refusal(ModelConfig::read(&file)).contains(says));
    }
}

/// Keys without effect here are kept for whoever reads the written folder.
#[test]
fn settings_of_others_are_kept() {
    let mut given = config(&shape());
    let kept =
        [("pad_token_id", json!(7)), ("hidden_dropout_prob", json!(0.0)), ("classifier_dropout", json!(0.3))];
    given.extend(kept.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    let place = tempfile::tempdir().unwrap();
    let weights = tensors(&shape(), ctune_dist::model::HeadSet::RANKING);
    write(place.path(), &given, &weights);
    let mut model = ranker(&shape());
    let read = ctune_dist::model::checkpoint::Checkpoint::read(place.path()).unwrap();
    read.fill(&mut model, ctune_dist::model::checkpoint::Fill::AsSaved, 1).unwrap();
    let saved = place.path().join("saved");
    ctune_dist::model::checkpoint::save(&model, &saved, None).unwrap();
    let written = allow_list::read_object(&saved.join("config.json")).unwrap();
    for (name, value) in kept {
        assert_eq!(written[name], value, "{name}");
    }
    // and what is written is read without a word, but for what was worth one before
    let said = |config: &Map<String, Value>| -> Vec<String> {
        let lines = judge(config).unwrap().1;
        lines.iter().map(|line| line.split(" = ").next().unwrap().to_owned()).collect()
    };
    assert_eq!(said(&written), said(&given));
    assert_eq!(said(&written).len(), 2);
    let fresh = ranker(&Shape { norm_eps: 1e-5, ..shape() });
    ctune_dist::model::checkpoint::save(&fresh, &saved, None).unwrap();
    assert_eq!(said(&allow_list::read_object(&saved.join("config.json")).unwrap()), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    /// A key that no table knows is named once, in one line that fits a terminal.
    #[test]
    fn unknown_keys_are_named_once(names in proptest::collection::btree_set("[a-z_]{1,40}", 1..200)) {
        let names: Vec<String> =
            names.into_iter().filter(|name| allow_list::find(TABLES, name).is_none()).collect();
        prop_assume!(!names.is_empty());
        let mut config = config(&shape());
        config.extend(names.iter().map(|name| (name.clone(), json!(1))));
        let (found, warnings) = judge(&config).unwrap();
        prop_assert_eq!(&found.shape, &shape());
        prop_assert_eq!(warnings.len(), 1);
        prop_assert!(warnings[0].len() <= 300, "{}", warnings[0]);
        let list = warnings[0].rsplit(": ").next().unwrap();
        let (said, more) = match list.rsplit_once(" and ") {
            Some((said, more)) => (said, more.trim_end_matches(" more").parse().unwrap()),
            None => (list, 0),
        };
        let said: Vec<&str> = said.split(", ").collect();
        prop_assert_eq!(said.len() + more, names.len());
        prop_assert!(said.iter().zip(&names).all(|(said, name)| said == name), "{}", warnings[0]);
    }
}
