//! Training. `trainer.rs` holds the loop and is the first file to read; everything else here is a part of it
//! (optimiser, schedule), watches over it (health, validation, check), or says what it did (account,
//! metrics). The rest of a run is in `run`.

mod account;
pub mod check;
pub mod counted;
pub mod health;
pub mod memory;
pub mod metrics;
pub mod optimiser;
pub mod schedule;
pub mod settings;
pub mod speed;
pub mod state;
pub mod tensorboard;
pub mod trainer;
pub mod update;
pub mod validation;
