//! The program `sexton`: CLI and node daemon in one.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    sexton::cli::main()
}
