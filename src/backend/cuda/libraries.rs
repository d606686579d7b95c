//! Where the CUDA libraries are: the system's loader, Python environments, toolkits.
//!
//! cudarc opens libraries by name only and panics when one is missing. So they are found and opened here
//! first, by path where the loader does not know them; the loader then gives cudarc the one that is open.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

use crate::{Error, Result};

/// A library that the backend needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needed {
    Driver,
    Nvrtc,
    CublasLt,
}

impl Needed {
    pub(super) const ALL: [Self; 3] = [Self::Driver, Self::Nvrtc, Self::CublasLt];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Nvrtc => "NVRTC",
            Self::CublasLt => "cuBLASLt",
        }
    }

    /// File names in the order in which cudarc tries them.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &["libcuda.so", "libcuda.so.1"],
            Self::Nvrtc => &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"],
            Self::CublasLt => &["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"],
        }
    }

    /// Prefix of the name of a file in the same directory that the library opens by itself.
    fn companion(self) -> Option<&'static str> {
        (self == Self::Nvrtc).then_some("libnvrtc-builtins.so.")
    }

    /// Whether cudarc can open it now.
    fn present(self) -> bool {
        // SAFETY: opening these libraries runs their initializers, which CUDA requires.
        unsafe {
            match self {
                Self::Driver => cudarc::driver::sys::is_culib_present(),
                Self::Nvrtc => cudarc::nvrtc::sys::is_culib_present(),
                Self::CublasLt => cudarc::cublaslt::sys::is_culib_present(),
            }
        }
    }

    /// The functions that this backend calls: cudarc panics where one is missing.
    fn functions(self) -> &'static [&'static str] {
        match self {
            Self::Driver => DRIVER,
            Self::Nvrtc => NVRTC,
            Self::CublasLt => CUBLASLT,
        }
    }

    /// How to install it.
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Driver => {
                "install the NVIDIA driver of the system; in a container, start it with --gpus all"
            }
            Self::Nvrtc => {
                "pip install nvidia-cuda-nvrtc in the active Python environment, or install the CUDA toolkit"
            }
            Self::CublasLt => {
                "pip install nvidia-cublas in the active Python environment, or install the CUDA toolkit"
            }
        }
    }
}

const DRIVER: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuCtxGetCurrent",
    "cuCtxSynchronize",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemAllocAsync",
    "cuMemFree_v2",
    "cuMemFreeAsync",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuMemHostAlloc",
    "cuMemHostGetDevicePointer_v2",
    "cuMemFreeHost",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
];

const NVRTC: &[&str] = &[
    "nvrtcVersion",
    "nvrtcCreateProgram",
    "nvrtcCompileProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
];

const CUBLASLT: &[&str] = &[
    "cublasLtGetVersion",
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmul",
];

/// The result of the search for a library.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) needed: Needed,
    /// Its file; `None` when it was not found.
    pub(super) path: Option<PathBuf>,
    pub(super) searched: Vec<String>,
    /// A required function that it does not export.
    pub(super) lacks: Option<&'static str>,
}

/// Directories that a program sets before the first use of a GPU.
#[derive(Debug, Clone)]
pub struct Directories {
    /// Searched before all others.
    pub libraries: PathBuf,
    /// Cache of compiled kernels.
    pub cache: PathBuf,
}

static DIRECTORIES: OnceLock<Directories> = OnceLock::new();

/// Sets the directories. Only the first call has an effect, and only before the first use of a GPU.
pub fn set_directories(directories: Directories) {
    // The first call decides.
    let _ = DIRECTORIES.set(directories);
}

/// The cache of compiled kernels, when a program has set one.
pub(super) fn cache_directory() -> Option<PathBuf> {
    DIRECTORIES.get().map(|directories| directories.cache.clone())
}

/// The results for all libraries. The search runs once.
pub(super) fn find() -> &'static [Found] {
    static FOUND: OnceLock<Vec<Found>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let search = SearchPath::of_environment();
        Needed::ALL.map(|needed| search.find(needed)).into()
    })
}

/// Checks that these libraries are there, with all their functions.
///
/// # Errors
/// [`Error::Device`] that names the first that is not.
pub(super) fn require(needed: &[Needed]) -> Result<()> {
    let wanted = find().iter().filter(|found| needed.contains(&found.needed));
    match wanted.into_iter().find(|found| found.path.is_none() || found.lacks.is_some()) {
        None => Ok(()),
        Some(found) => {
            let what = if found.path.is_none() { "not found" } else { "damaged or too old" };
            let fault = format!("{}: {what}", found.needed.name());
            Err(Error::Device { fault, hint: Some(format!("{}; see doctor", found.needed.hint())) })
        }
    }
}

