//! The report of `doctor`: CUDA libraries, GPUs, and what is missing to compute on one.

use std::path::PathBuf;

/// The result of the search for one library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibraryReport {
    /// "driver", "NVRTC" or "cuBLASLt".
    pub name: &'static str,
    /// The file that was loaded; `None` when it was not found.
    pub path: Option<PathBuf>,
    /// Its version; `None` when the library does not report one.
    pub version: Option<String>,
    /// The directories that were searched, in this order.
    pub searched: Vec<String>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Compute capability: major and minor.
    pub compute_capability: (i32, i32),
    /// Bytes of its memory.
    pub memory: u64,
}

/// A reason why no GPU can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The fault.
    pub fault: String,
    /// How to remove it.
    pub hint: String,
}

/// The whole report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// The libraries.
    pub libraries: Vec<LibraryReport>,
    /// The GPUs that the driver lists.
    pub gpus: Vec<Gpu>,
    /// Empty when CUDA can be used.
    pub missing: Vec<Missing>,
}

impl Diagnosis {
    /// Whether training can run on a GPU.
    pub fn usable(&self) -> bool {
        self.missing.is_empty()
    }
}
