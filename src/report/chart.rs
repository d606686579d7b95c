//! Points and lines with their spreads over two axes, as SVG.

use super::loss_curve::{path, ticks};
use super::xml::escaped;

/// Width and height of the area of the points.
const AREA: (f64, f64) = (500.0, 320.0);
const LEFT: f64 = 64.0;
const ABOVE: f64 = 34.0;
const BELOW: f64 = 44.0;
/// Width of the names of the series, right of the area.
const NAMES: f64 = 236.0;
/// Height of one of them.
const LINE: f64 = 17.0;
/// The colours of Okabe and Ito, which colour-blind eyes tell apart, darker on a light ground.
const COLORS: [(&str, &str); 8] = [
    ("#0072b2", "#56b4e9"),
    ("#c04a00", "#ff9d5c"),
    ("#00805f", "#3fd0a4"),
    ("#a3467c", "#e79ac6"),
    ("#8a6d00", "#f0d44a"),
    ("#333333", "#eeeeee"),
    ("#5b3fa8", "#b7a2f5"),
    ("#a11d1d", "#ff8a80"),
];

/// One picture.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    /// What it shows.
    pub(super) title: String,
    /// The horizontal quantity with its unit.
    pub(super) x: String,
    /// The vertical one.
    pub(super) y: String,
    /// What is drawn, in this order.
    pub(super) series: Vec<Series>,
}

/// Points of one colour and mark.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<Point>,
    /// Whether a line joins them.
    pub(super) joined: bool,
}

/// A point with the half length of its bars, which is 0 without a spread.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) x_spread: f64,
    pub(super) y_spread: f64,
    /// What stands beside it; may be empty.
    pub(super) label: String,
}

impl Point {
    fn is_finite(&self) -> bool {
        self.x.is_finite() && self.y.is_finite()
    }
}

/// The part of an axis that is shown.
#[derive(Debug, Clone, Copy)]
struct Range {
    low: f64,
    high: f64,
}

impl Range {
    /// From the least to the greatest end of the bars, with a margin.
    fn over(values: impl Iterator<Item = (f64, f64)>) -> Self {
        let ends = |(low, high): (f64, f64), (value, spread): (f64, f64)| {
            (low.min(value - spread), high.max(value + spread))
        };
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), ends);
        if low > high {
            return Self { low: 0.0, high: 1.0 };
        }
        let margin = ((high - low) * 0.06).max(1e-6 * high.abs()).max(1e-9);
        Self { low: low - margin, high: high + margin }
    }

    fn position(self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// `charts` below each other in one document; `marker` is a line by which the next run knows it as its own.
pub(super) fn charts_svg(charts: &[Chart], marker: &str) -> String {
    let width = LEFT + AREA.0 + NAMES;
    let height: f64 = charts.iter().map(Chart::height).sum();
    let (mut body, mut top) = (String::new(), 0.0);
    for chart in charts {
        body += &format!("<g transform=\"translate(0 {top})\">\n{}</g>\n", chart.drawn());
        top += chart.height();
    }
    let title = charts.iter().map(|chart| escaped(&chart.title)).collect::<Vec<_>>().join("; ");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n{marker}\n<title>{title}</title>\n<style>{}</style>\n{body}</svg>\n",
        style()
    )
}

/// The rules, with names of their own: a page holds other pictures too.
fn style() -> String {
    let colors = |choose: fn(&(&'static str, &'static str)) -> &'static str| -> String {
        let rule = |(i, color)| format!(".chart-{i}{{fill:{color};stroke:{color}}}");
        COLORS.iter().map(choose).enumerate().map(rule).collect()
    };
    format!(
        "text{{font:11px ui-sans-serif,system-ui,sans-serif;fill:#333}}.chart-t{{font-size:13px;font-weight:600}}.chart-g{{stroke:#999;stroke-opacity:.3}}.chart-l{{fill:none!important;stroke-width:1.6;stroke-opacity:.7}}.chart-b{{stroke-opacity:.55}}{}@media(prefers-color-scheme:dark){{text{{fill:#ddd}}{}}}",
        colors(|pair| pair.0),
        colors(|pair| pair.1)
    )
}

impl Chart {
    /// The area grows with the number of names beside it.
    fn area_height(&self) -> f64 {
        AREA.1.max(self.series.len() as f64 * LINE)
    }

    fn height(&self) -> f64 {
        ABOVE + self.area_height() + BELOW
    }

    fn drawn(&self) -> String {
        let points = || self.series.iter().flat_map(|s| &s.points).filter(|point| point.is_finite());
        let x = Range::over(points().map(|point| (point.x, point.x_spread)));
        let y = Range::over(points().map(|point| (point.y, point.y_spread)));
        let place = |at: (f64, f64)| {
            (LEFT + x.position(at.0) * AREA.0, ABOVE + (1.0 - y.position(at.1)) * self.area_height())
        };
        let mut out =
            format!("<text x=\"{LEFT}\" y=\"18\" class=\"chart-t\">{}</text>\n", escaped(&self.title));
        out += &self.axes(x, y, &place);
        for (at, series) in self.series.iter().enumerate() {
            out += &series.drawn(at, &place);
            let (left, top) = (LEFT + AREA.0 + 20.0, ABOVE + (at as f64 + 0.5) * LINE);
            out += &mark(at, (left, top), &series.name);
            out += &format!(
                "<text x=\"{}\" y=\"{}\">{}</text>\n",
                left + 10.0,
                top + 4.0,
                escaped(&shortened(&series.name))
            );
        }
        out
    }

