//! The drill: a job on two ranks is killed again and again at random moments, and ends with the bits
//! of one that was left alone.

use std::time::Duration;

use super::support::{Job, finished, losses, model, train};
use crate::program::{Place, assert_done};

/// Kills in one drill; benches/drill.sh makes more.
const KILLS: usize = 10;

#[test]
fn ten_kills_at_random_moments_change_no_bit() {
    let place = Place::with_shards();
    // a checkpoint at every other step, so that kills fall into the writing of one as well
    let plan =
        ["--set", "train.steps=120", "--set", "checkpoint.every_steps=2", "--set", "train.dropout=0.1"];
    assert_done(&train(&place, 2, "whole", &plan));
    let mut random = random(std::process::id());
    let mut kills = 0;
    while kills < KILLS {
        let mut job = Job::start(&place, 2, "broken", &plan);
        let before = job.steps();
        job.wait_for_step(before.min(100) + 1);
        std::thread::sleep(Duration::from_micros(random() % 150_000));
        if finished(&place, "broken") {
            break;
        }
        job.signal_rank((random() % 2) as usize, "KILL");
        job.wait();
        kills += 1;
    }
    assert_done(&train(&place, 2, "broken", &plan));
    assert!(kills >= 3, "the run ended after {kills} kills");
    assert!(model(&place, "whole") == model(&place, "broken"), "other bits after {kills} kills");
    assert_eq!(losses(&place, "whole"), losses(&place, "broken"));
}

/// Numbers that differ from run to run (xorshift), as the moments should.
fn random(seed: u32) -> impl FnMut() -> u64 {
    let mut state = u64::from(seed) | 1 << 40;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    }
}
