//! The mocks of the driver, NVRTC and cuBLASLt of `tests/mock_cuda`, built with g++.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses its own part")]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const LIBRARIES: [(&str, &str); 3] = [("driver", "cuda"), ("nvrtc", "nvrtc"), ("cublaslt", "cublasLt")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir` with this ending, by name.
pub fn sources(dir: &str, ending: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(root().join(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == ending))
        .collect();
    files.sort();
    files
}

/// A shared library of `source`.
pub fn compile(source: &Path, out: &Path, options: &[&str]) {
    let name = format!("-Wl,-soname,{}", out.file_name().unwrap().to_str().unwrap());
    let mut command = Command::new("g++");
    // Products and sums are rounded one by one, so that results do not depend on the compiler.
    command.args([
        "-std=c++17",
        "-O2",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-fPIC",
        "-shared",
        "-Wall",
    ]);
    command.args(["-Wno-unknown-pragmas", &name]).args(options).arg(source).arg("-o").arg(out).arg("-ldl");
    let output = command.output().expect("g++ is needed to run kernels on the host");
    assert!(output.status.success(), "{}:\n{}", source.display(), String::from_utf8_lossy(&output.stderr));
}

/// The kernels for the host, one library for each compute dtype.
fn kernels(dir: &Path) {
    use hft_surgery::backend::cuda::{SOURCES, signatures};
    let mut program = format!("#include \"{}\"\n", root().join("tests/mock_cuda/shim.h").display());
    for (name, _) in SOURCES {
        program += &format!("#include \"{}\"\n", root().join("kernels").join(name).display());
    }
    for (name, signature) in signatures() {
        let parameters = signature.parameters.len();
        program += &format!("LAUNCHER({name})\nextern \"C\" const int parameters_{name} = {parameters};\n");
    }
    let source = dir.join("kernels.cpp");
    std::fs::write(&source, program).unwrap();
    compile(&source, &dir.join("libkernels_f32.so"), &[]);
    compile(&source, &dir.join("libkernels_bf16.so"), &["-DCOMPUTE_BF16"]);
}

/// The directory of the libraries, built once for each state of their sources.
pub fn libraries() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        let own = root().join("tests/common/mock_cuda.rs");
        let cu = [sources("kernels", "cu"), sources("kernels", "cuh")].concat();
        let mock = [sources("tests/mock_cuda", "cpp"), sources("tests/mock_cuda", "h")].concat();
        for file in [cu, mock, vec![own]].concat() {
            std::fs::read(file).unwrap().hash(&mut hasher);
        }
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mock-cuda-{:016x}", hasher.finish()));
        if !dir.is_dir() {
            let partial = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            for (source, name) in LIBRARIES {
                let source = root().join(format!("tests/mock_cuda/{source}.cpp"));
                compile(&source, &partial.path().join(format!("lib{name}.so")), &[]);
            }
            kernels(partial.path());
            // Another test may have been faster.
            let _ = std::fs::rename(partial.keep(), &dir);
        }
        dir
    })
}
