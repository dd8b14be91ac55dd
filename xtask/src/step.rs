//! Running one command of a longer list, and saying how it went.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

/// The root of the workspace: as `cargo run` tells it, for a checkout may have been moved since this was built.
pub fn root() -> PathBuf {
    let built = || env!("CARGO_MANIFEST_DIR").into();
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(built, PathBuf::from).join("..")
}

/// The cargo that runs us, at the root of the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Cargo on `sexton-init` as images get it: as it is released, without the keeper, and in a place of its own, for beside
/// `sexton` belongs the whole one.
pub fn cargo_for_images(args: &[&str]) -> Result<Command> {
    let mut command = cargo(args);
    command.args(["--package", "sexton-keeper", "--no-default-features", "--release", "--target-dir"]);
    command.arg(for_images()?);
    Ok(command)
}

/// Where that builds.
pub fn for_images() -> Result<PathBuf> {
    Ok(target_dir()?.join("images"))
}

/// Where cargo builds.
pub fn target_dir() -> Result<PathBuf> {
    let told = metadata()?;
    Ok(told.get("target_directory").and_then(|dir| dir.as_str()).context("cargo metadata names no target")?.into())
}

/// What cargo says of the workspace.
pub fn metadata() -> Result<serde_json::Value> {
    let out = cargo(&["metadata", "--format-version", "1", "--no-deps"]).stderr(Stdio::inherit()).output()?;
    serde_json::from_slice(&out.stdout).context("cargo metadata")
}

/// Announces `name`, runs `work`, and tells how it ended and how long it took. An error is told and counts as failed.
pub fn step(name: &str, work: impl FnOnce() -> Result<bool>) -> bool {
    println!("== {name}");
    let began = Instant::now();
    let held = work().unwrap_or_else(|error| {
        println!("{name}: {error:#}");
        false
    });
    println!("== {name}: {} in {:.1} s", if held { "ok" } else { "FAILED" }, began.elapsed().as_secs_f64());
    held
}

/// Runs `command` to its end; whether it succeeded.
pub fn run(mut command: Command) -> Result<bool> {
    command.status().map(|status| status.success()).with_context(|| format!("{command:?}"))
}

/// Runs `command` with its output, both streams as one, shown as it comes; tells whether it succeeded and what it
/// printed.
pub fn run_and_read(mut command: Command) -> Result<(bool, String)> {
    let (reader, writer) = std::io::pipe()?;
    let mut child =
        command.stdout(writer.try_clone()?).stderr(writer).spawn().with_context(|| format!("{command:?}"))?;
    // The writing ends in `command` would keep the pipe open after the child's end.
    drop(command);
    let mut text = String::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        text.push_str(&line);
        text.push('\n');
    }
    std::io::stdout().flush()?;
    Ok((child.wait()?.success(), text))
}

/// Whether a program of that name is in the `PATH`, or where Debian keeps root's programs.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| std::path::Path::new(dir).join(name).is_file())
}
