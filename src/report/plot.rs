//! Line plots and bars as SVG text, drawn with plotters. Axes and text are pure black, which the page's style
//! sheet turns into its own text colour, so one drawing serves light and dark pages.

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;

use crate::{Error, Result};

/// Width and height in pixels; the legend takes `LEGEND` of the width on the right.
const SIZE: (u32, u32) = (840, 360);
const LEGEND: u32 = 220;
/// How many letters of a name fit into the legend, and how many lines.
const LETTERS: usize = 30;
const NAMES: usize = 18;
/// Height of a panel of bars; how many bars have room for a label each; how many are named at either end if
/// there are more.
const PANEL: u32 = 300;
const LABELLED: usize = 60;
const ENDS: usize = 4;

/// Okabe & Ito's colours, which can be told apart with any colour vision. Yellow and black are left out
/// because they vanish on a light or a dark page.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(140, 140, 140),
];

/// The kind of x axis.
pub enum Axis {
    Numbers {
        label: String,
    },
    /// Evenly spaced names; a point's x is the index of its name.
    Categories {
        label: String,
        names: Vec<String>,
    },
}

/// One line of a plot.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pub name: String,
    /// Index into the palette, so that a run keeps its colour from plot to plot.
    pub colour: usize,
    pub points: Vec<(f64, f64)>,
    /// Drawn behind `points` in the same colour, faintly: the raw curve behind a smoothed one.
    pub faint: Vec<(f64, f64)>,
    /// A dashed level over the whole width: a value that does not depend on x.
    pub level: Option<f64>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Scale, Scale>>;

/// A linear axis with given ticks: plotters' own would fall between categories.
struct Scale {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, pixels: (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        pixels.0 + (f64::from(pixels.1 - pixels.0) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

/// An SVG with all lines and a legend.
///
/// # Errors
/// `Error::Data` when there is nothing to draw.
pub fn lines(y_label: &str, x: &Axis, lines: &[Line]) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let (area, legend) = root.split_horizontally(SIZE.0 - LEGEND);
        draw(&area, y_label, x, lines)?;
        draw_legend(&legend, lines)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// One panel of bars: how far two runs differ, topic by topic.
#[derive(Clone, Debug, Default)]
pub struct Differences {
    pub title: String,
    pub y_label: String,
    /// Topic and difference.
    pub bars: Vec<(String, f64)>,
    /// A dashed level.
    pub mean: f64,
}

/// Panels below each other, each with its bars in descending order. Up to `LABELLED` bars have their topic
/// below them; if there are more, only those at both ends are named.
///
/// # Errors
/// `Error::Data` when there is nothing to draw.
pub fn differences(panels: &[Differences]) -> Result<String> {
    let mut svg = String::new();
    {
        let size = (SIZE.0, PANEL * panels.len().max(1) as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        for (area, panel) in root.split_evenly((panels.len().max(1), 1)).iter().zip(panels) {
            bars(area, panel)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

fn bars(area: &Area, panel: &Differences) -> Result<()> {
    let mut sorted: Vec<&(String, f64)> = panel.bars.iter().collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let values = sorted.iter().map(|bar| bar.1).chain([0.0]);
    let (low, high) =
        bounds(values).filter(|_| !sorted.is_empty()).ok_or_else(|| failed("it has no bars"))?;
    let room = ((high - low) * 0.12).max(1e-6);
    let (low, high) = (low - room, high + room);
    let right = sorted.len() as f64;
    let labelled = sorted.len() <= LABELLED;
    let x = Scale { low: 0.0, high: right, ticks: Vec::new() };
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .caption(&panel.title, ("sans-serif", 16))
        .x_label_area_size(if labelled { 64 } else { 28 })
        .y_label_area_size(64)
        .build_cartesian_2d(x, Scale { low, high, ticks: ticks(low, high) })
        .map_err(failed)?;
    let axis = Axis::Numbers { label: if labelled { String::new() } else { "topics, sorted".into() } };
    mesh(&mut chart, &panel.y_label, &axis, (right, high - low))?;
    let rectangle = |(place, bar): (usize, &&(String, f64))| {
        let colour = COLOURS[usize::from(bar.1 < 0.0)];
        let (left, gap) = (place as f64, if labelled { 0.1 } else { 0.0 });
        Rectangle::new([(left + gap, 0.0), (left + 1.0 - gap, bar.1)], colour.filled())
    };
    chart.draw_series(sorted.iter().enumerate().map(rectangle)).map_err(failed)?;
    let zero = PathElement::new([(0.0, 0.0), (right, 0.0)], BLACK.stroke_width(1));
    chart.draw_series([zero]).map_err(failed)?;
    let style = COLOURS[2].stroke_width(2);
    let mean = DashedLineSeries::new([(0.0, panel.mean), (right, panel.mean)], 6, 4, style);
    chart.draw_series(mean).map_err(failed)?;
    if labelled {
        label_each(area, &chart, &sorted, low)
    } else {
        name_ends(&mut chart, &sorted, (low, high, room))
    }
}

/// A topic below each bar, read from top to bottom.
fn label_each(area: &Area, chart: &Chart, sorted: &[&(String, f64)], low: f64) -> Result<()> {
    let upright = ("sans-serif", 12).into_text_style(area).transform(FontTransform::Rotate90);
    let (left, top) = area.get_base_pixel();
    let bottom = chart.plotting_area().get_pixel_range().1.end;
    for (place, bar) in sorted.iter().enumerate() {
        let (x, _) = chart.backend_coord(&(place as f64 + 0.5, low));
        // Half a letter's height to the right, so that the word is centred below the bar.
        let at = (x - left + 5, bottom - top + 4);
        area.draw(&Text::new(shorten(&bar.0, 9), at, upright.clone())).map_err(failed)?;
    }
    Ok(())
}

/// The topics at both ends of the order, as text in the plot.
fn name_ends(chart: &mut Chart, sorted: &[&(String, f64)], (low, high, room): (f64, f64, f64)) -> Result<()> {
    let named = |bars: &[&(String, f64)]| -> String {
        let name = |bar: &&(String, f64)| format!("{} {:+.3}", shorten(&bar.0, 12), bar.1);
        bars.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    let width = sorted.len() as f64;
    let text = |words: String, at: (f64, f64)| Text::new(words, at, ("sans-serif", 12));
    let first = text(format!("first: {}", named(&sorted[..ENDS])), (width * 0.25, high - room * 0.1));
    let last = format!("last: {}", named(&sorted[sorted.len() - ENDS..]));
    chart.draw_series([first, text(last, (width * 0.02, low + room * 0.8))]).map_err(failed)?;
    Ok(())
}

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::data(format!("a plot cannot be drawn: {cause}"))
}

fn colour(line: &Line) -> RGBColor {
    COLOURS[line.colour % COLOURS.len()]
}

fn draw(area: &Area, y_label: &str, x: &Axis, lines: &[Line]) -> Result<()> {
    let all = || lines.iter().flat_map(|line| line.points.iter().chain(&line.faint));
    let (low, high) = bounds(all().map(|point| point.1).chain(lines.iter().filter_map(|line| line.level)))
        .ok_or_else(|| failed("it has no points"))?;
    let room = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-6);
    let (low, high) = (if low >= 0.0 { (low - room).max(0.0) } else { low - room }, high + room);
    let (left, right, marks) = match x {
        Axis::Categories { names, .. } => {
            (-0.4, names.len() as f64 - 0.6, (0..names.len()).map(|i| i as f64).collect())
        }
        Axis::Numbers { .. } => {
            let (left, right) = bounds(all().map(|point| point.0)).unwrap_or((0.0, 1.0));
            let right = if right > left { right } else { left + 1.0 };
            (left, right, ticks(left, right))
        }
    };
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(
            Scale { low: left, high: right, ticks: marks },
            Scale { low, high, ticks: ticks(low, high) },
        )
        .map_err(failed)?;
    mesh(&mut chart, y_label, x, (right - left, high - low))?;
    for line in lines {
        let colour = colour(line);
        let faint = LineSeries::new(line.faint.iter().copied(), colour.mix(0.25).stroke_width(1));
        chart.draw_series(faint).map_err(failed)?;
        if let Some(level) = line.level {
            let style = colour.stroke_width(2);
            let dashes = DashedLineSeries::new([(left, level), (right, level)], 6, 4, style);
            chart.draw_series(dashes).map_err(failed)?;
        }
        let points = line.points.iter().copied();
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2))).map_err(failed)?;
        if matches!(x, Axis::Categories { .. }) {
            let dots = points.map(|point| Circle::new(point, 4, colour.filled()));
            chart.draw_series(dots).map_err(failed)?;
        }
    }
    Ok(())
}

fn mesh(chart: &mut Chart, y_label: &str, x: &Axis, (width, height): (f64, f64)) -> Result<()> {
    let (label, names) = match x {
        Axis::Numbers { label } => (label, &[][..]),
        Axis::Categories { label, names } => (label, names.as_slice()),
    };
    let x_text = |x: &f64| names.get(x.round() as usize).cloned().unwrap_or_else(|| number(*x, width));
    let y_text = |y: &f64| number(*y, height);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(128, 128, 128).mix(0.25))
        .x_desc(label)
        .y_desc(y_label)
        .x_label_formatter(&x_text)
        .y_label_formatter(&y_text)
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 16))
        .draw()
        .map_err(failed)
}

