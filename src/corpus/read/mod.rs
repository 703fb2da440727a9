//! From files to rows: what a `[[source]]` names, in whatever format and packing, becomes one sequence of
//! blocks that all cores parse.
//!
//! `source` makes the sequence, `blocks` cuts it at record ends, `format` decides what a file is, `columns` and
//! `sgml` parse, `rows` counts what was wrong, `lookup` goes to single documents, `documents` reads a
//! collection one by one, `repair` mends mis-decoded text.

pub(super) mod blocks;
mod columns;
pub mod documents;
mod format;
mod lookup;
pub(super) mod repair;
pub(super) mod rows;
mod sgml;
pub(super) mod source;

pub use format::Format;
pub use rows::Role;
pub use source::Source;
