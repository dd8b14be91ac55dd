//! Mount namespaces, and pins: a pidfd attached to a file, so that the kernel keeps its exit status.

use core::ffi::CStr;

use crate::arch::{nr, syscall};
use crate::error::SysError;
use crate::fd::{Fd, RawFd, opened, word};

const AT_FDCWD: i32 = -100;
const AT_EMPTY_PATH: usize = 0x1000;

/// Gives the calling thread a mount namespace and a file-system context (root, working directory) of its own
/// (`unshare(2)`).
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn unshare_mounts() -> Result<(), SysError> {
    const CLONE_FS_NEWNS: usize = 0x200 | 0x2_0000;
    // SAFETY: changes what paths mean to this thread; no memory is touched.
    let unshared = unsafe { syscall(nr::UNSHARE, [CLONE_FS_NEWNS]) };
    unshared.map(|_| ()).map_err(|errno| SysError::of(c"unshare", errno))
}

/// Gives the calling thread a file-system context of its own, so that it alone may change namespace.
fn unshare_fs() -> Result<(), SysError> {
    const CLONE_FS: usize = 0x200;
    // SAFETY: changes what paths mean to this thread; no memory is touched.
    let unshared = unsafe { syscall(nr::UNSHARE, [CLONE_FS]) };
    unshared.map(|_| ()).map_err(|errno| SysError::of(c"unshare", errno))
}

/// Takes the calling thread, and no other of its process, into the mount namespace behind `fd` (`setns(2)`).
///
/// # Errors
/// `EINVAL` for another kind of descriptor, `EPERM` without `CAP_SYS_ADMIN`.
pub fn enter(fd: RawFd) -> Result<(), SysError> {
    const CLONE_NEWNS: usize = 0x2_0000;
    unshare_fs()?;
    // SAFETY: changes what paths mean to this thread; no memory is touched.
    let entered = unsafe { syscall(nr::SETNS, [word(fd), CLONE_NEWNS]) };
    entered.map(|_| ()).map_err(|errno| SysError::about(c"setns", fd, errno))
}

