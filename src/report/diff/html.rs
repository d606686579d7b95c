//! One self-contained page: no network, no library.

use super::diff_report::DiffReport;
use super::scale::STOPS;

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// A line of every page, by which the next run knows it as its own.
pub const HTML_MARKER: &str = "<meta name=\"generator\" content=\"hft-surgery diff\">";

impl DiffReport {
    /// The page. Its data is the document of [`DiffReport::json`]; names reach the page as text only.
    pub fn html(&self) -> String {
        let stops = serde_json::to_string(&STOPS).unwrap_or_default();
        PAGE.replace("/*STYLE*/", STYLE)
            .replace("/*SCRIPT*/", &SCRIPT.replace("/*STOPS*/[]", &stops))
            .replace("/*DATA*/", &embedded(&self.json().to_string()))
    }
}

/// JSON that cannot end the script element that holds it.
fn embedded(json: &str) -> String {
    json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}
