//! The first file system of the machine: busybox, the modules by which it reaches the host's, and `init.sh`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::debian::Kernel;

/// What of the kernel is needed before its modules can be read from the host; the rest comes on demand.
pub const FIRST: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Makes it, beside the kernel.
///
/// # Errors
/// Something is missing, or the disk is full.
pub fn make(kernel: &Kernel, busybox: &Path) -> Result<PathBuf> {
    let root = kernel.dir.join("initramfs");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let modules = root.join("lib/modules").join(&kernel.release);
    for dir in ["bin", "proc", "sys", "dev", "host", "layer"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(busybox, root.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    let table = fs::read_to_string(kernel.modules.join("modules.dep"))?;
    for file in needed(&table) {
        let to = modules.join(file);
        fs::create_dir_all(to.parent().context("a module lies in a directory")?)?;
        fs::copy(kernel.modules.join(file), to)?;
    }
    fs::write(modules.join("modules.dep"), &table)?;
    // What busybox would otherwise complain of.
    for empty in ["modules.builtin", "modules.alias", "modules.symbols"] {
        fs::write(modules.join(empty), "")?;
    }
    let init = root.join("init");
    fs::write(&init, include_str!("init.sh"))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let image = kernel.dir.join("initramfs.cpio");
    let mut pack = Command::new(busybox);
    pack.args(["sh", "-c", "find . | \"$0\" cpio -o -H newc 2>/dev/null"]).arg(busybox);
    let packed = pack.current_dir(&root).stdin(Stdio::null()).stdout(File::create(&image)?).status()?;
    ensure!(packed.success(), "cpio failed");
    Ok(image)
}

/// The files of [`FIRST`] and of all that these need, by `modules.dep`; what is built in is not there.
fn needed(table: &str) -> BTreeSet<&str> {
    let is_first = |file: &str| {
        let name = file.rsplit('/').next().unwrap_or(file);
        FIRST.iter().any(|first| name.strip_prefix(first).is_some_and(|rest| rest.starts_with(".ko")))
    };
    let lines = table.lines().filter_map(|line| line.split_once(':')).filter(|(file, _)| is_first(file));
    lines.flat_map(|(file, others)| std::iter::once(file).chain(others.split_ascii_whitespace())).collect()
}

#[cfg(test)]
mod tests {
    use super::needed;

    #[test]
    fn a_module_comes_with_all_that_it_needs_and_nothing_else() {
        let table = "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n\
                     kernel/net/9p/9pnet_rdma.ko.xz: kernel/net/9p/9pnet.ko.xz\n\
                     kernel/fs/overlayfs/overlay.ko:\nkernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\n";
        let expected = [
            "kernel/fs/9p/9p.ko.xz",
            "kernel/fs/netfs/netfs.ko.xz",
            "kernel/fs/overlayfs/overlay.ko",
            "kernel/net/9p/9pnet.ko.xz",
        ];
        assert_eq!(needed(table).into_iter().collect::<Vec<_>>(), expected);
    }
}
