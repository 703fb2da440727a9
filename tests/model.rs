//! The model over the CPU engine against PyTorch's golden values and the candle reference: logits,
//! losses, every gradient, ten updates; checkpoints in and out.

use std::collections::BTreeMap;

use ctune_dist::data::batch::Batch;
use ctune_dist::engine::cpu::Cpu;
use ctune_dist::engine::op::{self, Aggregate, MaskRule, RankLoss, UpdateRule};
use ctune_dist::engine::{Device, Engine, stats};
use ctune_dist::model::activations::Capacity;
use ctune_dist::model::bert::Options;
use ctune_dist::model::checkpoint::{self, Checkpoint, Fill, HeadStart, Tensors};
use ctune_dist::model::trained::Rates;
use ctune_dist::model::{Bert, HeadSet, Mode, Objective, Shape, Tuning};
use ctune_dist::reference::Reference;
use ctune_dist::train::check::against_reference;

use crate::golden::{self, Case, Golden};

fn options(objective: Objective, heads: HeadSet, dropout: (f32, u32)) -> Options {
    Options {
        objective,
        heads,
        capacity: Capacity { tokens: 512, sequences: 64, masked: 128 },
        train: true,
        dropout: dropout.0,
        seed: dropout.1,
        rule: None,
        continues: Vec::new(),
    }
}

/// A model on the CPU engine.
pub type Model = Bert<Cpu>;

const BOTH: Objective = Objective::Pretraining { mlm: 1.0, qdpp: 1.0 };

/// Puts the tensors into the model; adapters stay as they are.
pub fn fill(model: &mut Bert<Cpu>, tensors: &Tensors) {
    for param in model.layout.params.iter().filter(|p| p.block.is_none()) {
        let (_, values) = &tensors[&param.name];
        model.engine.upload_weights(values, &mut model.weights, param.offset).unwrap();
    }
}

/// Options of a ranking model with room for the golden pack.
pub fn ranking_options(dropout: (f32, u32)) -> Options {
    options(Objective::Ranking(RankLoss::Lce, None), HeadSet::RANKING, dropout)
}

/// The golden pre-training model, tuned.
pub fn tuned_model(golden: &Golden, tuning: &Tuning) -> Bert<Cpu> {
    let options = options(BOTH, HeadSet::PRETRAINING, (0.0, 0));
    let mut model = Bert::tuned(Cpu::new(), &golden.shape, options, tuning).unwrap();
    fill(&mut model, &golden.pretraining_weights);
    model
}

/// The golden pre-training model with dropout (rate, seed).
pub fn pretraining_model(golden: &Golden, dropout: (f32, u32)) -> Bert<Cpu> {
    let options = options(BOTH, HeadSet::PRETRAINING, dropout);
    let mut model = Bert::new(Cpu::new(), &golden.shape, options).unwrap();
    fill(&mut model, &golden.pretraining_weights);
    model
}

fn ranking_model(golden: &Golden, dropout: (f32, u32)) -> Bert<Cpu> {
    let mut model = Bert::new(Cpu::new(), &golden.shape, ranking_options(dropout)).unwrap();
    fill(&mut model, &golden.ranking_weights);
    model
}

fn step(model: &mut Bert<Cpu>, golden: &Golden) -> [f64; stats::SLOTS] {
    let (rows, labels) = (&golden.masked_rows, &golden.masked_labels);
    model.forward_masked(&golden.pretraining_batch, rows, labels, Mode::Train).unwrap();
    model.backward(&golden.pretraining_batch, &mut |_, _, _| Ok(())).unwrap();
    model.take_sums().unwrap()
}

fn check_gradients(model: &Bert<Cpu>, golden: &Golden, case: Case) {
    let actual = checkpoint::export_gradients(model).unwrap();
    let expected = golden.gradients(case);
    assert_eq!(actual.len(), expected.len());
    for name in expected.keys() {
        let error = golden.relative_error(case, name, &actual[*name].1);
        assert!(error <= golden.bound(case), "{name}: {error:.2e} over {:.2e}", golden.bound(case));
    }
}

