//! The one integration binary: one module per subject, linked once.

mod bench;
mod config;
mod corpus;
mod cuda;
mod data;
mod engine;
mod folders;
mod gates;
mod golden;
mod hard_negatives;
mod house;
mod inputs;
mod ir;
mod model;
mod narrow;
mod plan;
mod program;
mod ranking;
mod readers;
mod reference;
mod report;
mod softgpu;
mod survive;
mod train;
