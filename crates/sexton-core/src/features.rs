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
        let mine = i32::try_from(std::process::id()).unwrap_or_default();
        let inode = |pid: i32| pidfd::open(pid).and_then(|fd| pidfd::inode(fd.raw())).ok();
        let other = if mine == 1 { 2 } else { 1 };
        match (inode(mine), inode(other)) {
            (Some(mine), Some(other)) => mine != other,
            // Alone in a namespace: a file handle on a pidfd exists only with pidfs.
            (Some(_), None) => pidfd::open(mine).is_ok_and(|fd| pidfd::FileHandle::of(fd.raw()).is_ok()),
            (None, _) => false,
        }
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
}
