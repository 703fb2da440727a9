//! Model and tokenizer folders as other programs write them: what is followed, what is refused by name, and
//! what causes a warning. Nothing that changes a score or a token may be ignored silently.

mod config;
mod elsewhere;
mod program;
mod support;
mod tokenizer;
mod weights;
