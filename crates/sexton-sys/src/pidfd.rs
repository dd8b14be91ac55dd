//! Processes by descriptor: open, identify, reopen, signal, and read how they ended.

use crate::arch::{nr, syscall};
use crate::error::{Errno, SysError};
use crate::fd::{Fd, RawFd, opened, word};
use crate::file::flags;

const AT_EMPTY_PATH: usize = 0x1000;

/// Opens a pidfd on whatever process `pid` names now (`pidfd_open(2)`, Linux 5.3).
///
/// # Errors
/// `ESRCH` where there is none, `EINVAL` for a thread that leads no process.
pub fn open(pid: i32) -> Result<Fd, SysError> {
    // SAFETY: touches no memory.
    let fd = unsafe { syscall(nr::PIDFD_OPEN, [word(pid), 0]) };
    fd.map(opened).map_err(|errno| SysError::about(c"pidfd_open", pid, errno))
}

/// Sends `signal` (0 only asks) to exactly that process (`pidfd_send_signal(2)`, Linux 5.1).
///
/// # Errors
/// `ESRCH` once it has been reaped, `EPERM`.
pub fn send_signal(pidfd: RawFd, signal: i32) -> Result<(), SysError> {
    // SAFETY: a null `siginfo` lets the kernel fill one in.
    let sent = unsafe { syscall(nr::PIDFD_SEND_SIGNAL, [word(pidfd), word(signal), 0, 0]) };
    sent.map(|_| ()).map_err(|errno| SysError::about(c"pidfd_send_signal", pidfd, errno))
}

/// Inode of what a descriptor refers to (`fstat(2)`, which no kernel lacks and no filter refuses, as some do `statx`).
///
/// # Errors
/// As `fstat(2)`.
pub fn inode(fd: RawFd) -> Result<u64, SysError> {
    // `struct stat` has 144 bytes on x86-64 and 128 on arm64; device and inode are the first 16 on both.
    let mut stat = [0_u64; 18];
    // SAFETY: the kernel writes one `struct stat`.
    let told = unsafe { syscall(nr::FSTAT, [word(fd), stat.as_mut_ptr() as usize]) };
    told.map_err(|errno| SysError::about(c"fstat", fd, errno))?;
    let [_device, ino, ..] = stat;
    Ok(ino)
}

/// Whether a pidfd is one of pidfs (`statfs(2)`, `PID_FS_MAGIC`; Linux 6.9), whose inodes each name one process for the
/// whole boot. Before, all pidfds share one anonymous inode.
///
/// # Errors
/// As `fstatfs(2)`.
pub fn is_pidfs(pidfd: RawFd) -> Result<bool, SysError> {
    const PID_FS_MAGIC: u64 = 0x5049_4446;
    // `struct statfs` has 120 bytes on both machines, of which the type is the first 8.
    let mut statfs = [0_u64; 15];
    // SAFETY: the kernel writes one `struct statfs`.
    let told = unsafe { syscall(nr::FSTATFS, [word(pidfd), statfs.as_mut_ptr() as usize]) };
    told.map_err(|errno| SysError::about(c"fstatfs", pidfd, errno))?;
    let [kind, ..] = statfs;
    Ok(kind == PID_FS_MAGIC)
}

/// What `PIDFD_GET_INFO` tells (Linux 6.13; exit status from 6.15), each where the kernel's mask says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PidfdFacts {
    /// Its PID in the caller's namespace; `None` once reaped, 0 where it lies outside that namespace.
    pub pid: Option<i32>,
    /// Its parent's PID in the caller's namespace.
    pub ppid: Option<i32>,
    /// The 64-bit id of its cgroup2, also after the reap.
    pub cgroup_id: Option<u64>,
    /// The status word of `wait(2)`, only after the parent has reaped it.
    pub wait_word: Option<i32>,
}

/// `struct pidfd_info` in its first published size (`include/uapi/linux/pidfd.h`).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}

/// Reads what the kernel tells of the process behind `pidfd`.
///
/// # Errors
/// `ENOTTY`/`EINVAL` where the kernel lacks the call; `ESRCH` for a reaped one that told nothing.
pub fn facts(pidfd: RawFd) -> Result<PidfdFacts, SysError> {
    const PIDFD_GET_INFO: usize = 0xc040_ff0b;
    const PID: u64 = 1;
    const CGROUP_ID: u64 = 4;
    const EXIT: u64 = 8;
    let mut info = PidfdInfo { mask: PID | CGROUP_ID | EXIT, ..PidfdInfo::default() };
    // SAFETY: the request's size, 64 bytes, is that of `PidfdInfo`, which the kernel reads and writes.
    let told = unsafe { syscall(nr::IOCTL, [word(pidfd), PIDFD_GET_INFO, (&raw mut info) as usize]) };
    told.map_err(|errno| SysError::about(c"pidfd_get_info", pidfd, errno))?;
    let alive = info.mask & PID != 0;
    Ok(PidfdFacts {
        pid: alive.then_some(info.tgid.cast_signed()),
        ppid: alive.then_some(info.ppid.cast_signed()),
        cgroup_id: (info.mask & CGROUP_ID != 0).then_some(info.cgroup_id),
        // The code reads 0 until the bit says that it is one.
        wait_word: (info.mask & EXIT != 0).then_some(info.exit_code),
    })
}

