//! Pieces: the fast way equals the crate's, training repeats itself, files load again.

use std::path::Path;

use ctune_dist::text::Tokenizer;
use proptest::prelude::*;

use super::{TEXTS, message, shared, small_tokenizer};

fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode_batch(&[text], usize::MAX).unwrap().remove(0);
    ids.into_iter().map(|id| tokenizer.piece(id).unwrap()).collect()
}

#[test]
fn training_is_deterministic_and_has_the_special_tokens_first() {
    let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    for folder in &folders {
        small_tokenizer(200).save(folder.path()).unwrap();
    }
    for name in ["tokenizer.json", "vocab.txt", "tokenizer_config.json"] {
        let read = |i: usize| std::fs::read(folders[i].path().join(name)).unwrap();
        assert_eq!(read(0), read(1), "{name}");
    }
    let vocab = std::fs::read_to_string(folders[0].path().join("vocab.txt")).unwrap();
    let lines: Vec<&str> = vocab.lines().collect();
    assert_eq!(lines[..5], ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]);
    let tokenizer = small_tokenizer(200);
    let special = tokenizer.special();
    assert_eq!([special.pad, special.unk, special.cls, special.sep, special.mask], [0, 1, 2, 3, 4]);
    assert_eq!(lines.len(), tokenizer.vocab());
    assert!(tokenizer.vocab() <= 200);
}

#[test]
fn frequent_words_become_pieces_and_rare_ones_are_split() {
    let tokenizer = small_tokenizer(200);
    assert_eq!(pieces(&tokenizer, "LAZY dogs!"), ["lazy", "dogs", "!"]);
    let split = pieces(&tokenizer, "jumped");
    assert_eq!(split[0], "jump");
    assert_eq!(split.concat().replace("##", ""), "jumped");
    let continues = tokenizer.continues();
    assert_eq!(continues.len(), tokenizer.vocab());
    for id in 0..tokenizer.vocab() as u32 {
        let goes_on = tokenizer.piece(id).is_some_and(|piece| piece.starts_with("##"));
        assert_eq!(continues[id as usize], u32::from(goes_on));
    }
}

