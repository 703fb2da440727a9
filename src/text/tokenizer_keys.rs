//! What a tokenizer's files may say: the allow-lists of `tokenizer_config.json` (and of the files that repeat
//! parts of it) and of `tokenizer.json`.
//!
//! transformers' classes for BERT let `tokenizer_config.json` overrule the normaliser of `tokenizer.json`,
//! its defaults included; the `tokenizers` package reads `tokenizer.json` alone. Here `tokenizer.json`
//! decides, and a `tokenizer_config.json` that names another value is refused. Written files always name
//! values that are not the default, so that all three agree.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::normaliser::Flags;
use super::special::Special;
use crate::allow_list::{self, Key, Rule, Verdict};
use crate::{Error, Result};

/// transformers' classes that build BERT's normaliser from the keys of `tokenizer_config.json`.
pub const BERT_CLASSES: [&str; 6] = [
    "BertTokenizer",
    "BertTokenizerFast",
    "DistilBertTokenizer",
    "DistilBertTokenizerFast",
    "ElectraTokenizer",
    "ElectraTokenizerFast",
];
/// Classes that take `tokenizer.json` as it is.
const PLAIN_CLASSES: [&str; 2] = ["PreTrainedTokenizerFast", "TokenizersBackend"];

const INPUT: &str = "the input is [CLS] query [SEP] document [SEP] here";
const ONLY_TRUE: &[&str] = &["true"];

/// What the values are judged against.
#[derive(Clone, Debug)]
pub struct Beside {
    /// Tokens that a text may spell out: id, and whether single_word, lstrip, rstrip.
    pub added: BTreeMap<String, (u32, [bool; 3])>,
    pub special: Special,
    /// BERT's normaliser as `tokenizer.json` has it; `None` without that file or with another normaliser.
    pub flags: Option<Flags>,
    /// The class is one that overrules that normaliser.
    pub overrules: bool,
    /// The model beside it does not tell the texts of a pair apart.
    pub one_segment: bool,
}

type Keys = Key<Beside>;

const fn known(names: &'static [&'static str], meaning: &'static str, reason: &'static str) -> Keys {
    Key { names, meaning, rule: Rule::NoEffect(reason) }
}

const fn ask(
    names: &'static [&'static str],
    meaning: &'static str,
    judge: fn(&Value, &Beside) -> Verdict,
) -> Keys {
    Key { names, meaning, rule: Rule::Ask(judge) }
}

const fn only(
    names: &'static [&'static str],
    meaning: &'static str,
    values: &'static [&'static str],
    advice: &'static str,
) -> Keys {
    Key { names, meaning, rule: Rule::OneOf(values, advice) }
}

