//! The scores of models on files as one self-contained page.

use super::evaluation::{Evaluation, evaluation_json};
use super::page::{STYLE, embedded};

const PAGE: &str = include_str!("page/evaluation.html");
const OWN_STYLE: &str = include_str!("page/evaluation.css");
const SCRIPT: &str = include_str!("page/evaluation.js");

/// A line of every such page, by which the next run knows it as its own.
pub const EVALUATION_MARKER: &str = "<meta name=\"generator\" content=\"hft-surgery eval\">";

/// The page of [`evaluation_json`]; names reach it as text only.
pub fn evaluation_html(all: &[Evaluation]) -> String {
    PAGE.replace("/*STYLE*/", &format!("{STYLE}{OWN_STYLE}"))
        .replace("/*SCRIPT*/", SCRIPT)
        .replace("/*DATA*/", &embedded(&evaluation_json(all).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page says of itself what its marker looks for, and a name cannot end the element of the data.
    #[test]
    fn a_name_stays_inside_the_data() {
        let one = Evaluation {
            model: "</script><b>".to_owned(),
            data: "arc".to_owned(),
            rows: 1,
            tokens: 2,
            measured: Vec::new(),
        };
        let page = evaluation_html(&[one]);
        assert!(page[..1024].contains(EVALUATION_MARKER));
        assert!(page.contains("\\u003c/script>") && !page.contains("</script><b>"), "{page}");
    }
}
