//! One instruction: the system call, on the two machines that Sexton runs on.
//!
//! Elsewhere than on Linux, and where the build says `--cfg sexton_stub`, every call answers `ENOSYS` instead: a program
//! that embeds the library compiles there all the same, and is told `Unsupported` by what it calls.
//!
//! Nothing here touches thread-local storage or the stack protector, so every function may be called in a
//! child that shares its parent's memory (`clone(2)`, `CLONE_VM`).

#[cfg(all(not(sexton_stub), target_os = "linux"))]
use core::mem::MaybeUninit;

use crate::error::Errno;

/// Argument `at` of a system call. Where the call has none the register is left as it is: the kernel does not look at
/// it, and no instruction is spent on it.
#[cfg(all(not(sexton_stub), target_os = "linux"))]
#[inline(always)]
fn argument<const N: usize>(args: &[usize; N], at: usize) -> MaybeUninit<usize> {
    const { assert!(N <= 6, "no system call has more") };
    args.get(at).map_or(MaybeUninit::uninit(), |&arg| MaybeUninit::new(arg))
}

/// Issues system call `number` with its arguments, six at most.
///
/// # Safety
/// The caller vouches for what the call does with its arguments (`syscall(2)`).
#[cfg(all(not(sexton_stub), target_os = "linux", target_arch = "x86_64"))]
#[inline(always)]
pub(crate) unsafe fn syscall<const N: usize>(number: usize, args: [usize; N]) -> Result<usize, Errno> {
    let ret: isize;
    // SAFETY: the register convention of x86-64 Linux; rcx and r11 are clobbered by the instruction.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => ret,
            in("rdi") argument(&args, 0), in("rsi") argument(&args, 1), in("rdx") argument(&args, 2),
            in("r10") argument(&args, 3), in("r8") argument(&args, 4), in("r9") argument(&args, 5),
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    Errno::check(ret)
}

/// Issues system call `number` with its arguments, six at most.
///
/// # Safety
/// The caller vouches for what the call does with its arguments (`syscall(2)`).
#[cfg(all(not(sexton_stub), target_os = "linux", target_arch = "aarch64"))]
#[inline(always)]
pub(crate) unsafe fn syscall<const N: usize>(number: usize, args: [usize; N]) -> Result<usize, Errno> {
    let ret: isize;
    // SAFETY: the register convention of arm64 Linux.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") argument(&args, 0) => ret,
            in("x1") argument(&args, 1), in("x2") argument(&args, 2), in("x3") argument(&args, 3),
            in("x4") argument(&args, 4), in("x5") argument(&args, 5),
            options(nostack)
        );
    }
    Errno::check(ret)
}

/// `clone3` or `clone`, as `number` says, whose child calls `entry(arg)` on the stack that `args` name, and never returns
/// from it. Of the arguments of `clone` the first three come first on both machines; what comes behind them is 0.
///
/// # Safety
/// `args` are those of the call, with a live stack; `entry` never returns, never unwinds and touches nothing that its
/// parent may change meanwhile.
#[cfg(all(not(sexton_stub), target_os = "linux", target_arch = "x86_64"))]
pub(crate) unsafe fn clone(
    number: usize,
    args: [usize; 3],
    entry: unsafe extern "C" fn(*const u8) -> !,
    arg: *const u8,
) -> Result<usize, Errno> {
    let ret: isize;
    let [a, b, c] = args;
    // SAFETY: in the child rsp is the new stack's top, 16-byte aligned, so that `call` enters `entry` as the ABI
    // wants it; the parent jumps over that.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") number as isize => ret,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") 0_usize, in("r8") 0_usize,
            in("r12") entry, in("r13") arg,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    Errno::check(ret)
}

/// `clone3` or `clone`, as `number` says, whose child calls `entry(arg)` on the stack that `args` name, and never returns
/// from it. Of the arguments of `clone` the first three come first on both machines; what comes behind them is 0.
///
/// # Safety
/// As on x86-64: `args` are those of the call, with a live stack; `entry` never returns.
#[cfg(all(not(sexton_stub), target_os = "linux", target_arch = "aarch64"))]
pub(crate) unsafe fn clone(
    number: usize,
    args: [usize; 3],
    entry: unsafe extern "C" fn(*const u8) -> !,
    arg: *const u8,
) -> Result<usize, Errno> {
    let ret: isize;
    let [a, b, c] = args;
    // SAFETY: in the child sp is the new stack's top; the parent jumps over the call.
    unsafe {
        core::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x21",
            "blr x20",
            "brk #1",
            "2:",
            in("x8") number,
            inlateout("x0") a as isize => ret,
            in("x1") b, in("x2") c, in("x3") 0_usize, in("x4") 0_usize,
            in("x20") entry, in("x21") arg,
            options(nostack)
        );
    }
    Errno::check(ret)
}

