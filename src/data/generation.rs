//! `{% generation %}` blocks: the parts of a chat template that render the assistant's text.
//!
//! Such a block is rewritten into a filter block, and the filter puts a noncharacter of Unicode before and
//! after what the block renders.

use std::ops::Range;

use crate::data::fault::Fault;

/// The filter that marks the text of a generation block.
pub(crate) const FILTER: &str = "generation_block";

const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

/// The output of the filter for the text of a block.
pub(crate) fn mark(text: &str) -> String {
    format!("{OPEN}{text}{CLOSE}")
}

/// Whether `text` holds a character that marks blocks.
pub(crate) fn holds_marks(text: &str) -> bool {
    text.contains([OPEN, CLOSE])
}

/// Takes the marks out of a rendered text: the text, and the byte ranges of its blocks.
pub(crate) fn take_marks(marked: &str) -> Result<(String, Vec<Range<usize>>), Fault> {
    let (mut text, mut blocks, mut open) = (String::with_capacity(marked.len()), Vec::new(), None);
    for c in marked.chars() {
        match (c, open) {
            (OPEN, None) => open = Some(text.len()),
            (CLOSE, Some(start)) => {
                blocks.push(start..text.len());
                open = None;
            }
            (OPEN | CLOSE, _) => {
                return Err(Fault::new("the generation blocks of the chat template overlap"));
            }
            _ => text.push(c),
        }
    }
    match open {
        None => Ok((text, blocks)),
        Some(_) => Err(Fault::new("a generation block of the chat template does not end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_byte_ranges() {
        let marked = format!("é{}x{}", mark("ab"), mark(""));
        assert_eq!(take_marks(&marked), Ok(("éabx".to_owned(), vec![2..4, 5..5])));
        let fault = |marked: &str| take_marks(marked).map_err(|fault| fault.fault);
        let overlap = "the generation blocks of the chat template overlap";
        assert_eq!(fault(&mark(&mark("a"))), Err(overlap.to_owned()));
        let open = "a generation block of the chat template does not end";
        assert_eq!(fault("\u{FDD0}"), Err(open.to_owned()));
    }
}