/// A kernel file handle (`name_to_handle_at(2)`): type and up to 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHandle {
    kind: i32,
    len: usize,
    bytes: [u8; FileHandle::ROOM],
}

/// The kernel's `struct file_handle` with room for what pidfs and cgroup2 give.
#[repr(C)]
struct RawHandle {
    len: u32,
    kind: i32,
    bytes: [u8; FileHandle::ROOM],
}

impl FileHandle {
    const ROOM: usize = 16;

    /// The handle of what `fd` refers to; for a pidfd from Linux 6.14.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the file system has none.
    pub fn of(fd: RawFd) -> Result<FileHandle, SysError> {
        let mut raw = RawHandle { len: FileHandle::ROOM as u32, kind: 0, bytes: [0; FileHandle::ROOM] };
        let mut mount_id = 0i32;
        let (raw_at, mount_at) = ((&raw mut raw) as usize, (&raw mut mount_id) as usize);
        let args = [word(fd), c"".as_ptr() as usize, raw_at, mount_at, AT_EMPTY_PATH];
        // SAFETY: the kernel writes at most `len` bytes behind the header, and one mount id.
        let told = unsafe { syscall(nr::NAME_TO_HANDLE_AT, args) };
        told.map_err(|errno| SysError::about(c"name_to_handle_at", fd, errno))?;
        Ok(FileHandle { kind: raw.kind, len: (raw.len as usize).min(FileHandle::ROOM), bytes: raw.bytes })
    }

    /// The handle, of type `kind`, on what is known by nothing but a number.
    pub fn of_id(kind: i32, id: u64) -> FileHandle {
        let [a, b, c, d, e, f, g, h] = id.to_ne_bytes();
        FileHandle { kind, len: 8, bytes: [a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, 0] }
    }

    /// Its storable form: 4 bytes of type (little endian), then the handle.
    pub fn to_bytes(self, out: &mut [u8; 4 + FileHandle::ROOM]) -> usize {
        let (kind, bytes) = out.split_at_mut(4);
        kind.copy_from_slice(&self.kind.to_le_bytes());
        bytes.copy_from_slice(&self.bytes);
        4 + self.len
    }

    /// Reads the storable form; `None` for what is none.
    pub fn from_bytes(stored: &[u8]) -> Option<FileHandle> {
        let (kind, rest) = stored.split_first_chunk::<4>()?;
        let mut bytes = [0; FileHandle::ROOM];
        bytes.get_mut(..rest.len())?.copy_from_slice(rest);
        Some(FileHandle { kind: i32::from_le_bytes(*kind), len: rest.len(), bytes })
    }

    /// Reopens exactly what the handle names: a pidfd where it came from one.
    ///
    /// # Errors
    /// `ESTALE` once it is gone (a process: once it is reaped).
    pub fn open_process(&self) -> Result<Fd, SysError> {
        const FD_PIDFS_ROOT: i32 = -10_002;
        self.open(FD_PIDFS_ROOT, 0)
    }

    /// Reopens the directory that the handle names, on the file system of `mount`.
    ///
    /// # Errors
    /// `ESTALE` once it is removed.
    pub fn open_directory(&self, mount: RawFd) -> Result<Fd, SysError> {
        self.open(mount, flags::DIRECTORY | flags::CLOEXEC)
    }

    fn open(&self, mount: RawFd, flags: i32) -> Result<Fd, SysError> {
        let mut raw = RawHandle { len: self.len as u32, kind: self.kind, bytes: self.bytes };
        // SAFETY: the kernel reads `len` bytes behind the header.
        let fd = unsafe { syscall(nr::OPEN_BY_HANDLE_AT, [word(mount), (&raw mut raw) as usize, word(flags)]) };
        fd.map(opened).map_err(|errno| SysError::of(c"open_by_handle_at", errno))
    }
}

/// Whether an errno of [`facts`] means that the kernel lacks the call.
pub const fn lacks_facts(errno: Errno) -> bool {
    const ENOTTY: Errno = Errno(25);
    matches!(errno, ENOTTY | Errno::EINVAL | Errno::ENOSYS)
}

/// How far the end of a process has come, as its pidfd tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It runs.
    None,
    /// All its threads have ended; its parent has not reaped it.
    Zombie,
    /// Its parent has reaped it.
    Reaped,
}

/// Asks a pidfd without blocking: readable means zombie, hung up means reaped (`poll(2)`, Linux 6.9 for the latter).
///
/// # Errors
/// `EBADF`, `ENOMEM`.
pub fn poll_end(pidfd: RawFd) -> Result<End, SysError> {
    const POLLIN: i16 = 1;
    const POLLHUP: i16 = 16;
    #[repr(C)]
    struct PollFd {
        fd: i32,
        events: i16,
        revents: i16,
    }
    let mut poll = PollFd { fd: pidfd, events: POLLIN, revents: 0 };
    let mut no_wait = [0u64; 2];
    let args = [(&raw mut poll) as usize, 1, no_wait.as_mut_ptr() as usize, 0, 8];
    // SAFETY: one `struct pollfd`, read and written; a zero time-out, read and perhaps written on this stack.
    unsafe { syscall(nr::PPOLL, args) }.map_err(|errno| SysError::about(c"ppoll", pidfd, errno))?;
    Ok(match poll.revents {
        events if events & POLLHUP != 0 => End::Reaped,
        events if events & POLLIN != 0 => End::Zombie,
        _ => End::None,
    })
}
