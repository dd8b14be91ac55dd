//! A virtual machine over this host's files, and one run of one kernel in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::debian::Kernel;
use super::image;
use super::suite::Programs;
use crate::step::run_and_read;

/// What a machine is run by.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// For all that is run in one machine, after which that is taken for hung.
const PATIENCE: &str = "2h";
/// Megabytes: for tests that fill memory, and the layer over the host's root.
const MEMORY: &str = "2500";

/// Boots `kernel` and runs `programs` there; whether all held.
///
/// # Errors
/// The machine did not come to its end.
pub fn run(kernel: &Kernel, busybox: &Path, programs: &Programs) -> Result<bool> {
    let share = share(kernel, &programs.script())?;
    let mut machine = Command::new("timeout");
    machine.args(["-k", "5", PATIENCE, PROGRAM]);
    let (_, text) = run_and_read(describe(machine, kernel, &image::make(kernel, busybox)?, &share)?)?;
    println!("what each said: {}", share.join("said").display());
    let last = text.lines().rev().find_map(|line| line.trim().strip_prefix("kernels: "));
    match last.and_then(|told| told.strip_suffix(" failed")) {
        Some(failed) => Ok(failed == "0"),
        None => bail!("the machine did not come to its end"),
    }
}

/// What the machine sees as `/share`, and may write to: what it is to do, and a place for what it says.
///
/// # Errors
/// It cannot be written.
pub fn share(kernel: &Kernel, script: &str) -> Result<PathBuf> {
    let share = kernel.dir.join("share");
    if share.exists() {
        fs::remove_dir_all(&share)?;
    }
    fs::create_dir_all(share.join("said"))?;
    fs::write(share.join("guest.sh"), include_str!("guest.sh"))?;
    fs::write(share.join("suite.sh"), script)?;
    Ok(share)
}

/// The machine, as `command`, which ends with the name of [`PROGRAM`], is to begin it.
///
/// # Errors
/// The modules are not there.
pub fn describe(mut command: Command, kernel: &Kernel, initramfs: &Path, share: &Path) -> Result<Command> {
    let modules = fs::canonicalize(&kernel.modules)?;
    let modules = modules.to_str().context("the way to the modules is no text")?;
    command.args(["-accel", if kvm_works() { "kvm" } else { "tcg,thread=multi" }]);
    command.args(["-cpu", "max", "-smp", "2", "-m", MEMORY]);
    command.args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]);
    command.arg("-virtfs").arg(format!("local,path={},mount_tag=share,security_model=none", share.display()));
    command.args(["-nographic", "-nic", "none", "-no-reboot"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    command.arg("-append").arg(format!("console=ttyS0 panic=-1 quiet MODULES={modules}"));
    command.stdin(Stdio::null());
    Ok(command)
}

/// Whether a machine that does nothing lives with it for a second: nested ones may have a `/dev/kvm` of no use.
fn kvm_works() -> bool {
    const TIMED_OUT: Option<i32> = Some(124);
    let mut idle = Command::new("timeout");
    idle.args(["1", PROGRAM, "-accel", "kvm", "-cpu", "max", "-nodefaults", "-display", "none", "-S"]);
    idle.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    idle.status().is_ok_and(|status| status.code() == TIMED_OUT)
}
