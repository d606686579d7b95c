//! Compiles the kernels with NVRTC to machine code (cubin) for one GPU, and caches it on disk.
//!
//! Never PTX: a driver refuses PTX of a newer toolkit, but runs a cubin of any toolkit of its major version.

use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::libraries;
use super::source::program;
use crate::backend::ComputeDtype;
use crate::checkpoint::replace_bytes;
use crate::{Error, Result};

/// Machine code and the log of the compiler.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The cubin.
    pub cubin: Vec<u8>,
    /// Registers, shared memory and spills of every kernel, as `ptxas -v` prints them.
    pub log: String,
}

/// Registers and spills of one kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of register spills, stores and loads.
    pub spills: u32,
}

impl Compiled {
    /// Registers and spills of each kernel, by name.
    pub fn usage(&self) -> Vec<Usage> {
        let mut all: Vec<Usage> = Vec::new();
        let number = |line: &str, before: &str| -> Option<u32> {
            line.split(before).next()?.split_whitespace().last()?.parse().ok()
        };
        for line in self.log.lines() {
            if let Some(rest) = line.split("Compiling entry function '").nth(1) {
                let kernel = rest.split('\'').next().unwrap_or(rest).to_owned();
                all.push(Usage { kernel, registers: 0, spills: 0 });
            } else if let Some(last) = all.last_mut() {
                if line.contains(" bytes spill stores") {
                    let loads = line.split(", ").last().and_then(|rest| number(rest, " bytes spill loads"));
                    let stores = line.split(", ").nth(1).and_then(|rest| number(rest, " bytes spill stores"));
                    last.spills = loads.unwrap_or(u32::MAX).saturating_add(stores.unwrap_or(u32::MAX));
                } else if line.contains(" registers") && last.registers == 0 {
                    last.registers = number(line, " registers").unwrap_or(0);
                }
            }
        }
        all.sort_by(|a, b| a.kernel.cmp(&b.kernel));
        all
    }
}

/// Major and minor version of NVRTC.
fn version() -> (i32, i32) {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: NVRTC was found with all of its functions; the pointers are to local integers.
    let _ = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    (major, minor)
}

fn fault(what: impl std::fmt::Display) -> Error {
    Error::Device { fault: format!("the kernels do not compile: {what}"), hint: None }
}

/// Compiles all kernels for a GPU such as `sm_90`.
///
/// # Errors
/// [`Error::Device`] with the log of the compiler, or when NVRTC is not found.
pub fn compile(arch: &str, compute_dtype: ComputeDtype) -> Result<Compiled> {
    libraries::require(&[libraries::Needed::Nvrtc])?;
    let source = std::ffi::CString::new(program()).map_err(fault)?;
    let program =
        result::create_program(&source, Some(c"kernels.cu")).map_err(|e| fault(format!("{e:?}")))?;
    let mut options =
        vec![format!("--gpu-architecture={arch}"), "--std=c++17".to_owned(), "--ptxas-options=-v".to_owned()];
    options.extend((compute_dtype == ComputeDtype::Bf16).then(|| "--define-macro=COMPUTE_BF16".to_owned()));
    // SAFETY: the program was just created and lives until the end of this function.
    let done = unsafe { result::compile_program(program, &options) };
    // SAFETY: as above.
    let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
    let log: Vec<u8> = log.into_iter().map(|c| c.to_ne_bytes()[0]).take_while(|c| *c != 0).collect();
    let log = String::from_utf8_lossy(&log).into_owned();
    let cubin = done.and_then(|()| cubin_of(program));
    // SAFETY: as above; nothing uses it after this.
    let _ = unsafe { result::destroy_program(program) };
    let cubin = cubin.map_err(|e| fault(format!("{e:?} for {arch}: {}", log.trim())))?;
    Ok(Compiled { cubin, log })
}

fn cubin_of(program: sys::nvrtcProgram) -> std::result::Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: the program is alive, and the pointer is to a local integer.
    unsafe { sys::nvrtcGetCUBINSize(program, &raw mut size) }.result()?;
    let mut cubin = vec![0u8; size];
    // SAFETY: the buffer has the size that NVRTC asked for.
    unsafe { sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()) }.result()?;
    Ok(cubin)
}

/// The machine code for a GPU: from the cache, or compiled and written to the cache.
///
/// # Errors
/// As [`compile`]. A cache that cannot be read or written is no error: the kernels are compiled again.
pub(super) fn cubin(arch: &str, compute_dtype: ComputeDtype) -> Result<Vec<u8>> {
    libraries::require(&[libraries::Needed::Nvrtc])?;
    let mut hasher = Sha256::new();
    hasher.update(program());
    hasher.update(format!("\n{arch} {compute_dtype:?} {:?}", version()));
    let name: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let path = cache_dir().map(|dir| dir.join(format!("{name}.cubin")));
    if let Some(cubin) = path.as_deref().and_then(read) {
        return Ok(cubin);
    }
    let cubin = compile(arch, compute_dtype)?.cubin;
    if let Some(path) = path {
        // Without a cache, the next run compiles again.
        let _ = write(&path, &cubin);
    }
    Ok(cubin)
}

fn cache_dir() -> Option<PathBuf> {
    if let Some(directory) = libraries::cache_directory() {
        return Some(directory);
    }
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
    Some(cache.join("hft-surgery/kernels"))
}

/// A file of the cache: the SHA-256 of the code, then the code. `None` for one that is damaged.
fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (digest, cubin) = bytes.split_at_checked(32)?;
    (Sha256::digest(cubin).as_slice() == digest).then(|| cubin.to_vec())
}

fn write(path: &Path, cubin: &[u8]) -> Option<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(path)).ok()?;
    replace_bytes(path, false, &[Sha256::digest(cubin).as_slice(), cubin].concat()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_the_compiler_is_read() {
        let log = "ptxas info    : 24 bytes gmem
ptxas info    : Compiling entry function 'swiglu' for 'sm_90'
ptxas info    : Function properties for swiglu
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
ptxas info    : Compiling entry function 'adamw' for 'sm_90'
ptxas info    : Function properties for adamw
ptxas         .     16 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 16 bytes cumulative stack size
";
        let found = Compiled { cubin: Vec::new(), log: log.to_owned() }.usage();
        let usage = |kernel: &str, registers, spills| Usage { kernel: kernel.to_owned(), registers, spills };
        assert_eq!(found, [usage("adamw", 128, 16), usage("swiglu", 32, 0)]);
    }

    #[test]
    fn a_damaged_file_of_the_cache_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernels/a.cubin");
        write(&path, b"code").unwrap();
        assert_eq!(read(&path).as_deref(), Some(&b"code"[..]));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[33] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path), None);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(read(&path), None);
    }
}
