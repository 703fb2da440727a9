//! Studies on a collection with judgements. `fold` fine-tunes and ranks one fold, watched by `validator`;
//! `fine` does so for all folds. `experiment` also varies arms and numbers of topics, one `task` after the
//! other, up to the `outcome`. `rerank` only ranks; `retrieve` is the first stage, whose run it re-ranks.

pub mod experiment;
pub mod fine;
mod fold;
mod folds;
mod inputs;
mod outcome;
pub mod rerank;
pub mod retrieve;
mod task;
mod unfinished;
mod validator;