/// Equal up to a relative error.
pub fn close(actual: f64, expected: f64, bound: f64) {
    assert!((actual - expected).abs() <= bound * expected.abs(), "{actual} is not {expected}");
}

#[test]
fn pretraining_equals_pytorch() {
    let golden = golden::load();
    for (case, dropout) in [(Case::Pretraining, (0.0, 0)), (Case::PretrainingDropout, golden.dropout)] {
        let mut model = pretraining_model(&golden, dropout);
        let sums = step(&mut model, &golden);
        let bound = golden.bound(case);
        close(sums[stats::MLM_LOSS] / sums[stats::MLM_COUNT], golden.loss(case, "mlm_loss"), bound);
        close(sums[stats::QDPP_LOSS] / sums[stats::QDPP_COUNT], golden.loss(case, "qdpp_loss"), bound);
        check_gradients(&model, &golden, case);
    }
}

#[test]
fn logits_equal_pytorch_and_measuring_needs_no_gradients() {
    let golden = golden::load();
    let mut setting = options(BOTH, HeadSet::PRETRAINING, (0.1, 1));
    setting.train = false;
    let mut model = Bert::new(Cpu::new(), &golden.shape, setting).unwrap();
    fill(&mut model, &golden.pretraining_weights);
    let (rows, labels) = (&golden.masked_rows, &golden.masked_labels);
    model.forward_masked(&golden.pretraining_batch, rows, labels, Mode::Measure).unwrap();
    let case = Case::Pretraining;
    for (name, actual) in
        [("mlm_logits", model.mlm_logits().unwrap()), ("pair_logits", model.pair_logits().unwrap())]
    {
        let error = golden.relative_error(case, name, &actual);
        assert!(error <= golden.bound(case), "{name}: {error:.2e}");
    }
    let error = model.backward(&golden.pretraining_batch, &mut |_, _, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("measuring"));
}

#[test]
fn ranking_equals_pytorch() {
    let golden = golden::load();
    let mut model = ranking_model(&golden, (0.0, 0));
    let case = Case::Ranking;
    model.forward(&golden.ranking_batch, Mode::Train).unwrap();
    model.backward(&golden.ranking_batch, &mut |_, _, _| Ok(())).unwrap();
    let sums = model.take_sums().unwrap();
    close(sums[stats::RANK_LOSS] / sums[stats::RANK_COUNT], golden.loss(case, "loss"), golden.bound(case));
    check_gradients(&model, &golden, case);
    let scores = model.scores(&golden.ranking_batch).unwrap();
    assert!(golden.relative_error(case, "scores", &scores) <= golden.bound(case));

    let mut model = ranking_model(&golden, golden.dropout);
    let case = Case::RankingDropout;
    model.forward(&golden.ranking_batch, Mode::Train).unwrap();
    let sums = model.take_sums().unwrap();
    close(sums[stats::RANK_LOSS] / sums[stats::RANK_COUNT], golden.loss(case, "loss"), golden.bound(case));
}

