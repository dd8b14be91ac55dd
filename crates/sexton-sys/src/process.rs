//! This process, and children that it starts with a plain `fork`.
//!
//! For the keeper and `sexton-init`, which are small and start one child at a time. Instances are started otherwise,
//! by `clone3` into their cgroup.

use core::ffi::CStr;

use crate::arch::{nr, syscall};
use crate::error::{Call, Errno, SysError};
use crate::fd::{RawFd, word};
use crate::memory::Table;
use crate::signal::{Disposition, Signal, SignalSet, replace_mask};
use crate::strings::Strings;
use crate::wait::{self, Ended};

mod exec;

const PR_SET_PDEATHSIG: usize = 1;
const PR_SET_CHILD_SUBREAPER: usize = 36;
const PR_GET_CHILD_SUBREAPER: usize = 37;

/// The PID of this process, in its own namespace.
pub fn pid() -> u32 {
    // SAFETY: touches no memory; cannot fail.
    unsafe { syscall(nr::GETPID, []) }.map_or(0, |pid| pid as u32)
}

/// The PID of the parent, 0 where it is outside this PID namespace.
pub fn parent_pid() -> u32 {
    // SAFETY: touches no memory; cannot fail.
    unsafe { syscall(nr::GETPPID, []) }.map_or(0, |pid| pid as u32)
}

/// The session of the process with that number, a zombie's too (`getsid(2)`); 0 where its leader is out of sight.
///
/// # Errors
/// `ESRCH` where there is none.
pub fn session(pid: i32) -> Result<i32, SysError> {
    // SAFETY: touches no memory.
    let session = unsafe { syscall(nr::GETSID, [word(pid)]) };
    session.map(|session| session as i32).map_err(|errno| SysError::about(c"getsid", pid, errno))
}

/// Takes `mask` away from the mode of every file that this process makes from now on; its children's too.
pub fn set_umask(mask: u32) {
    // SAFETY: touches no memory; cannot fail.
    let _before = unsafe { syscall(nr::UMASK, [mask as usize]) };
}

/// Ends this process, without running anything.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: ends the process; touches no memory.
        let _never = unsafe { syscall(nr::EXIT_GROUP, [word(code)]) };
    }
}

/// Makes orphaned descendants reparent here.
///
/// # Errors
/// `EINVAL` before 3.4.
pub fn become_subreaper() -> Result<(), SysError> {
    prctl(PR_SET_CHILD_SUBREAPER, 1)
}

/// Whether orphaned descendants reparent here though this is not PID 1.
///
/// # Errors
/// `EINVAL` before 3.4.
pub fn is_subreaper() -> Result<bool, SysError> {
    let mut set = 0_i32;
    prctl(PR_GET_CHILD_SUBREAPER, &raw mut set as usize)?;
    Ok(set != 0)
}

/// Has `signal` sent to this process when the thread that started it ends.
///
/// # Errors
/// None that a `Signal` can cause.
pub fn set_parent_death_signal(signal: Signal) -> Result<(), SysError> {
    prctl(PR_SET_PDEATHSIG, signal.raw())
}

/// `prctl(2)` with one argument.
fn prctl(what: usize, arg: usize) -> Result<(), SysError> {
    // SAFETY: of the three operations used only PR_GET_CHILD_SUBREAPER writes, one int to a local of its caller.
    let ret = unsafe { syscall(nr::PRCTL, [what, arg, 0, 0, 0]) };
    ret.map(|_| ()).map_err(|errno| SysError::of(c"prctl", errno))
}

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub enum Program<'a> {
    /// A path, or a name that is looked up in `PATH` as `execvp(3)` does.
    Search(&'a CStr),
    /// An open file, also one that has been deleted or replaced since.
    Open(RawFd),
}

/// The child's process group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The one it was born into.
    Inherited,
    /// One of its own.
    Own,
    /// One of its own, which also gets the terminal on stdin, where there is one.
    OwnWithTerminal,
}

/// The signal state that a child is to run with: what this program itself was started with.
#[derive(Clone, Copy, Debug)]
pub struct SignalState {
    /// Which signals are blocked.
    pub mask: SignalSet,
    /// What happens at CHLD, the one disposition that a reaper must change for itself.
    pub child: Disposition,
}

