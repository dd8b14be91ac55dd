//! Files and directories, always by descriptor and relative name.

use core::ffi::CStr;

use crate::arch::{nr, syscall};
use crate::error::{Errno, SysError};
use crate::fd::{Fd, RawFd, opened, word};
use crate::strings::number;

/// Names are relative to the working directory (`openat(2)`).
pub const AT_FDCWD: RawFd = -100;

/// How to open (`open(2)`); every descriptor is opened with `O_CLOEXEC` besides.
#[allow(missing_docs, reason = "named as in open(2)")]
pub mod flags {
    pub const RDONLY: i32 = 0;
    pub const WRONLY: i32 = 1;
    pub const RDWR: i32 = 2;
    pub const CREAT: i32 = 0o100;
    pub const EXCL: i32 = 0o200;
    pub const NOCTTY: i32 = 0o400;
    pub const TRUNC: i32 = 0o1000;
    pub const APPEND: i32 = 0o2000;
    pub const NONBLOCK: i32 = 0o4000;
    pub const PATH: i32 = 0o10_000_000;
    pub(crate) const CLOEXEC: i32 = 0o2_000_000;
    #[cfg(target_arch = "x86_64")]
    pub const DIRECTORY: i32 = 0o200_000;
    #[cfg(target_arch = "x86_64")]
    pub const NOFOLLOW: i32 = 0o400_000;
    #[cfg(target_arch = "aarch64")]
    pub const DIRECTORY: i32 = 0o40_000;
    #[cfg(target_arch = "aarch64")]
    pub const NOFOLLOW: i32 = 0o100_000;
    /// A file without a name, in the directory that is opened.
    pub const TMPFILE: i32 = 0o20_000_000 | DIRECTORY;
}

/// Opens `path` below `dir`; `mode` counts where a file is made.
///
/// # Errors
/// As `openat(2)`.
pub fn open(dir: RawFd, path: &CStr, flags: i32, mode: u32) -> Result<Fd, SysError> {
    let args = [word(dir), path.as_ptr() as usize, word(flags | flags::CLOEXEC), mode as usize];
    loop {
        // SAFETY: the kernel reads one C string.
        match unsafe { syscall(nr::OPENAT, args) } {
            Err(Errno::EINTR) => {}
            ret => return ret.map(opened).map_err(|errno| SysError::of(c"openat", errno)),
        }
    }
}

/// Makes directory `path` below `dir`.
///
/// # Errors
/// As `mkdirat(2)`.
pub fn mkdir(dir: RawFd, path: &CStr, mode: u32) -> Result<(), SysError> {
    // SAFETY: the kernel reads one C string.
    let ret = unsafe { syscall(nr::MKDIRAT, [word(dir), path.as_ptr() as usize, mode as usize]) };
    done(c"mkdirat", ret)
}

/// Gives the file behind `fd`, which was opened without a name (`O_TMPFILE`), the name `path` below `dir`; what it
/// holds is there from the first moment on.
///
/// # Errors
/// As `linkat(2)`: `EEXIST` where the name is taken.
pub fn link_unnamed(fd: RawFd, dir: RawFd, path: &CStr) -> Result<(), SysError> {
    const AT_SYMLINK_FOLLOW: usize = 0x400;
    let source = fd_path(fd);
    let args = [word(AT_FDCWD), source.as_ptr() as usize, word(dir), path.as_ptr() as usize, AT_SYMLINK_FOLLOW];
    // SAFETY: the kernel reads two C strings; `fd_path` ends with NULs.
    let ret = unsafe { syscall(nr::LINKAT, args) };
    done(c"linkat", ret)
}

/// `/proc/self/fd/N`, with NULs behind it.
fn fd_path(fd: RawFd) -> [u8; 32] {
    let mut path = [0; 32];
    let prefix = b"/proc/self/fd/";
    let mut digits = [0_u8; 10];
    let mut rest = fd.unsigned_abs();
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        // A digit fits a byte.
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        used += 1;
        if rest == 0 {
            break;
        }
    }
    let number = digits.iter().skip(digits.len() - used);
    for (place, byte) in path.iter_mut().zip(prefix.iter().chain(number)) {
        *place = *byte;
    }
    path
}

