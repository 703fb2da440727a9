//! Everything of a run but its training: the engine that it computes on, its directory, where it continues
//! from, its checkpoints, the signals that end it; and the two stages that read shards, `pretrain` and
//! `coarse`.

pub mod agreement;
pub mod checkpoints;
pub mod directory;
pub mod engine;
pub mod finite;
pub mod model;
pub mod resume;
pub mod samples;
pub mod session;
pub mod signals;
pub mod stage;
