//! What is wrong with a row, before its place is added.

/// A fault and what helps.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Fault {
    pub(super) fault: String,
    pub(super) hint: Option<String>,
}

impl Fault {
    pub(super) fn new(fault: impl Into<String>) -> Self {
        Self { fault: fault.into(), hint: None }
    }

    pub(super) fn hinted(fault: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { fault: fault.into(), hint: Some(hint.into()) }
    }
}