/// Removes the name `path` below `dir`.
///
/// # Errors
/// As `unlinkat(2)`.
pub fn unlink(dir: RawFd, path: &CStr) -> Result<(), SysError> {
    remove(dir, path, 0)
}

/// Removes the empty directory `path` below `dir`.
///
/// # Errors
/// As `unlinkat(2)` with `AT_REMOVEDIR`.
pub fn rmdir(dir: RawFd, path: &CStr) -> Result<(), SysError> {
    const AT_REMOVEDIR: usize = 0x200;
    remove(dir, path, AT_REMOVEDIR)
}

/// `unlinkat(2)`.
fn remove(dir: RawFd, path: &CStr, flags: usize) -> Result<(), SysError> {
    // SAFETY: the kernel reads one C string.
    let ret = unsafe { syscall(nr::UNLINKAT, [word(dir), path.as_ptr() as usize, flags]) };
    done(c"unlinkat", ret)
}

/// Renames `from` to `to`, both below `dir`, atomically replacing what was there.
///
/// # Errors
/// As `renameat2(2)`.
pub fn rename(dir: RawFd, from: &CStr, to: &CStr) -> Result<(), SysError> {
    rename_by(dir, from, to, 0)
}

/// Exchanges `one` and `other`, both below `dir`, in one step: each name has what the other had.
///
/// # Errors
/// As `renameat2(2)` with `RENAME_EXCHANGE`: `ENOENT` where one is missing, `EINVAL` where the file system cannot.
pub fn exchange(dir: RawFd, one: &CStr, other: &CStr) -> Result<(), SysError> {
    const RENAME_EXCHANGE: usize = 2;
    rename_by(dir, one, other, RENAME_EXCHANGE)
}

/// `renameat2(2)`.
fn rename_by(dir: RawFd, from: &CStr, to: &CStr, flags: usize) -> Result<(), SysError> {
    let args = [word(dir), from.as_ptr() as usize, word(dir), to.as_ptr() as usize, flags];
    // SAFETY: the kernel reads two C strings.
    let ret = unsafe { syscall(nr::RENAMEAT2, args) };
    done(c"renameat2", ret)
}

/// Reads the target of the symbolic link `path` below `dir` into `buffer`: what fits of it.
///
/// # Errors
/// As `readlinkat(2)`.
pub fn readlink<'a>(dir: RawFd, path: &CStr, buffer: &'a mut [u8]) -> Result<&'a [u8], SysError> {
    let args = [word(dir), path.as_ptr() as usize, buffer.as_mut_ptr() as usize, buffer.len()];
    // SAFETY: the kernel reads one C string and writes at most `len` bytes into `buffer`.
    let ret = unsafe { syscall(nr::READLINKAT, args) };
    let len = ret.map_err(|errno| SysError::of(c"readlinkat", errno))?;
    buffer.get(..len).ok_or(SysError::of(c"readlinkat", Errno::EIO))
}

/// Reads at `offset` into `buffer`; 0 is the end.
///
/// # Errors
/// As `pread(2)`.
pub fn read_at(fd: RawFd, buffer: &mut [u8], offset: u64) -> Result<usize, SysError> {
    let args = [word(fd), buffer.as_mut_ptr() as usize, buffer.len(), register(offset)];
    loop {
        // SAFETY: the kernel writes at most `len` bytes into `buffer`.
        match unsafe { syscall(nr::PREAD64, args) } {
            Err(Errno::EINTR) => {}
            ret => return ret.map_err(|errno| SysError::about(c"pread64", fd, errno)),
        }
    }
}

