//! The findings of `doctor`, as text and as JSON.

use serde_json::{Value, json};

use super::number::bytes;
use super::table::{table, text};
use crate::backend::Diagnosis;
use crate::error::Escaped;

/// Libraries, GPUs, and what to install.
///
/// `bf16`: the CPU's instructions for products in bfloat16.
pub fn doctor_text(found: &Diagnosis, threads: usize, bf16: Option<&str>) -> String {
    let bf16_text = match bf16 {
        Some(name) => format!("--compute-dtype bfloat16 by {name}"),
        None => "no instructions for --compute-dtype bfloat16".to_owned(),
    };
    let mut out = format!("CPU: {threads} threads, {bf16_text}\n");
    if !found.libraries.is_empty() {
        let mut rows = table(&["library", ">version", "file"]);
        for library in &found.libraries {
            let path = library.path.as_ref().map_or("not found".to_owned(), |path| Escaped(path).to_string());
            rows.add_row([library.name, library.version.as_deref().unwrap_or("-"), &path]);
        }
        out += &format!("\n{}", text(&rows));
    }
    if !found.gpus.is_empty() {
        let mut rows = table(&["GPU", ">compute capability", ">memory"]);
        for gpu in &found.gpus {
            let (major, minor) = gpu.compute_capability;
            rows.add_row([gpu.name.clone(), format!("{major}.{minor}"), bytes(gpu.memory)]);
        }
        out += &format!("\n{}", text(&rows));
    }
    if found.usable() {
        return out + "\nCUDA can be used: --device cuda\n";
    }
    out += "\nCUDA cannot be used:\n";
    for missing in &found.missing {
        out += &format!("- {}\n  {}\n", missing.fault, missing.hint);
    }
    for library in found.libraries.iter().filter(|library| library.path.is_none()) {
        out += &format!("\n{} was looked for in\n", library.name);
        library.searched.iter().for_each(|path| out += &format!("  {path}\n"));
    }
    out
}

/// The same for programs.
pub fn doctor_json(found: &Diagnosis, threads: usize, bf16: Option<&str>) -> Value {
    let libraries = found.libraries.iter().map(|library| {
        let (name, version, searched) = (library.name, &library.version, &library.searched);
        json!({"name": name, "path": library.path, "version": version, "searched": searched})
    });
    let gpus = found.gpus.iter().map(|gpu| {
        let (major, minor) = gpu.compute_capability;
        json!({"name": gpu.name, "compute_capability": format!("{major}.{minor}"), "memory": gpu.memory})
    });
    let missing = found.missing.iter().map(|missing| json!({"fault": missing.fault, "hint": missing.hint}));
    json!({
        "usable": found.usable(),
        "cpu_threads": threads,
        "cpu_bfloat16": bf16,
        "libraries": libraries.collect::<Vec<_>>(),
        "GPUs": gpus.collect::<Vec<_>>(),
        "missing": missing.collect::<Vec<_>>(),
    })
}