/// How a child is started.
#[derive(Clone, Copy, Debug)]
pub struct Spawn<'a> {
    /// What it runs.
    pub program: Program<'a>,
    /// Its command line.
    pub args: Strings<'a>,
    /// The place in `args` of a word that it does not get.
    pub left_out: Option<usize>,
    /// Its environment …
    pub env: Strings<'a>,
    /// … and entries `NAME=value` that are added to it, each in the place of one of the same name.
    pub env_added: &'a [&'a CStr],
    /// Its signal mask and dispositions.
    pub signals: SignalState,
    /// Its process group.
    pub group: Group,
    /// The signal that it gets when this thread ends.
    pub parent_death: Option<Signal>,
    /// What it gets as stdin; `None` leaves stdin as it is.
    pub stdin: Option<RawFd>,
    /// Close-on-exec descriptors that it gets all the same, under the same numbers.
    pub kept: &'a [RawFd],
}

/// A child that has not been reaped: while this exists its PID, and the process group of that number, can belong to
/// nothing else, so that both may be signalled.
#[derive(Debug)]
pub struct Child {
    pid: u32,
}

impl Child {
    /// Its PID.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it `signal`. One that has ended and is not reaped is no error.
    ///
    /// # Errors
    /// `EPERM` where it changed its credentials beyond this process's.
    pub fn signal(&self, signal: Signal) -> Result<(), SysError> {
        self.kill(self.pid as usize, signal)
    }

    /// Sends `signal` to every process of the group that the child was made leader of.
    ///
    /// # Errors
    /// `ESRCH` where the group is empty, `EPERM` where none of it may be signalled.
    pub fn signal_group(&self, signal: Signal) -> Result<(), SysError> {
        // The group's number is the child's PID, which stays taken until the child is reaped, so it can have become
        // no other group. The kernel's own way to say this (PIDFD_SIGNAL_PROCESS_GROUP, 6.9) means the same set.
        self.kill((self.pid as usize).wrapping_neg(), signal)
    }

    /// `kill(2)` of the child's number, or its negative for its group.
    fn kill(&self, target: usize, signal: Signal) -> Result<(), SysError> {
        // SAFETY: touches no memory; the number is proven by the unreaped child.
        let ret = unsafe { syscall(nr::KILL, [target, signal.raw()]) };
        ret.map(|_| ()).map_err(|errno| SysError::about(c"kill", self.pid.cast_signed(), errno))
    }

    /// How it ended, leaving it to be reaped; `None` while it lives.
    ///
    /// # Errors
    /// None, while nothing else in the process waits for it.
    pub fn peek(&self) -> Result<Option<Ended>, SysError> {
        wait::peek(self.pid)
    }

    /// Reaps it, or gives it back while it lives.
    ///
    /// # Errors
    /// Itself, where it has not ended.
    pub fn reap(self) -> Result<Ended, Child> {
        match wait::reap(self.pid) {
            Ok(Some(ended)) => Ok(ended),
            Ok(None) | Err(_) => Err(self),
        }
    }
}

/// Starts a child and returns once it has begun to run its program, or could not.
///
/// # Errors
/// The call that failed, in the child too: `execve` with `ENOENT` where there is no such program.
pub fn spawn(plan: &Spawn<'_>) -> Result<Child, SysError> {
    // What went wrong is told through a shared page and not through a pipe: it works with no descriptor left. The call's
    // name lies where it lies here, for the child is a copy of this program.
    let mut report = Table::<(Option<Call>, Errno)>::shared_with_children(1)?;
    let parent = pid();
    // Nothing may be handled between the fork and the child's own settings.
    let mask = replace_mask(SignalSet::ALL);
    let forked = fork();
    if let Ok(None) = forked {
        let error = exec::run_child(plan, parent);
        report.fill((Some(error.call), error.errno));
        exit(127);
    }
    replace_mask(mask);
    let child = forked?.ok_or(SysError::of(c"clone", Errno::EIO))?;
    if let [(Some(call), errno)] = *report {
        // It is past its last instruction, so this ends.
        let _told = wait::reap_ending(child.pid);
        return Err(SysError::of(call.name(), errno));
    }
    Ok(child)
}

