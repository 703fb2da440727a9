//! ctune-dist: coarse-tuning of re-ranking models on query logs.
//!
//! The library behind the one binary. Dependencies point one way:
//! `main -> cli -> config -> {corpus, train, ir, report}`, `train -> {model, data, ranks, ir}`,
//! `model -> engine`. `engine` knows no model, `data` no model, `model` no `ranks`.

// Shapes are written as [T, H]; rustdoc would take them for links.
#![allow(rustdoc::broken_intra_doc_links)]

#[macro_use]
pub mod terminal;

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
pub mod train;

pub use error::{Error, Result};
