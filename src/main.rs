//! The `hft-surgery` command: parse, run, report the error, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    hft_surgery::cli::main()
}
