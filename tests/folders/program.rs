//! The situations that a user meets, through the program: its exit code and the line that it prints.

use std::fs;
use std::path::Path;
use std::process::Output;

use ctune_dist::ir::run::Run;
use ctune_dist::model::checkpoint::Checkpoint;
use ctune_dist::model::{HeadSet, Shape};
use ctune_dist::text::Tokenizer;
use serde_json::{Map, Value, json};

use super::super::program::{Place, assert_done, assert_refused};
use super::support::*;
use super::tokenizer::{object, write_vocabulary};

const ALL: HeadSet = HeadSet { mlm: true, pair: true, rank: true };

/// Writes a model with all heads and a vocabulary of 102 pieces or, with accents, 111.
fn model(place: &Place, name: &str, shape: &Shape, change: impl FnOnce(&mut Map<String, Value>)) {
    let folder = place.path(name);
    let mut config = config(shape);
    change(&mut config);
    write(&folder, &config, &tensors(shape, ALL));
    fs::write(folder.join("vocab.txt"), pieces(&[]).join("\n")).unwrap();
}

/// Documents, topics and a first stage.
fn collection() -> Place {
    let place = Place::with_text();
    place.plan();
    let mut run = String::new();
    for topic in 0..6 {
        (0..12).for_each(|d| run.push_str(&format!("T{topic} Q0 D{} {} {} x\n", d * 5, d + 1, 100 - d)));
    }
    place.write("bm25.run", &run);
    place
}

fn rerank(place: &Place, model: &str) -> Output {
    let out = format!("{model}.run");
    place.run(&["rerank", "--config", "plan.toml", "--device", "cpu", "--model", model, "--run-out", &out])
}

fn scored(place: &Place, model: &str) -> Vec<f64> {
    let out = rerank(place, model);
    assert_done(&out);
    assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{model}");
    let run = Run::read(&place.path(&format!("{model}.run"))).unwrap();
    let mut hits: Vec<_> =
        run.topics().flat_map(|topic| run.get(topic).unwrap().iter().map(move |hit| (topic, hit))).collect();
    hits.sort_by(|a, b| (a.0, &a.1.doc).cmp(&(b.0, &b.1.doc)));
    hits.iter().map(|(_, hit)| hit.score).collect()
}

#[test]
fn reranking_follows_the_config_or_says_why_not() {
    let place = collection();
    model(&place, "plain", &shape(), |_| ());
    model(&place, "e3", &Shape { norm_eps: 1e-3, ..shape() }, |_| ());
    model(&place, "padded", &Shape { vocab: 128, ..shape() }, |_| ());
    model(&place, "single", &Shape { segments: 1, ..shape() }, |_| ());
    let plain = scored(&place, "plain");
    assert_eq!(plain.len(), 72);
    let apart = |other: &[f64]| plain.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart(&scored(&place, "e3")) > 1e-3);
    assert!(apart(&scored(&place, "single")) > 1e-3);
    // more rows, drawn in the same order, so the first ones are the same
    assert_eq!(apart(&scored(&place, "padded")), 0.0);

    model(&place, "fewer", &Shape { vocab: 99, ..shape() }, |_| ());
    let out = rerank(&place, "fewer");
    assert_refused(&out, 2, &["fewer", "99 rows", "102 pieces", "resize_token_embeddings"]);
    assert!(!String::from_utf8_lossy(&out.stderr).contains("prepare"), "advice that leads in a circle");
    for (key, value) in [
        ("is_decoder", json!(true)),
        ("hidden_act", json!("gelu_new")),
        ("type_vocab_size", json!(3)),
        ("position_embedding_type", json!("relative_key")),
        ("layer_norm_eps", json!(0.0)),
    ] {
        model(&place, "bad", &shape(), |config| drop(config.insert(key.into(), value.clone())));
        assert_refused(&rerank(&place, "bad"), 2, &["bad/config.json", &format!("{key} = {value}")]);
    }
}

#[test]
fn a_padded_model_is_prepared_for_trained_and_written_as_wide() {
    let place = Place::with_text();
    place.plan();
    let padded = Shape { vocab: 128, norm_eps: 1e-5, ..shape() };
    model(&place, "base", &padded, |_| ());
    let prepare = |tokenizer: &str, out: &str| {
        place.run(&[
            "prepare",
            "--clicks",
            "clicks.tsv",
            "--documents",
            "documents.tsv",
            "--tokenizer",
            tokenizer,
            "--out",
            out,
            "--max-tokens",
            "32",
        ])
    };
    assert_done(&prepare("base", "shards"));
    let coarse = |out: &str, more: &[&str]| {
        let mut args = vec!["coarse", "--config", "plan.toml", "--device", "cpu", "--out", out];
        args.extend(
            ["model.path=base", "train.steps=2", "objective.whole_word=true"]
                .iter()
                .flat_map(|set| ["--set", set]),
        );
        args.extend(more.iter().flat_map(|set| ["--set", set]));
        place.run(&args)
    };
    assert_done(&coarse("run", &[]));
    let saved = place.path("run/model");
    let read = Checkpoint::read(&saved).unwrap();
    assert_eq!(read.shape, padded);
    assert_eq!(read.tensors["cls.predictions.bias"].0, [128]);
    let given = Tokenizer::load(&place.path("base")).unwrap();
    assert!(Tokenizer::load(&saved).unwrap().same_tokens(&given));
    // the tokenizer of other shards numbers the same words otherwise, though it is no larger
    let mut swapped = pieces(&[]);
    swapped[50..].reverse();
    fs::create_dir(place.path("other")).unwrap();
    place.write("other/vocab.txt", &swapped.join("\n"));
    assert_done(&prepare("other", "others"));
    assert_refused(&coarse("x", &["data.shards=others"]), 2, &["base", "others", "prepare --tokenizer base"]);
}

