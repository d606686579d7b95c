//! The loss curve of a training run as SVG.

use crate::train::LogLine;

const SIZE: (f64, f64) = (720.0, 360.0);
/// Margins around the curve, which hold the labels.
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const BELOW: f64 = 36.0;
const ABOVE: f64 = 34.0;
const STYLE: &str = "text{font:11px ui-sans-serif,system-ui,sans-serif;fill:#333}.t{font-size:13px;font-weight:600}\
.g{stroke:#999;stroke-opacity:.3}.l{fill:none;stroke:#2563eb;stroke-opacity:.3}.m{fill:none;stroke:#2563eb;stroke-width:2}\
.e{fill:#d97706}.v{fill:none;stroke:#d97706;stroke-width:1.5}text.k{fill:#2563eb}text.e{fill:#b45309}.r{stroke:#999;stroke-dasharray:3 3}@media(prefers-color-scheme:dark){text{fill:#ddd}text.k{fill:#8ab4f8}text.e{fill:#f0a848}}";

/// Training loss by step: a thin line as measured, a bold one as a moving average, a labelled line with a dot for each
/// evaluation, and a dashed line between rounds. Ticks are round numbers.
pub fn loss_svg(log: &[LogLine]) -> String {
    let (width, height) = SIZE;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n<title>Training loss by step</title>\n<style>{STYLE}</style>\n<text x=\"{LEFT}\" y=\"20\" class=\"t\">Training loss (nats per target token)</text>\n"
    );
    if let (Some(first), Some(last)) = (log.first(), log.last()) {
        let axes = Axes::over(log, first.step, last.step);
        out += &axes.grid();
        out += &axes.rounds(log);
        out += &axes.losses(log, first.loss);
        out += &axes.evaluations(log);
        out += &key(log);
    }
    out + "</svg>\n"
}

/// The range of steps and of losses that the picture shows.
struct Axes {
    first: u64,
    last: u64,
    low: f64,
    high: f64,
}

impl Axes {
    fn over(log: &[LogLine], first: u64, last: u64) -> Self {
        let values = log.iter().flat_map(|l| [Some(l.loss), l.eval_loss]).flatten().filter(|x| x.is_finite());
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        Self { first, last, low, high }
    }

    fn x(&self, step: u64) -> f64 {
        let steps = (self.last - self.first).max(1) as f64;
        LEFT + (step - self.first) as f64 / steps * (SIZE.0 - LEFT - RIGHT)
    }

    fn span(&self) -> f64 {
        (self.high - self.low).max(1e-6)
    }

    fn y(&self, loss: f64) -> f64 {
        ABOVE + (self.high - loss) / self.span() * (SIZE.1 - ABOVE - BELOW)
    }

    /// Lines of equal loss at round numbers with their labels, and round steps.
    fn grid(&self) -> String {
        let mut out = String::new();
        let (losses, digits) = ticks(self.low, self.low + self.span(), 5);
        for loss in losses {
            let y = self.y(loss);
            out += &format!(
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"g\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.digits$}</text>\n",
                SIZE.0 - RIGHT,
                LEFT - 6.0,
                y + 4.0
            );
        }
        let (steps, _) = ticks(self.first as f64, self.last as f64, 8);
        for step in steps.into_iter().filter(|step| step.fract() == 0.0) {
            let (x, y) = (self.x(step as u64), SIZE.1 - 18.0);
            out += &format!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{step}</text>\n");
        }
        out + &format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">step</text>\n",
            SIZE.0 - RIGHT,
            SIZE.1 - 4.0
        )
    }

    fn rounds(&self, log: &[LogLine]) -> String {
        let bottom = SIZE.1 - BELOW;
        let starts = log.windows(2).filter(|pair| pair[0].round != pair[1].round).map(|pair| pair[1].step);
        let line = |step| {
            let x = self.x(step);
            format!("<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{ABOVE}\" y2=\"{bottom}\" class=\"r\"/>\n")
        };
        starts.map(line).collect()
    }

    /// The losses as measured, and their exponential average over about a twentieth of the run.
    fn losses(&self, log: &[LogLine], first: f64) -> String {
        let finite = || log.iter().filter(|line| line.loss.is_finite());
        let measured = path("l", finite().map(|line| (self.x(line.step), self.y(line.loss))));
        let weight = 2.0 / (log.len() as f64 / 20.0 + 1.0).max(2.0);
        let mut average = first;
        let averaged = finite().map(|line| {
            average += weight.min(1.0) * (line.loss - average);
            (self.x(line.step), self.y(average.clamp(self.low, self.high)))
        });
        measured + &path("m", averaged)
    }

    /// A dot for each evaluation, and the line through them.
    fn evaluations(&self, log: &[LogLine]) -> String {
        let evaluated = || {
            log.iter()
                .filter_map(|line| Some((line.step, line.eval_loss?)))
                .filter(|(_, loss)| loss.is_finite())
        };
        let dot = |(step, loss)| {
            let (x, y) = (self.x(step), self.y(loss));
            format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" class=\"e\"><title>eval loss {loss:.4} at step {step}</title></circle>\n"
            )
        };
        let line = path("v", evaluated().map(|(step, loss)| (self.x(step), self.y(loss))));
        line + &evaluated().map(dot).collect::<String>()
    }
}

