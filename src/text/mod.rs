//! Text to token ids: a checkpoint's tokenizer or one trained here, read from files and written to them. It
//! is separate from `corpus` because models, probes and studies tokenise text that comes from no shard.

pub mod given;
mod normaliser;
mod special;
pub mod tokenise;
pub mod tokenizer_keys;
pub(crate) mod vocabulary;
mod wordpiece;

pub use special::Special;
pub use tokenise::Tokenizer;
