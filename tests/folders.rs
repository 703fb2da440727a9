//! Model and tokenizer folders as other programs leave them: what is followed, what is refused by name, and what
//! is warned of. Nothing that changes a score or a token may pass unsaid.

mod config;
mod elsewhere;
mod program;
mod support;
mod tokenizer;
mod weights;
