//! A child that waits before `execve`, made without copying its parent's memory.
//!
//! `fork` costs a parent of 1 GB six milliseconds, so the child shares the parent's memory (`CLONE_VM`) until
//! `execve`, on a stack of its own, with all signals blocked, and by raw system calls only. Everything it reads lies
//! in one mapping, the [`Stage`], which is given back when the child has shown that it left: its end of the report
//! pipe closes at `execve` and at death alike.
//!
//! Only a parent with an `oom_score_adj` of its own is copied: the score belongs to the memory, so a child that shares
//! it could not lay it down without taking it from the parent (`proc_pid_oom_score_adj(5)`; Linux, `__set_oom_adj`).
//!
//! ```text
//!   parent                              child
//!   clone3 ───────────────────────────► close the parent's ends, stdio, session, dispositions, limits
//!   record who it is, pin it            read(go) … end of file: the parent died, so run nothing
//!   write(go) ────────────────────────► identity, directory, mark "released", execve
//!   read(report) ◄────────────────────── end of file: it runs │ 8 bytes: step and errno
//! ```

mod child;

use core::ffi::CStr;
use core::ptr;

use crate::arch::{self, nr, syscall};
use crate::error::{Errno, SysError};
use crate::fd::{Fd, RawFd, opened, word};
use crate::file;

/// What the kernel adds to a process's score when it looks for one to kill for want of memory.
const OOM_SCORE: &CStr = c"/proc/self/oom_score_adj";
/// Room for the child's stack, in bytes; it calls a handful of small functions.
const STACK_BYTES: usize = 32 * 1024;
/// `clone3` flags (`clone(2)`).
const CLONE_VM: u64 = 0x100;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_NEWNS: u64 = 0x2_0000;
const CLONE_NEWPID: u64 = 0x2000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const SIGCHLD: u64 = 17;

/// Where a child failed before its program ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// Arranging stdin, stdout and stderr (`dup3`).
    Stdio = 1,
    /// A new session (`setsid`).
    Session = 2,
    /// The private `/proc` of a new PID namespace (`mount`).
    Proc = 3,
    /// Supplementary groups (`setgroups`).
    Groups = 4,
    /// Group (`setgid`).
    Gid = 5,
    /// User (`setuid`).
    Uid = 6,
    /// Working directory (`chdir`).
    Cwd = 7,
    /// No new privileges (`prctl`).
    Privileges = 8,
    /// `execve` itself.
    Exec = 9,
    /// Its network namespace (`setns`).
    Netns = 10,
    /// A step that this version does not know.
    Other = 0,
}

impl Step {
    const ALL: [Step; 10] = [
        Step::Stdio,
        Step::Session,
        Step::Proc,
        Step::Groups,
        Step::Gid,
        Step::Uid,
        Step::Cwd,
        Step::Privileges,
        Step::Exec,
        Step::Netns,
    ];

    fn from_raw(raw: u32) -> Step {
        Step::ALL.into_iter().find(|step| *step as u32 == raw).unwrap_or(Step::Other)
    }

    /// The system call that is refused at this step.
    pub const fn call(self) -> &'static str {
        match self {
            Step::Stdio => "dup3",
            Step::Session => "setsid",
            Step::Proc => "mount",
            Step::Groups => "setgroups",
            Step::Gid => "setgid",
            Step::Uid => "setuid",
            Step::Cwd => "chdir",
            Step::Privileges => "prctl",
            Step::Exec => "execve",
            Step::Netns => "setns",
            Step::Other => "clone3",
        }
    }
}

/// What a child that never ran its program reported: 8 bytes, step and errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildFailure {
    /// Where.
    pub step: Step,
    /// Why.
    pub errno: Errno,
}

impl ChildFailure {
    /// Reads a report or a mark; `None` where it tells no failure.
    pub fn from_bytes(bytes: [u8; 8]) -> Option<ChildFailure> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let step = u32::from_le_bytes([a, b, c, d]);
        let errno = i32::from_le_bytes([e, f, g, h]);
        (errno != 0).then(|| ChildFailure { step: Step::from_raw(step), errno: Errno(errno) })
    }
}