/// Writes what the kernel takes of `bytes` at `offset`.
///
/// # Errors
/// As `pwrite(2)`.
pub fn write_at(fd: RawFd, bytes: &[u8], offset: u64) -> Result<usize, SysError> {
    let args = [word(fd), bytes.as_ptr() as usize, bytes.len(), register(offset)];
    loop {
        // SAFETY: the kernel reads at most `len` bytes of `bytes`.
        match unsafe { syscall(nr::PWRITE64, args) } {
            Err(Errno::EINTR) => {}
            ret => return ret.map_err(|errno| SysError::about(c"pwrite64", fd, errno)),
        }
    }
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// As `pwrite(2)`; `EIO` where the kernel takes nothing.
pub fn write_all_at(fd: RawFd, mut bytes: &[u8], mut offset: u64) -> Result<(), SysError> {
    while !bytes.is_empty() {
        let written = write_at(fd, bytes, offset)?;
        bytes = match bytes.get(written..) {
            Some(rest) if written > 0 => rest,
            Some(_) | None => return Err(SysError::about(c"pwrite64", fd, Errno::EIO)),
        };
        offset += written as u64;
    }
    Ok(())
}

/// Sets the file's length.
///
/// # Errors
/// As `ftruncate(2)`.
pub fn truncate(fd: RawFd, len: u64) -> Result<(), SysError> {
    // SAFETY: touches no memory.
    done(c"ftruncate", unsafe { syscall(nr::FTRUNCATE, [word(fd), register(len)]) })
}

/// Waits until the file's data, and what is needed to read it back, are on the disk.
///
/// # Errors
/// As `fdatasync(2)`; after one, what was not yet written is lost to the page cache too.
pub fn sync_data(fd: RawFd) -> Result<(), SysError> {
    // SAFETY: touches no memory.
    done(c"fdatasync", unsafe { syscall(nr::FDATASYNC, [word(fd)]) })
}

/// Waits until the file or directory is on the disk, with all that is known about it.
///
/// # Errors
/// As `fsync(2)`.
pub fn sync(fd: RawFd) -> Result<(), SysError> {
    // SAFETY: touches no memory.
    done(c"fsync", unsafe { syscall(nr::FSYNC, [word(fd)]) })
}

/// Gives back the blocks of `len` bytes from `offset` on; they read as zeroes, and offsets stay what they were.
///
/// # Errors
/// `EOPNOTSUPP` where the file system cannot.
pub fn punch_hole(fd: RawFd, offset: u64, len: u64) -> Result<(), SysError> {
    const KEEP_SIZE_PUNCH_HOLE: usize = 1 | 2;
    let args = [word(fd), KEEP_SIZE_PUNCH_HOLE, register(offset), register(len)];
    // SAFETY: touches no memory.
    done(c"fallocate", unsafe { syscall(nr::FALLOCATE, args) })
}

/// Keeps blocks for the first `len` bytes, beyond the end of the file too, whose length stays what it is.
///
/// # Errors
/// `ENOSPC`; `EOPNOTSUPP` where the file system cannot.
pub fn reserve(fd: RawFd, len: u64) -> Result<(), SysError> {
    const KEEP_SIZE: usize = 1;
    // SAFETY: touches no memory.
    done(c"fallocate", unsafe { syscall(nr::FALLOCATE, [word(fd), KEEP_SIZE, 0, register(len)]) })
}

/// The first offset from `offset` on that is not in a hole; `None` where only holes follow.
///
/// # Errors
/// As `lseek(2)` with `SEEK_DATA`.
pub fn seek_data(fd: RawFd, offset: u64) -> Result<Option<u64>, SysError> {
    const SEEK_DATA: usize = 3;
    // SAFETY: touches no memory.
    match unsafe { syscall(nr::LSEEK, [word(fd), register(offset), SEEK_DATA]) } {
        Ok(found) => Ok(Some(found as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(SysError::about(c"lseek", fd, errno)),
    }
}

/// Whether `fd` is closed by `execve(2)`.
///
/// # Errors
/// `EBADF` where it is not open.
pub fn set_close_on_exec(fd: RawFd, close: bool) -> Result<(), SysError> {
    const F_SETFD: usize = 2;
    // SAFETY: touches no memory.
    done(c"fcntl", unsafe { syscall(nr::FCNTL, [word(fd), F_SETFD, close.into()]) })
}

/// Closes every open descriptor from `first` on: for a program that starts, and has opened nothing yet. What has an owner
/// in this process must not be closed under it.
///
/// # Errors
/// As of `openat(2)`, where neither the call nor `/proc` is to be had.
///
/// # Kernel
/// 5.9 (`close_range(2)`); before, and where a filter refuses it, they are found in `/proc/self/fd`.
pub fn close_from(first: RawFd) -> Result<(), SysError> {
    close_range(first, RawFd::MAX)
}

/// As [`close_from`], and no higher than `last`.
pub(crate) fn close_range(first: RawFd, last: RawFd) -> Result<(), SysError> {
    // SAFETY: touches no memory.
    match unsafe { syscall(nr::CLOSE_RANGE, [word(first), word(last), 0]) } {
        Ok(_) => Ok(()),
        Err(_) => close_listed(first, last),
    }
}

/// Closes one by one who is listed in `/proc/self/fd`, where the kernel finds its place by number, whatever is closed
/// meanwhile.
fn close_listed(first: RawFd, last: RawFd) -> Result<(), SysError> {
    let list = open(AT_FDCWD, c"/proc/self/fd", flags::RDONLY | flags::DIRECTORY, 0)?;
    let mut space = [0; 1024];
    while read_dir(list.raw(), &mut space, |entry| {
        let fd = number(entry.name.to_bytes()).map(u32::cast_signed);
        if let Some(fd) = fd.filter(|fd| (first..=last).contains(fd) && *fd != list.raw()) {
            drop(Fd::from_raw(fd));
        }
    })? {}
    Ok(())
}

/// A second descriptor, at least 3, of the same open file.
///
/// # Errors
/// `EBADF`, `EMFILE`.
pub fn duplicate(fd: RawFd) -> Result<Fd, SysError> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    // SAFETY: touches no memory.
    let ret = unsafe { syscall(nr::FCNTL, [word(fd), F_DUPFD_CLOEXEC, 3]) };
    ret.map(opened).map_err(|errno| SysError::about(c"fcntl", fd, errno))
}

/// Makes the number `over`, which stays its owner's, name the same open file as `fd`; what it named before is closed.
///
/// This is how a descriptor that was inherited or received becomes one of the standard library's, which has no safe
/// way to take a bare number.
///
/// # Errors
/// `EBADF`; `EINVAL` where both are the same number.
pub fn duplicate_over(fd: RawFd, over: RawFd) -> Result<(), SysError> {
    const O_CLOEXEC: usize = 0o2_000_000;
    // SAFETY: touches no memory.
    let ret = unsafe { syscall(nr::DUP3, [word(fd), word(over), O_CLOEXEC]) };
    ret.map(|_| ()).map_err(|errno| SysError::about(c"dup3", fd, errno))
}

/// What kind of file a directory entry is, where the file system says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// Something else, or not said.
    Other,
}

/// One name in a directory, never `.` or `..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a CStr,
    /// Its inode number.
    pub ino: u64,
    /// What it is.
    pub kind: FileKind,
}

