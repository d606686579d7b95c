//! The sources of the kernels, and the signatures that are read from them.

use std::collections::BTreeMap;

/// File names and texts, in the order in which they are compiled, as one program.
pub const SOURCES: [(&str, &str); 27] = [
    ("common.cuh", include_str!("../../../kernels/common.cuh")),
    ("mma.cuh", include_str!("../../../kernels/mma.cuh")),
    ("philox.cuh", include_str!("../../../kernels/philox.cuh")),
    ("updates.cuh", include_str!("../../../kernels/updates.cuh")),
    ("adafactor.cu", include_str!("../../../kernels/adafactor.cu")),
    ("adamw.cu", include_str!("../../../kernels/adamw.cu")),
    ("adamw8bit.cu", include_str!("../../../kernels/adamw8bit.cu")),
    ("attention.cu", include_str!("../../../kernels/attention.cu")),
    ("attention_mma.cu", include_str!("../../../kernels/attention_mma.cu")),
    ("bf16_gradient.cu", include_str!("../../../kernels/bf16_gradient.cu")),
    ("cross_entropy.cu", include_str!("../../../kernels/cross_entropy.cu")),
    ("elementwise.cu", include_str!("../../../kernels/elementwise.cu")),
    ("embedding.cu", include_str!("../../../kernels/embedding.cu")),
    ("float8.cu", include_str!("../../../kernels/float8.cu")),
    ("geglu.cu", include_str!("../../../kernels/geglu.cu")),
    ("grouped_product.cu", include_str!("../../../kernels/grouped_product.cu")),
    ("linear.cu", include_str!("../../../kernels/linear.cu")),
    ("lion.cu", include_str!("../../../kernels/lion.cu")),
    ("mask.cu", include_str!("../../../kernels/mask.cu")),
    ("mixture.cu", include_str!("../../../kernels/mixture.cu")),
    ("norm.cu", include_str!("../../../kernels/norm.cu")),
    ("relu_squared.cu", include_str!("../../../kernels/relu_squared.cu")),
    ("rope.cu", include_str!("../../../kernels/rope.cu")),
    ("routes.cu", include_str!("../../../kernels/routes.cu")),
    ("sgd.cu", include_str!("../../../kernels/sgd.cu")),
    ("square_sum.cu", include_str!("../../../kernels/square_sum.cu")),
    ("swiglu.cu", include_str!("../../../kernels/swiglu.cu")),
];

/// The type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterType {
    /// Address of device memory.
    Pointer,
    /// `u32`.
    U32,
    /// `u64`.
    U64,
    /// `float`.
    F32,
}

/// The signature of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Threads of a block, the most that the kernel was compiled for.
    pub threads: u32,
    /// Its parameters, in order.
    pub parameters: Vec<ParameterType>,
}

/// All sources as one program.
pub(super) fn program() -> String {
    SOURCES.iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n")).collect()
}

/// Every kernel by name: `KERNEL(threads) name(parameters)`, also inside the macro `ATTENTION(size, …)`.
pub fn signatures() -> BTreeMap<String, Signature> {
    let mut all = BTreeMap::new();
    for (_, text) in SOURCES {
        let text = text.replace("\\\n", " ");
        let sizes = text.lines().filter_map(|line| line.strip_prefix("ATTENTION("));
        let sizes: Vec<&str> = sizes.filter_map(|rest| rest.split(',').next()).collect();
        for kernel in text.split("KERNEL(").skip(1) {
            let Some((name, signature)) = signature(kernel) else { continue };
            match name.strip_suffix("##name") {
                None => drop(all.insert(name.to_owned(), signature)),
                Some(stem) => {
                    let names = sizes.iter().map(|size| (format!("{stem}{size}"), signature.clone()));
                    all.extend(names);
                }
            }
        }
    }
    all
}

/// Name and signature of `threads) name(parameters)…`; `None` for the definition of the macro.
fn signature(kernel: &str) -> Option<(&str, Signature)> {
    let (threads, rest) = kernel.split_once(')')?;
    let threads = threads.parse().ok()?;
    let (name, rest) = rest.split_once('(')?;
    let (parameters, _) = rest.split_once(')')?;
    let parameter_type = |parameter: &str| match parameter.split_whitespace().next() {
        _ if parameter.contains('*') => Some(ParameterType::Pointer),
        Some("u32") => Some(ParameterType::U32),
        Some("u64") => Some(ParameterType::U64),
        Some("float") => Some(ParameterType::F32),
        _ => None,
    };
    let parameters = parameters.split(',').map(parameter_type).collect::<Option<_>>()?;
    Some((name.trim(), Signature { threads, parameters }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_read() {
        let found = signatures();
        let written: usize = SOURCES.iter().map(|(_, text)| text.matches("KERNEL(").count()).sum();
        // Without the definition of the macro. Three kernels are built in four ways each, three others in two.
        assert_eq!(found.len(), written - 1 + 3 * 3 + 3);
        use ParameterType::{F32, Pointer, U32};
        let expected = vec![Pointer, Pointer, U32, F32, F32, Pointer, Pointer, Pointer];
        assert_eq!(found["norm_forward"], Signature { threads: 256, parameters: expected });
        assert!(found.contains_key("attention_backward_key_128"));
    }

    #[test]
    fn every_file_opens_with_the_same_lines() {
        for (name, text) in SOURCES.iter().filter(|(name, _)| name.ends_with(".cu")) {
            let lines: Vec<&str> = text.lines().take(6).collect();
            let stem = name.trim_end_matches(".cu");
            assert!(lines.iter().all(|line| line.starts_with("// ")), "{name}");
            assert!(lines[0].starts_with(&format!("// {stem}: ")), "{name}");
            for (line, word) in [(3, "source: "), (4, "CPU twin: "), (5, "launch: ")] {
                assert!(lines[line].contains(word), "{name}: line {} has no `{word}`", line + 1);
            }
            let twin = lines[4].trim_start_matches("// CPU twin: ").split(", ");
            for path in twin {
                assert!(
                    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path).is_file(),
                    "{name}: {path}"
                );
            }
        }
    }
}