/// The mark of a child that was released and went on to `execve`.
pub const MARK_RELEASED: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// What the child is to become.
#[derive(Debug)]
pub struct ChildSpec<'a> {
    /// Paths to try in turn (`execvp(3)`): the first that is not missing decides.
    pub programs: &'a [&'a CStr],
    /// Arguments, the program's own name first.
    pub argv: &'a [&'a CStr],
    /// The whole environment, `KEY=VALUE` each.
    pub env: &'a [&'a CStr],
    /// Working directory.
    pub cwd: &'a CStr,
    /// Numeric identity to take on; `None` keeps the parent's.
    pub ids: Option<Ids<'a>>,
    /// Descriptors that become stdin, stdout and stderr; each above 2.
    pub stdio: [RawFd; 3],
    /// A file whose first 8 bytes tell, whoever died meanwhile, how far the child came.
    pub mark: Option<RawFd>,
    /// A cgroup2 directory to be born in.
    pub cgroup: Option<RawFd>,
    /// A network namespace to enter.
    pub netns: Option<RawFd>,
    /// A new PID namespace (the program is its PID 1) with a `/proc` of its own.
    pub pidns: bool,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// Soft and hard `RLIMIT_NOFILE`; the daemon raises its own and must not pass that on.
    pub nofile: Option<[u64; 2]>,
}

/// A numeric identity.
#[derive(Clone, Copy, Debug)]
pub struct Ids<'a> {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'a [u32],
}

/// The mapping that parent and child share until `execve`.
#[derive(Debug)]
struct Stage {
    base: *mut u8,
    len: usize,
    used: usize,
}

// SAFETY: the mapping belongs to this value alone; the child only reads it.
unsafe impl Send for Stage {}

/// Everything the child reads, at fixed places in the stage.
#[repr(C)]
struct Script {
    programs: *const *const u8,
    argv: *const *const u8,
    env: *const *const u8,
    cwd: *const u8,
    groups: *const u32,
    group_count: usize,
    uid: u32,
    gid: u32,
    has_ids: bool,
    pidns: bool,
    no_new_privs: bool,
    /// Whether it has memory of its own, and lays down its parent's `oom_score_adj`.
    is_copy: bool,
    has_nofile: bool,
    nofile: [u64; 2],
    stdio: [RawFd; 3],
    netns: RawFd,
    mark: RawFd,
    go: RawFd,
    report: RawFd,
    /// The descriptors it needs until `execve`, in order; all others above 2 are closed at once.
    kept: [RawFd; 3],
}

impl Stage {
    /// A mapping with `data` bytes for what the child reads, and its stack behind them.
    fn map(data: usize) -> Result<Stage, SysError> {
        const PROT_READ_WRITE: usize = 1 | 2;
        const MAP_PRIVATE_ANONYMOUS_STACK: usize = 0x02 | 0x20 | 0x2_0000;
        let len = (data + STACK_BYTES).next_multiple_of(4096);
        let args = [0, len, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS_STACK, usize::MAX, 0];
        // SAFETY: a new anonymous mapping, placed by the kernel.
        let base = unsafe { syscall(nr::MMAP, args) }.map_err(|errno| SysError::of(c"mmap", errno))?;
        Ok(Stage { base: ptr::with_exposed_provenance_mut(base), len, used: 0 })
    }

    /// Copies `items` to the next aligned place; `None` where the stage was mapped too small.
    fn place<T: Copy>(&mut self, items: &[T]) -> Option<*mut T> {
        let start = self.used.next_multiple_of(align_of::<T>().max(1));
        let end = start.checked_add(size_of_val(items))?;
        if end > self.len - STACK_BYTES {
            return None;
        }
        let to = self.base.wrapping_add(start).cast::<T>();
        // SAFETY: `to` is aligned and has room for `items` inside the mapping, which nobody else uses yet.
        unsafe { ptr::copy_nonoverlapping(items.as_ptr(), to, items.len()) };
        self.used = end;
        Some(to)
    }

    /// Copies `strings` and a NULL-terminated array of pointers to them.
    fn place_strings(&mut self, strings: &[&CStr]) -> Option<*const *const u8> {
        let array = self.place_nulls(strings.len() + 1)?;
        for (index, string) in strings.iter().enumerate() {
            let at = self.place(string.to_bytes_with_nul())?;
            // SAFETY: `index` is below the length that `array` was placed with.
            unsafe { array.wrapping_add(index).write(at) };
        }
        Some(array)
    }

    /// Room for `count` pointers, all NULL: a fresh mapping is zero.
    fn place_nulls(&mut self, count: usize) -> Option<*mut *const u8> {
        let first = self.place::<*const u8>(&[ptr::null()])?;
        let end = self.used.checked_add((count - 1) * size_of::<*const u8>())?;
        if end > self.len - STACK_BYTES {
            return None;
        }
        self.used = end;
        Some(first)
    }

