//! The memory that a run predicts against what it takes, and a run that cannot fit.

use serde_json::Value;

use ctune_dist::config::{Precision, Sharding, Train};
use ctune_dist::doctor::sample;
use ctune_dist::engine::cuda::{Cuda, Settings};
use ctune_dist::engine::dry::Dry;
use ctune_dist::engine::op::RankLoss;
use ctune_dist::engine::{Device, Real};
use ctune_dist::model::activations::{Capacity, Recompute};
use ctune_dist::model::bert::Options;
use ctune_dist::model::lora::{Lora, Target};
use ctune_dist::model::{Bert, HeadSet, Mode, Objective, Shape, Tuning};
use ctune_dist::ranks::{Distributed, World};
use ctune_dist::train::counted::Setup;
use ctune_dist::train::memory::Needs;
use ctune_dist::train::optimiser::Optimiser;

use super::program::{F32, PLAN, start};
use crate::program::{Place, assert_done, assert_refused};
use crate::softgpu;

/// What the prediction allows for the rounding of buffers and for tables.
const SLACK: i64 = 32 << 10;

fn options(heads: HeadSet, capacity: Capacity) -> Options {
    Options {
        objective: match heads.mlm {
            true => Objective::Pretraining { mlm: 1.0, qdpp: 1.0 },
            false => Objective::Ranking(RankLoss::Lce, None),
        },
        heads,
        capacity,
        train: true,
        dropout: 0.1,
        seed: 1,
        rule: heads.mlm.then(|| sample::rule(301)),
        continues: vec![0; 301],
    }
}

fn check<R: Real>(heads: HeadSet, tuning: &Tuning, pack_tokens: usize) {
    softgpu::load();
    let kernel_cache = Some(softgpu::library_path().join("images"));
    let gpu = Cuda::<R>::new(0, Settings { kernel_cache, ..Settings::default() }).unwrap();
    let (world, mut pack) = (World::solo(), sample::pack(301));
    pack.masked *= usize::from(heads.mlm);
    let shape = Shape { layers: 3, ..sample::shapes()[1].clone() };
    let train = Train { recompute: tuning.recompute, pack_tokens, ..Train::default() };
    let rate = if heads.mlm { 0.2 } else { 0.0 };
    let capacity = |tokens| Capacity::of_pack(tokens, rate, false);
    let options = options(heads, capacity(train.pack_tokens));
    let layout = &tuning.layout(&shape, heads).unwrap();
    let run = Setup { layout, options: options.clone(), train: &train, rank: 0, ranks: 1 };
    let needs = Needs { run, capacity: &capacity, least_tokens: 64 };
    let forecast = needs.forecast(&gpu).unwrap().unwrap();
    let before = gpu.device().allocated();
    let counted = needs.run.count(&Dry::<R>::new(gpu.gpu().unwrap()), std::slice::from_ref(&pack)).unwrap();
    let mut model = Bert::tuned(gpu.clone(), &shape, options, tuning).unwrap();
    let mut optimiser = Optimiser::new(&model, 0, 1, &train).unwrap();
    let mut reducer = model.engine.collective(&world).unwrap();
    model.forward(&pack, Mode::Train).unwrap();
    model.backward(&pack, &mut |_, _, _| Ok(())).unwrap();
    optimiser.step(&mut *reducer, &mut model, 1e-3).unwrap().wait().unwrap();
    let (predicted, allocated) = (forecast.predicted(), gpu.device().allocated());
    println!("{} {:?}: {predicted} bytes predicted, {allocated} allocated", R::NAME, tuning.recompute);
    assert_eq!(before + counted.bytes.total(), allocated, "counted with this very pack");
    // the forecast is for full packs, whose operations may ask for more scratch
    let scratch = predicted.checked_sub(allocated);
    assert!(
        scratch.is_some_and(|more| more <= 3 << 22),
        "{predicted} bytes predicted, {allocated} allocated"
    );
}

