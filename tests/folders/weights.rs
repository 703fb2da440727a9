//! Weights and the config's numbers: the engine against the reference model of the same shape, and tensors
//! that are missing, superfluous or misnamed.

use std::collections::BTreeMap;
use std::path::Path;

use ctune_dist::engine::op::MaskRule;
use ctune_dist::model::checkpoint::{self, Checkpoint, Fill, HeadStart, Tensors};
use ctune_dist::model::{Bert, HeadSet, Mode, Objective, Shape};
use ctune_dist::reference::Reference;
use ctune_dist::train::check::against_reference;
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use serde_json::json;

use super::support::*;

const ALL: HeadSet = HeadSet { mlm: true, pair: true, rank: true };

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// The tensors that a ranking reference has.
fn ranking(tensors: &Tensors) -> Tensors {
    tensors
        .iter()
        .filter(|(name, _)| !name.starts_with("cls."))
        .map(|(n, t)| (n.clone(), t.clone()))
        .collect()
}

fn reference_scores(shape: &Shape, tensors: &Tensors) -> Vec<f32> {
    let reference = Reference::new(shape, &ranking(tensors)).unwrap();
    reference.ranking(&batch(), None, None).unwrap().scores.to_vec1().unwrap()
}

fn filled(shape: &Shape, folder: &Path, start: Fill) -> Bert<ctune_dist::engine::cpu::Cpu> {
    let mut model = ranker(shape);
    Checkpoint::read(folder).unwrap().fill(&mut model, start, 1).unwrap();
    model
}

#[test]
fn scores_and_gradients_are_those_of_the_configs_epsilon() {
    let weights = tensors(&shape(), ALL);
    let plain = reference_scores(&shape(), &weights);
    for eps in [1e-12, 1e-9, 1e-5, 1e-3, 0.5] {
        let shape = Shape { norm_eps: eps, ..shape() };
        let place = folder();
        write(place.path(), &config(&shape), &weights);
        let got = scores(place.path());
        let off = distance(&got, &reference_scores(&shape, &weights));
        assert!(off < 1e-5, "epsilon {eps:e}: {off:e} from the reference");
        let moved = distance(&got, &plain);
        assert!((moved > 1e-4) == (eps >= 1e-5), "epsilon {eps:e} moves the scores by {moved:e}");
        let mut model = filled(&shape, place.path(), Fill::AsSaved);
        let found = against_reference(&mut model, &batch()).unwrap().unwrap();
        assert!(found.worst().1 < 1e-4, "epsilon {eps:e}: {:?}", found.worst());
        // and it is written back
        let saved = place.path().join("saved");
        checkpoint::save(&model, &saved, None).unwrap();
        assert_eq!(Checkpoint::read(&saved).unwrap().shape, shape);
        assert_eq!(distance(&scores(&saved), &got), 0.0);
    }
}

#[test]
fn a_config_without_epsilon_has_berts() {
    let place = folder();
    let mut config = config(&Shape { norm_eps: 1e-3, ..shape() });
    config.remove("layer_norm_eps");
    write(place.path(), &config, &tensors(&shape(), ALL));
    assert_eq!(Checkpoint::read(place.path()).unwrap().shape, shape());
}

/// One segment: every token reads the one row. A model of two equal rows computes the same.
#[test]
fn a_model_of_one_segment_scores_and_learns() {
    let one = Shape { segments: 1, ..shape() };
    let weights = tensors(&one, ALL);
    let place = folder();
    write(place.path(), &config(&one), &weights);
    let got = scores(place.path());
    assert!(distance(&got, &reference_scores(&one, &weights)) < 1e-5);
    let mut model = filled(&one, place.path(), Fill::AsSaved);
    let found = against_reference(&mut model, &batch()).unwrap().unwrap();
    assert!(found.worst().1 < 1e-4, "{:?}", found.worst());

    let mut doubled = weights.clone();
    let (shape, row) = doubled.get_mut("bert.embeddings.token_type_embeddings.weight").unwrap();
    shape[0] = 2;
    row.extend_from_within(..);
    let twin = folder();
    write(twin.path(), &config(&super::support::shape()), &doubled);
    assert_eq!(scores(twin.path()), got);

    let saved = place.path().join("saved");
    checkpoint::save(&model, &saved, None).unwrap();
    assert_eq!(Checkpoint::read(&saved).unwrap().shape, one);
}