#[test]
fn ten_adamw_updates_equal_pytorch() {
    let golden = golden::load();
    let steps = &golden.steps;
    let mut model = pretraining_model(&golden, (0.0, 0));
    let len = model.layout.len;
    let groups = model.layout.groups(Rates::EQUAL, false);
    let mut moments: [_; 2] = std::array::from_fn(|_| model.engine.zeros::<f32>(len).unwrap());
    let (owned, mut master) = (vec![0..len; 1], model.engine.zeros(0).unwrap());
    let mut norm_sq = model.engine.zeros::<f32>(1).unwrap();
    let largest =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| ((a - b) / b).abs()).fold(0.0f64, f64::max);
    // twice the error of PyTorch in float32 against PyTorch in float64
    let bound = 2.0 * largest(&golden.steps_float32.losses, &steps.losses).max(1e-6);
    for (i, lr) in steps.learning_rates.iter().enumerate() {
        let sums = step(&mut model, &golden);
        let loss =
            sums[stats::MLM_LOSS] / sums[stats::MLM_COUNT] + sums[stats::QDPP_LOSS] / sums[stats::QDPP_COUNT];
        close(loss, steps.losses[i], bound);
        model
            .engine
            .run(op::SumSquares {
                src: &model.grads,
                ranges: std::slice::from_ref(&(0..len)),
                out: &mut norm_sq,
                slot: 0,
            })
            .unwrap();
        let norm = f64::from(model.engine.download(&norm_sq, 0..1).unwrap()[0]).sqrt();
        close(norm, steps.grad_norms[i], 1e-4);
        let update = UpdateRule {
            lr: *lr as f32,
            beta1: steps.beta1 as f32,
            beta2: steps.beta2 as f32,
            eps: steps.eps as f32,
            weight_decay: steps.weight_decay as f32,
            step: i as u32 + 1,
            clip_norm: steps.clip_norm as f32,
        };
        let [m, v] = &mut moments;
        model
            .engine
            .run(op::AdamWUpdate {
                rule: update,
                groups: &groups,
                owned: &owned,
                norm_sq: &norm_sq,
                weights: &mut model.weights,
                master: &mut master,
                grads: &mut model.grads,
                moment1: m,
                moment2: v,
            })
            .unwrap();
    }
    let sums = step(&mut model, &golden);
    let loss =
        sums[stats::MLM_LOSS] / sums[stats::MLM_COUNT] + sums[stats::QDPP_LOSS] / sums[stats::QDPP_COUNT];
    close(loss, steps.final_loss, bound);
}

/// A model that PyTorch has not seen: other sizes, the engine's own masks, dropout on.
#[test]
fn a_larger_random_model_equals_the_reference() {
    let shape = Shape {
        vocab: 211,
        hidden: 48,
        layers: 3,
        heads: 4,
        intermediate: 96,
        positions: 128,
        segments: 2,
        norm_eps: Shape::NORM_EPS,
    };
    let rule = MaskRule {
        seed: 5,
        threshold: (0.3 * 4_294_967_296.0) as u32,
        segments: 3,
        whole_word: false,
        vocab: 211,
        cls: 2,
        sep: 3,
        mask: 4,
    };
    let mut setting =
        options(Objective::Pretraining { mlm: 0.7, qdpp: 1.3 }, HeadSet::PRETRAINING, (0.1, 11));
    setting.rule = Some(rule);
    let mut model = Bert::new(Cpu::new(), &shape, setting).unwrap();
    checkpoint::fill_fresh(&mut model, 3).unwrap();
    let mut batch = pack(&[1, 2, 7, 31, 64, 90]);
    let mut masked = batch.clone();
    let (mut rows, mut labels) = (Vec::new(), Vec::new());
    for row in 0..batch.tokens() {
        let (id, sample, position) = (batch.ids[row], batch.row_sample[row], batch.positions[row]);
        if rule.allows(id, batch.segments[row]) && rule.chooses(sample, position, batch.epoch) {
            masked.ids[row] = rule.replaces(id, sample, position, batch.epoch);
            rows.push(row as u32);
            labels.push(id);
        }
    }
    for b in [&mut batch, &mut masked] {
        (b.masked, b.step_masked) = (rows.len(), rows.len());
    }
    model.forward(&batch, Mode::Train).unwrap();
    model.backward(&batch, &mut |_, _, _| Ok(())).unwrap();
    let sums = model.take_sums().unwrap();

    let reference = Reference::new(&shape, &checkpoint::export(&model).unwrap()).unwrap();
    let expected = reference.pretraining(&masked, &rows, &labels, Some((0.1, 11))).unwrap();
    let scalar = |t: &candle_core::Tensor| f64::from(t.to_scalar::<f32>().unwrap());
    let (mlm, qdpp) = (expected.mlm_loss, expected.qdpp_loss.unwrap());
    close(sums[stats::MLM_LOSS] / sums[stats::MLM_COUNT], scalar(&mlm), 1e-5);
    close(sums[stats::QDPP_LOSS] / sums[stats::QDPP_COUNT], scalar(&qdpp), 1e-5);
    let loss = ((mlm * 0.7).unwrap() + (qdpp * 1.3).unwrap()).unwrap();
    compare(&checkpoint::export_gradients(&model).unwrap(), &reference.gradients(&loss).unwrap());
}