/// Reads the next names of directory `fd` into `buffer` and calls `each` for every one; `false` at the end.
///
/// # Errors
/// As `getdents64(2)`; `EINVAL` where `buffer` cannot hold one name (1 KiB always can).
pub fn read_dir(fd: RawFd, buffer: &mut [u8], mut each: impl FnMut(DirEntry<'_>)) -> Result<bool, SysError> {
    // SAFETY: the kernel writes at most `len` bytes into `buffer`.
    let ret = unsafe { syscall(nr::GETDENTS64, [word(fd), buffer.as_mut_ptr() as usize, buffer.len()]) };
    let len = ret.map_err(|errno| SysError::about(c"getdents64", fd, errno))?;
    let mut rest = buffer.get(..len).unwrap_or_default();
    while let Some((entry, after)) = split_entry(rest) {
        if !matches!(entry.name.to_bytes(), b"." | b"..") {
            each(entry);
        }
        rest = after;
    }
    Ok(len > 0)
}

/// The first record of what `getdents64` wrote, and what follows it.
fn split_entry(bytes: &[u8]) -> Option<(DirEntry<'_>, &[u8])> {
    let (ino, rest) = bytes.split_first_chunk::<8>()?;
    let (_offset, rest) = rest.split_first_chunk::<8>()?;
    let (record_len, rest) = rest.split_first_chunk::<2>()?;
    let (kind, name) = rest.split_first()?;
    let name = CStr::from_bytes_until_nul(name).ok()?;
    let kind = match kind {
        4 => FileKind::Directory,
        8 => FileKind::Regular,
        10 => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let after = bytes.get(usize::from(u16::from_ne_bytes(*record_len))..)?;
    Some((DirEntry { name, ino: u64::from_ne_bytes(*ino), kind }, after))
}

/// A file offset as a register.
fn register(offset: u64) -> usize {
    // Both machines have 64-bit registers.
    offset as usize
}

/// A call that tells nothing but success.
fn done(call: &'static CStr, ret: Result<usize, Errno>) -> Result<(), SysError> {
    ret.map(|_| ()).map_err(|errno| SysError::of(call, errno))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::ffi::CString;
    use std::string::ToString;
    use std::vec::Vec;

    fn scratch(name: &str) -> (std::path::PathBuf, Fd) {
        let path = std::env::temp_dir().join(std::format!("sexton-sys-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let c = CString::new(path.to_str().unwrap()).unwrap();
        let dir = open(AT_FDCWD, &c, flags::RDONLY | flags::DIRECTORY, 0).unwrap();
        (path, dir)
    }

    #[test]
    fn a_file_is_written_renamed_listed_and_removed() {
        let (path, dir) = scratch("file");
        let file = open(dir.raw(), c"a", flags::RDWR | flags::CREAT | flags::EXCL, 0o600).unwrap();
        write_all_at(file.raw(), b"hello", 3).unwrap();
        sync_data(file.raw()).unwrap();
        let mut buffer = [9_u8; 8];
        assert_eq!(read_at(file.raw(), &mut buffer, 0), Ok(8));
        assert_eq!(&buffer, b"\0\0\0hello");
        truncate(file.raw(), 4).unwrap();
        assert_eq!(read_at(file.raw(), &mut buffer, 0), Ok(4));
        rename(dir.raw(), c"a", c"b").unwrap();
        mkdir(dir.raw(), c"d", 0o700).unwrap();
        let mut names = Vec::new();
        let mut space = [0_u8; 1024];
        while read_dir(dir.raw(), &mut space, |entry| {
            names.push((entry.name.to_str().unwrap().to_string(), entry.kind))
        })
        .unwrap()
        {}
        names.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(names, [("b".to_string(), FileKind::Regular), ("d".to_string(), FileKind::Directory)]);
        unlink(dir.raw(), c"b").unwrap();
        assert_eq!(unlink(dir.raw(), c"b").unwrap_err().errno, Errno::ENOENT);
        rmdir(dir.raw(), c"d").unwrap();
        std::fs::remove_dir(path).unwrap();
    }

    #[test]
    fn a_hole_reads_as_zeroes_and_data_is_found_behind_it() {
        let (path, dir) = scratch("hole");
        let file = open(dir.raw(), c"h", flags::RDWR | flags::CREAT, 0o600).unwrap();
        for block in 0..4_u64 {
            write_all_at(file.raw(), &[7; 4096], block * 4096).unwrap();
        }
        punch_hole(file.raw(), 0, 8192).unwrap();
        assert_eq!(seek_data(file.raw(), 0), Ok(Some(8192)));
        assert_eq!(seek_data(file.raw(), 20_000), Ok(None));
        std::fs::remove_dir_all(path).unwrap();
    }
}