/// What [`mount`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind<'a> {
    /// Shows a file or directory at a second place.
    Bind(&'a CStr),
    /// A new, empty file system in memory.
    Tmpfs,
    /// Shows a directory, with all that is mounted below, at a second place.
    BindAll(&'a CStr),
    /// Takes a mount, with all below, out of propagation.
    Private,
    /// Has what is mounted at and below a mount appear, and vanish, wherever it was copied to.
    Shared,
}

/// Mounts at `target` (`mount(2)`).
///
/// # Errors
/// As `mount(2)`.
pub fn mount(kind: MountKind<'_>, target: &CStr) -> Result<(), SysError> {
    const MS_BIND: usize = 4096;
    const MS_BIND_REC: usize = 4096 | 0x4000;
    const MS_REC_PRIVATE: usize = 0x4000 | 0x4_0000;
    const MS_REC_SHARED: usize = 0x4000 | 0x10_0000;
    const MS_NOSUID_NODEV_NOEXEC: usize = 2 | 4 | 8;
    let (source, fstype, flags) = match kind {
        MountKind::Bind(source) => (source, c"none", MS_BIND),
        MountKind::BindAll(source) => (source, c"none", MS_BIND_REC),
        MountKind::Tmpfs => (c"sexton", c"tmpfs", MS_NOSUID_NODEV_NOEXEC),
        MountKind::Private => (c"none", c"none", MS_REC_PRIVATE),
        MountKind::Shared => (c"none", c"none", MS_REC_SHARED),
    };
    let args = [source.as_ptr() as usize, target.as_ptr() as usize, fstype.as_ptr() as usize, flags, 0];
    // SAFETY: the kernel reads three strings up to their NUL.
    let mounted = unsafe { syscall(nr::MOUNT, args) };
    mounted.map(|_| ()).map_err(|errno| SysError::of(c"mount", errno))
}

/// Takes the topmost mount at `target` away, at once for paths and for good when it is no longer used.
///
/// # Errors
/// `EINVAL` where nothing is mounted there, `ENOENT`.
pub fn unmount(target: &CStr) -> Result<(), SysError> {
    const MNT_DETACH_NOFOLLOW: usize = 2 | 8;
    // SAFETY: the kernel reads one string up to its NUL.
    let unmounted = unsafe { syscall(nr::UMOUNT2, [target.as_ptr() as usize, MNT_DETACH_NOFOLLOW]) };
    unmounted.map(|_| ()).map_err(|errno| SysError::of(c"umount2", errno))
}

/// Takes the topmost mount at `target` away, unless it is in use or something is mounted below it.
///
/// # Errors
/// `EBUSY`; `EINVAL` where nothing is mounted there, `ENOENT`.
pub fn unmount_unused(target: &CStr) -> Result<(), SysError> {
    const UMOUNT_NOFOLLOW: usize = 8;
    // SAFETY: the kernel reads one string up to its NUL.
    let unmounted = unsafe { syscall(nr::UMOUNT2, [target.as_ptr() as usize, UMOUNT_NOFOLLOW]) };
    unmounted.map(|_| ()).map_err(|errno| SysError::of(c"umount2", errno))
}

/// Attaches what `fd` refers to onto the file `target` of the calling thread's mount namespace
/// (`open_tree(2)`, `move_mount(2)`; for a pidfd Linux 6.9).
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `ENOSPC` beyond `fs.mount-max`.
pub fn attach(fd: RawFd, target: &CStr) -> Result<(), SysError> {
    const OPEN_TREE_CLONE_CLOEXEC: usize = 1 | 0o2_000_000;
    const MOVE_MOUNT_F_EMPTY_PATH: usize = 4;
    let empty = c"".as_ptr() as usize;
    let args = [word(fd), empty, OPEN_TREE_CLONE_CLOEXEC | AT_EMPTY_PATH];
    // SAFETY: the kernel reads one empty string.
    let tree = unsafe { syscall(nr::OPEN_TREE, args) };
    let tree = tree.map(opened).map_err(|errno| SysError::about(c"open_tree", fd, errno))?;
    let onto = target.as_ptr() as usize;
    let args = [word(tree.raw()), empty, word(AT_FDCWD), onto, MOVE_MOUNT_F_EMPTY_PATH];
    // SAFETY: the kernel reads two strings up to their NUL.
    let moved = unsafe { syscall(nr::MOVE_MOUNT, args) };
    moved.map(|_| ()).map_err(|errno| SysError::about(c"move_mount", fd, errno))
}

/// Opens `path` as the calling thread sees it, for reading, without following a link at its end; opening a pin gives
/// the pidfd back.
///
/// # Errors
/// As `openat(2)`.
pub fn open(path: &CStr) -> Result<Fd, SysError> {
    const O_RDONLY_CLOEXEC_NOFOLLOW: usize = 0o2_000_000 | 0o400_000;
    let args = [word(AT_FDCWD), path.as_ptr() as usize, O_RDONLY_CLOEXEC_NOFOLLOW, 0];
    // SAFETY: the kernel reads one string up to its NUL.
    let fd = unsafe { syscall(nr::OPENAT, args) };
    fd.map(opened).map_err(|errno| SysError::of(c"openat", errno))
}

/// Makes the calling thread's working directory the root of its mount namespace, and lets go of everything that was
/// mounted there before (`pivot_root(2)` with both arguments `.`).
///
/// # Errors
/// `EINVAL` where the working directory is no mount point, or the namespace propagates to another.
pub fn keep_only_working_directory() -> Result<(), SysError> {
    let here = c".".as_ptr() as usize;
    // SAFETY: the kernel reads one string twice.
    let pivoted = unsafe { syscall(nr::PIVOT_ROOT, [here, here]) };
    pivoted.map_err(|errno| SysError::of(c"pivot_root", errno))?;
    unmount(c".")
}

/// Changes the calling thread's working directory (`chdir(2)`); the whole process's, unless the thread has a
/// file-system context of its own.
///
/// # Errors
/// As `chdir(2)`.
pub fn change_directory(path: &CStr) -> Result<(), SysError> {
    // SAFETY: the kernel reads one string up to its NUL.
    let changed = unsafe { syscall(nr::CHDIR, [path.as_ptr() as usize]) };
    changed.map(|_| ()).map_err(|errno| SysError::of(c"chdir", errno))
}
