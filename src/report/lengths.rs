//! A page of text lengths, which `inspect` draws for a shard directory.

use std::path::Path;

use super::html::{escape, shell};
use super::plot::{self, Axis, Line};
use crate::Result;
use crate::files;

/// A distribution to plot.
pub struct Lengths {
    pub name: String,
    /// What is counted.
    pub unit: String,
    /// Each length and the share of texts that have it, in per cent.
    pub points: Vec<(f64, f64)>,
}

/// Writes a page with a plot of each distribution and `description` verbatim.
///
/// # Errors
/// `Error::Data` if a plot cannot be drawn or the file cannot be written.
pub fn write_lengths_page(path: &Path, title: &str, lengths: Vec<Lengths>, description: &str) -> Result<()> {
    let mut body = format!("<h1>{}</h1>\n", escape(title));
    for Lengths { name, unit, points } in lengths {
        body += &format!("<h2>{}</h2>\n", escape(&name));
        let line = Line { name, points, ..Line::default() };
        let svg = plot::lines("share in %", &Axis::Numbers { label: unit }, &[line])?;
        body += &format!("<figure>{svg}</figure>\n");
    }
    body += &format!("<h2>Description</h2>\n<pre>{}</pre>\n", escape(description));
    files::write(path, shell(&escape(title), &body).as_bytes())
}
