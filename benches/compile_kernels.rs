//! Compiles every kernel for three generations of GPUs and prints registers and spills. Needs NVRTC, no GPU.
//!
//! Fails when a kernel spills registers, except the attention of heads with more than 128 elements, which exists for
//! completeness and not for speed.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command")]

use std::process::ExitCode;

use hft_surgery::backend::cuda::{ComputeDtype, Usage, compile, signatures};

const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90", "sm_100"];

fn main() -> ExitCode {
    let mut columns = Vec::new();
    for arch in ARCHITECTURES {
        for (compute_dtype, name) in [(ComputeDtype::F32, "f32"), (ComputeDtype::Bf16, "bf16")] {
            match compile(arch, compute_dtype) {
                Ok(compiled) => {
                    columns.push((format!("{arch} {name}"), compiled.cubin.len(), compiled.usage()))
                }
                Err(error) => {
                    eprintln!("error: {arch} {name}: {error}");
                    return ExitCode::from(2);
                }
            }
        }
    }
    println!("registers (+ bytes spilled)");
    print!("{:36}", "kernel");
    columns.iter().for_each(|(name, ..)| print!("{name:>12}"));
    println!();
    let mut faults = Vec::new();
    for kernel in signatures().keys() {
        print!("{kernel:36}");
        for (name, _, usage) in &columns {
            let Some(Usage { registers, spills, .. }) = usage.iter().find(|usage| usage.kernel == *kernel)
            else {
                faults.push(format!("{kernel} is not in the code for {name}"));
                continue;
            };
            let shown = if *spills == 0 { registers.to_string() } else { format!("{registers} (+{spills})") };
            print!("{shown:>12}");
            if *spills > 0 && !kernel.ends_with("_256") {
                faults.push(format!("{kernel} spills {spills} bytes on {name}"));
            }
        }
        println!();
    }
    print!("{:36}", "bytes of code");
    columns.iter().for_each(|(_, bytes, _)| print!("{bytes:>12}"));
    println!();
    faults.iter().for_each(|fault| eprintln!("error: {fault}"));
    ExitCode::from(u8::from(!faults.is_empty()))
}