/// Which tokens may be masked depends on their place in the pair, not on the segment table.
#[test]
fn a_model_of_one_segment_masks_by_the_texts_of_a_pair() {
    for segments in [1, 2] {
        let shape = Shape { segments, ..shape() };
        let rule = MaskRule {
            seed: 5,
            threshold: u32::MAX,
            segments: 2,
            whole_word: false,
            vocab: shape.vocab as u32,
            cls: SPECIAL.cls,
            sep: SPECIAL.sep,
            mask: SPECIAL.mask,
        };
        let both = Objective::Pretraining { mlm: 1.0, qdpp: 0.0 };
        let mut setting = options(both, HeadSet::PRETRAINING);
        setting.rule = Some(rule);
        let mut model = Bert::new(ctune_dist::engine::cpu::Cpu::new(), &shape, setting).unwrap();
        checkpoint::fill_fresh(&mut model, 3).unwrap();
        let mut batch = batch();
        let documents: Vec<u32> = (0..batch.tokens() as u32)
            .filter(|&row| batch.segments[row as usize] == 1 && batch.ids[row as usize] != SPECIAL.sep)
            .collect();
        batch.masked = documents.len();
        batch.step_masked = batch.masked;
        model.forward(&batch, Mode::Train).unwrap();
        let (_, rows, _) = model.masked_pack().unwrap();
        assert_eq!(rows, documents, "{segments} segments");
    }
}

/// Rows beyond the tokenizer's pieces are there, are never drawn, and are written again.
#[test]
fn a_padded_word_table_is_accepted_and_kept() {
    let pieces = shape().vocab;
    let padded = Shape { vocab: pieces.next_multiple_of(64), ..shape() };
    let place = folder();
    write(place.path(), &config(&padded), &tensors(&padded, ALL));
    let read = Checkpoint::read(place.path()).unwrap();
    read.check_fits(pieces, 64).unwrap();
    let error = refusal(read.check_fits(padded.vocab + 1, 64));
    assert!(error.contains(&padded.vocab.to_string()) && error.contains(&(padded.vocab + 1).to_string()));

    // with whole words: the host counts with the tokenizer's pieces, the device has a list of all rows
    let mut continues = vec![0; pieces];
    (41..77).for_each(|id| continues[id] = 1);
    let rule = MaskRule {
        seed: 9,
        threshold: 1 << 31,
        segments: 3,
        whole_word: true,
        vocab: pieces as u32,
        cls: SPECIAL.cls,
        sep: SPECIAL.sep,
        mask: SPECIAL.mask,
    };
    let mut setting = options(Objective::Pretraining { mlm: 1.0, qdpp: 0.0 }, HeadSet::PRETRAINING);
    (setting.rule, setting.continues) = (Some(rule), continues.clone());
    let mut model = Bert::new(ctune_dist::engine::cpu::Cpu::new(), &padded, setting).unwrap();
    read.fill(&mut model, Fill::Head(HeadStart::NewHead), 1).unwrap();
    for epoch in 0..50 {
        let mut batch = batch();
        batch.epoch = epoch;
        batch.masked = ctune_dist::data::mask::count_masked(&rule, &batch, &continues);
        batch.step_masked = batch.masked.max(1);
        model.forward(&batch, Mode::Train).unwrap(); // counts that differ are an error
        let (ids, _, _) = model.masked_pack().unwrap();
        assert!(ids.iter().all(|&id| (id as usize) < pieces), "epoch {epoch}: {ids:?}");
    }
    let saved = place.path().join("saved");
    checkpoint::save(&model, &saved, None).unwrap();
    let again = Checkpoint::read(&saved).unwrap();
    assert_eq!(again.shape, padded);
    assert_eq!(
        again.tensors["bert.embeddings.word_embeddings.weight"],
        read.tensors["bert.embeddings.word_embeddings.weight"]
    );
}

#[test]
fn nothing_random_ranks() {
    let weights = tensors(&shape(), ALL);
    let place = folder();
    let without = |drop: &[&str]| -> Checkpoint {
        let mut left = weights.clone();
        left.retain(|name, _| !drop.iter().any(|start| name.starts_with(start)));
        write(place.path(), &config(&shape()), &left);
        Checkpoint::read(place.path()).unwrap()
    };
    let mut model = ranker(&shape());
    let (saved, qdpp) = (Fill::AsSaved, Fill::Head(HeadStart::QdppHead));
    let new = Fill::Head(HeadStart::NewHead);
    for (drop, start, says) in [
        (&["bert.pooler."][..], saved, "bert.pooler.dense.weight"),
        (&["bert.pooler.dense.bias"], saved, "bert.pooler.dense.bias"),
        (&["bert.pooler.", "classifier."], saved, "bert.pooler.dense.weight"),
        (&["bert.pooler."], qdpp, "bert.pooler.dense.weight"),
        (&["classifier.", "cls.seq"], saved, "classifier.weight"),
        (&["classifier.bias"], saved, "classifier.bias"),
        (&["cls.seq"], qdpp, "cls.seq_relationship.weight"),
    ] {
        let error = refusal(without(drop).fill(&mut model, start, 1));
        assert!(error.contains(says) && error.contains("new-head"), "{drop:?}: {error}");
    }
    // a start with a new head trains what it draws, and says so
    let report = without(&["bert.pooler.", "classifier."]).fill(&mut model, new, 1).unwrap();
    let drawn =
        ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"];
    assert_eq!(report.missing, drawn);
    // what was never trained does not rank after it was saved
    let mlm_only = options(Objective::Pretraining { mlm: 1.0, qdpp: 0.0 }, HeadSet::PRETRAINING);
    let mut coarse = Bert::new(ctune_dist::engine::cpu::Cpu::new(), &shape(), mlm_only).unwrap();
    without(&["bert.pooler."]).fill(&mut coarse, new, 1).unwrap();
    checkpoint::save(&coarse, &place.path().join("coarse"), None).unwrap();
    let coarse = Checkpoint::read(&place.path().join("coarse")).unwrap();
    assert!(refusal(coarse.fill(&mut model, qdpp, 1)).contains("never trained"));
    assert!(refusal(coarse.fill(&mut model, saved, 1)).contains("never trained"));
}

