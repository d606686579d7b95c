//! One self-contained page for a comparison: no network, no library.

use serde_json::Value;

use super::colors::STOPS;

const PAGE: &str = include_str!("page/page.html");
/// The style of all pages.
pub(super) const STYLE: &str = include_str!("page/page.css");
/// In the order in which they need each other.
const SCRIPTS: [&str; 6] = [
    include_str!("page/data.js"),
    include_str!("page/summary.js"),
    include_str!("page/map.js"),
    include_str!("page/detail.js"),
    include_str!("page/tensors.js"),
    include_str!("page/page.js"),
];

/// A line of every page, by which the next run knows it as its own.
pub const HTML_MARKER: &str = "<meta name=\"generator\" content=\"hft-surgery diff\">";

/// The page that shows `document`; names reach it as text only.
pub(super) fn page(document: &Value) -> String {
    let stops = serde_json::to_string(&STOPS).unwrap_or_default();
    let script = SCRIPTS.concat().replace("/*STOPS*/[]", &stops);
    PAGE.replace("/*STYLE*/", STYLE)
        .replace("/*SCRIPT*/", &script)
        .replace("/*DATA*/", &embedded(&document.to_string()))
}

/// A page without data of its own: `body` is markup that is safe already.
pub(super) fn static_page(title: &str, generator: &str, body: &str) -> String {
    const THEME: &str = "document.documentElement.dataset.theme=matchMedia(\"(prefers-color-scheme: dark)\").matches?\"dark\":\"light\"";
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n{generator}\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n<script>{THEME}</script>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// JSON that cannot end the script element that holds it.
pub(super) fn embedded(json: &str) -> String {
    json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}