/// Gradients of two f32 computations: a few ulp of the largest element, whose sums run over some
/// hundred terms. Key biases have gradient 0 and are compared with the query's.
fn compare(actual: &Tensors, expected: &BTreeMap<String, Vec<f32>>) {
    assert_eq!(actual.len(), expected.len());
    for (name, expected) in expected {
        let scale_name = name.replace("self.key.bias", "self.query.bias");
        let scale = actual[&scale_name].1.iter().fold(0f32, |max, x| max.max(x.abs()));
        assert!(scale > 0.0, "{name}: no gradient");
        for (a, e) in actual[name].1.iter().zip(expected) {
            assert!((a - e).abs() <= 2e-5 * scale, "{name}: {a} is not {e} (largest {scale})");
        }
    }
}

/// Documents of several passages, aggregated in every way, and pairs' loss factors in the other objective:
/// the engine against the reference's autograd.
#[test]
fn passages_and_factors_are_the_references() {
    let golden = golden::load();
    let batch = Batch {
        cu_documents: vec![0, 2, 3, 5, 6],
        cu_groups: vec![0, 2, 4],
        targets: vec![1.0, 0.0, 2.0, 0.0],
        ..golden.ranking_batch.clone()
    };
    for how in [Aggregate::FirstP, Aggregate::MaxP, Aggregate::SumP, Aggregate::AvgP] {
        let objective = Objective::Ranking(RankLoss::Lce, Some(how));
        let options = options(objective, HeadSet::RANKING, (0.1, 7));
        let mut model = Bert::new(Cpu::new(), &golden.shape, options).unwrap();
        fill(&mut model, &golden.ranking_weights);
        let found = against_reference(&mut model, &batch).unwrap().unwrap();
        assert!(found.worst().1 < 1e-5, "{how:?}: {:?}", found.worst());
        close(found.loss, found.reference_loss, 1e-6);
    }
    let factors = vec![1.0, 0.25, 0.0, 3.0, 1.5, 0.5];
    let batch = Batch { pair_weights: factors, ..golden.pretraining_batch.clone() };
    let qdpp = Objective::Pretraining { mlm: 0.0, qdpp: 1.0 };
    let options = options(qdpp, HeadSet::PRETRAINING, (0.1, 7));
    let mut model = Bert::new(Cpu::new(), &golden.shape, options).unwrap();
    fill(&mut model, &golden.pretraining_weights);
    let found = against_reference(&mut model, &batch).unwrap().unwrap();
    assert!(found.worst().1 < 1e-5, "{:?}", found.worst());
    close(found.loss, found.reference_loss, 1e-6);
    let plain = against_reference(&mut model, &golden.pretraining_batch).unwrap().unwrap();
    assert!((plain.loss - found.loss).abs() > 0.01, "factors change nothing");
}

/// Pairs with documents of the given lengths.
fn pack(lengths: &[usize]) -> Batch {
    let special = ctune_dist::text::Special { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 };
    let mut batch = Batch { epoch: 2, ..Batch::default() };
    for (i, &n) in lengths.iter().enumerate() {
        let token = |k: usize| 5 + ((i * 37 + k * 101) % 206) as u32;
        let query: Vec<u32> = (0..3).map(token).collect();
        let document: Vec<u32> = (3..3 + n).map(token).collect();
        batch.push(special, 40 + i as u32, &query, Some(&document));
        batch.pair_labels.push((i % 2) as u32);
    }
    batch.step_pairs = lengths.len();
    batch
}

