//! Studies on a collection with judgements: fine-tuning by folds, re-ranking, and experiments that
//! compare models.

pub mod experiment;
pub mod fine;
mod folds;
mod inputs;
pub mod rerank;
mod rerank_part;
