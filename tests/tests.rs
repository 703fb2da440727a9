//! The one integration binary: a module a subject, linked once.

mod corpus;
mod data;
mod engine;
mod golden;
mod ir;
mod model;
mod program;
mod ranking;
mod reference;
mod report;
mod softgpu;
mod train;
