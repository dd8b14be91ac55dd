//! What this kernel has, found by trying, once.

use std::sync::OnceLock;

use sexton_sys::{Errno, SysError, pidfd, wait};

/// What custody cannot do without, tried on this very process: to hold one process, to signal no other, and to wait for
/// no other.
///
/// # Errors
/// What the kernel, or a filter, refuses.
///
/// # Kernel
/// 5.4.
pub fn required() -> Result<(), SysError> {
    let me = pidfd::open(std::process::id().cast_signed())?;
    pidfd::send_signal(me.raw(), 0)?;
    match wait::peek_pidfd(me.raw()) {
        // Nobody is a child of its own.
        Ok(_) => Ok(()),
        Err(error) if error.errno == Errno::ECHILD => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the inode of a pidfd names one process for the whole boot (pidfs, Linux 6.9). Before, all pidfds share
/// one anonymous inode.
pub fn pidfs() -> bool {
    static PIDFS: OnceLock<bool> = OnceLock::new();
    *PIDFS.get_or_init(|| {
        let me = pidfd::open(std::process::id().cast_signed());
        me.and_then(|me| pidfd::is_pidfs(me.raw())).unwrap_or(false)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_kernel_has_pidfs_where_it_gives_handles() {
        let me = sexton_sys::pidfd::open(i32::try_from(std::process::id()).expect("fits")).expect("pidfd");
        if sexton_sys::pidfd::FileHandle::of(me.raw()).is_ok() {
            assert!(super::pidfs());
        }
    }

    #[test]
    fn this_kernel_has_pidfs_where_inodes_differ() {
        let inode = |pid: u32| {
            let pidfd = sexton_sys::pidfd::open(pid.cast_signed()).expect("pidfd");
            sexton_sys::pidfd::inode(pidfd.raw()).expect("inode")
        };
        assert_eq!(super::pidfs(), inode(std::process::id()) != inode(std::os::unix::process::parent_id()));
    }
}