/// Answers as a kernel that has no such call: everything above then tells its caller that it is unsupported.
///
/// # Safety
/// Does nothing.
#[cfg(any(sexton_stub, not(target_os = "linux")))]
pub(crate) unsafe fn syscall<const N: usize>(_number: usize, _args: [usize; N]) -> Result<usize, Errno> {
    Errno::check(-(Errno::ENOSYS.0 as isize))
}

/// Answers as a kernel that has no such call.
///
/// # Safety
/// Does nothing.
#[cfg(any(sexton_stub, not(target_os = "linux")))]
pub(crate) unsafe fn clone(
    _number: usize,
    _args: [usize; 3],
    _entry: unsafe extern "C" fn(*const u8) -> !,
    _arg: *const u8,
) -> Result<usize, Errno> {
    Err(Errno::ENOSYS)
}

/// Numbers of the system calls used (`syscalls(2)`).
#[cfg(target_arch = "x86_64")]
#[allow(missing_docs, reason = "each is the upper-case name of its call")]
pub(crate) mod nr {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const MMAP: usize = 9;
    pub const MUNMAP: usize = 11;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const PWRITE64: usize = 18;
    pub const GETPID: usize = 39;
    pub const PIPE2: usize = 293;
    pub const SENDMSG: usize = 46;
    pub const RECVMSG: usize = 47;
    pub const SOCKET: usize = 41;
    pub const SOCKETPAIR: usize = 53;
    pub const SETSOCKOPT: usize = 54;
    pub const GETSOCKOPT: usize = 55;
    pub const EXECVE: usize = 59;
    pub const FCNTL: usize = 72;
    pub const FSYNC: usize = 74;
    pub const FTRUNCATE: usize = 77;
    pub const CHDIR: usize = 80;
    pub const UMASK: usize = 95;
    pub const SETUID: usize = 105;
    pub const SETGID: usize = 106;
    pub const SETPGID: usize = 109;
    pub const GETPPID: usize = 110;
    pub const SETSID: usize = 112;
    pub const GETSID: usize = 124;
    pub const SETGROUPS: usize = 116;
    pub const PRCTL: usize = 157;
    pub const PIVOT_ROOT: usize = 155;
    pub const MOUNT: usize = 165;
    pub const UMOUNT2: usize = 166;
    pub const SETXATTR: usize = 188;
    pub const FSETXATTR: usize = 190;
    pub const FGETXATTR: usize = 193;
    pub const FLISTXATTR: usize = 196;
    pub const FREMOVEXATTR: usize = 199;
    pub const SCHED_SETAFFINITY: usize = 203;
    pub const SCHED_GETAFFINITY: usize = 204;
    pub const GETDENTS64: usize = 217;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
    pub const EPOLL_CTL: usize = 233;
    pub const WAITID: usize = 247;
    pub const OPENAT: usize = 257;
    pub const MKDIRAT: usize = 258;
    pub const UNLINKAT: usize = 263;
    pub const LINKAT: usize = 265;
    pub const PPOLL: usize = 271;
    pub const UNSHARE: usize = 272;
    pub const EPOLL_PWAIT: usize = 281;
    pub const FALLOCATE: usize = 285;
    pub const SIGNALFD4: usize = 289;
    pub const EVENTFD2: usize = 290;
    pub const EPOLL_CREATE1: usize = 291;
    pub const DUP3: usize = 292;
    pub const INOTIFY_INIT1: usize = 294;
    pub const INOTIFY_ADD_WATCH: usize = 254;
    pub const PRLIMIT64: usize = 302;
    pub const NAME_TO_HANDLE_AT: usize = 303;
    pub const OPEN_BY_HANDLE_AT: usize = 304;
    pub const SETNS: usize = 308;
    pub const RENAMEAT2: usize = 316;
    pub const EXECVEAT: usize = 322;
    pub const FSTAT: usize = 5;
    pub const FSTATFS: usize = 138;
    pub const PIDFD_SEND_SIGNAL: usize = 424;
    pub const OPEN_TREE: usize = 428;
    pub const MOVE_MOUNT: usize = 429;
    pub const PIDFD_OPEN: usize = 434;
    pub const CLONE3: usize = 435;
    pub const CLOSE_RANGE: usize = 436;
    pub const LSEEK: usize = 8;
    pub const PREAD64: usize = 17;
    pub const CLONE: usize = 56;
    pub const KILL: usize = 62;
    pub const FDATASYNC: usize = 75;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const READLINKAT: usize = 267;
}

