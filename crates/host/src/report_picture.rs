//! A report as a picture (SVG): reads and fetches over time and address.
//!
//! ```text
//! address ^   . first read     - fetch of a chunk     - fetch of the set     | read that waited
//!         |
//!         +---------------> time
//! ```

use std::fmt::Write;

use crate::report::Report;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 56.0;

const READ: &str = "#8a8a8a";
const CHUNK: &str = "#d95f02";
const SET: &str = "#1b9e77";
const WAIT: &str = "#7570b3";

impl Report {
    /// Draws it.
    pub fn to_svg(&self) -> String {
        Picture::new(self).draw()
    }
}

struct Picture<'a> {
    report: &'a Report,
    /// Milliseconds of the whole width, and where they begin.
    first_ms: f64,
    span_ms: f64,
    /// When the first read was, on the clock of fetches and waits.
    reads_from: f64,
    /// Bytes of the whole height, from 0.
    bytes: f64,
}

impl<'a> Picture<'a> {
    fn new(report: &'a Report) -> Self {
        // First reads count from the first of them, which is the first wait, if any read waited.
        let reads_from = report.waited.iter().map(|wait| wait.at_ms).fold(f64::INFINITY, f64::min);
        let reads_from = if reads_from.is_finite() { reads_from } else { 0.0 };
        let starts = report.fetches.iter().map(|fetch| fetch.at_ms);
        let first_ms = starts.fold(reads_from, f64::min);
        let ends = report
            .fetches
            .iter()
            .map(|fetch| fetch.at_ms + fetch.took_ms)
            .chain(report.waited.iter().map(|wait| wait.at_ms + wait.took_ms))
            .chain(report.reads.iter().map(|read| reads_from + read.at_ms));
        let last_ms = ends.fold(first_ms, f64::max);
        let used = report
            .reads
            .iter()
            .map(|read| read.offset + read.len)
            .chain(report.fetches.iter().map(|fetch| fetch.offset + fetch.kept_bytes))
            .max()
            .unwrap_or(report.length_bytes);
        let bytes = used.clamp(1, report.length_bytes.max(1)) as f64;
        Picture { report, first_ms, span_ms: (last_ms - first_ms).max(1.0), reads_from, bytes }
    }

    fn x(&self, ms: f64) -> f64 {
        LEFT + (ms - self.first_ms) / self.span_ms * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, offset: u64) -> f64 {
        HEIGHT - BOTTOM - (offset as f64 / self.bytes).min(1.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn draw(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        self.head(&mut svg);
        self.axes(&mut svg);
        for read in &self.report.reads {
            let (x, y) = (self.x(self.reads_from + read.at_ms), self.y(read.offset));
            // Writing into a string cannot fail.
            let _ =
                writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1.5\" fill=\"{READ}\"/>");
        }
        for fetch in &self.report.fetches {
            let colour = if fetch.from == "chunk" { CHUNK } else { SET };
            let y = self.y(fetch.offset);
            self.stroke(&mut svg, [fetch.at_ms, fetch.took_ms], [y, y], colour, 2.5);
        }
        for wait in &self.report.waited {
            let y = self.y(wait.offset);
            self.stroke(&mut svg, [wait.at_ms, wait.took_ms], [y - 5.0, y + 5.0], WAIT, 0.8);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn stroke(&self, svg: &mut String, time: [f64; 2], y: [f64; 2], colour: &str, width: f64) {
        let x = self.x(time[0]);
        // Level lines show how long it took, upright ones only when.
        let end = if y[0] == y[1] { self.x(time[0] + time[1]).max(x + 1.0) } else { x };
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{end:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" \
             stroke-width=\"{width}\"/>",
            y[0], y[1]
        );
    }

    fn head(&self, svg: &mut String) {
        let report = self.report;
        let title = format!(
            "{} of {}: fetched {:.1} MB, waited {:.0} ms",
            report.mirror,
            report.version,
            report.fetched_bytes as f64 / 1e6,
            report.waited_ms
        );
        let _ =
            writeln!(svg, "<text x=\"{LEFT}\" y=\"22\" font-size=\"16\">{}</text>", escape(&title));
        let legend = [
            (READ, "first read"),
            (CHUNK, "fetch of a chunk"),
            (SET, "fetch of the boot working set"),
            (WAIT, "read that waited"),
        ];
        let mut x = LEFT;
        for (colour, words) in legend {
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"35\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
                 <text x=\"{}\" y=\"45\">{words}</text>",
                x + 17.0
            );
            x += 40.0 + 7.0 * words.len() as f64;
        }
    }

    fn axes(&self, svg: &mut String) {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in 0..=5 {
            let share = f64::from(tick) / 5.0;
            let ms = self.first_ms + share * self.span_ms;
            let (x, offset) = (self.x(ms), share * self.bytes);
            let y = self.y(offset as u64);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#e5e5e5\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
                 <line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e5e5e5\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                bottom + 18.0,
                time(ms),
                LEFT - 8.0,
                y + 4.0,
                address(offset),
            );
        }
        let middle = (LEFT + right) / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">time since the mirror was opened\
             </text>",
            HEIGHT - 14.0
        );
    }
}

fn time(ms: f64) -> String {
    match ms {
        _ if ms < 1000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1000.0),
    }
}

fn address(bytes: f64) -> String {
    match bytes {
        _ if bytes >= f64::from(1 << 30) => format!("{:.2} GiB", bytes / f64::from(1 << 30)),
        _ => format!("{:.0} MiB", bytes / f64::from(1 << 20)),
    }
}

/// Text for the inside of an element. Names cannot hold such characters; a file that is read back may.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FetchEvent, ReadEvent, WaitEvent};

    #[test]
    fn everything_is_drawn_inside_the_picture_and_text_is_escaped() {
        let fetch = |at_ms, from: &str, offset| FetchEvent {
            at_ms,
            took_ms: 3.0,
            from: from.to_string(),
            offset,
            kept_bytes: 4096,
        };
        let report = Report {
            mirror: "<web>".to_string(),
            length_bytes: 1 << 30,
            reads: vec![ReadEvent { at_ms: 0.0, offset: 0, len: 4096 }],
            fetches: vec![fetch(1.0, "chunk", 0), fetch(9.0, "boot_set", 1 << 29)],
            waited: vec![WaitEvent { at_ms: 1.0, took_ms: 4.0, offset: 0, len: 4096 }],
            ..Report::default()
        };
        let svg = report.to_svg();
        assert!(svg.contains("&lt;web&gt;") && !svg.contains("<web>"));
        for name in ["x1", "x2", "cx"] {
            let attribute = format!("{name}=\"");
            let values = svg.split(&attribute).skip(1);
            for value in values.map(|rest| rest.split('"').next().unwrap()) {
                let value: f64 = value.parse().unwrap();
                assert!((LEFT..=WIDTH).contains(&value), "{name} {value}");
            }
        }
        assert_eq!(svg.matches(CHUNK).count(), 2, "the legend and one fetch");
        assert!(Report::default().to_svg().ends_with("</svg>\n"), "of nothing");
    }
}
