//! What is in a shard directory as one HTML page: its description and how long its texts are.

use std::path::Path;

use super::html;
use super::plot::{self, Axis, Line};
use crate::corpus::{Shards, inspect};
use crate::{Error, Result};

/// Writes the page.
///
/// # Errors
/// `Error::Data` where a plot cannot be drawn or the file cannot be written.
pub fn write_shards_report(shards: &Shards, path: &Path) -> Result<()> {
    let name = shards.dir().display().to_string();
    let mut body = format!("<h1>Shards: {}</h1>\n", html::escape(&name));
    for histogram in inspect::histograms(shards) {
        let share = |count: u64| 100.0 * count as f64 / histogram.total.max(1) as f64;
        let points = histogram.bins.iter().map(|bin| (bin.from as f64, share(bin.count))).collect();
        let line = Line { name: histogram.name.into(), points, ..Line::default() };
        let axis = Axis::Numbers { label: histogram.unit.into() };
        body += &format!(
            "<h2>{}</h2>\n<figure>{}</figure>\n",
            html::escape(histogram.name),
            plot::lines("share in %", &axis, &[line])?
        );
    }
    body += &format!("<h2>Description</h2>\n<pre>{}</pre>\n", html::escape(&inspect::describe(shards)));
    let page = html::shell(&format!("Shards: {}", html::escape(&name)), &body);
    std::fs::write(path, page).map_err(|cause| Error::io("written", path, cause))
}
