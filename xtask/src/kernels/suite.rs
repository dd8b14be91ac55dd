//! What is run in the machine: the programs as this host built them, which see its files under the same paths.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::step::{cargo, run, target_dir};

/// The crates whose tests ask a kernel.
const CRATES: [&str; 5] = ["sexton-sys", "sexton-core", "sexton-keeper", "sexton-ledger", "sexton"];

/// By default: a program, and those of its tests that emulation makes late. The promises, in what ten minutes can hold.
/// Left out are loads (`exits`, `crash`, `reuse`, `reaper_load`, `entry_point`, `keeper`) and `lacking`, which plays what
/// these kernels are.
const USUAL: &[(&str, &[&str])] = &[
    ("sexton-core.spawn", &[]),
    ("sexton-core.pins", &[]),
    ("sexton-core.sweep", &[]),
    ("sexton-core.sweep_inactive", &[]),
    ("sexton-core.tree", &[]),
    ("sexton-core.look", &[]),
    ("sexton-core.reaper", &[]),
    ("sexton-core.reaper_no_descriptors", &[]),
    // It waits for thousands to be removed.
    ("sexton.custody", &["who_makes_thousands_of_cgroups_keeps_nobody_waiting"]),
    ("sexton.adopt", &[]),
    ("sexton.lives", &[]),
    ("sexton.nocgroup", &[]),
    ("sexton.unwritable", &[]),
];

const NONE: &[&str] = &[];

/// Which of the test programs.
#[derive(Debug)]
pub enum Wanted<'a> {
    /// What says most in minutes.
    Usual,
    /// What was named, whole.
    These(Vec<&'a str>),
    /// Every one, whole.
    All,
}

/// How many seconds one program may take; what is emulated takes its time.
const USUAL_PATIENCE: u32 = 300;
const ALL_PATIENCE: u32 = 1_800;

/// The programs to run.
#[derive(Debug)]
pub struct Programs {
    sexton: String,
    tests: Vec<Test>,
    patience: u32,
}

#[derive(Debug)]
struct Test {
    name: String,
    program: String,
    /// Where cargo would have started it.
    dir: String,
    left_out: &'static [&'static str],
}

/// Builds them.
///
/// # Errors
/// Something does not compile, or there is no program of that name.
pub fn build(wanted: &Wanted<'_>) -> Result<Programs> {
    // The whole workspace, as CI builds it: what that has left is taken as it is.
    ensure!(run(cargo(&["build", "--workspace", "--bins"]))?, "the programs were not built");
    let mut command = cargo(&["test", "--workspace", "--no-run", "--message-format=json"]);
    let out = command.stderr(Stdio::inherit()).output().context("cargo test")?;
    ensure!(out.status.success(), "the tests were not built");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let built: Vec<Test> = text.lines().filter_map(|line| test(&serde_json::from_str(line).ok()?)).collect();
    let (tests, patience) = match wanted {
        Wanted::Usual => (take(built, USUAL)?, USUAL_PATIENCE),
        Wanted::These(names) => {
            let whole: Vec<_> = names.iter().map(|name| (*name, NONE)).collect();
            (take(built, &whole)?, ALL_PATIENCE)
        }
        Wanted::All => (built, ALL_PATIENCE),
    };
    let sexton = target_dir()?.join("debug/sexton").display().to_string();
    Ok(Programs { sexton, tests, patience })
}

/// What cargo says of a program that it built for testing.
fn test(message: &Value) -> Option<Test> {
    let text = |key: &str| message.pointer(key).and_then(Value::as_str).map(str::to_owned);
    let program = text("/executable").filter(|_| message.pointer("/profile/test") == Some(&Value::Bool(true)))?;
    let manifest = text("/manifest_path")?;
    let dir = manifest.strip_suffix("/Cargo.toml")?;
    let package = dir.rsplit('/').next().filter(|name| CRATES.contains(name))?;
    let name = format!("{package}.{}", text("/target/name")?);
    Some(Test { name, program, dir: dir.to_owned(), left_out: NONE })
}

/// Of each of those names the program, without the tests that are left out of it.
fn take(mut built: Vec<Test>, wanted: &[(&str, &'static [&'static str])]) -> Result<Vec<Test>> {
    let take = |(name, left_out): &(&str, &'static [&'static str])| {
        let at = built.iter().position(|test| test.name == *name).with_context(|| format!("there is no `{name}`"))?;
        Ok(Test { left_out, ..built.swap_remove(at) })
    };
    wanted.iter().map(take).collect()
}

impl Programs {
    /// The lines that `guest.sh` reads.
    pub fn script(&self) -> String {
        let sexton = &self.sexton;
        let mut lines = vec![
            format!("EACH={}", self.patience),
            format!("try doctor '{sexton}' doctor"),
            format!("try demo '{sexton}' demo"),
        ];
        for test in &self.tests {
            let skips = test.left_out.iter().map(|name| format!(" --skip {name}")).collect::<String>();
            lines.push(format!("cd '{}'; try {} '{}' --color=never{skips}", test.dir, test.name, test.program));
        }
        lines.join("\n") + "\n"
    }
}
