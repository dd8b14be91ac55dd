//! A child that waits before `execve`, made without copying its parent's memory.
//!
//! `fork` costs a parent of 1 GB six milliseconds, so the child shares the parent's memory (`CLONE_VM`) until
//! `execve`, on a stack of its own, with all signals blocked, and by raw system calls only. Everything it reads lies
//! in one mapping, the [`Stage`], which is given back when the child has shown that it left: its end of the report
//! pipe closes at `execve` and at death alike.
//!
//! A copy is made where sharing would harm the parent. Who is killed for want of memory is killed with all who share
//! that memory (Linux, `__oom_kill_process`), so a child under a limit of its own has memory of its own. And where the
//! parent has an `oom_score_adj`: the score belongs to the memory too, and a child that shares it could not lay it down
//! without taking it from the parent (`__set_oom_adj`).
//!
//! ```text
//!   parent                              child
//!   clone3 ───────────────────────────► close the parent's ends, stdio, session, dispositions, limits
//!   (else clone, and move it)           read(go) … end of file: the parent died, so run nothing
//!   record who it is, pin it
//!   write(go) ────────────────────────► identity, directory, mark "released", execve
//!   read(report) ◄────────────────────── end of file: it runs │ 8 bytes: step and errno
//! ```
//!
//! `clone3` brings the child into its cgroup at birth. Where the kernel does not (before Linux 5.7), or a filter refuses
//! the call, as that of some container runtimes does, `clone` makes it beside its parent, which moves it before it knows
//! of it: between the two the child can only wait, and if the parent dies there, it ends as it would anywhere else.

mod child;

use core::ffi::CStr;
use core::ptr;

use crate::arch::{self, nr, syscall};
use crate::error::{Errno, SysError};
use crate::fd::{Fd, RawFd, word};
use crate::{cgroup, file, wait};

/// What the kernel adds to a process's score when it looks for one to kill for want of memory.
const OOM_SCORE: &CStr = c"/proc/self/oom_score_adj";
/// Room for the child's stack, in bytes; it calls a handful of small functions.
const STACK_BYTES: usize = 32 * 1024;
/// Flags of `clone3` and, but for the last, of `clone` (`clone(2)`).
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
    /// Closing what its parent has open (`close_range`).
    Close = 11,
    /// A step that this version does not know.
    Other = 0,
}