#[test]
fn the_fast_way_equals_the_crate() {
    let tokenizer = small_tokenizer(150);
    let long = "x".repeat(101);
    let odd = [
        "",
        " ",
        "\t\r\n",
        "a\u{0}b\u{1f}c",
        "zero\u{200b}width\u{a0}space",
        "ÀÉÎ fox.Dog",
        "e\u{301}te\u{301}",
        "İstanbul ΣΑΣ ß ﬁ",
        "[CLS] fox [MASK]dog",
        "[ CLS ]",
        "##ing # ## a##b",
        "北京fox",
        "\u{fffd}fox",
        &long,
        "fox\u{b}dog\u{c}cat",
        "a-b_c/d\\e",
        "\u{2028}fox\u{3000}dog",
        "🦊 fox🦊dog",
    ];
    for text in odd.iter().chain(&TEXTS) {
        let fast = tokenizer.encode_batch(&[text], usize::MAX).unwrap().remove(0);
        assert_eq!(fast, tokenizer.encode_by_crate(text, usize::MAX).unwrap(), "{text:?}");
        for cut in 0..4 {
            let short = tokenizer.encode_batch(&[text], cut).unwrap().remove(0);
            assert_eq!(short, fast[..fast.len().min(cut)], "{text:?} cut to {cut}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_fast_way_equals_the_crate_on_any_text(text in "([a-zA-Z .,#\\[\\]]|\\PC|[\\x00-\\x7f]|fox|dog|\\[SEP\\]){0,40}") {
        thread_local!(static TOKENIZER: Tokenizer = small_tokenizer(150));
        TOKENIZER.with(|tokenizer| {
            let fast = tokenizer.encode_batch(&[&text], usize::MAX).unwrap().remove(0);
            assert_eq!(fast, tokenizer.encode_by_crate(&text, usize::MAX).unwrap());
        });
    }
}

#[test]
fn a_batch_is_its_texts_one_by_one() {
    let tokenizer = small_tokenizer(200);
    let many: Vec<&str> = TEXTS.iter().copied().cycle().take(500).collect();
    let batch = tokenizer.encode_batch(&many, 7).unwrap();
    assert_eq!(batch.len(), many.len());
    for (text, ids) in many.iter().zip(&batch) {
        assert_eq!(*ids, tokenizer.encode_by_crate(text, 7).unwrap());
    }
}

#[test]
fn a_saved_tokenizer_loads_from_folder_json_and_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = small_tokenizer(200);
    tokenizer.save(folder.path()).unwrap();
    let of = |path: &Path| {
        let loaded = Tokenizer::load(path).unwrap();
        assert_eq!((loaded.vocab(), loaded.special()), (tokenizer.vocab(), tokenizer.special()));
        loaded.encode_batch(&TEXTS, usize::MAX).unwrap()
    };
    let wanted = tokenizer.encode_batch(&TEXTS, usize::MAX).unwrap();
    assert_eq!(of(folder.path()), wanted);
    assert_eq!(of(&folder.path().join("tokenizer.json")), wanted);
    assert_eq!(of(&folder.path().join("vocab.txt")), wanted);
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert_eq!(of(folder.path()), wanted);
}

#[test]
fn what_is_no_bert_tokenizer_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        message(Tokenizer::load(&path))
    };
    let text = load("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nfox\n");
    assert!(text.contains("[MASK]") && text.contains("vocab.txt"), "{text}");
    let text = load("twice.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfox\nfox\n");
    assert!(text.contains("lines 6 and 7"), "{text}");
    assert!(load("tokenizer.json", "{}").contains("not a tokenizer.json"));
    // Cut within its decoder, and with a damaged table of SentencePiece: the crate itself panics at both.
    let kept = tempfile::tempdir().unwrap();
    small_tokenizer(60).save(kept.path()).unwrap();
    let whole = std::fs::read_to_string(kept.path().join("tokenizer.json")).unwrap();
    let decoder = whole.find("\"decoder\"").unwrap() + 12;
    assert!(load("tokenizer.json", &whole[..decoder]).contains("not a tokenizer.json"));
    let table =
        "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Precompiled\"}]},\n  \"x\"";
    assert!(load("tokenizer.json", &whole.replacen("\"normalizer\"", table, 1)).contains("SentencePiece"));
    assert!(message(Tokenizer::load(&folder.path().join("none"))).contains("none"));
    let empty = tempfile::tempdir().unwrap();
    assert!(message(Tokenizer::load(empty.path())).contains("neither tokenizer.json nor vocab.txt"));
    assert!(message(Tokenizer::train(["a".to_owned()].into_iter(), 5)).contains("vocab = 5"));
    assert!(message(Tokenizer::train(std::iter::empty(), 100)).contains("no word"));
}

/// The pieces that the published tokenizer of bert-base-uncased gives. Its whole vocabulary is not
/// there, but longest-match over the pieces that occur gives the same result as over all.
#[test]
fn pieces_equal_the_published_ones() {
    let Some(file) = shared("fixtures/bert_golden/wordpiece.json") else { return };
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let mut vocab: Vec<String> = (0..30522).map(|id| format!("[unused{id}]")).collect();
    for (id, token) in [(0, "[PAD]"), (100, "[UNK]"), (101, "[CLS]"), (102, "[SEP]"), (103, "[MASK]")] {
        vocab[id] = token.into();
    }
    let cases = golden["single"].as_array().unwrap();
    let ids_of =
        |case: &serde_json::Value| -> Vec<u32> { serde_json::from_value(case["ids"].clone()).unwrap() };
    for case in cases {
        for (id, token) in ids_of(case).iter().zip(case["tokens"].as_array().unwrap()) {
            vocab[*id as usize] = token.as_str().unwrap().into();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("vocab.txt"), vocab.join("\n")).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.vocab(), 30522);
    assert!(!cases.is_empty());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let wanted = ids_of(case);
        let ids = tokenizer.encode_batch(&[text], usize::MAX).unwrap().remove(0);
        assert_eq!(ids, wanted[1..wanted.len() - 1], "{text:?}");
    }
}