    /// Bytes that the strings and arrays of `spec` need at most.
    fn data_bytes(spec: &ChildSpec<'_>) -> usize {
        let lists = [spec.programs, spec.argv, spec.env];
        let strings = lists.iter().copied().flatten().chain([&spec.cwd]);
        let text: usize = strings.map(|string| string.to_bytes_with_nul().len() + 2 * size_of::<usize>()).sum();
        let groups = spec.ids.map_or(0, |ids| size_of_val(ids.groups));
        size_of::<Script>() + text + groups + 16 * size_of::<usize>()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map`, and whoever drops a stage has seen its child leave.
        let _unmapped = unsafe { syscall(nr::MUNMAP, [self.base as usize, self.len, 0, 0, 0, 0]) };
    }
}

/// A child that has run nothing yet. Dropped, it never will.
#[derive(Debug)]
pub struct WaitingChild {
    pid: i32,
    pidfd: Option<Fd>,
    go: Fd,
    released: ReleasedChild,
}

/// A child that was told to go on; its report tells whether its program runs.
#[derive(Debug)]
pub struct ReleasedChild {
    report: Fd,
    stage: Option<Stage>,
}

/// What a report said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Nothing yet.
    Pending,
    /// The program runs (or the child died on the way there, which its exit status tells).
    Left,
    /// The program never ran.
    Failed(ChildFailure),
}

/// Whether processes can be made at all: `clone3` is there, and no filter refuses it, as that of some container
/// runtimes does.
///
/// # Errors
/// `ENOSYS`, or what the filter answers.
pub fn try_clone3() -> Result<(), SysError> {
    // SAFETY: the kernel refuses arguments of no bytes before it reads any.
    match unsafe { syscall(nr::CLONE3, [0; 6]) } {
        Ok(_) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(SysError::of(c"clone3", errno)),
    }
}

impl WaitingChild {
    /// Makes the child: born in its cgroup, with a pidfd, waiting.
    ///
    /// # Errors
    /// `pipe2`, `mmap` or `clone3` refused (`clone(2)`); `E2BIG` for arguments beyond the stage's bound.
    pub fn spawn(spec: &ChildSpec<'_>) -> Result<WaitingChild, SysError> {
        let (go_read, go) = pipe()?;
        let (report, report_write) = pipe()?;
        let mut stage = Stage::map(Stage::data_bytes(spec))?;
        let fds = [go_read.raw(), report_write.raw()];
        let is_copy = has_oom_score();
        let script = write_script(&mut stage, spec, fds, is_copy).ok_or(SysError::of(c"clone3", Errno::E2BIG))?;
        let (pid, pidfd) = clone_child(spec, &stage, script, is_copy)?;
        set_nonblocking(report.raw())?;
        let released = ReleasedChild { report, stage: Some(stage) };
        Ok(WaitingChild { pid, pidfd: Some(pidfd), go, released })
    }

    /// Its PID in the caller's namespace: the caller's own unreaped child.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Takes its pidfd; `None` the second time.
    pub fn take_pidfd(&mut self) -> Option<Fd> {
        self.pidfd.take()
    }

    /// Lets it go on to `execve`.
    ///
    /// # Errors
    /// `EPIPE` where it has died meanwhile.
    pub fn release(self) -> Result<ReleasedChild, SysError> {
        crate::fd::write_all(self.go.raw(), b"g")?;
        Ok(self.released)
    }
}

impl ReleasedChild {
    /// The descriptor that becomes readable when there is a report.
    pub fn report_fd(&self) -> RawFd {
        self.report.raw()
    }

    /// Reads the report without blocking.
    ///
    /// # Errors
    /// As `read(2)`, never `EAGAIN`.
    pub fn report(&mut self) -> Result<Report, SysError> {
        let mut bytes = [0; 8];
        match crate::fd::read(self.report.raw(), &mut bytes) {
            Ok(0) => {
                self.stage = None;
                Ok(Report::Left)
            }
            // The 8 bytes are far below PIPE_BUF, so they come whole (`pipe(7)`).
            Ok(_) => ChildFailure::from_bytes(bytes).map_or(Ok(Report::Left), |failure| Ok(Report::Failed(failure))),
            Err(error) if error.errno == Errno::EAGAIN => Ok(Report::Pending),
            Err(error) => Err(error),
        }
    }
}

impl Drop for ReleasedChild {
    fn drop(&mut self) {
        // BOUND: a child that has not left yet still reads its stage; a few pages are leaked rather than its memory
        // pulled away. It happens only where a start is abandoned halfway.
        let left = matches!(self.report(), Ok(Report::Left));
        if !left {
            let _leaked = self.stage.take().map(core::mem::ManuallyDrop::new);
        }
    }
}

/// A pipe whose ends close at `execve`.
fn pipe() -> Result<(Fd, Fd), SysError> {
    let mut ends = [0i32; 2];
    // SAFETY: the kernel writes two descriptors into `ends`.
    let made = unsafe { syscall(nr::PIPE2, [ends.as_mut_ptr() as usize, word(O_CLOEXEC), 0, 0, 0, 0]) };
    made.map_err(|errno| SysError::of(c"pipe2", errno))?;
    let [read, write] = ends;
    Ok((Fd::from_raw(read), Fd::from_raw(write)))
}

const O_CLOEXEC: i32 = 0o2_000_000;
const O_NONBLOCK: i32 = 0o4_000;

fn set_nonblocking(fd: RawFd) -> Result<(), SysError> {
    const F_SETFL: usize = 4;
    // SAFETY: changes a flag of a descriptor; no memory is touched.
    let set = unsafe { syscall(nr::FCNTL, [word(fd), F_SETFL, word(O_NONBLOCK), 0, 0, 0]) };
    set.map(|_| ()).map_err(|errno| SysError::about(c"fcntl", fd, errno))
}

/// Copies all that the child reads into its stage.
fn write_script(stage: &mut Stage, spec: &ChildSpec<'_>, fds: [RawFd; 2], is_copy: bool) -> Option<*const Script> {
    let [go, report] = fds;
    let mut kept = [go, report, spec.mark.unwrap_or(go)];
    kept.sort_unstable();
    let ids = spec.ids.unwrap_or(Ids { uid: 0, gid: 0, groups: &[] });
    let script = Script {
        programs: stage.place_strings(spec.programs)?,
        argv: stage.place_strings(spec.argv)?,
        env: stage.place_strings(spec.env)?,
        cwd: stage.place(spec.cwd.to_bytes_with_nul())?,
        groups: stage.place(ids.groups)?,
        group_count: ids.groups.len(),
        uid: ids.uid,
        gid: ids.gid,
        has_ids: spec.ids.is_some(),
        pidns: spec.pidns,
        no_new_privs: spec.no_new_privs,
        is_copy,
        has_nofile: spec.nofile.is_some(),
        nofile: spec.nofile.unwrap_or([0; 2]),
        stdio: spec.stdio,
        netns: spec.netns.unwrap_or(-1),
        mark: spec.mark.unwrap_or(-1),
        go,
        report,
        kept,
    };
    let at = stage.place_nulls(size_of::<Script>().div_ceil(size_of::<usize>()))?.cast::<Script>();
    // SAFETY: `at` is pointer-aligned, which is `Script`'s alignment, and has room for one inside the mapping.
    unsafe { at.write(script) };
    Some(at)
}

/// `struct clone_args` (`clone(2)`), all eleven words.
#[repr(C)]
struct CloneArgs([u64; 11]);

fn clone_child(
    spec: &ChildSpec<'_>,
    stage: &Stage,
    script: *const Script,
    is_copy: bool,
) -> Result<(i32, Fd), SysError> {
    let mut pidfd: i32 = -1;
    let mut flags = CLONE_PIDFD;
    if !is_copy {
        flags |= CLONE_VM;
    }
    if spec.pidns {
        flags |= CLONE_NEWPID | CLONE_NEWNS;
    }
    let cgroup = match spec.cgroup {
        Some(fd) => {
            flags |= CLONE_INTO_CGROUP;
            u64::from(fd.cast_unsigned())
        }
        None => 0,
    };
    let stack = stage.base.wrapping_add(stage.len - STACK_BYTES) as u64;
    let pidfd_at = (&raw mut pidfd) as u64;
    let args = CloneArgs([flags, pidfd_at, 0, 0, SIGCHLD, stack, STACK_BYTES as u64, 0, 0, 0, cgroup]);
    let before = swap_mask(u64::MAX);
    // SAFETY: the stack lies in the stage, which outlives the child's use of it; `child_main` never returns and
    // reads only its script. With all signals blocked no handler of the parent runs on the shared memory.
    let cloned = unsafe { arch::clone3(args.0.as_ptr(), size_of::<CloneArgs>(), child::child_main, script.cast()) };
    swap_mask(before);
    let pid = cloned.map_err(|errno| SysError::of(c"clone3", errno))?;
    Ok((pid as i32, opened(pidfd.cast_unsigned() as usize)))
}

/// Whether this process has an `oom_score_adj`; one that cannot be read could not be written either.
fn has_oom_score() -> bool {
    let mut text = [0u8; 8];
    let file = file::open(file::AT_FDCWD, OOM_SCORE, file::flags::RDONLY, 0);
    file.and_then(|file| crate::fd::read(file.raw(), &mut text)).is_ok_and(|length| text.get(..length) != Some(b"0\n"))
}

/// Sets the thread's signal mask, and tells the one before.
fn swap_mask(mask: u64) -> u64 {
    const SIG_SETMASK: usize = 2;
    let mut before: u64 = 0;
    let args = [SIG_SETMASK, (&raw const mask) as usize, (&raw mut before) as usize, 8, 0, 0];
    // SAFETY: both sets are 8 bytes, as the kernel's are.
    let _set = unsafe { syscall(nr::RT_SIGPROCMASK, args) };
    before
}
