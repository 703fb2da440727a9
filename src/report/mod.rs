//! Results for people: tables for a terminal, and self-contained HTML files with tables and plots. An
//! experiment's report reads only what runs wrote (`results.json`, `metrics.jsonl`), so it can be made again,
//! or elsewhere, long after the run.

pub mod compare;
pub mod evaluate;
mod experiment;
pub mod html;
mod lengths;
pub mod metrics;
pub mod plot;
pub mod results;
mod text;

pub use compare::table_text;
pub use experiment::write_experiment_report;
pub use lengths::{Lengths, write_lengths_page};
pub use results::{Cell, Results, Training};
pub use text::text_table;