#[test]
fn what_is_allocated_was_predicted() {
    for recompute in [Recompute::None, Recompute::GeluNorm, Recompute::Layer] {
        let tuning = Tuning { recompute, ..Tuning::default() };
        check::<f32>(HeadSet::PRETRAINING, &tuning, 700);
        check::<half::bf16>(HeadSet::PRETRAINING, &tuning, 700);
    }
    let targets = vec![Target::Query, Target::Intermediate];
    let adapted = Tuning { lora: Some(Lora { rank: 8, alpha: 16.0, targets }), ..Tuning::default() };
    check::<half::bf16>(HeadSet::RANKING, &adapted, 700);
    let frozen = Tuning { freeze: vec!["embeddings".into(), "layer.0".into()], ..Tuning::default() };
    check::<f32>(HeadSet::PRETRAINING, &frozen, 700);
    // attention's backward needs more than the scratch that every model has
    check::<half::bf16>(HeadSet::PRETRAINING, &Tuning::default(), 16_384);
}

#[test]
fn shares_and_narrow_sums_are_in_the_prediction() {
    softgpu::load();
    let kernel_cache = Some(softgpu::library_path().join("images"));
    let gpu = Cuda::<half::bf16>::new(0, Settings { kernel_cache, ..Settings::default() }).unwrap();
    let layout = &Tuning::default().layout(&sample::shapes()[1], HeadSet::PRETRAINING).unwrap();
    let capacity = |tokens| Capacity::of_pack(tokens, 0.2, false);
    let predicted = |train: &Train| {
        let options = options(HeadSet::PRETRAINING, capacity(train.pack_tokens));
        let run = Setup { layout, options, train, rank: 0, ranks: 1 };
        let needs = Needs { run, capacity: &capacity, least_tokens: 64 };
        needs.forecast(&gpu).unwrap().unwrap().predicted()
    };
    let whole = predicted(&Train::default());
    // on one rank nothing is shared and nothing is sent
    assert_eq!(whole, predicted(&Train { sharding: Sharding::Optimizer, ..Train::default() }));
    assert_eq!(whole, predicted(&Train { reduce: Precision::Bf16, ..Train::default() }));
    assert!(whole < predicted(&Train { pack_tokens: 8192, ..Train::default() }));
}

#[test]
fn a_run_says_what_it_takes_and_one_that_cannot_fit_says_what_would() {
    let place = Place::with_shards();
    let args = [&PLAN[..], &["--out", "run"], &F32].concat();
    let out = start(&place, 2, &args, &[]);
    assert_done(&out);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(text.lines().filter(|line| line.starts_with("memory: ")).count(), 1, "{text}");
    assert!(!String::from_utf8_lossy(&out.stderr).contains("error of `plan`"));
    let run: Value = serde_json::from_slice(&std::fs::read(place.path("run/run.json")).unwrap()).unwrap();
    let bytes = |key: &str| run["memory"][key].as_i64().unwrap();
    // before the first step, so without the scratch of 4 MiB; and two blocks of 1 MiB for packs of any size have
    // gone when the model had its own
    assert!((bytes("predicted") - bytes("allocated") - (6 << 20)).abs() < SLACK, "{}", run["memory"]);

    // the engine alone takes 34 MiB, and the small model fits in what is left, but not with such packs
    let little = [("SOFTGPU_MEMORY_MB", "56")];
    let large = ["--out", "large", "--set", "train.pack_tokens=20000", "--set", "train.packs_per_step=2"];
    let refused = start(&place, 0, &[&PLAN[..], &large, &F32].concat(), &little);
    assert_refused(&refused, 4, &["this run needs", "are free", "lower train.pack_tokens to "]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    let fits = text.split("lower train.pack_tokens to ").nth(1).unwrap();
    let fits: String = fits.chars().take_while(char::is_ascii_digit).collect();
    let set = format!("train.pack_tokens={fits}");
    let small = ["--out", "small", "--set", set.as_str(), "--set", "train.steps=1"];
    assert_done(&start(&place, 0, &[&PLAN[..], &small, &F32].concat(), &little));
}
