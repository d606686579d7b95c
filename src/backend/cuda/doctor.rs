//! Finds out whether a GPU can be used, and if not, why.

use cudarc::driver::{result, sys};

use super::libraries::{Found, Needed, find};
use crate::backend::{Diagnosis, Gpu, LibraryReport, Missing};

/// The least compute capability that the kernels are written for: Ampere.
pub(super) const OLDEST: (i32, i32) = (8, 0);

/// Looks for the libraries and the GPUs. No context is created on a GPU.
pub fn diagnose() -> Diagnosis {
    let mut missing = Vec::new();
    let mut versions = Vec::new();
    let mut libraries = Vec::new();
    for Found { needed, path, searched, lacks } in find() {
        let whole = path.is_some() && lacks.is_none();
        let version = whole.then(|| version(*needed)).flatten();
        if path.is_none() {
            let fault = format!("{} not found", needed.name());
            missing.push(Missing { fault, hint: needed.hint().to_owned() });
        } else if let Some(function) = lacks {
            let fault = format!("{} is damaged or too old: it has no function {function}", needed.name());
            missing.push(Missing { fault, hint: needed.hint().to_owned() });
        } else if version.is_none() {
            let fault = format!("{} does not tell its version", needed.name());
            missing.push(Missing { fault, hint: needed.hint().to_owned() });
        }
        let text = version.map(|(major, minor)| format!("{major}.{minor}"));
        versions.push(version);
        let (name, path, searched) = (needed.name(), path.clone(), searched.clone());
        libraries.push(LibraryReport { name, path, version: text, searched });
    }
    if let [Some(driver), Some(nvrtc), ..] = versions[..]
        && nvrtc.0 > driver.0
    {
        let fault = format!(
            "NVRTC is of CUDA {}, but the driver knows CUDA up to {}.{}",
            nvrtc.0, driver.0, driver.1
        );
        let hint = format!(
            "update the driver, or pip install nvidia-cuda-nvrtc-cu{0} nvidia-cublas-cu{0}",
            driver.0
        );
        missing.push(Missing { fault, hint });
    }
    let gpus = if versions.first().is_some_and(Option::is_some) { gpus(&mut missing) } else { Vec::new() };
    Diagnosis { libraries, gpus, missing }
}

/// Major and minor version.
fn version(of: Needed) -> Option<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    match of {
        Needed::Driver => {
            // SAFETY: the library is open, and the pointer is to a local integer.
            let code = unsafe { sys::cuDriverGetVersion(&raw mut major) };
            code.result().ok().map(|()| (major / 1000, major % 1000 / 10))
        }
        Needed::Nvrtc => {
            // SAFETY: as above.
            let code = unsafe { cudarc::nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) };
            code.result().ok().map(|()| (major, minor))
        }
        Needed::CublasLt => {
            // SAFETY: as above; the function takes nothing.
            let version = unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() };
            // 130000 is 13.0; CUDA 11 and 12 count 120501 as well.
            i32::try_from(version).ok().map(|v| (v / 10_000, v / 100 % 100))
        }
    }
}

fn gpus(missing: &mut Vec<Missing>) -> Vec<Gpu> {
    let hint = "nvidia-smi should list the GPU; after an update of the driver, restart the machine";
    let gpus = match list() {
        Ok(gpus) => gpus,
        Err(fault) => {
            missing.push(Missing { fault, hint: hint.to_owned() });
            return Vec::new();
        }
    };
    if gpus.is_empty() {
        missing.push(Missing { fault: "the driver lists no GPU".to_owned(), hint: hint.to_owned() });
    } else if let Some(gpu) = gpus.first().filter(|gpu| gpu.compute_capability < OLDEST) {
        let ((major, minor), (least, _)) = (gpu.compute_capability, OLDEST);
        let fault =
            format!("{} is too old: compute capability {major}.{minor}, expected {least}.0", gpu.name);
        let hint = "use an Ampere GPU or a later one (A100, RTX 3000), or --device cpu".to_owned();
        missing.push(Missing { fault, hint });
    }
    gpus
}

fn list() -> Result<Vec<Gpu>, String> {
    use sys::CUdevice_attribute as Attribute;
    let fault = |e: result::DriverError| format!("the driver does not start: {}", describe(e.0));
    result::init().map_err(fault)?;
    let count = result::device::get_count().map_err(fault)?;
    let gpu = |ordinal| {
        let device = result::device::get(ordinal)?;
        // SAFETY: the driver has just returned this device.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        // SAFETY: as above.
        let memory = unsafe { result::device::total_mem(device) }? as u64;
        Ok(Gpu { name: result::device::get_name(device)?, compute_capability: (major, minor), memory })
    };
    (0..count).map(gpu).collect::<Result<_, _>>().map_err(fault)
}

/// The name of a result in the header of the driver, such as `CUDA_ERROR_OUT_OF_MEMORY`.
pub(super) fn describe(code: sys::CUresult) -> String {
    format!("{code:?}")
}