/// Numbers of the system calls used (`syscalls(2)`, the generic table).
#[cfg(target_arch = "aarch64")]
#[allow(missing_docs, reason = "each is the upper-case name of its call")]
pub(crate) mod nr {
    pub const SETXATTR: usize = 5;
    pub const FSETXATTR: usize = 7;
    pub const FGETXATTR: usize = 10;
    pub const FLISTXATTR: usize = 13;
    pub const FREMOVEXATTR: usize = 16;
    pub const EVENTFD2: usize = 19;
    pub const EPOLL_CREATE1: usize = 20;
    pub const EPOLL_CTL: usize = 21;
    pub const EPOLL_PWAIT: usize = 22;
    pub const DUP3: usize = 24;
    pub const FCNTL: usize = 25;
    pub const INOTIFY_INIT1: usize = 26;
    pub const INOTIFY_ADD_WATCH: usize = 27;
    pub const IOCTL: usize = 29;
    pub const PIPE2: usize = 59;
    pub const MKDIRAT: usize = 34;
    pub const UNLINKAT: usize = 35;
    pub const LINKAT: usize = 37;
    pub const UMOUNT2: usize = 39;
    pub const MOUNT: usize = 40;
    pub const PIVOT_ROOT: usize = 41;
    pub const FTRUNCATE: usize = 46;
    pub const FALLOCATE: usize = 47;
    pub const CHDIR: usize = 49;
    pub const OPENAT: usize = 56;
    pub const CLOSE: usize = 57;
    pub const GETDENTS64: usize = 61;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const PWRITE64: usize = 68;
    pub const PPOLL: usize = 73;
    pub const SIGNALFD4: usize = 74;
    pub const FSYNC: usize = 82;
    pub const EXIT_GROUP: usize = 94;
    pub const WAITID: usize = 95;
    pub const UNSHARE: usize = 97;
    pub const CLOCK_GETTIME: usize = 113;
    pub const SCHED_SETAFFINITY: usize = 122;
    pub const SCHED_GETAFFINITY: usize = 123;
    pub const RT_SIGACTION: usize = 134;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const SETGID: usize = 144;
    pub const SETUID: usize = 146;
    pub const SETPGID: usize = 154;
    pub const GETSID: usize = 156;
    pub const SETSID: usize = 157;
    pub const SETGROUPS: usize = 159;
    pub const UMASK: usize = 166;
    pub const PRCTL: usize = 167;
    pub const GETPID: usize = 172;
    pub const GETPPID: usize = 173;
    pub const SOCKET: usize = 198;
    pub const SOCKETPAIR: usize = 199;
    pub const SETSOCKOPT: usize = 208;
    pub const GETSOCKOPT: usize = 209;
    pub const SENDMSG: usize = 211;
    pub const RECVMSG: usize = 212;
    pub const MUNMAP: usize = 215;
    pub const EXECVE: usize = 221;
    pub const MMAP: usize = 222;
    pub const PRLIMIT64: usize = 261;
    pub const NAME_TO_HANDLE_AT: usize = 264;
    pub const OPEN_BY_HANDLE_AT: usize = 265;
    pub const SETNS: usize = 268;
    pub const RENAMEAT2: usize = 276;
    pub const EXECVEAT: usize = 281;
    pub const FSTAT: usize = 80;
    pub const FSTATFS: usize = 44;
    pub const PIDFD_SEND_SIGNAL: usize = 424;
    pub const OPEN_TREE: usize = 428;
    pub const MOVE_MOUNT: usize = 429;
    pub const PIDFD_OPEN: usize = 434;
    pub const CLONE3: usize = 435;
    pub const CLOSE_RANGE: usize = 436;
    pub const LSEEK: usize = 62;
    pub const PREAD64: usize = 67;
    pub const READLINKAT: usize = 78;
    pub const FDATASYNC: usize = 83;
    pub const KILL: usize = 129;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const CLONE: usize = 220;
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("sexton-sys knows the system-call convention of x86-64 and arm64 Linux");
