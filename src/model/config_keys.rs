//! What `config.json` may say: the allow-list of its keys. `COMMON` are those that transformers writes for a
//! model of any family, `BERT` those of BERT. The keys of another family get their own table.

use serde_json::{Map, Value};

use crate::allow_list::{Key, Rule, Verdict};
use crate::text::tokenizer_keys;

/// The QDPP head's tensors begin with this name, as BERT's next-sentence head's do.
pub(super) const PAIR: &str = "cls.seq_relationship";
/// Key of `config.json` that lists heads which are in the file and were never trained; other programs ignore
/// it.
pub(super) const UNTRAINED: &str = "untrained_heads";

/// Keys are judged together with the rest of the file.
type Config = Map<String, Value>;

const ENCODER: &str = "the engine computes an encoder, where every token sees every other";
const BERT_ONLY: &str = "the weights are computed as BERT's";
const OUTPUTS: &str = "it says what a call in Python returns";
const DROPOUT: Rule<Config> = Rule::Overruled { by: "train.dropout", usual: &["0.1", "null"] };

/// Keys of `PretrainedConfig`.
pub const COMMON: &[Key<Config>] = &[
    Key {
        names: &["model_type"],
        meaning: "the family",
        rule: Rule::OneOf(&["\"bert\""], "give a BERT model"),
    },
    Key {
        names: &["architectures"],
        meaning: "the class that wrote the weights",
        rule: Rule::Ask(architectures),
    },
    Key {
        names: &["auto_map"],
        meaning: "Python code in the folder that computes the model",
        rule: Rule::OneOf(
            &["null", "{}"],
            "that code is not run: remove the key only if the weights are a plain BERT's",
        ),
    },
    Key {
        names: &["is_decoder", "is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"],
        meaning: "attention to earlier tokens alone, or to another text",
        rule: Rule::OneOf(&["false", "null"], ENCODER),
    },
    Key {
        names: &["cross_attention_hidden_size"],
        meaning: "width of the other text",
        rule: Rule::OneOf(&["null"], ENCODER),
    },
    Key {
        // false is a question of the tensors: `Checkpoint::fill` refuses it for a model with an MLM head
        names: &["tie_word_embeddings"],
        meaning: "the MLM head's matrix is the word embedding",
        rule: Rule::OneOf(&["true", "false"], "say true or false"),
    },
    Key {
        names: &["pruned_heads"],
        meaning: "attention heads that were pruned, layer by layer",
        rule: Rule::OneOf(&["{}", "null"], "every layer has num_attention_heads heads here"),
    },
    Key {
        names: &["quantization_config", "compression_config"],
        meaning: "quantised weights",
        rule: Rule::OneOf(&["null"], "save the weights as float32, float16 or bfloat16"),
    },
    Key {
        names: &["problem_type"],
        meaning: "the loss of the classifier, and so what its logits mean",
        rule: Rule::Ask(problem_type),
    },
    Key { names: &["id2label"], meaning: "names of the classes", rule: Rule::Ask(labels) },
    Key {
        names: &["label2id", "num_labels", "_num_labels", "finetuning_task"],
        meaning: "names and number of the classes",
        rule: Rule::NoEffect("the classifier's own rows are counted, and the last is \"relevant\""),
    },
    Key {
        names: &["sentence_transformers", "sbert_ce_default_activation_function"],
        meaning: "the function applied last to a cross-encoder's score",
        rule: Rule::Ask(activation),
    },
    Key {
        names: &["pad_token_id"],
        meaning: "id of the padding between sequences",
        rule: Rule::NoEffect("packs have no padding; the key is kept in saved models"),
    },
    Key {
        names: &[
            "bos_token_id",
            "eos_token_id",
            "sep_token_id",
            "cls_token_id",
            "mask_token_id",
            "decoder_start_token_id",
        ],
        meaning: "ids of other special tokens",
        rule: Rule::NoEffect("the tokenizer defines them"),
    },
    Key {
        names: &["tokenizer_class"],
        meaning: "the class of the tokenizer",
        rule: Rule::Ask(|value, _| tokenizer_keys::class(value)),
    },
    Key {
        names: &["torch_dtype", "dtype", "use_bfloat16"],
        meaning: "the type of the weights",
        rule: Rule::NoEffect("the file of tensors says it"),
    },
    Key {
        names: &["chunk_size_feed_forward", "gradient_checkpointing", "use_cache", "torchscript"],
        meaning: "how a result is computed, not which",
        rule: Rule::NoEffect("the same numbers come out"),
    },
    Key {
        names: &["_attn_implementation", "_attn_implementation_autoset", "attn_implementation"],
        meaning: "which kernels compute attention",
        rule: Rule::NoEffect("the engine has its own"),
    },
    Key {
        names: &[
            "output_hidden_states",
            "output_attentions",
            "output_scores",
            "output_past",
            "return_dict",
            "use_return_dict",
            "return_dict_in_generate",
        ],
        meaning: "what a call in Python returns",
        rule: Rule::NoEffect(OUTPUTS),
    },
    Key {
        names: &[
            "_name_or_path",
            "name_or_path",
            "_commit_hash",
            "transformers_version",
            "transformers.js_config",
        ],
        meaning: "where the folder comes from",
        rule: Rule::NoEffect("it is a note"),
    },
    Key {
        names: &[
            "task_specific_params",
            "prefix",
            "max_length",
            "min_length",
            "do_sample",
            "early_stopping",
            "num_beams",
            "num_beam_groups",
            "diversity_penalty",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
            "repetition_penalty",
            "length_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "bad_words_ids",
            "num_return_sequences",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "remove_invalid_values",
            "exponential_decay_length_penalty",
            "suppress_tokens",
            "begin_suppress_tokens",
            "tf_legacy_loss",
        ],
        meaning: "how text is generated",
        rule: Rule::NoEffect("no text is generated"),
    },
];