/// Keys of `tokenizer_config.json` and `special_tokens_map.json`.
pub const CONFIG: &[Keys] = &[
    ask(&["tokenizer_class"], "the class that reads the files", |value, _| class(value)),
    ask(&["do_lower_case"], "letters are lower-cased", lower_case),
    ask(&["strip_accents"], "accents are removed; null: if letters are lower-cased", strip_accents),
    ask(&["tokenize_chinese_chars"], "every ideograph is a word", chinese),
    only(
        &["do_basic_tokenize", "clean_text", "do_word_tokenize", "do_subword_tokenize"],
        "words are split before pieces",
        ONLY_TRUE,
        "BERT's tokenizer does it",
    ),
    only(
        &["word_tokenizer_type", "subword_tokenizer_type"],
        "how Japanese is split",
        &["\"basic\"", "\"wordpiece\"", "null"],
        "there is no morphological analyser here",
    ),
    only(
        &["wordpieces_prefix"],
        "what a piece inside a word begins with",
        &["\"##\""],
        "whole-word masks know no other",
    ),
    only(
        &["split_special_tokens"],
        "a special token that a text spells out is split",
        &["false", "null"],
        "it stays whole here",
    ),
    only(
        &["auto_map"],
        "Python code in the folder that tokenises",
        &["null", "{}"],
        "that code is not run: remove the key only if the tokenizer is a plain BERT's",
    ),
    ask(&["never_split"], "words that stay whole", named),
    ask(&["additional_special_tokens", "extra_special_tokens"], "further special tokens", named),
    ask(&["bos_token", "eos_token"], "special tokens of other families", named),
    ask(&["added_tokens_decoder"], "the tokens that a text may spell out, by id", decoder),
    ask(&["pad_token"], "fills sequences up", |value, beside| special(value, beside, "[PAD]")),
    ask(&["unk_token"], "a word without pieces", |value, beside| special(value, beside, "[UNK]")),
    ask(&["cls_token"], "begins a sequence", |value, beside| special(value, beside, "[CLS]")),
    ask(&["sep_token"], "ends a text", |value, beside| special(value, beside, "[SEP]")),
    ask(&["mask_token"], "stands for a masked piece", |value, beside| special(value, beside, "[MASK]")),
    ask(&["model_input_names"], "what the model is given", input_names),
    known(
        &[
            "model_max_length",
            "max_len",
            "max_length",
            "stride",
            "truncation",
            "truncation_side",
            "truncation_strategy",
        ],
        "where a text is cut",
        "data.max_tokens and data.truncate decide",
    ),
    known(
        &["padding", "padding_side", "pad_to_multiple_of", "pad_token_type_id"],
        "how sequences are padded",
        "packs have no padding",
    ),
    known(
        &["clean_up_tokenization_spaces", "chat_template"],
        "how tokens become text",
        "tokens are never turned back into text",
    ),
    known(
        &[
            "vocab_file",
            "tokenizer_file",
            "full_tokenizer_file",
            "special_tokens_map_file",
            "name_or_path",
            "_name_or_path",
            "_commit_hash",
            "processor_class",
            "init_inputs",
            "backend",
            "is_local",
            "local_files_only",
            "from_slow",
            "use_fast",
            "trust_remote_code",
            "add_prefix_space",
        ],
        "where the files come from and which program reads them",
        "BERT's pieces do not depend on it",
    ),
];

/// Keys of `tokenizer.json`.
pub const JSON: &[Keys] = &[
    known(&["version"], "the format's version", "the tokenizers crate checks it"),
    known(
        &["truncation", "padding"],
        "where texts are cut, how they are padded",
        "data.max_tokens decides, and packs have no padding",
    ),
    known(&["decoder"], "how tokens become text", "tokens are never turned back into text"),
    ask(&["added_tokens"], "the tokens that a text may spell out", followed),
    ask(&["normalizer"], "how characters are changed", followed),
    ask(&["pre_tokenizer"], "how words are found", followed),
    ask(&["post_processor"], "which tokens surround the texts", post_processor),
    ask(&["model"], "the pieces", word_piece),
];

/// Keys of BERT's normaliser in `tokenizer.json`.
pub const NORMALIZER: &[Keys] = &[
    only(&["type"], "the normaliser", &["\"BertNormalizer\""], "others have a table of their own"),
    only(&["clean_text"], "control characters are removed", &["true", "false"], "say true or false"),
    only(&["handle_chinese_chars"], "every ideograph is a word", &["true", "false"], "say true or false"),
    only(
        &["strip_accents"],
        "accents are removed; null: if letters are lower-cased",
        &["true", "false", "null"],
        "say true, false or null",
    ),
    only(&["lowercase"], "letters are lower-cased", &["true", "false"], "say true or false"),
];

/// Judges the keys of `tokenizer.json`. Returns the warnings.
///
/// # Errors
/// `Error::Config` that names a key whose value is not followed.
pub fn check_json(file: &Path, object: &Map<String, Value>, beside: &Beside) -> Result<Vec<String>> {
    let mut warnings = allow_list::check(&[JSON], file, object, beside)?;
    if let Some(Value::Object(normalizer)) = object.get("normalizer")
        && normalizer.get("type").is_some_and(|kind| kind == "BertNormalizer")
    {
        warnings.extend(allow_list::check(&[NORMALIZER], file, normalizer, beside)?);
    }
    Ok(warnings)
}

