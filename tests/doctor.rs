//! `doctor`, without a driver and with the stand-ins of `tests/mock_cuda`.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/mock_cuda.rs"]
mod mock_cuda;

use std::path::Path;
use std::process::Output;

use common::hft;
use serde_json::Value;

/// `doctor` with no environment but this.
fn doctor(environment: &[(&str, &str)], json: bool) -> Output {
    let mut command = hft(if json { &["doctor", "--json"] } else { &["doctor"] });
    command.env_clear().env("PATH", "/nonexistent").envs(environment.iter().copied());
    common::output(&mut command)
}

fn parsed(output: &Output) -> Value {
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn mock() -> [(&'static str, &'static str); 1] {
    [("HFT_CUDA_LIBRARIES", mock_cuda::libraries().to_str().unwrap())]
}

#[test]
fn what_is_missing_is_named_with_what_installs_it() {
    let output = doctor(&[], true);
    let found = parsed(&output);
    let libraries = found["libraries"].as_array().unwrap();
    let names: Vec<_> = libraries.iter().map(|library| library["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["driver", "NVRTC", "cuBLASLt"]);
    let missing = found["missing"].as_array().unwrap();
    for library in libraries.iter().filter(|library| library["path"].is_null()) {
        let named = format!("{} not found", library["name"].as_str().unwrap());
        let entry = missing.iter().find(|missing| missing["fault"] == named.as_str()).unwrap();
        assert!(entry["hint"].as_str().unwrap().contains("install"), "{entry}");
        assert!(!library["searched"].as_array().unwrap().is_empty());
    }
    assert_eq!(found["usable"].as_bool().unwrap(), missing.is_empty());
    assert_eq!(output.status.code(), Some(i32::from(!missing.is_empty())));
}

#[test]
fn a_working_card_is_shown_with_its_libraries() {
    let output = doctor(&mock(), true);
    let found = parsed(&output);
    assert_eq!(output.status.code(), Some(0), "{found:#}");
    assert_eq!(found["GPUs"][0]["name"], "mock GPU");
    assert_eq!(found["GPUs"][0]["compute_capability"], "9.0");
    assert_eq!(found["GPUs"][0]["memory"].as_u64(), Some(1 << 34));
    for library in found["libraries"].as_array().unwrap() {
        let version = if library["name"] == "NVRTC" { "13.99" } else { "13.0" };
        assert_eq!(library["version"], version, "{library}");
        assert!(Path::new(library["path"].as_str().unwrap()).starts_with(mock_cuda::libraries()));
    }
    let text = String::from_utf8(doctor(&mock(), false).stdout).unwrap();
    assert!(text.contains("mock GPU") && text.contains("CUDA can be used"), "{text}");
}

#[test]
fn no_card_and_an_old_card_are_told_apart() {
    let with = |name, value| doctor(&[&mock()[..], &[(name, value)]].concat(), true);
    let old = with("MOCK_COMPUTE_CAPABILITY", "75");
    let fault = parsed(&old)["missing"][0]["fault"].as_str().unwrap().to_owned();
    assert_eq!(
        (old.status.code(), fault.as_str()),
        (Some(1), "mock GPU is too old: compute capability 7.5, expected 8.0")
    );
    let none = with("MOCK_NO_DEVICE", "1");
    let fault = parsed(&none)["missing"][0]["fault"].as_str().unwrap().to_owned();
    assert!(none.status.code() == Some(1) && fault.contains("CUDA_ERROR_NO_DEVICE"), "{fault}");
}

#[test]
fn wheels_of_a_python_environment_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let lib = dir.path().join("lib/python3.11/site-packages/nvidia/cu13/lib");
    std::fs::create_dir_all(&lib).unwrap();
    for name in ["libnvrtc.so", "libcublasLt.so"] {
        std::fs::copy(mock_cuda::libraries().join(name), lib.join(name)).unwrap();
    }
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        let found = parsed(&doctor(&[(variable, dir.path().to_str().unwrap())], true));
        let path = |i: usize| found["libraries"][i]["path"].as_str().unwrap_or_default().to_owned();
        assert!(Path::new(&path(1)).starts_with(dir.path()), "{found:#}");
        assert!(Path::new(&path(2)).starts_with(dir.path()), "{found:#}");
    }
}

#[test]
fn a_damaged_library_is_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.cpp");
    std::fs::write(&empty, "int nothing;").unwrap();
    for name in ["libcuda.so", "libnvrtc.so", "libcublasLt.so"] {
        mock_cuda::compile(&empty, &dir.path().join(name), &[]);
    }
    let output = doctor(&[("HFT_CUDA_LIBRARIES", dir.path().to_str().unwrap())], true);
    let found = parsed(&output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(found["missing"][0]["fault"], "driver is damaged or too old: it has no function cuInit");
}