/// `fork(2)` that lets the parent go on once the child has left its program; `None` in the child.
fn fork() -> Result<Option<Child>, SysError> {
    const SIGCHLD: usize = 17;
    const CLONE_VFORK: usize = 0x4000;
    // SAFETY: without CLONE_VM the child has a copy of all memory, this stack too.
    // The child of a program with threads must call nothing that takes a lock: `run_child` makes system calls only.
    match unsafe { syscall(nr::CLONE, [CLONE_VFORK | SIGCHLD, 0, 0, 0, 0]) } {
        Err(errno) => Err(SysError::of(c"clone", errno)),
        Ok(0) => Ok(None),
        Ok(pid) => Ok(Some(Child { pid: pid as u32 })),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::file::{self, flags};
    use crate::strings::Slot;

    fn plan<'a>(program: &'a CStr, args: Strings<'a>) -> Spawn<'a> {
        Spawn {
            program: Program::Search(program),
            args,
            left_out: None,
            env: Strings::new(&[Slot::END]).unwrap(),
            env_added: &[],
            signals: SignalState { mask: SignalSet::EMPTY, child: Disposition::Default },
            group: Group::Inherited,
            parent_death: None,
            stdin: None,
            kept: &[],
        }
    }

    fn end_of(mut child: Child) -> Ended {
        loop {
            match child.reap() {
                Ok(ended) => return ended,
                Err(still) => child = still,
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_child_gets_what_the_plan_says() {
        let slots = [c"sh", c"-c", c"test \"$A$B\" = 12 && read line && test \"$line\" = '# text' && exit 9"];
        let slots = [Slot::of(slots[0]), Slot::of(slots[1]), Slot::of(slots[2]), Slot::END];
        let env = [Slot::of(c"A=1"), Slot::of(c"B=0"), Slot::END];
        let input = std::env::temp_dir().join(std::format!("sexton-sys-{}-stdin", std::process::id()));
        std::fs::write(&input, "# text\n").unwrap();
        let path = std::ffi::CString::new(input.to_str().unwrap()).unwrap();
        let stdin = file::open(file::AT_FDCWD, &path, flags::RDONLY, 0).unwrap();
        std::fs::remove_file(input).unwrap();
        let mut plan = plan(c"sh", Strings::new(&slots).unwrap());
        plan.env = Strings::new(&env).unwrap();
        plan.env_added = &[c"B=2"];
        plan.stdin = Some(stdin.raw());
        assert_eq!(end_of(spawn(&plan).unwrap()), Ended::Exited(9));
    }

    #[test]
    fn a_word_is_left_out_of_the_command_line() {
        let slots =
            [Slot::of(c"sh"), Slot::of(c"--"), Slot::of(c"-c"), Slot::of(c"exit $#"), Slot::of(c"0"), Slot::END];
        for (left_out, code) in [(None, 2), (Some(1), 0), (Some(9), 2)] {
            let mut plan = plan(c"sh", Strings::new(&slots).unwrap());
            plan.left_out = left_out;
            assert_eq!(end_of(spawn(&plan).unwrap()), Ended::Exited(code), "{left_out:?}");
        }
    }

    #[test]
    fn what_cannot_be_run_is_told_with_its_reason() {
        let slots = [Slot::of(c"x"), Slot::END];
        let args = Strings::new(&slots).unwrap();
        for (program, errno) in [(c"no-such-program", Errno::ENOENT), (c"/", Errno::EACCES), (c"", Errno::ENOENT)] {
            let error = spawn(&plan(program, args)).unwrap_err();
            assert_eq!((error.call.name(), error.errno), (c"execve", errno), "{program:?}");
        }
    }

    #[test]
    fn text_is_run_by_a_shell_also_where_it_has_no_arguments() {
        let script = std::env::temp_dir().join(std::format!("sexton-sys-{}-script", std::process::id()));
        std::fs::write(&script, "exit 9\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let null = file::open(file::AT_FDCWD, c"/dev/null", flags::RDONLY, 0).unwrap();
        let path = std::ffi::CString::new(script.to_str().unwrap()).unwrap();
        let mut plan = plan(&path, Strings::new(&[Slot::END]).unwrap());
        plan.stdin = Some(null.raw());
        // REGRESSION: the shell was not told the script, and read stdin.
        let ended = end_of(spawn(&plan).unwrap());
        std::fs::remove_file(script).unwrap();
        assert_eq!(ended, Ended::Exited(9));
    }

    #[test]
    fn an_open_program_runs_and_is_signalled_with_its_group() {
        let sleep = file::open(file::AT_FDCWD, c"/bin/sleep", flags::PATH, 0).unwrap();
        let slots = [Slot::of(c"sleep"), Slot::of(c"1000"), Slot::END];
        let mut plan = plan(c"", Strings::new(&slots).unwrap());
        plan.program = Program::Open(sleep.raw());
        plan.group = Group::Own;
        let child = spawn(&plan).unwrap();
        assert_eq!(child.peek(), Ok(None));
        child.signal_group(Signal::TERM).unwrap();
        assert_eq!(end_of(child), Ended::Killed { signal: Signal::TERM, core: false });
    }
}
