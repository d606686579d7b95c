//! A document of headings, texts, tables and pictures, as Markdown and as markup of a page.

use crate::report::chart::{Chart, charts_svg};
use crate::report::xml::escaped;

/// A part of a document. In texts and cells, what stands between backticks is code.
#[derive(Debug, Clone)]
pub(super) enum Block {
    Title(String),
    Heading(String),
    Text(String),
    List(Vec<String>),
    Table {
        /// Names of the columns; those whose name starts with `>` are aligned to the right.
        columns: Vec<String>,
        rows: Vec<Vec<String>>,
    },
    Picture {
        /// Name of its file.
        file: String,
        chart: Chart,
    },
    Commands(Vec<String>),
}

/// A line of every picture of a report, by which the next run knows it as its own.
pub(super) const SVG_MARKER: &str = "<!-- written by hft-surgery experiment -->";

/// The document in Markdown; pictures are files beside it.
pub(super) fn markdown(blocks: &[Block]) -> String {
    let mut parts = Vec::new();
    for block in blocks {
        parts.push(match block {
            Block::Title(text) => format!("# {text}\n"),
            Block::Heading(text) => format!("## {text}\n"),
            Block::Text(text) => format!("{text}\n"),
            Block::List(items) => items.iter().map(|item| format!("- {item}\n")).collect(),
            Block::Table { columns, rows } => {
                let cells = |cells: &[String]| {
                    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
                    format!("| {} |\n", cells.join(" | "))
                };
                let names: Vec<String> =
                    columns.iter().map(|name| name.trim_start_matches('>').to_owned()).collect();
                let rule: Vec<&str> =
                    columns.iter().map(|c| if c.starts_with('>') { "---:" } else { "---" }).collect();
                let rows: String = rows.iter().map(|row| cells(row)).collect();
                format!("{}| {} |\n{rows}", cells(&names), rule.join(" | "))
            }
            Block::Picture { file, chart } => format!("![{}]({file})\n", chart.title),
            Block::Commands(lines) => format!("```sh\n{}\n```\n", lines.join("\n")),
        });
    }
    parts.join("\n")
}

/// The document as markup; pictures stand in it.
pub(super) fn markup(blocks: &[Block]) -> String {
    let mut out = String::new();
    for block in blocks {
        out += &match block {
            Block::Title(text) => format!("<section id=\"verdict\"><h1>{}</h1></section>\n", inline(text)),
            Block::Heading(text) => format!("<section><h2>{}</h2></section>\n", inline(text)),
            Block::Text(text) => format!("<p>{}</p>\n", inline(text)),
            Block::List(items) => {
                let items: String = items.iter().map(|item| format!("<li>{}</li>\n", inline(item))).collect();
                format!("<ul>\n{items}</ul>\n")
            }
            Block::Table { columns, rows } => table(columns, rows),
            Block::Picture { chart, .. } => {
                format!(
                    "<div class=\"scroll\">{}</div>\n",
                    charts_svg(std::slice::from_ref(chart), SVG_MARKER)
                )
            }
            Block::Commands(lines) => {
                let lines: Vec<String> = lines.iter().map(|line| escaped(line)).collect();
                format!("<pre class=\"scroll\"><code>{}</code></pre>\n", lines.join("\n"))
            }
        };
    }
    out
}

fn table(columns: &[String], rows: &[Vec<String>]) -> String {
    let class = |at: usize| if columns[at].starts_with('>') { "" } else { " class=\"text\"" };
    let heads: String = columns
        .iter()
        .enumerate()
        .map(|(at, name)| format!("<th{}>{}</th>", class(at), inline(name.trim_start_matches('>'))))
        .collect();
    let mut body = String::new();
    for row in rows {
        let cells: String = row
            .iter()
            .enumerate()
            .map(|(at, cell)| format!("<td{}>{}</td>", class(at), inline(cell)))
            .collect();
        body += &format!("<tr>{cells}</tr>\n");
    }
    format!(
        "<div class=\"scroll\"><table class=\"numbers\"><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )
}

/// Text with what stands between backticks as code.
fn inline(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts
        .map(|(at, part)| if at % 2 == 0 { escaped(part) } else { format!("<code>{}</code>", escaped(part)) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_document_has_two_forms() {
        let blocks = [
            Block::Title("A `b` <c>".to_owned()),
            Block::Table {
                columns: vec!["x".to_owned(), ">y".to_owned()],
                rows: vec![vec!["a|b".to_owned(), "1".to_owned()]],
            },
            Block::Commands(vec!["one <x>".to_owned(), "two".to_owned()]),
        ];
        let text = markdown(&blocks);
        assert!(text.starts_with("# A `b` <c>\n\n| x | y |\n| --- | ---: |\n| a\\|b | 1 |\n"), "{text}");
        let page = markup(&blocks);
        assert!(
            page.contains("<h1>A <code>b</code> &lt;c&gt;</h1>") && page.contains("<td>1</td>"),
            "{page}"
        );
        assert!(page.contains("one &lt;x&gt;\ntwo"), "{page}");
    }
}