/// Refuses an `added_tokens.json` with tokens that the tokenizer does not have.
///
/// # Errors
/// `Error::Config` that names the token.
pub fn check_added(file: &Path, object: &Map<String, Value>, beside: &Beside) -> Result<()> {
    let known = |token: &str, id: &Value| beside.added.get(token).is_some_and(|(own, _)| *id == *own);
    match object.iter().find(|(token, id)| !known(token, id)) {
        None => Ok(()),
        Some((token, id)) => Err(Error::config(format!(
            "{}: token {} with id {id} is not one that a text may spell out here: give the tokenizer.json of this \
             tokenizer (save_pretrained of a fast tokenizer in transformers)",
            file.display(),
            allow_list::quoted(&token.as_str().into())
        ))),
    }
}

/// What becomes of a `tokenizer_class`; `config.json` may name one too.
pub fn class(value: &Value) -> Verdict {
    match value.as_str() {
        _ if value.is_null() => Verdict::Followed,
        Some(name) if BERT_CLASSES.contains(&name) || PLAIN_CLASSES.contains(&name) => Verdict::Followed,
        _ => Verdict::refused("not a tokenizer of BERT's pieces: give a model with a WordPiece tokenizer"),
    }
}

fn followed(_: &Value, _: &Beside) -> Verdict {
    Verdict::Followed
}

/// One of the three settings that both files may name.
fn setting<T: PartialEq + std::fmt::Debug>(beside: &Beside, named: T, own: fn(&Flags) -> T) -> Verdict {
    match &beside.flags {
        Some(flags) if !beside.overrules || own(flags) == named => Verdict::Followed,
        Some(flags) => Verdict::Refused(format!(
            "tokenizer.json says {:?}, and transformers would overrule it: make the two files agree",
            own(flags)
        )),
        None => Verdict::Followed,
    }
}

fn lower_case(value: &Value, beside: &Beside) -> Verdict {
    match value.as_bool() {
        Some(named) => setting(beside, named, |flags| flags.lowercase),
        None => Verdict::refused("must be true or false"),
    }
}

fn chinese(value: &Value, beside: &Beside) -> Verdict {
    match value.as_bool() {
        Some(named) => setting(beside, named, |flags| flags.chinese),
        None => Verdict::refused("must be true or false"),
    }
}

fn strip_accents(value: &Value, beside: &Beside) -> Verdict {
    match (value.as_bool(), value.is_null()) {
        (Some(named), _) => setting(beside, named, Flags::strips),
        (None, true) => {
            let lowercase = beside.flags.is_some_and(|flags| flags.lowercase);
            setting(beside, lowercase, Flags::strips)
        }
        (None, false) => Verdict::refused("must be true, false or null"),
    }
}

/// The text of a token, which may stand with its settings.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content").and_then(Value::as_str))
}

/// The first setting in which a token differs from the tokenizer's own.
fn other_setting(token: &Value, own: [bool; 3]) -> Option<&'static str> {
    let named = |name: &str| token.get(name);
    let settings = ["single_word", "lstrip", "rstrip"].into_iter().zip(own);
    let mut other =
        settings.filter(|(name, own)| named(name).is_some_and(|value| *value != Value::Bool(*own)));
    other.next().map(|(name, _)| name)
}

fn special(value: &Value, beside: &Beside, wanted: &str) -> Verdict {
    if content(value) != Some(wanted) {
        return Verdict::Refused(format!("only \"{wanted}\" can be used; {INPUT}"));
    }
    let own = beside.added.get(wanted).map_or([false; 3], |(_, settings)| *settings);
    match other_setting(value, own) {
        Some(name) => Verdict::Refused(format!("the tokenizer has another {name}: make the two agree")),
        None => Verdict::Followed,
    }
}

impl Beside {
    /// Whether a text may spell out this token, with these settings and, where it is known, this id.
    fn keeps(&self, token: &Value, id: Option<&str>) -> bool {
        content(token).and_then(|text| self.added.get(text)).is_some_and(|(own, settings)| {
            id.is_none_or(|id| id.parse() == Ok(*own)) && other_setting(token, *settings).is_none()
        })
    }
}

