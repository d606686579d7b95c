//! What a machine offers for computing on a GPU, and what is missing.

use std::path::PathBuf;

/// One library that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibraryReport {
    /// What it is for: "driver", "NVRTC", "cuBLASLt".
    pub name: &'static str,
    /// The file that was loaded; `None` where there is none.
    pub path: Option<PathBuf>,
    /// Its version, where it tells.
    pub version: Option<String>,
    /// Where it was looked for, in this order.
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

/// Something that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What is wrong.
    pub fault: String,
    /// What helps.
    pub hint: String,
}

/// All of it.
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

/// Looks for everything that the CUDA backend needs.
pub fn diagnose() -> Diagnosis {
    #[cfg(feature = "cuda")]
    return super::cuda::diagnose();
    #[cfg(not(feature = "cuda"))]
    Diagnosis {
        missing: vec![Missing {
            fault: "this build has no CUDA backend".to_owned(),
            hint: "build it with --features cuda".to_owned(),
        }],
        ..Diagnosis::default()
    }
}