/// Directories that may hold libraries, apart from those that the loader knows.
struct SearchPath {
    /// Searched before those of the loader: chosen by the user.
    first: Vec<PathBuf>,
    /// Searched after those of the loader.
    then: Vec<PathBuf>,
}

impl SearchPath {
    fn of_environment() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let mut then = Vec::new();
        for prefix in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).chain(python_prefix())
        {
            then.extend(wheels(&prefix));
            then.push(prefix.join("targets/x86_64-linux/lib"));
            then.push(prefix.join("lib"));
        }
        let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
        for root in toolkits.chain([PathBuf::from("/usr/local/cuda"), PathBuf::from("/opt/cuda")]) {
            then.extend(["lib64", "lib"].map(|below| root.join(below)));
        }
        // The driver inside WSL.
        then.push(PathBuf::from("/usr/lib/wsl/lib"));
        let mut seen = std::collections::HashSet::new();
        then.retain(|dir| seen.insert(dir.clone()));
        let set = DIRECTORIES.get().map(|directories| directories.libraries.clone());
        Self { first: set.into_iter().chain(variable("HFT_CUDA_LIBRARIES")).collect(), then }
    }

    fn find(&self, needed: Needed) -> Found {
        let mut searched = Vec::new();
        let look = |dirs: &[PathBuf], searched: &mut Vec<String>| {
            dirs.iter().find_map(|dir| {
                searched.push(dir.display().to_string());
                open_in(dir, needed)
            })
        };
        let path = look(&self.first, &mut searched).or_else(|| {
            searched.push("the system's loader and LD_LIBRARY_PATH".to_owned());
            needed.present().then(|| mapped(needed)).or_else(|| look(&self.then, &mut searched))
        });
        // That it was opened here is not enough: cudarc must find it too.
        let path = path.filter(|_| needed.present());
        let lacks = path.as_deref().and_then(|path| lacking(path, needed));
        Found { needed, path, searched, lacks }
    }
}

/// The prefix of the Python on the path: the directory above its `bin`.
fn python_prefix() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let python = std::env::split_paths(&path).map(|dir| dir.join("python3")).find(|file| file.is_file())?;
    Some(python.parent()?.parent()?.to_owned())
}

/// Library directories of the `nvidia-*` wheels below a Python prefix.
fn wheels(prefix: &Path) -> Vec<PathBuf> {
    let below = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut dirs: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        dirs.sort();
        dirs
    };
    let is_python =
        |dir: &PathBuf| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"));
    let pythons = below(&prefix.join("lib")).into_iter().filter(is_python);
    // The newest of the wheels first: `cu13` holds those of CUDA 13.
    let packages = pythons.flat_map(|python| below(&python.join("site-packages/nvidia")).into_iter().rev());
    packages.map(|package| package.join("lib")).filter(|lib| lib.is_dir()).collect()
}

/// Opens the library in `dir`, for the life of the process.
fn open_in(dir: &Path, needed: Needed) -> Option<PathBuf> {
    let file = needed.files().iter().map(|name| dir.join(name)).find(|file| file.is_file())?;
    if let Some(prefix) = needed.companion() {
        let entries = std::fs::read_dir(dir).ok()?.flatten();
        let mut beside: Vec<PathBuf> = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .map(|entry| entry.path())
            .collect();
        beside.sort();
        beside.iter().for_each(|file| {
            open(file);
        });
    }
    open(&file).then_some(file)
}

fn open(file: &Path) -> bool {
    // SAFETY: opening a CUDA library runs its initializers, which CUDA requires. It is never closed.
    let library = unsafe { Library::new(file) };
    library.map(std::mem::forget).is_ok()
}

/// The first required function that the open library does not export.
fn lacking(file: &Path, needed: Needed) -> Option<&'static str> {
    // SAFETY: the library is open already; this increments its reference count.
    let library = unsafe { Library::new(file) }.ok()?;
    let has = |name: &str| {
        // SAFETY: the address is compared with null and never called.
        unsafe { library.get::<*const ()>(name) }.is_ok()
    };
    needed.functions().iter().copied().find(|name| !has(name))
}

/// The file of a library that the loader has opened, from `/proc/self/maps`; otherwise its first name.
fn mapped(needed: Needed) -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let files = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let ours = |file: &&Path| {
        let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        // `libcuda.so.580.65.06` is what `libcuda.so.1` links to.
        name.starts_with(needed.files()[0])
    };
    let file = files.into_iter().find(ours).map(Path::to_owned);
    file.unwrap_or_else(|| PathBuf::from(needed.files()[0]))
}