fn not_kept(token: &Value) -> Verdict {
    Verdict::Refused(format!(
        "{} is no token that stays whole here, or has other settings: give a tokenizer.json that adds it",
        allow_list::quoted(token.get("content").unwrap_or(token))
    ))
}

/// One token or a list of them, each of which the tokenizer must keep whole.
fn named(value: &Value, beside: &Beside) -> Verdict {
    let tokens: Vec<&Value> = match value {
        Value::Null => return Verdict::Followed,
        Value::Array(tokens) => tokens.iter().collect(),
        Value::Object(tokens) if !tokens.contains_key("content") => tokens.values().collect(),
        token => vec![token],
    };
    tokens.into_iter().find(|token| !beside.keeps(token, None)).map_or(Verdict::Followed, not_kept)
}

fn decoder(value: &Value, beside: &Beside) -> Verdict {
    let Some(tokens) = value.as_object() else {
        return if value.is_null() { Verdict::Followed } else { Verdict::refused("must name tokens by id") };
    };
    let lost = tokens.iter().find(|(id, token)| !beside.keeps(token, Some(id)));
    lost.map_or(Verdict::Followed, |(_, token)| not_kept(token))
}

fn input_names(value: &Value, beside: &Beside) -> Verdict {
    match value.as_array() {
        _ if value.is_null() => Verdict::Followed,
        Some(names) if beside.one_segment || names.iter().any(|name| name == "token_type_ids") => {
            Verdict::Followed
        }
        Some(_) => Verdict::refused(
            "a query is segment 0 and a document segment 1 here: add \"token_type_ids\" or, if the model was \
             trained without segments, give it one (type_vocab_size 1)",
        ),
        None => Verdict::refused("must be a list of names"),
    }
}

fn word_piece(value: &Value, _: &Beside) -> Verdict {
    let is = |key: &str, wanted: &str| value.get(key).is_some_and(|text| text == wanted);
    if !is("unk_token", "[UNK]") {
        return Verdict::refused("its unk_token must be \"[UNK]\"");
    }
    if !is("continuing_subword_prefix", "##") {
        return Verdict::refused(
            "its continuing_subword_prefix must be \"##\": whole-word masks know no other",
        );
    }
    Verdict::Followed
}

/// Texts are always put together as BERT does it, so the file has to say so.
fn post_processor(value: &Value, beside: &Beside) -> Verdict {
    let Special { cls, sep, .. } = beside.special;
    let ids = |token: &str| if token == "[CLS]" { cls } else { sep };
    let kind = value.get("type").and_then(Value::as_str);
    let pair: Option<Vec<(&str, u64)>> = match kind {
        None if value.is_null() => return Verdict::warned(INPUT),
        Some("BertProcessing") => {
            let is = |key: &str, token: &str| value[key] == serde_json::json!([token, ids(token)]);
            let plain = is("cls", "[CLS]") && is("sep", "[SEP]");
            return if plain { Verdict::Followed } else { Verdict::refused(INPUT) };
        }
        Some("TemplateProcessing") => {
            value["pair"].as_array().and_then(|parts| parts.iter().map(part).collect())
        }
        _ => None,
    };
    let Some(pair) = pair else { return Verdict::refused(INPUT) };
    let (tokens, segments): (Vec<&str>, Vec<u64>) = pair.into_iter().unzip();
    let told_apart = segments == [0, 0, 0, 1, 1];
    let known = |token: &str| value["special_tokens"][token]["ids"] == serde_json::json!([ids(token)]);
    if tokens != ["[CLS]", "A", "[SEP]", "B", "[SEP]"] || !known("[CLS]") || !known("[SEP]") {
        return Verdict::refused(INPUT);
    }
    if told_apart || (beside.one_segment && segments == [0; 5]) {
        return Verdict::Followed;
    }
    Verdict::refused("a query is segment 0 and a document segment 1 here")
}

/// Name and segment of a part of a template.
fn part(part: &Value) -> Option<(&str, u64)> {
    let part = part.get("SpecialToken").or_else(|| part.get("Sequence"))?;
    Some((part["id"].as_str()?, part["type_id"].as_u64()?))
}
