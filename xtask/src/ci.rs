//! Everything that must hold, in the order in which it is cheapest to find out.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::step::{self, cargo, cargo_for_images, has_program, root, run_and_read, step, target_dir};
use crate::tally::{self, Tally};
use crate::{packages, tidy};

/// Where tests append one line for each that could not run here (`sexton_testkit::skip!`).
const SKIPS: &str = "SEXTON_TEST_SKIPS";
/// Where the crash tests find the daemon with its crash points.
const CRASH_BIN_DIR: &str = "SEXTON_TEST_CRASH_BIN_DIR";

/// Where the tests of the bindings find a Bun.
const BUN: &str = "SEXTON_TEST_BUN";

/// A check that is a harness of its own.
type Check = fn() -> Result<bool>;

/// Reads what a harness said.
type Reader = fn(&str) -> Tally;

/// Runs it all; whether everything held.
fn run_checks(tally: &mut Tally) -> Result<bool> {
    step("packages", packages::install);
    let checks: [(&str, Check); 6] =
        [("fmt", fmt), ("tidy", tidy::run), ("clippy", clippy), ("doc", doc), ("stub", stub), ("build", build)];
    for (name, check) in checks {
        let held = step(name, check);
        tally.count(held);
        if !held {
            return Ok(false);
        }
    }
    let held = step("test", || test(tally));
    Ok(held && tally.failed == 0)
}

/// Runs it all, and prints a last line that says how many checks and tests held.
pub fn run() -> Result<bool> {
    let mut tally = Tally::default();
    let held = run_checks(&mut tally);
    println!("{tally}");
    held
}

fn fmt() -> Result<bool> {
    run_cargo(&["fmt", "--all", "--check"])
}

fn clippy() -> Result<bool> {
    let mut for_images = cargo_for_images(&["clippy", "--all-targets"])?;
    for_images.args(["--", "-D", "warnings"]);
    Ok(run_cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])? && step::run(for_images)?)
}

fn doc() -> Result<bool> {
    let mut command = cargo(&["doc", "--no-deps", "--workspace", "--document-private-items", "--quiet"]);
    // The pages are for developers, private items included, so a link to one leads somewhere.
    command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links");
    step::run(command)
}

/// The library must compile where it is a stub: off Linux, shown here by a build flag.
fn stub() -> Result<bool> {
    if !fs::read_to_string(root().join("crates/sexton-core/src/lib.rs"))?.contains("sexton_stub") {
        println!("sexton-core has no stub");
        return Ok(true);
    }
    let mut command = cargo(&["check", "--package", "sexton-core"]);
    command.env("RUSTFLAGS", "--cfg sexton_stub -D warnings");
    command.arg("--target-dir").arg(target_dir()?.join("stub"));
    step::run(command)
}

/// The programs, twice: with crash points for the fault tests, put aside, and then as they are released. The second
/// build overwrites the first, and both share every dependency. And `sexton-init` once more, for images.
fn build() -> Result<bool> {
    let target = target_dir()?;
    if !run_cargo(&["build", "--workspace", "--bins", "--features", "sexton/crash-points"])? {
        return Ok(false);
    }
    let aside = target.join("crash-points");
    fs::create_dir_all(&aside)?;
    for program in ["sexton", "sexton-init"] {
        put_aside(&target.join("debug").join(program), &aside.join(program))?;
    }
    Ok(run_cargo(&["build", "--workspace", "--bins"])? && step::run(cargo_for_images(&["build"])?)?)
}

/// Copies a program; by a new file, for an old one may be running.
fn put_aside(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    fs::copy(from, &new).with_context(|| from.display().to_string())?;
    fs::rename(&new, to).with_context(|| to.display().to_string())
}

fn test(tally: &mut Tally) -> Result<bool> {
    let target = target_dir()?;
    let skips = target.join("skips");
    fs::write(&skips, "")?;
    let bun = packages::bun(&target.join("bun"))?;
    let with_env = |args: &[&str]| {
        let mut command = cargo(args);
        command.env(SKIPS, &skips).env(CRASH_BIN_DIR, target.join("crash-points"));
        command.envs(bun.iter().map(|bun| (BUN, bun)));
        command
    };
    let has_nextest = has_program("cargo-nextest");
    let (harness, reader): (&[&str], Reader) = if has_nextest {
        (&["nextest", "run", "--no-fail-fast", "--color=never"], tally::of_nextest)
    } else {
        (&["test", "--no-fail-fast"], tally::of_libtest)
    };
    let for_images = cargo_for_images(&[harness, &["--test", "entry_point"]].concat())?;
    let mut runs = vec![(with_env(&[harness, &["--workspace"]].concat()), reader), (for_images, reader)];
    if has_nextest {
        runs.push((with_env(&["test", "--workspace", "--doc", "--quiet"]), tally::of_libtest));
    }
    let mut held = true;
    for (command, reader) in runs {
        let (succeeded, text) = run_and_read(command)?;
        tally.add(succeeded, reader(&text));
        held &= succeeded;
    }
    let skipped = fs::read_to_string(&skips)?;
    print!("{skipped}");
    tally.skip(skipped.lines().count());
    Ok(held)
}

fn run_cargo(args: &[&str]) -> Result<bool> {
    step::run(cargo(args))
}

#[cfg(test)]
mod tests {
    #[test]
    fn ci_runs_what_the_readme_says() {
        let script = std::fs::read_to_string(crate::step::root().join(".ci/run")).unwrap();
        assert!(script.contains("cargo xtask ci"), "{script}");
    }
}
