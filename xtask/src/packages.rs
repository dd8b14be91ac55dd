//! The programs that the tests run beside our own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::step::{has_program, run};

/// Something from Debian: its package, the program that tells whether it is there, and what needs it.
pub struct Package {
    name: &'static str,
    program: &'static str,
    reason: &'static str,
}

const fn package(name: &'static str, program: &'static str, reason: &'static str) -> Package {
    Package { name, program, reason }
}

/// Everything that a test or a bench runs and that is not ours.
pub const PACKAGES: &[Package] = &[
    package("strace", "strace", "makes chosen system calls fail, and counts wake-ups"),
    package("iproute2", "ip", "the network slots as others see them"),
    package("nftables", "nft", "the rules of the network slots as others see them"),
    package("qemu-system-x86", "qemu-system-x86_64", "a real virtual machine in custody"),
    package("nodejs", "node", "a real event loop beside our reaper"),
    package("npm", "npm", "the package for Node, as users install it"),
    package("make", "make", "the library for C, as users install it"),
    package("pkg-config", "pkg-config", "the library for C, as users find it"),
    package("tini", "tini", "what sexton-init is compared with"),
    package("dumb-init", "dumb-init", "what sexton-init is compared with"),
    package("catatonit", "catatonit", "what sexton-init is compared with"),
    package("s6", "s6-svscan", "what the keeper is compared with"),
    package("python3", "python3", "programs that make threads, sockets and trees of processes"),
    package("python3-pip", "pip3", "the wheel for Python, as users install it"),
    package("systemd-container", "systemd-nspawn", "our unit under a real systemd"),
    package("curl", "curl", "a client of the API that is not ours"),
];

/// Installs what is missing, where we are root. A machine that cannot install goes on: its tests say what they skip.
pub fn install() -> Result<bool> {
    let missing: Vec<&Package> = PACKAGES.iter().filter(|package| !has_program(package.program)).collect();
    if missing.is_empty() {
        println!("nothing is missing");
        return Ok(true);
    }
    for package in &missing {
        println!("missing: {} ({})", package.name, package.reason);
    }
    if !is_root() {
        println!("not root: tests that need them are skipped");
        return Ok(true);
    }
    if !has_program("apt-get") {
        println!("no apt-get here: tests that need them are skipped");
        return Ok(true);
    }
    // A list that cannot be refreshed may still be good enough.
    run(apt(&["update", "-qq"]))?;
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let install = ["install", "-y", "-qq", "--no-install-recommends"];
    if !run(apt(&[&install[..], &names[..]].concat()))? {
        // One that is unknown here must not keep the others away.
        for name in names {
            run(apt(&[&install[..], &[name]].concat()))?;
        }
    }
    for package in missing.iter().filter(|package| !has_program(package.program)) {
        println!("could not install {} (offline?): tests that need it are skipped", package.name);
    }
    Ok(true)
}

/// Bun, from the registry of npm, for Debian has none: below `dir`, once. `None` where that could not be reached.
pub fn bun(dir: &Path) -> Result<Option<PathBuf>> {
    let bun = dir.join("node_modules/.bin/bun");
    let answers = || Command::new(&bun).arg("--version").output().is_ok_and(|told| told.status.success());
    if !answers() && has_program("npm") {
        fs::create_dir_all(dir)?;
        let mut install = Command::new("npm");
        install.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(dir).arg("bun@1");
        run(install)?;
    }
    Ok(answers().then_some(bun))
}

fn apt(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Whether we may install: the owner of what `/proc` shows of ourselves is root.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}
