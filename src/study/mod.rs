//! Studies on a collection with judgements. `fold` fine-tunes and ranks one fold, watched by
//! `validator`; `fine` does so for all folds. `experiment` does so for arms and numbers of topics too, one
//! `task` after the other, up to the `outcome`. `rerank` is the ranking by itself, `retrieve`
//! the first stage that it ranks anew.

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