/// Keys of `BertConfig`, of its forerunners, and this program's own.
pub const BERT: &[Key<Config>] = &[
    Key { names: &["vocab_size"], meaning: "rows of the word table", rule: Rule::Count(1, u64::MAX) },
    Key { names: &["hidden_size"], meaning: "width of a token", rule: Rule::Count(1, u64::MAX) },
    Key { names: &["num_hidden_layers"], meaning: "layers", rule: Rule::Count(0, u64::MAX) },
    Key { names: &["num_attention_heads"], meaning: "attention heads", rule: Rule::Count(1, u64::MAX) },
    Key { names: &["intermediate_size"], meaning: "width inside a layer", rule: Rule::Count(1, u64::MAX) },
    Key {
        names: &["max_position_embeddings"],
        meaning: "the longest sequence",
        rule: Rule::Count(1, u64::MAX),
    },
    Key { names: &["type_vocab_size"], meaning: "rows of the segment table", rule: Rule::Count(1, 2) },
    Key { names: &["layer_norm_eps"], meaning: "added to the variance by LayerNorm", rule: Rule::Positive },
    Key {
        names: &["hidden_act"],
        meaning: "the function inside a layer",
        rule: Rule::OneOf(&["\"gelu\"", "\"gelu_python\""], "the engine computes only the exact GELU"),
    },
    Key {
        names: &["position_embedding_type"],
        meaning: "how a token's position enters",
        rule: Rule::OneOf(&["\"absolute\""], "positions come from a table here"),
    },
    Key {
        names: &["embedding_size"],
        meaning: "width of the word table, in ELECTRA and ALBERT",
        rule: Rule::Ask(embedding_size),
    },
    Key {
        names: &["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"],
        meaning: "dropout while training",
        rule: DROPOUT,
    },
    Key {
        names: &["initializer_range"],
        meaning: "spread of new weights",
        rule: Rule::Overruled { by: "BERT's 0.02", usual: &["0.02", "0.019999999552965164"] },
    },
    Key {
        names: &["directionality"],
        meaning: "which tokens a token sees, in Google's files",
        rule: Rule::OneOf(&["\"bidi\""], ENCODER),
    },
    Key {
        names: &["pooler_type"],
        meaning: "which vector represents a sequence, in Google's files",
        rule: Rule::OneOf(&["\"first_token_transform\""], "the pooler reads [CLS] here"),
    },
    Key {
        names: &[
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
        ],
        meaning: "sizes of a pooler that BERT does not have, in Google's files",
        rule: Rule::NoEffect("neither BERT nor transformers reads them"),
    },
    Key {
        names: &[UNTRAINED],
        meaning: "heads in the file that were never trained; ctune-dist writes it",
        rule: Rule::Ask(untrained),
    },
];

/// What the config of a BERT may hold.
pub const TABLES: &[&[Key<Config>]] = &[COMMON, BERT];

fn architectures(value: &Value, _: &Config) -> Verdict {
    let names = value.as_array().map(|names| names.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    match names {
        _ if value.is_null() => Verdict::NoEffect,
        Some(Some(names)) if names.iter().all(|name| name.starts_with("Bert")) => Verdict::NoEffect,
        Some(Some(_)) => Verdict::warned(BERT_ONLY),
        _ => Verdict::refused("must be a list of class names"),
    }
}

/// Logits of several labels that are not exclusive do not make one score.
fn problem_type(value: &Value, config: &Config) -> Verdict {
    match value.as_str() {
        _ if value.is_null() => Verdict::Followed,
        Some("regression" | "single_label_classification") => Verdict::Followed,
        Some("multi_label_classification") if label_count(config) == Some(1) => Verdict::Followed,
        _ => Verdict::refused(
            "a score is one logit, or that of \"relevant\" minus the other's; remove the key to train a new head",
        ),
    }
}

fn label_count(config: &Config) -> Option<usize> {
    config.get("id2label").and_then(Value::as_object).map(Map::len)
}

fn labels(value: &Value, _: &Config) -> Verdict {
    let Some(names) = value.as_object() else {
        return if value.is_null() { Verdict::NoEffect } else { Verdict::refused("must name the classes") };
    };
    match names.get("1").and_then(Value::as_str) {
        Some(name) if names.len() == 2 && name != "LABEL_1" => {
            Verdict::warned("if the classifier ranks, class 1 is taken for \"relevant\"")
        }
        _ => Verdict::NoEffect,
    }
}

/// Scores are logits: a function that keeps their order changes no ranking.
fn activation(value: &Value, _: &Config) -> Verdict {
    let function = value.get("activation_fn").unwrap_or(value);
    match function.as_str() {
        Some(name) if ["Identity", "Sigmoid", "Tanh"].iter().any(|known| name.ends_with(known)) => {
            Verdict::NoEffect
        }
        None if function.is_null() || value.is_object() => Verdict::NoEffect,
        _ => Verdict::warned("has no effect: scores are logits"),
    }
}

fn embedding_size(value: &Value, config: &Config) -> Verdict {
    if Some(value) == config.get("hidden_size") {
        return Verdict::Followed;
    }
    Verdict::refused("BERT's word table is as wide as hidden_size")
}

fn untrained(value: &Value, _: &Config) -> Verdict {
    match value.as_array().map(Vec::as_slice) {
        Some([]) => Verdict::Followed,
        Some([head]) if head == PAIR => Verdict::Followed,
        _ => Verdict::Refused(format!(
            "only [\"{PAIR}\"] can be used; remove the key if every head is trained"
        )),
    }
}