impl Step {
    const ALL: [Step; 11] = [
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
        Step::Close,
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
            Step::Close => "close_range",
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
    /// Memory of its own instead of its parent's until `execve`, for whoever may run out of what its cgroup allows.
    pub own_memory: bool,
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
    /// Whether it has memory of its own, so that its `oom_score_adj` is its own too.
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
        let _unmapped = unsafe { syscall(nr::MUNMAP, [self.base as usize, self.len]) };
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

/// Whether a child is born in its cgroup; else it is moved there before it runs anything.
///
/// # Errors
/// What `clone3` answers: `EINVAL` or `E2BIG` before Linux 5.7, `ENOSYS` before 5.3 or as a filter has it.
pub fn try_birth_in_cgroup() -> Result<(), SysError> {
    let nowhere = u64::from(i32::MAX.cast_unsigned());
    let args = CloneArgs([CLONE_INTO_CGROUP, 0, 0, 0, SIGCHLD, 0, 0, 0, 0, 0, nowhere]);
    // SAFETY: the kernel reads one `struct clone_args`. No descriptor has this number, so nobody is born.
    match unsafe { syscall(nr::CLONE3, [args.0.as_ptr() as usize, size_of::<CloneArgs>()]) } {
        Ok(0) => crate::process::exit(0),
        Ok(_) | Err(Errno::EBADF) => Ok(()),
        Err(errno) => Err(SysError::of(c"clone3", errno)),
    }
}

impl WaitingChild {
    /// Makes the child: in its cgroup, with a pidfd, waiting.
    ///
    /// # Errors
    /// `pipe2`, `mmap` or `clone` refused (`clone(2)`), or the cgroup did (`cgroup.procs`); `E2BIG` for arguments beyond
    /// the stage's bound.
    ///
    /// # Kernel
    /// 5.3, for the pidfd.
    pub fn spawn(spec: &ChildSpec<'_>) -> Result<WaitingChild, SysError> {
        let (go_read, go) = pipe()?;
        let (report, report_write) = pipe()?;
        let mut stage = Stage::map(Stage::data_bytes(spec))?;
        let fds = [go_read.raw(), report_write.raw()];
        let is_copy = spec.own_memory || has_oom_score();
        let script = write_script(&mut stage, spec, fds, is_copy).ok_or(SysError::of(c"clone3", Errno::E2BIG))?;
        set_nonblocking(report.raw())?;
        let born = clone_child(spec, &stage, script, is_copy)?;
        let released = ReleasedChild { report, stage: Some(stage) };
        let child = WaitingChild { pid: born.pid, pidfd: born.pidfd, go, released };
        match spec.cgroup.filter(|_| !born.in_cgroup).map(|cgroup| cgroup::take_in(cgroup, child.pid)) {
            None | Some(Ok(())) => Ok(child),
            Some(Err(error)) => {
                child.give_up();
                Err(error)
            }
        }
    }

    /// Lets it end without its program, and reaps it.
    fn give_up(self) {
        let WaitingChild { pid, pidfd: _, go, released: _released } = self;
        drop(go);
        let _ended = wait::reap_ending(pid.cast_unsigned());
    }

    /// Its PID in the caller's namespace: the caller's own unreaped child.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Takes its pidfd; `None` the second time.
    pub fn take_pidfd(&mut self) -> Option<Fd> {
        self.pidfd.take()
    }

    /// Lets it go on to `execve`. One that has died meanwhile has left: how, its exit status tells.
    ///
    /// # Errors
    /// As `write(2)`, never `EPIPE`.
    pub fn release(self) -> Result<ReleasedChild, SysError> {
        match crate::fd::write_all(self.go.raw(), b"g") {
            Err(error) if error.errno != Errno::EPIPE => Err(error),
            Ok(()) | Err(_) => Ok(self.released),
        }
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
    let made = unsafe { syscall(nr::PIPE2, [ends.as_mut_ptr() as usize, word(O_CLOEXEC)]) };
    made.map_err(|errno| SysError::of(c"pipe2", errno))?;
    let [read, write] = ends;
    Ok((Fd::from_raw(read), Fd::from_raw(write)))
}

const O_CLOEXEC: i32 = 0o2_000_000;
const O_NONBLOCK: i32 = 0o4_000;

fn set_nonblocking(fd: RawFd) -> Result<(), SysError> {
    const F_SETFL: usize = 4;
    // SAFETY: changes a flag of a descriptor; no memory is touched.
    let set = unsafe { syscall(nr::FCNTL, [word(fd), F_SETFL, word(O_NONBLOCK)]) };
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

/// A child that has just been made.
struct Born {
    pid: i32,
    pidfd: Option<Fd>,
    /// Whether it was born where it belongs; else it is where its parent is.
    in_cgroup: bool,
}

/// Makes the child by `clone3`, or by `clone` where that is refused.
fn clone_child(spec: &ChildSpec<'_>, stage: &Stage, script: *const Script, is_copy: bool) -> Result<Born, SysError> {
    let mut pidfd: i32 = -1;
    let mut flags = CLONE_PIDFD;
    if !is_copy {
        flags |= CLONE_VM;
    }
    if spec.pidns {
        flags |= CLONE_NEWPID | CLONE_NEWNS;
    }
    let (into, cgroup) = spec.cgroup.map_or((0, 0), |fd| (CLONE_INTO_CGROUP, u64::from(fd.cast_unsigned())));
    let stack = stage.base.wrapping_add(stage.len - STACK_BYTES) as u64;
    let pidfd_at = &raw mut pidfd;
    let args = CloneArgs([flags | into, pidfd_at as u64, 0, 0, SIGCHLD, stack, STACK_BYTES as u64, 0, 0, 0, cgroup]);
    let by_clone3 = [args.0.as_ptr() as usize, size_of::<CloneArgs>(), 0];
    let by_clone = [(flags | SIGCHLD) as usize, stack as usize + STACK_BYTES, pidfd_at as usize];
    // SAFETY: the stack lies in the stage, which outlives the child's use of it; `child_main` never returns and
    // reads only its script. With all signals blocked no handler of the parent runs on the shared memory.
    let born = |number, args| unsafe { arch::clone(number, args, child::child_main, script.cast()) };
    let before = swap_mask(u64::MAX);
    let (call, in_cgroup, cloned) = match born(nr::CLONE3, by_clone3) {
        // What else may have been refused so is refused by `clone` as well.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL | Errno::E2BIG) => {
            (c"clone", false, born(nr::CLONE, by_clone))
        }
        cloned => (c"clone3", true, cloned),
    };
    swap_mask(before);
    let pid = cloned.map_err(|errno| SysError::of(call, errno))?;
    let pidfd = (pidfd >= 0).then(|| Fd::from_raw(pidfd));
    Ok(Born { pid: pid as i32, pidfd, in_cgroup })
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
    let args = [SIG_SETMASK, (&raw const mask) as usize, (&raw mut before) as usize, 8];
    // SAFETY: both sets are 8 bytes, as the kernel's are.
    let _set = unsafe { syscall(nr::RT_SIGPROCMASK, args) };
    before
}