#[test]
fn prepare_follows_and_keeps_a_vocabularys_settings() {
    let place = Place::with_text();
    let config = json!({"tokenizer_class": "BertTokenizer", "do_lower_case": true, "strip_accents": false,
                        "tokenize_chinese_chars": false});
    write_vocabulary(&place.path("german"));
    write_json(&place.path("german/tokenizer_config.json"), &object(config.clone()));
    place.write("clicks.tsv", "1\tSchön heron\td1\n2\tschon otter\td2\n");
    place.write("documents.tsv", "d1\tSchön mögen 北京 heron\nd2\tschon mogen otter\n");
    assert_done(&place.run(&[
        "prepare",
        "--clicks",
        "clicks.tsv",
        "--documents",
        "documents.tsv",
        "--tokenizer",
        "german",
        "--out",
        "shards",
        "--max-tokens",
        "16",
    ]));
    let bytes = |file: &str| fs::read(place.path(file)).unwrap();
    assert_eq!(bytes("shards/tokenizer_config.json"), bytes("german/tokenizer_config.json"));
    assert_eq!(bytes("shards/vocab.txt"), bytes("german/vocab.txt"));
    let tokenizer = Tokenizer::load(&place.path("shards")).unwrap();
    let ids = tokenizer.encode_batch(&["Schön mögen 北京"], 9).unwrap().remove(0);
    let pieces: Vec<String> = ids.into_iter().map(|id| tokenizer.piece(id).unwrap()).collect();
    assert_eq!(pieces, ["schön", "mögen", "北京"]);
    let out = place.run(&["inspect", "shards"]);
    assert_done(&out);
    let mut other = object(config);
    other["strip_accents"] = json!("no");
    write_json(&place.path("german/tokenizer_config.json"), &other);
    let out = place.run(&[
        "prepare",
        "--clicks",
        "clicks.tsv",
        "--documents",
        "documents.tsv",
        "--tokenizer",
        "german",
        "--out",
        "more",
        "--max-tokens",
        "16",
    ]);
    assert_refused(&out, 2, &["german/tokenizer_config.json", "strip_accents = \"no\""]);
}

/// Every rank reads the folder, and one reports on it.
#[test]
fn an_unknown_key_is_named_once() {
    let place = collection();
    model(&place, "odd", &shape(), |config| {
        config.extend([("rope_theta".into(), json!(10_000)), ("hidden_dropout_prob".into(), json!(0.3))]);
    });
    for ranks in [1, 2] {
        let args =
            ["rerank", "--config", "plan.toml", "--device", "cpu", "--model", "odd", "--run-out", "odd.run"];
        let out = if ranks == 1 { place.run(&args) } else { place.mpirun(ranks, &args) };
        assert_done(&out);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(said.matches("rope_theta").count(), 1, "{said}");
        assert_eq!(
            said.matches("hidden_dropout_prob = 0.3: has no effect: train.dropout decides").count(),
            1,
            "{said}"
        );
        fs::remove_file(place.path("odd.run")).unwrap();
    }
    // a fold is read for each model that it trains
    let fine = ["fine", "--config", "plan.toml", "--device", "cpu", "--out", "fine"];
    let sets = ["model.path=odd", "train.steps=1", "train.pack_tokens=1024"];
    let args = [&fine[..], &sets.iter().flat_map(|set| ["--set", *set]).collect::<Vec<_>>()].concat();
    let out = place.run(&args);
    assert_done(&out);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(said.matches("rope_theta").count(), 1, "{said}");
}

#[test]
fn a_model_without_pooler_does_not_rank_and_can_be_tuned() {
    let place = collection();
    model(&place, "bare", &shape(), |_| ());
    let strip = |folder: &Path| {
        let mut left = tensors(&shape(), ALL);
        left.retain(|name, _| !name.starts_with("bert.pooler."));
        write_weights(folder, &left);
    };
    strip(&place.path("bare"));
    assert_refused(&rerank(&place, "bare"), 2, &["bare", "bert.pooler.dense.weight", "new-head"]);
    let fine = |start: &str, out: &str| {
        let start = format!("fine.start={start}");
        let mut args = vec!["fine", "--config", "plan.toml", "--device", "cpu", "--out", out];
        let sets = ["model.path=bare", "train.steps=2", "train.pack_tokens=1024", &start];
        args.extend(sets.iter().flat_map(|set| ["--set", *set]));
        place.run(&args)
    };
    assert_refused(&fine("qdpp-head", "x"), 2, &["bert.pooler.dense.weight"]);
    let out = fine("new-head", "fine");
    assert_done(&out);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("drawn anew: bert.pooler.dense.weight, bert.pooler.dense.bias"), "{said}");
    assert_done(&rerank(&place, "fine/fold-1/model"));
}
