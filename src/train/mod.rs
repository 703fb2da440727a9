//! Training. `coarse.rs` holds the loop and is the first file to read; everything else prepares it
//! (setup, schedule), watches it (metrics) or uses it (fine, experiment).

mod account;
pub mod check;
pub mod checkpoints;
pub mod coarse;
pub mod collection;
pub mod experiment;
pub mod fine;
mod folds;
pub mod groups;
pub mod health;
mod inputs;
pub mod memory;
pub mod metrics;
pub mod optimiser;
pub mod passages;
pub mod pretraining;
pub mod rerank;
mod rerank_part;
pub mod resume;
pub mod run_dir;
pub mod schedule;
pub mod session;
pub mod signals;
pub mod speed;
pub mod state;
pub mod tensorboard;
pub mod validation;