#[test]
fn a_sequence_does_not_know_its_pack() {
    let golden = golden::load();
    let mut model = ranking_model(&golden, (0.0, 0));
    let together = model.scores(&golden.ranking_batch).unwrap();
    let batch = &golden.ranking_batch;
    for (i, together) in together.iter().enumerate() {
        let (start, end) = (batch.cu_seqlens[i] as usize, batch.cu_seqlens[i + 1] as usize);
        let alone = Batch {
            ids: batch.ids[start..end].to_vec(),
            positions: batch.positions[start..end].to_vec(),
            segments: batch.segments[start..end].to_vec(),
            row_sample: batch.row_sample[start..end].to_vec(),
            cu_seqlens: vec![0, (end - start) as u32],
            samples: vec![batch.samples[i]],
            ..Batch::default()
        };
        let score = model.scores(&alone).unwrap()[0];
        assert!((score - together).abs() <= 1e-6 * together.abs().max(0.1), "{score} is not {together}");
    }
}

#[test]
fn checkpoints_go_out_and_in() {
    let golden = golden::load();
    let model = pretraining_model(&golden, (0.0, 0));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/model");
    checkpoint::save(&model, &path, Some(&golden::folder())).unwrap();
    checkpoint::save(&model, &path, None).unwrap(); // replaces
    let read = Checkpoint::read(&path).unwrap();
    assert_eq!(read.shape, golden.shape);
    assert_eq!(read.tensors, checkpoint::export(&model).unwrap());
    assert_eq!(std::fs::read_dir(dir.path().join("run")).unwrap().count(), 1, "temporary files are left");

    // the QDPP head as a ranking head: clicked minus negative
    let options = options(Objective::Ranking(RankLoss::Lce, None), HeadSet::RANKING, (0.0, 0));
    let mut ranker = Bert::new(Cpu::new(), &golden.shape, options).unwrap();
    let report = read.fill(&mut ranker, Fill::Head(HeadStart::QdppHead), 1).unwrap();
    assert_eq!(report.missing, Vec::<String>::new());
    let head = &checkpoint::export(&ranker).unwrap()["classifier.weight"].1;
    let pair = &read.tensors["cls.seq_relationship.weight"].1;
    let h = golden.shape.hidden;
    assert!((0..h).all(|i| head[i] == pair[i] - pair[h + i]));
    // a new head is named as missing, the pretraining heads as unexpected
    let report = read.fill(&mut ranker, Fill::Head(HeadStart::NewHead), 1).unwrap();
    assert_eq!(report.missing, ["classifier.weight", "classifier.bias"]);
    assert!(report.unexpected.contains(&"cls.predictions.bias".to_owned()));
    // an encoder that lacks a tensor is refused, and the tensor named
    let mut holed = read;
    holed.tensors.remove("bert.encoder.layer.1.output.dense.weight");
    let error = holed.fill(&mut ranker, Fill::Head(HeadStart::NewHead), 1).unwrap_err().to_string();
    assert!(
        error.contains("lacks 1 of the model's tensors")
            && error.contains("bert.encoder.layer.1.output.dense.weight"),
        "{error}"
    );
}

#[test]
fn names_without_prefix_and_damaged_files() {
    let golden = golden::load();
    let dir = tempfile::tempdir().unwrap();
    let read = Checkpoint::read(&golden::folder()).unwrap();
    for (name, (shape, values)) in &golden.pretraining_weights {
        assert_eq!(read.tensors[name], (shape.clone(), values.clone()), "{name}");
    }
    let error = |path: &std::path::Path| Checkpoint::read(path).err().unwrap().to_string();
    assert!(error(dir.path()).contains("config.json"));
    std::fs::copy(golden::folder().join("config.json"), dir.path().join("config.json")).unwrap();
    assert!(error(dir.path()).contains("model.safetensors: no such file"));
    let bytes = std::fs::read(golden::folder().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    assert!(error(dir.path()).contains("cannot be read as safetensors"));
}
