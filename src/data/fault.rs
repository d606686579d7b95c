//! A fault of a row, before file and line are added.

/// A fault and advice.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Fault {
    pub(crate) fault: String,
    pub(crate) hint: Option<String>,
}

impl Fault {
    pub(crate) fn new(fault: impl Into<String>) -> Self {
        Self { fault: fault.into(), hint: None }
    }

    pub(crate) fn hinted(fault: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { fault: fault.into(), hint: Some(hint.into()) }
    }
}
