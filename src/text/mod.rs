//! Text to token ids and back to files: the tokenizer of a checkpoint or one that is trained here. It is a room
//! apart from `corpus`, because models, probes and studies tokenise text that comes from no shard.

pub mod given;
mod normaliser;
mod special;
pub mod tokenise;
pub mod tokenizer_keys;
pub(crate) mod vocabulary;
mod wordpiece;

pub use special::Special;
pub use tokenise::Tokenizer;
