//! The loss curve of a training run as SVG.

use crate::train::LogLine;

const SIZE: (f64, f64) = (720.0, 360.0);
/// Room at the left and below, for labels.
const LEFT: f64 = 56.0;
const BELOW: f64 = 36.0;
const ABOVE: f64 = 34.0;
const STYLE: &str = "text{font:11px ui-sans-serif,system-ui,sans-serif;fill:#333}.t{font-size:13px;font-weight:600}\
.g{stroke:#999;stroke-opacity:.3}.l{fill:none;stroke:#2563eb;stroke-opacity:.3}.m{fill:none;stroke:#2563eb;stroke-width:2}\
.e{fill:#d97706}.r{stroke:#999;stroke-dasharray:3 3}@media(prefers-color-scheme:dark){text{fill:#ddd}}";

/// Training loss by step, thin as measured and bold as a moving average; evaluations as dots, rounds apart by
/// dashed lines.
pub fn loss_svg(log: &[LogLine]) -> String {
    let (width, height) = SIZE;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n<title>Training loss by step</title>\n<style>{STYLE}</style>\n<text x=\"{LEFT}\" y=\"20\" class=\"t\">Training loss (nats per target token)</text>\n"
    );
    let values = || log.iter().flat_map(|l| [Some(l.loss), l.eval_loss]).flatten().filter(|x| x.is_finite());
    let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    let (Some(first), Some(last)) = (log.first(), log.last()) else {
        return out + "</svg>\n";
    };
    let span = (high - low).max(1e-6);
    let steps = (last.step - first.step).max(1) as f64;
    let x = |step: u64| LEFT + (step - first.step) as f64 / steps * (width - LEFT - 16.0);
    let y = |loss: f64| ABOVE + (high - loss) / span * (height - ABOVE - BELOW);
    for i in 0..=4 {
        let loss = low + span * f64::from(i) / 4.0;
        let at = y(loss);
        out += &format!(
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"g\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.3}</text>\n",
            width - 16.0,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for (step, anchor) in [(first.step, "start"), (last.step, "end")] {
        out += &format!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">step {step}</text>\n",
            x(step),
            height - 14.0
        );
    }
    for pair in log.windows(2).filter(|pair| pair[0].round != pair[1].round) {
        let at = x(pair[1].step);
        let bottom = height - BELOW;
        out += &format!("<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{ABOVE}\" y2=\"{bottom}\" class=\"r\"/>\n");
    }
    let finite = || log.iter().filter(|line| line.loss.is_finite());
    out += &path("l", finite().map(|line| (x(line.step), y(line.loss))));
    // An exponential average over about a twentieth of the run.
    let weight = 2.0 / (log.len() as f64 / 20.0 + 1.0).max(2.0);
    let mut average = first.loss;
    out += &path(
        "m",
        finite().map(|line| {
            average += weight.min(1.0) * (line.loss - average);
            (x(line.step), y(average.clamp(low, high)))
        }),
    );
    for (line, loss) in log.iter().filter_map(|line| Some((line, line.eval_loss?))) {
        let (x, y) = (x(line.step), y(loss));
        out += &format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" class=\"e\"><title>eval loss {loss:.4}</title></circle>\n"
        );
    }
    out + "</svg>\n"
}

fn path(class: &str, points: impl Iterator<Item = (f64, f64)>) -> String {
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
        };
        let svg = loss_svg(&[line(1, 3.0), line(2, 2.0), line(3, f64::NAN), line(4, 1.0)]);
        let thin = svg.lines().find(|l| l.contains("class=\"l\"")).unwrap_or_default();
        assert_eq!(thin.matches(" L").count(), 2, "NaN is left out: {thin}");
        // The first step is at the left edge and the largest loss at the top.
        assert!(thin.contains("d=\"M56.0 34.0"), "{thin}");
        assert_eq!((svg.matches("class=\"r\"").count(), svg.matches("<circle").count()), (1, 1));
        assert!(!loss_svg(&[]).contains("NaN"));
    }
}
