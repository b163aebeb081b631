//! Lines over two axes, as an SVG that a browser or a README shows.
//!
//! ```text
//!   title
//!   y label
//!   |    __/                      | legend, in the
//!   | __/  grid, ticks with units | order of the
//!   +-----------                  | lines' last points
//!      x label
//! ```
//!
//! **Invariants**
//! - The legend stands beside the plot, never over a line.
//! - The same chart gives the same text.

use std::fs;
use std::path::Path;

use model::{Error, Kind, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A chart of lines.
pub struct LineChart {
    /// What is shown, in one line.
    pub title: String,
    /// What goes to the right, with its unit.
    pub x_label: String,
    /// What goes up, with its unit.
    pub y_label: String,
    /// Whether each doubling of x takes the same room; then every x is above zero.
    pub log_x: bool,
    /// How a number stands at a tick of the x axis: [`number`], [`binary_bytes`], ...
    pub x_tick: fn(f64) -> String,
    /// How a number stands at a tick of the y axis.
    pub y_tick: fn(f64) -> String,
    /// What the y axis shows, at least; it always holds all points. Mostly begins at zero, so that
    /// heights compare.
    pub y_range: std::ops::Range<f64>,
    /// The lines; the first is drawn thicker.
    pub series: Vec<Series>,
}

/// One line.
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, x and y, with x rising.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: u32 = 960;
const HEIGHT: u32 = 540;
const LEGEND_WIDTH: u32 = 220;
const TITLE_HEIGHT: u32 = 68;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 40, 40);

/// The Okabe-Ito palette, which people with any sight of colours can tell apart; yellow left out,
/// since it does not show on white.
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(110, 110, 110),
];

/// 0.5, 3, 1200.
pub fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// 4 KiB, 16 MiB.
pub fn binary_bytes(value: f64) -> String {
    scaled(value, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// 400 MB, 1.2 GB.
pub fn decimal_bytes(value: f64) -> String {
    scaled(value, 1000.0, &["B", "kB", "MB", "GB", "TB"])
}

/// 0.25 as 25 %.
pub fn percent(value: f64) -> String {
    format!("{} %", number(value * 100.0))
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut at = 0;
    // A little less than a whole step is a rounding error of the axis.
    while value.abs() >= step * 0.9999 && at + 1 < units.len() {
        value /= step;
        at += 1;
    }
    format!("{} {}", number(value), units[at])
}

impl LineChart {
    /// Writes the chart to a file.
    ///
    /// # Errors
    /// As [`to_svg`](Self::to_svg); also those of writing.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = |source| Error::io("write", path.display().to_string(), source);
        fs::write(path, self.to_svg()?).map_err(failed)
    }

    /// The chart as the text of an SVG.
    ///
    /// # Errors
    /// `Invalid`: there is no point, a number that is none, or an x that has no logarithm.
    pub fn to_svg(&self) -> Result<String> {
        let (xs, ys) = self.ranges()?;
        let mut text = String::new();
        self.draw(&mut text, xs, ys).map_err(|error| {
            Error::new(Kind::Bug, "draw", self.title.clone()).because(error.to_string())
        })?;
        Ok(text.trim_end().to_owned() + "\n")
    }

    /// Where a point's x stands on the axis.
    fn place(&self, x: f64) -> f64 {
        if self.log_x { x.log2() } else { x }
    }

    /// What the axes show: all points, and some room above.
    fn ranges(&self) -> Result<(std::ops::Range<f64>, std::ops::Range<f64>)> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let invalid = |why: &str| Error::new(Kind::Invalid, "draw", &*self.title).because(why);
        if points().next().is_none() {
            return Err(invalid("there is no point"));
        }
        if points().any(|(x, y)| !self.place(*x).is_finite() || !y.is_finite()) {
            return Err(invalid("a point is nowhere on the axes"));
        }
        let bounds = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::MAX, f64::MIN), |(min, max), value| (min.min(value), max.max(value)))
        };
        let (left, right) = bounds(&mut points().map(|(x, _)| self.place(*x)));
        let right = if right > left { right } else { left + 1.0 };
        let (low, high) = bounds(&mut points().map(|(_, y)| *y));
        let (low, high) = (low.min(self.y_range.start), high.max(self.y_range.end));
        let room = if high > low { (high - low) * 0.04 } else { 1.0 };
        let high = if high > self.y_range.end { high + room } else { high };
        // Room on both sides for the points' circles.
        let side = (right - left) * 0.015;
        Ok((left - side..right + side, low..high.max(low + room)))
    }

    fn draw(
        &self,
        text: &mut String,
        xs: std::ops::Range<f64>,
        ys: std::ops::Range<f64>,
    ) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let whole = SVGBackend::with_string(text, (WIDTH, HEIGHT)).into_drawing_area();
        whole.fill(&WHITE)?;
        let title = TextStyle::from((FONT, 20).into_font()).color(&INK);
        whole.draw(&Text::new(self.title.as_str(), (16, 14), title))?;
        // Lying, above its axis: easier to read than standing beside it.
        let label = TextStyle::from((FONT, 14).into_font()).color(&INK);
        whole.draw(&Text::new(self.y_label.as_str(), (16, 42), label.clone()))?;
        let (_, below) = whole.split_vertically(TITLE_HEIGHT);
        let (plot, legend) = below.split_horizontally(WIDTH - LEGEND_WIDTH);
        let mut chart = ChartBuilder::on(&plot)
            .margin_right(8)
            .margin_bottom(8)
            .x_label_area_size(52)
            .y_label_area_size(80)
            .build_cartesian_2d(xs, ys)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 225, 225))
            .axis_style(INK)
            .x_labels(12)
            .y_labels(8)
            .x_label_style(label.clone())
            .y_label_style(label.clone())
            .axis_desc_style(label.clone())
            .x_desc(self.x_label.as_str())
            .x_label_formatter(&|at| self.x_tick_at(*at))
            .y_label_formatter(&|at| (self.y_tick)(*at))
            .draw()?;
        for (at, series) in self.series.iter().enumerate().rev() {
            let color = COLORS[at % COLORS.len()];
            let points = || series.points.iter().map(|(x, y)| (self.place(*x), *y));
            let style = color.stroke_width(line_width(at));
            chart.draw_series(LineSeries::new(points(), style))?;
            chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled())))?;
        }
        for (row, at) in self.legend_order().into_iter().enumerate() {
            let color = COLORS[at % COLORS.len()];
            let y = 20 + 24 * row as i32;
            let style = color.stroke_width(line_width(at));
            legend.draw(&PathElement::new(vec![(12, y), (40, y)], style))?;
            legend.draw(&Circle::new((26, y), 3, color.filled()))?;
            let beside = label.clone().pos(Pos::new(HPos::Left, VPos::Center));
            legend.draw(&Text::new(self.series[at].name.as_str(), (48, y), beside))?;
        }
        whole.present()?;
        Ok(())
    }

    /// What stands at a place of the x axis; nothing between two powers of two.
    fn x_tick_at(&self, at: f64) -> String {
        if !self.log_x {
            return (self.x_tick)(at);
        }
        let whole = at.round();
        if (at - whole).abs() < 1e-6 { (self.x_tick)(whole.exp2()) } else { String::new() }
    }

    /// The lines from the one that ends highest to the one that ends lowest.
    fn legend_order(&self) -> Vec<usize> {
        let last = |at: usize| self.series[at].points.last().map_or(f64::MIN, |(_, y)| *y);
        let mut order: Vec<usize> = (0..self.series.len()).collect();
        order.sort_by(|a, b| last(*b).total_cmp(&last(*a)));
        order
    }
}

