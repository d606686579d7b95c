//! Limits for continuous integration: `rel_l2>0.01`, `nonfinite`.

use std::str::FromStr;

use crate::diff::{Delta, Status, TensorDiff};

/// A condition under which a tensor fails.
#[derive(Debug, Clone)]
pub struct Limit {
    text: String,
    test: Test,
}

#[derive(Debug, Clone, Copy)]
enum Test {
    /// NaN or infinity on either side.
    Nonfinite,
    /// The tensor is on one side only.
    Missing,
    /// Shapes differ.
    Shape,
    /// Types differ.
    Dtype,
    Measure {
        of: Measure,
        order: Order,
        bound: f64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Over,
    AtLeast,
    Under,
    AtMost,
}

type Measure = fn(&Delta) -> f64;

/// What can be measured. Undefined ratios are the worst there is: a relative size of something new is
/// infinite, and a direction that does not exist has cosine 0.
const MEASURES: [(&str, Measure); 10] = [
    ("rel_l2", |d| d.rel_l2().unwrap_or(f64::INFINITY)),
    ("l1", |d| d.l1),
    ("l2", Delta::l2),
    ("max_abs", Delta::max_abs),
    ("mean", Delta::mean),
    ("cosine", |d| d.cosine().unwrap_or(0.0)),
    ("changed", Delta::changed_share),
    ("sign_flips", |d| d.sign_flips as f64),
    ("nonfinite_a", |d| d.nonfinite_a as f64),
    ("nonfinite_b", |d| d.nonfinite_b as f64),
];

/// In this order: `>=` before `>`.
const ORDERS: [(&str, Order); 4] =
    [(">=", Order::AtLeast), ("<=", Order::AtMost), (">", Order::Over), ("<", Order::Under)];

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare: String = text.split_whitespace().collect();
        let test = match bare.as_str() {
            "nonfinite" => Test::Nonfinite,
            "missing" => Test::Missing,
            "shape" => Test::Shape,
            "dtype" => Test::Dtype,
            other => measure(other)?,
        };
        Ok(Self { text: text.to_owned(), test })
    }
}

fn measure(text: &str) -> Result<Test, String> {
    let names = || MEASURES.map(|(name, _)| name).join(", ");
    let found = ORDERS.iter().find_map(|(sign, order)| text.split_once(sign).map(|(m, b)| (m, *order, b)));
    let Some((name, order, bound)) = found else {
        return Err(format!(
            "expected nonfinite, missing, shape, dtype, or one of {} with > >= < <= and a number",
            names()
        ));
    };
    let Some((_, of)) = MEASURES.iter().find(|(known, _)| *known == name) else {
        return Err(format!("`{name}` is not measured; expected one of {}", names()));
    };
    let bound = parse_bound(name, bound)?;
    Ok(Test::Measure { of: *of, order, bound })
}

/// A bound on the measure `name`. One on `changed` is a share or, as tables print it, a percentage.
fn parse_bound(name: &str, text: &str) -> Result<f64, String> {
    let number = |text: &str| text.parse::<f64>().map_err(|_| format!("`{text}` is not a number"));
    let bound = match text.strip_suffix('%') {
        Some(percent) if name == "changed" => number(percent)? / 100.0,
        Some(_) => return Err(format!("`{name}` is no share, so its bound takes no `%`")),
        None => number(text)?,
    };
    if bound.is_nan() {
        return Err("a bound must be a number, got NaN".to_owned());
    }
    if name == "changed" && !(0.0..=1.0).contains(&bound) {
        return Err(format!("`changed` is a share from 0 to 1 or 0% to 100%, got {text}"));
    }
    if name == "cosine" && !(-1.0..=1.0).contains(&bound) {
        return Err(format!("`cosine` is from -1 to 1, got {text}"));
    }
    Ok(bound)
}

impl Limit {
    /// As it was typed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether this is a bound on a measure, which only a tensor that was compared has.
    pub fn measures(&self) -> bool {
        matches!(self.test, Test::Measure { .. } | Test::Nonfinite)
    }

    /// Whether the tensor fails. Tensors of different shapes, or on one side only, are not measured; what differs in its
    /// bytes and has no numbers to measure fails every measure.
    pub fn fails(&self, tensor: &TensorDiff) -> bool {
        let delta = tensor.delta.as_ref();
        let unmeasured = delta.is_none() && matches!(tensor.status, Status::Changed | Status::DtypeDiffers);
        match self.test {
            Test::Nonfinite | Test::Measure { .. } if unmeasured => true,
            Test::Nonfinite => delta.is_some_and(|d| d.nonfinite_a + d.nonfinite_b > 0),
            Test::Missing => matches!(tensor.status, Status::OnlyInA | Status::OnlyInB),
            Test::Shape => tensor.status == Status::ShapeDiffers,
            Test::Dtype => tensor.a.as_ref().zip(tensor.b.as_ref()).is_some_and(|(a, b)| a.dtype != b.dtype),
            Test::Measure { of, order, bound } => delta.map(of).is_some_and(|value| match order {
                Order::Over => value > bound,
                Order::AtLeast => value >= bound,
                Order::Under => value < bound,
                Order::AtMost => value <= bound,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(delta: Delta) -> TensorDiff {
        let name = "w".to_owned();
        TensorDiff { name, status: Status::Changed, a: None, b: None, delta: Some(delta), renamed: None }
    }

    #[test]
    fn limits_are_read_and_held() {
        let moved =
            tensor(Delta { elements: 4, changed: 1, squares: 4.0, squares_a: 16.0, ..Delta::default() });
        for (text, fails) in [
            ("rel_l2>0.49", true),
            ("rel_l2 > 0.5", false),
            ("rel_l2>=0.5", true),
            ("changed<0.3", true),
            ("changed>24%", true),
            ("changed > 25 %", false),
            ("changed>=25%", true),
            ("l2<=1.9", false),
            ("nonfinite", false),
        ] {
            assert_eq!(text.parse::<Limit>().unwrap().fails(&moved), fails, "{text}");
        }
        let new = tensor(Delta { squares: 1.0, ..Delta::default() });
        assert!("rel_l2>1e300".parse::<Limit>().unwrap().fails(&new));
        let codes = TensorDiff { delta: None, ..tensor(Delta::default()) };
        let same = TensorDiff { status: Status::Identical, ..codes.clone() };
        for text in ["rel_l2>1e300", "cosine<-0.5", "nonfinite"] {
            let limit = text.parse::<Limit>().unwrap();
            assert!(limit.fails(&codes) && !limit.fails(&same), "{text}");
        }
        assert!(!"missing".parse::<Limit>().unwrap().fails(&codes));
        let broken = tensor(Delta { nonfinite_b: 1, ..Delta::default() });
        assert!("nonfinite".parse::<Limit>().unwrap().fails(&broken));
    }

    #[test]
    fn what_is_no_limit_is_said() {
        for (text, expected) in [
            ("rel>1", "`rel` is not measured"),
            ("l2>x", "`x` is not a number"),
            ("l2", "expected nonfinite"),
            ("l2>nan", "NaN"),
            ("changed>20", "a share from 0 to 1 or 0% to 100%, got 20"),
            ("changed>200%", "got 200%"),
            ("l2>20%", "takes no `%`"),
            ("cosine<2", "from -1 to 1"),
        ] {
            assert!(text.parse::<Limit>().unwrap_err().contains(expected), "{text}");
        }
    }
}
