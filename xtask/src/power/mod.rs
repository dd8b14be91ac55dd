//! `cargo xtask power [ROUNDS]`: a virtual machine whose power is cut amid starts, ends and removals, again and again.
//! What somebody was told before is looked for after each cut: answers, exits, removals, keys, and every event.
//!
//! The disk keeps what it was given, in its order; what the machine's kernel had not given it yet is gone. Not a part of
//! CI, as `kernels` is not.

mod inside;
mod told;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::kernels::{debian, image, machine};
use crate::packages;
use crate::step::{cargo, run, target_dir};

/// The newest that Debian has.
const KERNEL: &str = "6.12";
const ROUNDS: u32 = 8;
/// The state's disk: room for some hundred lives.
const DISK: u64 = 1 << 30;
/// For a machine to begin, which may be an emulated one, and to find again what it knew.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs what `args` ask for; whether all that was told held.
pub fn power(args: &[String]) -> Result<bool> {
    let rounds = match args {
        [] => ROUNDS,
        [flag, share, sexton] if flag == "--inside" => return inside::run(Path::new(share), sexton),
        [rounds] => rounds.parse().with_context(|| format!("`{rounds}` is no number of rounds"))?,
        [..] => bail!("one number of rounds, and nothing else"),
    };
    packages::install()?;
    ensure!(run(cargo(&["build", "--workspace", "--bins"]))?, "the programs were not built");
    let target = target_dir()?;
    let dir = target.join("kernels");
    fs::create_dir_all(&dir)?;
    let archive = debian::Archive::open(&dir.join("apt"))?;
    let busybox = archive.busybox(&dir)?;
    let kernel = archive.kernel(KERNEL, &dir, &busybox)?;
    let script = format!(
        "modprobe -a virtio_blk ext4; mkdir -p /state; mount -t ext4 /dev/vda /state\n\
         '{}' power --inside /share '{}' > /share/said/inside 2>&1\n",
        target.join("debug/xtask").display(),
        target.join("debug/sexton").display(),
    );
    let share = machine::share(&kernel, &script)?;
    let disk = kernel.dir.join("disk");
    make_disk(&disk)?;
    let initramfs = image::make(&kernel, &busybox)?;
    let (mut told, mut wrong) = (0, Vec::new());
    for round in 0..=rounds {
        let began = Instant::now();
        let mut command = machine::describe(Command::new(machine::PROGRAM), &kernel, &initramfs, &share)?;
        command.arg("-drive").arg(format!("file={},if=virtio,format=raw,cache=writeback", disk.display()));
        command.stdout(File::create(share.join("said/console"))?);
        let mut machine = Machine(command.spawn().context(machine::PROGRAM)?);
        machine.looks(&share, round)?;
        (told, wrong) = told::last(&share)?;
        println!("round {round}: of {told} lines told, {} wrong ({:.0} s)", wrong.len(), began.elapsed().as_secs_f64());
        // Each cut comes at another moment.
        std::thread::sleep(Duration::from_millis(500 + u64::from(round) * 611 % 3_000));
    }
    fs::remove_file(&disk)?;
    wrong.iter().filter_map(Value::as_str).for_each(|wrong| println!("WRONG: {wrong}"));
    ensure!(told > u64::from(rounds), "next to nothing was told; see {}", share.join("said").display());
    Ok(wrong.is_empty())
}

/// A machine that runs. Dropped, its power is cut.
struct Machine(Child);

impl Machine {
    /// Waits until it has looked for what was told before this round.
    fn looks(&mut self, share: &Path, round: u32) -> Result<()> {
        let began = Instant::now();
        let said = share.join("said");
        while told::rounds(share) <= usize::try_from(round)? {
            ensure!(self.0.try_wait()?.is_none(), "the machine ended by itself; see {}", said.display());
            ensure!(began.elapsed() < PATIENCE, "the machine is not ready; see {}", said.display());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// An empty file system.
fn make_disk(disk: &Path) -> Result<()> {
    File::create(disk)?.set_len(DISK)?;
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F"]).arg(disk).stdin(Stdio::null());
    ensure!(run(make)?, "mkfs.ext4 failed");
    Ok(())
}
