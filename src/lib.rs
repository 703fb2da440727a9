//! ctune-dist: coarse-tuning of re-ranking models on query logs.
//!
//! The library behind the one binary, in rooms. A room uses rooms below it in this list and none above;
//! `tests/house.rs` holds each arrow.
//!
//! ```text
//! cli, commands               arguments, and the call that does the work
//! plan, bench, doctor, probe  before a run, and beside it
//! study                       folds, re-ranking, experiments
//! run                         a run around its training; the stages pretrain and coarse
//! train                       the loop (trainer.rs is the file to read first) and its parts
//! reference, ranks            the oracle; processes and the sums of their gradients
//! model, data                 BERT over an engine; shards to packed batches
//! report                      tables and pages of what was found
//! corpus                      raw files to shards
//! config                      the plan, one file a section
//! ir, engine, text            topics, runs and measures; one device's arithmetic; tokens
//! files, random               whole files; Philox
//! error, journal, terminal    what is said, and where
//! threads, memory             what the system gives, and what happens when it gives no more
//! ```

// Shapes are written as [T, H]; rustdoc would take them for links.
#![allow(rustdoc::broken_intra_doc_links)]

#[macro_use]
pub mod terminal;

pub mod allow_list;
pub mod bench;
pub mod cli;
pub mod commands;
pub mod config;
pub mod corpus;
pub mod data;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod files;
pub mod ir;
pub mod journal;
pub mod memory;
pub mod model;
pub mod plan;
pub mod probe;
pub mod random;
pub mod ranks;
pub mod reference;
pub mod report;
pub mod run;
pub mod study;
pub mod text;
pub mod threads;
pub mod train;

pub use error::{Error, Result};