    fn axes(&self, x: Range, y: Range, place: &dyn Fn((f64, f64)) -> (f64, f64)) -> String {
        let bottom = ABOVE + self.area_height();
        let right = LEFT + AREA.0;
        let mut out = String::new();
        let (values, digits) = ticks(y.low, y.high, 6);
        for value in values {
            let (_, at) = place((x.low, value));
            out += &format!(
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"chart-g\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.digits$}</text>\n",
                LEFT - 6.0,
                at + 4.0
            );
        }
        let (values, digits) = ticks(x.low, x.high, 6);
        for value in values {
            let (at, _) = place((value, y.low));
            out += &format!(
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{ABOVE}\" y2=\"{bottom}\" class=\"chart-g\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{value:.digits$}</text>\n",
                bottom + 15.0
            );
        }
        let middle = ABOVE + self.area_height() / 2.0;
        out + &format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n<text transform=\"translate(14 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
            LEFT + AREA.0 / 2.0,
            bottom + 33.0,
            escaped(&self.x),
            escaped(&self.y)
        )
    }
}

impl Series {
    fn drawn(&self, at: usize, place: &dyn Fn((f64, f64)) -> (f64, f64)) -> String {
        let color = at % COLORS.len();
        let points = || self.points.iter().filter(|point| point.is_finite());
        let mut out = String::new();
        if self.joined {
            out += &path(&format!("chart-{color} chart-l"), points().map(|point| place((point.x, point.y))));
        }
        for point in points() {
            let bar = |from: (f64, f64), to: (f64, f64)| {
                let ((x1, y1), (x2, y2)) = (place(from), place(to));
                format!(
                    "<line x1=\"{x1:.1}\" x2=\"{x2:.1}\" y1=\"{y1:.1}\" y2=\"{y2:.1}\" class=\"chart-{color} chart-b\"/>\n"
                )
            };
            if point.x_spread > 0.0 {
                out += &bar((point.x - point.x_spread, point.y), (point.x + point.x_spread, point.y));
            }
            if point.y_spread > 0.0 {
                out += &bar((point.x, point.y - point.y_spread), (point.x, point.y + point.y_spread));
            }
            let (left, top) = place((point.x, point.y));
            let hint = format!("{} {}: {:.4}, {:.4}", self.name, point.label, point.x, point.y);
            out += &mark(at, (left, top), &hint);
            if !point.label.is_empty() {
                out += &format!(
                    "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
                    left + 7.0,
                    top - 5.0,
                    escaped(&point.label)
                );
            }
        }
        out
    }
}

/// The mark of a series: another form for each round through the colours.
fn mark(series: usize, (x, y): (f64, f64), hint: &str) -> String {
    let (color, hint) = (series % COLORS.len(), escaped(hint));
    let form = match (series / COLORS.len()) % 3 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\""),
        1 => format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"8\" height=\"8\"", x - 4.0, y - 4.0),
        _ => format!("<path d=\"M{x:.1} {:.1} l5 9 h-10 z\"", y - 6.0),
    };
    let end = if form.starts_with("<circle") {
        "circle"
    } else if form.starts_with("<rect") {
        "rect"
    } else {
        "path"
    };
    format!("{form} class=\"chart-{color}\"><title>{hint}</title></{end}>\n")
}

/// The first 36 characters.
fn shortened(text: &str) -> String {
    if text.chars().count() <= 36 {
        return text.to_owned();
    }
    format!("{}…", text.chars().take(35).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_in_the_area_and_what_is_no_number_is_left_out() {
        let point = |x, y, spread| Point { x, y, x_spread: 0.0, y_spread: spread, label: "<a&b>".to_owned() };
        let series = |name: &str, points| Series { name: name.to_owned(), points, joined: true };
        let chart = Chart {
            title: "T".to_owned(),
            x: "x".to_owned(),
            y: "y".to_owned(),
            series: vec![
                series("one", vec![point(0.0, 1.0, 0.5), point(1.0, f64::NAN, 0.0), point(2.0, 3.0, 0.0)]),
                series("empty", Vec::new()),
            ],
        };
        let svg = charts_svg(&[chart.clone(), chart], "<!-- m -->");
        // Two points, two names, in each of two charts.
        assert_eq!(svg.matches("<circle").count(), 2 * (2 + 2), "{svg}");
        assert_eq!(svg.matches("&lt;a&amp;b&gt;").count(), 2 * 4, "label and hint of two points: {svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf") && svg.contains("<!-- m -->"), "{svg}");
        // The ends of the bar from 0.5 to 1.5 and the point at 3 set the axis: margins of 6 % of 2.5.
        let y = Range::over([(1.0, 0.5), (3.0, 0.0)].into_iter());
        assert!((y.low - 0.35).abs() < 1e-12 && (y.high - 3.15).abs() < 1e-12, "{y:?}");
        assert_eq!(charts_svg(&[], "").matches("NaN").count(), 0);
    }
}