/// What each colour is, in words of that colour.
fn key(log: &[LogLine]) -> String {
    let right = SIZE.0 - RIGHT;
    let train = format!(
        "<text x=\"{}\" y=\"20\" text-anchor=\"end\" class=\"k\">training, averaged</text>\n",
        right - 90.0
    );
    let eval = format!("<text x=\"{right}\" y=\"20\" text-anchor=\"end\" class=\"e\">evaluation</text>\n");
    if log.iter().any(|line| line.eval_loss.is_some()) { train + &eval } else { train }
}

/// Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, at most `most + 1` of them, and the decimals
/// that tell them apart.
pub(super) fn ticks(low: f64, high: f64, most: u32) -> (Vec<f64>, usize) {
    // Not below what `f64` tells apart when a number is counted in steps.
    let least = ((high - low) / f64::from(most)).max(1e-6 * high.abs()).max(1e-9);
    let exponent = least.log10().floor();
    let decade = 10f64.powf(exponent);
    let (factor, carried) = if least <= decade {
        (1.0, 0.0)
    } else if least <= 2.0 * decade {
        (2.0, 0.0)
    } else if least <= 5.0 * decade {
        (5.0, 0.0)
    } else {
        (1.0, 1.0)
    };
    let exponent = exponent + carried;
    let digits = (-exponent).max(0.0) as usize;
    // Through the text, so that a tick is the number that its label says.
    let at =
        |n: f64| format!("{:.digits$}", n * factor * 10f64.powf(exponent)).parse::<f64>().unwrap_or(f64::NAN);
    let step = factor * 10f64.powf(exponent);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    ((first..=last).map(|n| at(n as f64)).collect(), digits)
}

pub(super) fn path(class: &str, points: impl Iterator<Item = (f64, f64)>) -> String {
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    if points.is_empty() {
        return String::new();
    }
    format!("<path class=\"{class}\" d=\"M{}\"/>\n", points.join(" L"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(2.013, 2.369, 5), (vec![2.1, 2.2, 2.3], 1));
        assert_eq!(ticks(0.0, 1.0, 5), (vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0], 1));
        assert_eq!(ticks(1.0, 300.0, 8), (vec![50.0, 100.0, 150.0, 200.0, 250.0, 300.0], 0));
        assert_eq!(ticks(2.0, 2.0 + 1e-6, 5), (vec![2.0], 6));
        assert!(ticks(1.0, 1.0, 8).0 == [1.0]);
    }

    #[test]
    fn a_curve_has_a_point_for_every_step() {
        let line = |step, loss| LogLine {
            step,
            round: u32::from(step > 2),
            epoch: 0.0,
            loss,
            grad_norm: 1.0,
            learning_rate: 1e-5,
            tokens: 8,
            tokens_per_second: 1.0,
            eval_loss: (step == 4).then_some(1.5),
            preference: None,
            eval_preference: None,
        };
        let svg = loss_svg(&[line(1, 3.0), line(2, 2.0), line(3, f64::NAN), line(4, 1.0)]);
        let thin = svg.lines().find(|l| l.contains("class=\"l\"")).unwrap_or_default();
        assert_eq!(thin.matches(" L").count(), 2, "NaN is left out: {thin}");
        // The first step is at the left edge and the largest loss at the top.
        assert!(thin.contains("d=\"M56.0 34.0"), "{thin}");
        assert_eq!((svg.matches("class=\"r\"").count(), svg.matches("<circle").count()), (1, 1));
        assert!(svg.contains(">evaluation<") && svg.contains(">2.5<") && svg.contains(">3<"), "{svg}");
        assert!(!loss_svg(&[]).contains("NaN"));
    }
}