#[test]
fn an_mlm_head_of_its_own_is_refused_and_a_copy_is_not() {
    const MATRIX: &str = "cls.predictions.decoder.weight";
    const BIAS: &str = "cls.predictions.decoder.bias";
    let mut weights = tensors(&shape(), ALL);
    let word = weights["bert.embeddings.word_embeddings.weight"].clone();
    let bias = weights["cls.predictions.bias"].clone();
    weights.insert(MATRIX.into(), word);
    weights.insert(BIAS.into(), bias.clone());
    let place = folder();
    let new = Fill::Head(HeadStart::NewHead);
    let fill = |weights: &Tensors, tied: bool| {
        let mut config = config(&shape());
        config.insert("tie_word_embeddings".into(), json!(tied));
        write(place.path(), &config, weights);
        let mut model = pretrainer(&shape());
        let report = Checkpoint::read(place.path())?.fill(&mut model, new, 1)?;
        Ok::<_, ctune_dist::Error>((report, checkpoint::export(&model).unwrap()))
    };
    let (report, plain) = fill(&weights, true).unwrap();
    assert_eq!(report.unexpected, ["classifier.bias", "classifier.weight"]);
    let error = refusal(fill(&weights, false));
    assert!(error.contains("tie_word_embeddings = false"), "{error}");
    // a ranking model has no MLM head, so there is nothing to be wrong
    let mut model = ranker(&shape());
    Checkpoint::read(place.path()).unwrap().fill(&mut model, Fill::AsSaved, 1).unwrap();

    let mut alone = weights.clone();
    alone.remove("cls.predictions.bias");
    assert_eq!(fill(&alone, true).unwrap().1, plain, "the bias under its other name");
    let mut two = weights.clone();
    two.get_mut(BIAS).unwrap().1[3] += 1.0;
    assert!(refusal(fill(&two, true)).contains(BIAS));
    let mut other = weights;
    other.get_mut(MATRIX).unwrap().1[3] += 1.0;
    assert_eq!(fill(&other, true).unwrap().1, plain, "as in transformers, the word embedding serves");
}

#[test]
fn a_prefix_is_named_instead_of_every_tensor() {
    let weights = tensors(&shape(), ALL);
    let place = folder();
    let renamed = |rename: &dyn Fn(&str) -> String| {
        let named = weights.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
        write(place.path(), &config(&shape()), &named);
        refusal(Checkpoint::read(place.path()).unwrap().fill(&mut ranker(&shape()), Fill::AsSaved, 1))
    };
    let bare = |name: &str| name.trim_start_matches("bert.").to_owned();
    for prefix in ["module.", "model.", "0.auto_model.", "_orig_mod."] {
        for error in
            [renamed(&|name| format!("{prefix}{name}")), renamed(&|name| format!("{prefix}{}", bare(name)))]
        {
            assert!(error.contains(&format!("\"{prefix}\"")) && error.contains("rename"), "{error}");
        }
    }
    let other = renamed(&|name| name.replace("encoder", "coder"));
    assert!(other.contains("lacks 32 of") && other.contains(" more"), "{other}");
    let layers = renamed(&|name| name.replace("layer.1.", "layer.7."));
    assert!(layers.contains("bert.encoder.layer.1."), "{layers}");
}

