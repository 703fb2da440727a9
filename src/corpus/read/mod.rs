//! From files to rows: what a `[[source]]` names, in whatever format and packing, becomes one sequence of
//! blocks that all cores parse.
//!
//! `source` makes the sequence, `blocks` cuts it at record ends, `format` decides what a file is. `columns` and
//! `sgml` (with `tags` and `page`) parse; `rows` counts what was wrong and where every byte went. `lookup` goes to
//! single documents, `documents` reads a collection one by one, `repair` mends mis-decoded text.

pub(super) mod blocks;
mod columns;
pub mod documents;
mod format;
mod lookup;
mod page;
pub(super) mod repair;
pub(super) mod rows;
mod sgml;
pub(super) mod source;
mod tags;

pub use format::Format;
pub use rows::Role;
pub use source::Source;
