//! `cargo xtask kernels [VERSION…] [PROGRAM…] [--all]`: Sexton on other kernels, each in a virtual machine whose root is
//! this host's, read-only below a layer in memory, with mounts propagated and all controllers in one cgroup2, as under
//! systemd. A test program is named as the runs name it, `sexton.slots`.
//!
//! Not a part of CI: it needs the network and many minutes, for the machine is emulated where there is no KVM. So what a
//! test waits for a bounded time may be late: [`suite`] says what is left out for that.

pub mod debian;
pub mod image;
pub mod machine;
mod suite;

use std::fs;

use anyhow::{Result, bail};

use self::suite::Wanted;
use crate::packages;
use crate::step::{step, target_dir};

/// What is in use out there, and has a kernel of Debian's; 5.15, 6.6 and 6.8 are other people's.
const USUAL: [&str; 3] = ["5.10", "6.1", "6.12"];

/// Runs what `args` ask for; whether all of it held on all of the kernels.
pub fn kernels(args: &[String]) -> Result<bool> {
    let (flags, named): (Vec<&str>, Vec<&str>) = args.iter().map(String::as_str).partition(|arg| arg.starts_with('-'));
    if let Some(unknown) = flags.iter().find(|flag| **flag != "--all") {
        bail!("`{unknown}` is not known: `--all` runs every test program");
    }
    let (programs, mut versions): (Vec<&str>, Vec<&str>) =
        named.into_iter().partition(|name| name.starts_with("sexton"));
    if let Some(unknown) = versions.iter().find(|version| !version.starts_with(|first: char| first.is_ascii_digit())) {
        bail!("`{unknown}` is neither a version such as 6.12 nor a test program such as `sexton.slots`");
    }
    let wanted = match (programs.is_empty(), flags.is_empty()) {
        (false, true) => Wanted::These(programs),
        (false, false) => bail!("`--all` runs every test program, so none is named"),
        (true, true) => Wanted::Usual,
        (true, false) => Wanted::All,
    };
    if versions.is_empty() {
        versions.extend(USUAL);
    }
    packages::install()?;
    let dir = target_dir()?.join("kernels");
    fs::create_dir_all(&dir)?;
    let programs = suite::build(&wanted)?;
    let archive = debian::Archive::open(&dir.join("apt"))?;
    let busybox = archive.busybox(&dir)?;
    let mut held = true;
    for version in versions {
        held &= step(&format!("Linux {version}"), || {
            let kernel = archive.kernel(version, &dir, &busybox)?;
            machine::run(&kernel, &busybox, &programs)
        });
    }
    Ok(held)
}
