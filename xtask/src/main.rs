//! `cargo xtask`: what developers and CI run. CI runs nothing else.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a developer's command prints")]

mod bench;
mod ci;
mod kernels;
mod packages;
mod power;
mod step;
mod tally;
mod tidy;

use std::process::ExitCode;

use anyhow::{Context, Result};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  ci      install what the tests need (as root), then run every check and every test
  tidy    the rules of this repository that neither rustc nor clippy knows
  bench   what Sexton costs, beside what the same costs without it: [TOPIC…] [--rounds N]
  kernels other Linux kernels, in virtual machines: [VERSION…] [PROGRAM…] [--all]; takes minutes, and the network
  power   a virtual machine whose power is cut amid starts and ends: [ROUNDS]; takes minutes, and the network
  demo    build, and run `sexton demo`";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next();
    let done = match command.as_deref() {
        Some("ci") => ci::run(),
        Some("tidy") => tidy::run(),
        Some("bench") => bench::bench(&args.collect::<Vec<_>>()),
        Some("kernels") => kernels::kernels(&args.collect::<Vec<_>>()),
        Some("power") => power::power(&args.collect::<Vec<_>>()),
        Some("demo") => demo(&args.collect::<Vec<_>>()),
        Some(_) | None => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(args: &[String]) -> Result<bool> {
    let built = step::cargo(&["build", "--bins"]).status().context("cargo build")?;
    if !built.success() {
        return Ok(false);
    }
    let sexton = step::target_dir()?.join("debug/sexton");
    let shown = std::process::Command::new(&sexton).arg("demo").args(args).status();
    Ok(shown.with_context(|| sexton.display().to_string())?.success())
}
