//! The child between `clone3`, or `clone`, and `execve`: raw system calls only, on its own stack, in its parent's memory.

use super::{ChildFailure, MARK_RELEASED, OOM_SCORE, Script, Step, swap_mask};
use crate::arch::{nr, syscall};
use crate::error::Errno;
use crate::fd::{RawFd, word};
use crate::file;

/// The child: never returns, never unwinds, never allocates.
///
/// # Safety
/// `script` points to a `Script` in a stage that outlives the child's use of it.
pub(super) unsafe extern "C" fn child_main(script: *const u8) -> ! {
    // SAFETY: by this function's contract.
    let script = unsafe { &*script.cast::<Script>() };
    let failure = match prepare(script).and_then(|()| wait_for_release(script)) {
        Ok(()) => become_program(script),
        Err(failure) => failure,
    };
    let mut bytes = [0u8; 8];
    let (step, errno) = bytes.split_at_mut(4);
    step.copy_from_slice(&(failure.step as u32).to_le_bytes());
    errno.copy_from_slice(&failure.errno.0.to_le_bytes());
    mark(script, &bytes);
    let _told = crate::fd::write(script.report, &bytes);
    leave()
}

/// Runs one call of the child; a failure names its step.
fn run<const N: usize>(step: Step, number: usize, args: [usize; N]) -> Result<usize, ChildFailure> {
    // SAFETY: each caller passes pointers into its script or its own stack, for calls that only read them.
    unsafe { syscall(number, args) }.map_err(|errno| ChildFailure { step, errno })
}

/// What needs no release: it is undone by the child's death.
fn prepare(script: &Script) -> Result<(), ChildFailure> {
    for (to, from) in script.stdio.into_iter().enumerate() {
        run(Step::Stdio, nr::DUP3, [word(from), to, 0])?;
    }
    if script.netns >= 0 {
        const CLONE_NEWNET: usize = 0x4000_0000;
        run(Step::Netns, nr::SETNS, [word(script.netns), CLONE_NEWNET])?;
    }
    close_all_but(script.kept)?;
    run(Step::Session, nr::SETSID, [])?;
    run(Step::Session, nr::UMASK, [0o022])?;
    reset_dispositions();
    if script.is_copy {
        reset_oom_score();
    }
    if script.has_nofile {
        const RLIMIT_NOFILE: usize = 7;
        let _set = run(Step::Other, nr::PRLIMIT64, [0, RLIMIT_NOFILE, script.nofile.as_ptr() as usize, 0]);
    }
    if script.pidns { mount_proc() } else { Ok(()) }
}

/// Closes every descriptor above 2 but these, which are in order. While the child held the parent's end of a pipe, it
/// would not see the parent die; and what the parent locks by a descriptor must end with the parent.
fn close_all_but(kept: [RawFd; 3]) -> Result<(), ChildFailure> {
    let mut first = 3;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> Result<(), ChildFailure> {
    crate::file::close_range(first, last).map_err(|error| ChildFailure { step: Step::Close, errno: error.errno })
}

/// Blocks until the parent says go. End of file means that it died: then nothing is run.
fn wait_for_release(script: &Script) -> Result<(), ChildFailure> {
    let mut byte = [0u8; 1];
    match crate::fd::read(script.go, &mut byte) {
        Ok(1) => Ok(()),
        Ok(_) | Err(_) => leave(),
    }
}

/// Takes on its identity and becomes the program; returns only what refused it.
fn become_program(script: &Script) -> ChildFailure {
    mark(script, &MARK_RELEASED);
    match take_identity(script) {
        Ok(()) => exec(script),
        Err(failure) => failure,
    }
}

fn take_identity(script: &Script) -> Result<(), ChildFailure> {
    const PR_SET_NO_NEW_PRIVS: usize = 38;
    if script.has_ids {
        run(Step::Groups, nr::SETGROUPS, [script.group_count, script.groups as usize])?;
        run(Step::Gid, nr::SETGID, [script.gid as usize])?;
        run(Step::Uid, nr::SETUID, [script.uid as usize])?;
    }
    // As the user, so that a directory closed to it is refused.
    run(Step::Cwd, nr::CHDIR, [script.cwd as usize])?;
    if script.no_new_privs {
        run(Step::Privileges, nr::PRCTL, [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0])?;
    }
    swap_mask(0);
    Ok(())
}

/// Tries each program in turn, as `execvp(3)` does.
fn exec(script: &Script) -> ChildFailure {
    let mut errno = Errno::ENOENT;
    let mut at = script.programs;
    loop {
        // SAFETY: `programs` ends with NULL, and the loop ends there.
        let program = unsafe { *at };
        if program.is_null() {
            return ChildFailure { step: Step::Exec, errno };
        }
        let args = [program as usize, script.argv as usize, script.env as usize];
        if let Err(failure) = run(Step::Exec, nr::EXECVE, args) {
            match failure.errno {
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES => errno = Errno::EACCES,
                _ => return failure,
            }
        }
        at = at.wrapping_add(1);
    }
}

/// Default dispositions for all signals: an ignored SIGCHLD would discard exit statuses, an ignored SIGPIPE is
/// what Rust programs start with.
fn reset_dispositions() {
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SIGKILL and SIGSTOP answer EINVAL, and need nothing.
        let _set = run(Step::Other, nr::RT_SIGACTION, [signal, default.as_ptr() as usize, 0, 8]);
    }
}

/// The daemon's own protection from the out-of-memory killer is not the workload's.
fn reset_oom_score() {
    if let Ok(file) = file::open(file::AT_FDCWD, OOM_SCORE, file::flags::WRONLY, 0) {
        let _written = crate::fd::write(file.raw(), b"0");
    }
}

/// A `/proc` that shows the new PID namespace, in a mount namespace that passes nothing back to the host.
fn mount_proc() -> Result<(), ChildFailure> {
    const MS_REC_SLAVE: usize = 0x4000 | 0x8_0000;
    const MS_NOSUID_NODEV_NOEXEC: usize = 2 | 4 | 8;
    let (root, proc, none) = (c"/", c"/proc", c"none");
    let slave = [none.as_ptr() as usize, root.as_ptr() as usize, 0, MS_REC_SLAVE, 0];
    run(Step::Proc, nr::MOUNT, slave)?;
    let kind = c"proc";
    let at = [kind.as_ptr() as usize, proc.as_ptr() as usize, kind.as_ptr() as usize, MS_NOSUID_NODEV_NOEXEC, 0];
    run(Step::Proc, nr::MOUNT, at).map(|_| ())
}

/// Says durably how far the child came; the bytes are there already, so a full disk cannot refuse them.
fn mark(script: &Script, bytes: &[u8; 8]) {
    if script.mark >= 0 {
        let args = [word(script.mark), bytes.as_ptr() as usize, bytes.len(), 0];
        let _written = run(Step::Other, nr::PWRITE64, args);
    }
}

/// Ends the child without running anything of its parent's.
fn leave() -> ! {
    loop {
        // SAFETY: ends this process alone; the parent shares the memory, not the thread group.
        let _never = unsafe { syscall(nr::EXIT_GROUP, [127]) };
    }
}
