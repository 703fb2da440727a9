//! The drill: a job on two ranks is killed again and again at random moments, and ends with the bits of an
//! undisturbed one.

use std::time::Duration;

use super::support::{Job, finished, losses, model, train};
use crate::program::{Place, assert_done};

/// Kills in one drill; benches/drill.sh makes more.
const KILLS: usize = 10;

/// The last kills are aimed at the writing of a checkpoint.
const AIMED: usize = 4;

#[test]
fn ten_kills_at_random_moments_change_no_bit() {
    let place = Place::with_shards();
    // a checkpoint at every other step, so that kills fall into the writing of one as well
    let plan =
        ["--set", "train.steps=200", "--set", "checkpoint.every_steps=2", "--set", "train.dropout=0.1"];
    assert_done(&train(&place, 2, "whole", &plan));
    let mut random = random(std::process::id());
    let mut torn = 0;
    for kill in 0..KILLS {
        let mut job = Job::start(&place, 2, "broken", &plan);
        // by steps and not by time, so that ten kills fit into the run on any machine
        let step = job.steps() + 2 + (random() % 12) as usize;
        job.wait_for_step(step);
        if kill < KILLS - AIMED {
            std::thread::sleep(Duration::from_micros(random() % 5_000));
        } else {
            job.wait_for_partial();
        }
        job.signal_rank(if kill < KILLS - AIMED { (random() % 2) as usize } else { 0 }, "KILL");
        job.wait();
        assert!(!finished(&place, "broken"), "kill {} came after the end", kill + 1);
        torn += usize::from(job.partial());
    }
    assert!(torn > 0, "no kill fell into a checkpoint");
    assert_done(&train(&place, 2, "broken", &plan));
    assert!(model(&place, "whole") == model(&place, "broken"), "other bits");
    assert_eq!(losses(&place, "whole"), losses(&place, "broken"));
}

/// Numbers (xorshift) that differ from run to run, as the moments should.
fn random(seed: u32) -> impl FnMut() -> u64 {
    let mut state = u64::from(seed) | 1 << 40;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    }
}
