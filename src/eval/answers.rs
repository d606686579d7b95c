//! A text that a model wrote, held against the answers that are accepted.

use crate::data::{AnswerMetric, last_number};

/// Whether `text` is right by `metric` beside one of `accepted`. White space around both does not count, and with
/// `ignore_case` neither does case.
pub fn is_right(metric: AnswerMetric, ignore_case: bool, text: &str, accepted: &[String]) -> bool {
    let normal = |text: &str| if ignore_case { text.trim().to_lowercase() } else { text.trim().to_owned() };
    match metric {
        AnswerMetric::ExactMatch => accepted.iter().any(|answer| normal(answer) == normal(text)),
        AnswerMetric::Contains => accepted.iter().any(|answer| normal(text).contains(&normal(answer))),
        AnswerMetric::NumericMatch => {
            let got = last_number(text);
            got.is_some() && accepted.iter().any(|answer| last_number(answer) == got)
        }
    }
}

/// Where `text` has one of the stop strings first, in bytes.
pub(super) fn stop_at(text: &str, stop: &[String]) -> Option<usize> {
    stop.iter().filter_map(|stop| text.find(stop.as_str())).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_compared_without_white_space_around() {
        let right = |metric, ignore_case, text: &str, accepted: &[&str]| {
            let accepted: Vec<String> = accepted.iter().map(|text| (*text).to_owned()).collect();
            is_right(metric, ignore_case, text, &accepted)
        };
        use AnswerMetric::{Contains, ExactMatch, NumericMatch};
        assert!(right(ExactMatch, false, " Paris", &["Rome", "Paris "]));
        assert!(!right(ExactMatch, false, "paris", &["Paris"]));
        assert!(right(ExactMatch, true, "PARIS", &["Paris"]));
        assert!(!right(ExactMatch, false, "Paris.", &["Paris"]));
        assert!(right(Contains, false, "It is Paris.", &["Paris"]));
        assert!(!right(Contains, false, "It is paris.", &["Paris"]));
        assert!(right(NumericMatch, false, "so it is 18.0", &["2 + 16 = 18\n#### 18"]));
        assert!(!right(NumericMatch, false, "no idea", &["18"]));
    }

    #[test]
    fn the_first_stop_string_ends_a_text() {
        let stop = ["\n\n".to_owned(), "Q:".to_owned()];
        assert_eq!((stop_at("a Q: b\n\n", &stop), stop_at("a\nb", &stop)), (Some(2), None));
    }
}
