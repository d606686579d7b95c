//! The comparison as a page.

use super::diff_report::DiffReport;
use crate::report::page::page;

impl DiffReport {
    /// The page. Its data is the document of [`DiffReport::json`].
    pub fn html(&self) -> String {
        page(&self.json())
    }
}