fn draw_legend(area: &Area, lines: &[Line]) -> Result<()> {
    for (i, line) in lines.iter().take(NAMES).enumerate() {
        let more = lines.len().saturating_sub(NAMES);
        let name = if more > 0 && i + 1 == NAMES {
            format!("and {} more", more + 1)
        } else {
            shorten(&line.name, LETTERS)
        };
        let y = 20 + 18 * i as i32;
        let swatch = PathElement::new([(4, y), (26, y)], colour(line).stroke_width(3));
        area.draw(&swatch).map_err(failed)?;
        area.draw(&Text::new(name, (32, y - 7), ("sans-serif", 15))).map_err(failed)?;
    }
    Ok(())
}

fn shorten(name: &str, letters: usize) -> String {
    if name.chars().count() <= letters {
        return name.into();
    }
    name.chars().take(letters - 1).chain(['…']).collect()
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |bounds, value| {
        let (low, high) = bounds.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// The step, 1, 2 or 5 times a power of ten, that divides `width` into four to ten.
fn step(width: f64) -> f64 {
    let power = 10f64.powf((width / 4.0).log10().floor());
    [5.0, 2.0, 1.0].into_iter().map(|factor| factor * power).find(|step| width / step >= 4.0).unwrap_or(power)
}

fn ticks(low: f64, high: f64) -> Vec<f64> {
    let step = step(high - low);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// A tick's value, with the decimals that its axis needs.
fn number(value: f64, width: f64) -> String {
    let decimals = (-step(width).log10().floor()).max(0.0) as usize;
    format!("{value:.decimals$}")
}