fn line_width(at: usize) -> u32 {
    if at == 0 { 3 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> LineChart {
        LineChart {
            title: "growth".to_owned(),
            x_label: "chunk size".to_owned(),
            y_label: "stored".to_owned(),
            log_x: true,
            x_tick: binary_bytes,
            y_tick: decimal_bytes,
            y_range: 0.0..0.0,
            series: vec![
                Series { name: "low <line>".to_owned(), points },
                Series { name: "high".to_owned(), points: vec![(4096.0, 3e6), (4194304.0, 9e6)] },
            ],
        }
    }

    #[test]
    fn a_chart_has_its_ticks_with_units_and_its_legend_from_high_to_low() {
        let svg = chart(vec![(4096.0, 1e6), (65536.0, 2e6), (4194304.0, 4e6)]).to_svg().unwrap();
        for text in ["growth", "chunk size", "4 KiB", "4 MiB", "2 MB", "low &lt;line&gt;"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        assert!(svg.find("high").unwrap() < svg.find("low &lt;line&gt;").unwrap());
    }

    #[test]
    fn a_chart_of_nothing_or_of_nowhere_is_refused() {
        let mut empty = chart(vec![]);
        assert!(empty.to_svg().is_ok());
        empty.series.clear();
        assert!(empty.to_svg().is_err());
        for point in [(0.0, 1.0), (-1.0, 1.0), (1.0, f64::NAN)] {
            assert!(chart(vec![point]).to_svg().is_err());
        }
        assert!(chart(vec![(1.0, 0.0)]).to_svg().is_ok());
    }

    #[test]
    fn numbers_stand_with_their_units() {
        let check = |text: String, expected: &str| assert_eq!(text, expected);
        check(number(1200.0), "1200");
        check(number(0.25), "0.25");
        check(number(0.0), "0");
        check(binary_bytes(262_144.0), "256 KiB");
        check(decimal_bytes(1.2e9), "1.2 GB");
        check(decimal_bytes(0.0), "0 B");
        check(percent(0.985), "98.5 %");
    }

    #[test]
    fn a_written_chart_is_what_the_text_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chart.svg");
        let chart = chart(vec![(4096.0, 1e6), (65536.0, 2e6)]);
        chart.write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), chart.to_svg().unwrap());
    }
}
