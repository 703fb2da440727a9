//! Shares of what could be reached: never more than all of it, whatever was measured before the run.

use ctune_dist::engine::cpu::Cpu;
use ctune_dist::ranks::World;
use ctune_dist::train::metrics::Meter;
use ctune_dist::train::speed::Ceiling;
use ctune_dist::train::update::Update;
use serde_json::Value;

/// `mfu` and `peak_share` of steps of a second with so many FLOPs each, measured against `ceiling`.
fn shares(ceiling: Ceiling, flops: &[f64]) -> Vec<[Option<f64>; 2]> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("metrics.jsonl");
    let mut meter = Meter::new(Some(&path), 0, 9).unwrap().visible(place.path(), 0, ceiling).unwrap();
    for (i, flops) in flops.iter().enumerate() {
        let update =
            Update { step: i as u64 + 1, flops: *flops, step_ms: 1e3, tokens: 1, ..Update::default() };
        meter.record(&update).unwrap();
    }
    let text = std::fs::read_to_string(path).unwrap();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        ["mfu", "peak_share"].map(|key| line[key].as_f64())
    };
    text.lines().map(line).collect()
}

#[test]
fn no_step_is_faster_than_what_it_is_measured_against() {
    // measured in a busy moment, so that the third step is 1.13 times as fast
    let steps = [5e8, 1e9, 1.13e9, 9e8];
    let found = shares(Ceiling::new(1e9, None), &steps);
    for (found, expected) in found.iter().zip([0.5, 1.0, 1.0, 0.9 / 1.13]) {
        assert!(
            (found[0].unwrap() - expected).abs() < 1e-12 && found[1].is_none(),
            "{found:?}, not {expected}"
        );
    }
    // a card of 4 GFLOP/s by its data sheet: this share is of that alone
    let found = shares(Ceiling::new(1e9, Some(4e9)), &steps);
    for (found, flops) in found.iter().zip(steps) {
        assert!((found[1].unwrap() - flops / 4e9).abs() < 1e-12, "{found:?}");
    }
}

#[test]
fn what_a_run_measures_again_counts_if_it_is_more() {
    let world = World::solo();
    let engine = Cpu::<f32>::new();
    // next to nothing was measured before the run
    let mut ceiling = Ceiling::new(1.0, None);
    let mfu = |ceiling: &Ceiling| ceiling.shares(1.0, 1e3).mfu.unwrap();
    for step in [1, 2, 8, 15, 17] {
        ceiling.look_again(step, &engine, &world).unwrap();
        assert_eq!(mfu(&ceiling), 1.0, "step {step} is no moment to measure");
    }
    ceiling.look_again(16, &engine, &world).unwrap();
    assert!(mfu(&ceiling) < 1e-3, "{ceiling:?}");
    // and not if it is less
    let mut ceiling = Ceiling::new(1e30, None);
    ceiling.look_again(32, &engine, &world).unwrap();
    assert!((mfu(&ceiling) / 1e-30 - 1.0).abs() < 1e-12, "{ceiling:?}");
}