#[test]
fn tensors_that_cannot_be_weights_are_refused_by_name() {
    let place = folder();
    let weights = tensors(&shape(), ALL);
    let refused = |change: &dyn Fn(&mut Tensors)| {
        let mut changed = weights.clone();
        change(&mut changed);
        write(place.path(), &config(&shape()), &changed);
        let read = Checkpoint::read(place.path());
        refusal(read.and_then(|read| read.fill(&mut ranker(&shape()), Fill::AsSaved, 1)))
    };
    let name = "bert.encoder.layer.0.output.dense.bias";
    for value in [f32::NAN, f32::INFINITY] {
        let error = refused(&|tensors| tensors.get_mut(name).unwrap().1[5] = value);
        assert!(error.contains(name) && error.contains("not finite"), "{error}");
    }
    let error = refused(&|tensors| {
        let twin = tensors["bert.embeddings.LayerNorm.bias"].clone();
        tensors.insert("embeddings.LayerNorm.beta".into(), twin);
    });
    assert!(error.contains("LayerNorm.b") && error.contains("two names"), "{error}");
    let error = refused(&|tensors| tensors.get_mut("classifier.weight").unwrap().0 = vec![16, 1]);
    assert!(error.contains("classifier.weight") && error.contains("[16, 1]"), "{error}");
    for labels in [3, 5] {
        let error = refused(&|tensors| {
            tensors.insert("classifier.weight".into(), (vec![labels, 16], vec![0.5; labels * 16]));
        });
        assert!(error.contains("1 or 2 labels"), "{error}");
    }
    let error = refused(&|tensors| {
        tensors.remove("classifier.weight");
        tensors.remove("classifier.bias");
        tensors.insert("cls.seq_relationship.weight".into(), (vec![3, 16], vec![0.5; 48]));
    });
    assert!(error.contains("cls.seq_relationship.weight") && error.contains("[3, 16]"), "{error}");
}

#[test]
fn weights_in_another_file_are_named() {
    let place = folder();
    write(place.path(), &config(&shape()), &BTreeMap::new());
    std::fs::remove_file(place.path().join("model.safetensors")).unwrap();
    let error = || refusal(Checkpoint::read(place.path()));
    assert!(error().contains("model.safetensors: no such file"));
    std::fs::write(place.path().join("pytorch_model.bin"), "x").unwrap();
    assert!(error().contains("pytorch_model.bin"));
    std::fs::write(place.path().join("model.safetensors.index.json"), "{}").unwrap();
    assert!(error().contains("several files"));
}

/// Two labels: the second is "relevant".
#[test]
fn two_labels_make_one_score() {
    let mut weights = tensors(&shape(), ALL);
    let place = folder();
    let of =
        |rows: [f32; 2]| (vec![2, 16], (0..32).map(|i| rows[i / 16] + 0.01 * i as f32).collect::<Vec<_>>());
    weights.insert("classifier.weight".into(), of([0.3, -0.2]));
    weights.insert("classifier.bias".into(), (vec![2], vec![0.1, 0.4]));
    write(place.path(), &config(&shape()), &weights);
    let got = scores(place.path());
    let rows = &weights["classifier.weight"].1;
    let single: Vec<f32> = (0..16).map(|i| rows[16 + i] - rows[i]).collect();
    weights.insert("classifier.weight".into(), (vec![1, 16], single));
    weights.insert("classifier.bias".into(), (vec![1], vec![0.4 - 0.1]));
    assert!(distance(&got, &reference_scores(&shape(), &weights)) < 1e-5);
}

/// Files in 16 bits score as their values do in 32; whole numbers are no weights.
#[test]
fn every_type_of_floats_is_read() {
    let weights = tensors(&shape(), ALL);
    let rounded = |round: fn(f32) -> f32| -> Tensors {
        let each = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| {
            (name.clone(), (shape.clone(), values.iter().map(|v| round(*v)).collect()))
        };
        weights.iter().map(each).collect()
    };
    let place = folder();
    write(place.path(), &config(&shape()), &weights);
    let halves = |values: &[f32]| values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    write_weights_as(place.path(), &weights, Dtype::F16, halves);
    let exact = reference_scores(&shape(), &rounded(|v| f16::from_f32(v).to_f32()));
    assert!(distance(&scores(place.path()), &exact) < 1e-5);
    let brains = |values: &[f32]| values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    write_weights_as(place.path(), &weights, Dtype::BF16, brains);
    let exact = reference_scores(&shape(), &rounded(|v| bf16::from_f32(v).to_f32()));
    assert!(distance(&scores(place.path()), &exact) < 1e-5);
    let wide = |values: &[f32]| values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    write_weights_as(place.path(), &weights, Dtype::F64, wide);
    assert!(distance(&scores(place.path()), &reference_scores(&shape(), &weights)) < 1e-5);
    let codes = |values: &[f32]| values.iter().map(|v| (*v * 100.0) as i8 as u8).collect();
    write_weights_as(place.path(), &weights, Dtype::U8, codes);
    assert!(refusal(Checkpoint::read(place.path())).contains("whole numbers"));
}
