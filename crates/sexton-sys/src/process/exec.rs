//! What a forked child does before its program runs. System calls only: no lock, no allocation.

use core::ffi::CStr;
use core::marker::PhantomData;

use super::{Group, PR_SET_PDEATHSIG, Program, Spawn, parent_pid, pid, prctl};
use crate::arch::{nr, syscall};
use crate::error::{Errno, SysError};
use crate::fd::{RawFd, word};
use crate::file::set_close_on_exec;
use crate::memory::Table;
use crate::signal::{Disposition, Signal, replace_mask, set_disposition};
use crate::strings::Strings;

/// Turns the forked child into what `plan` says; returns only what went wrong.
pub(super) fn run_child(plan: &Spawn<'_>, parent: u32) -> SysError {
    match prepare(plan, parent) {
        Err(error) => error,
        Ok([args, env]) => {
            // Last: from here on a signal ends the child as it would end the program.
            replace_mask(plan.signals.mask);
            SysError::of(EXECVE, run(plan.program, args.strings(), env.strings()))
        }
    }
}

/// The call that tells whether there is such a program.
const EXECVE: &CStr = c"execve";

/// A list that is made for `execve(2)`, and the memory that it lies in.
struct List<'a> {
    slots: Table<usize>,
    len: usize,
    lives: PhantomData<&'a CStr>,
}

impl<'a> List<'a> {
    /// An empty list with room for `bound` strings.
    fn new(bound: usize) -> Result<List<'a>, SysError> {
        Ok(List { slots: Table::new(bound + 1)?, len: 0, lives: PhantomData })
    }

    /// Adds `string`, which there is room for: the last slot stays the zero that ends the list.
    fn push(&mut self, string: &'a CStr) {
        if let Some([slot, _, ..]) = self.slots.get_mut(self.len..) {
            *slot = string.as_ptr() as usize;
            self.len += 1;
        }
    }

    /// The list.
    fn strings(&self) -> Strings<'_> {
        // SAFETY: the table ends in a zero, its other slots point to strings that live for 'a, which is longer than the
        // borrow of the table.
        unsafe { Strings::from_raw(self.slots.as_ptr().cast()) }
    }
}

/// Every step before the program; tells the command line and the environment.
fn prepare<'a>(plan: &Spawn<'a>, parent: u32) -> Result<[List<'a>; 2], SysError> {
    if let Some(signal) = plan.parent_death {
        bind_to_parent(signal, parent)?;
    }
    enter_group(plan.group)?;
    if let Some(fd) = plan.stdin {
        make_stdin(fd)?;
    }
    for &fd in plan.kept {
        set_close_on_exec(fd, false)?;
    }
    if plan.signals.child == Disposition::Ignore {
        // Cannot fail for CHLD.
        let _before = set_disposition(Signal::CHLD, Disposition::Ignore);
    }
    Ok([without(plan.args, plan.left_out)?, add_env(plan.env, plan.env_added)?])
}

/// Has the child end with its parent, also where that one ended just now.
fn bind_to_parent(signal: Signal, parent: u32) -> Result<(), SysError> {
    prctl(PR_SET_PDEATHSIG, signal.raw())?;
    if parent_pid() == parent { Ok(()) } else { Err(SysError::of(c"prctl", Errno::ESRCH)) }
}

/// Enters the process group, and takes the terminal for it.
fn enter_group(group: Group) -> Result<(), SysError> {
    if group == Group::Inherited {
        return Ok(());
    }
    // SAFETY: touches no memory.
    unsafe { syscall(nr::SETPGID, [0, 0]) }.map_err(|errno| SysError::of(c"setpgid", errno))?;
    if group == Group::OwnWithTerminal { take_terminal() } else { Ok(()) }
}

/// Makes this process group the foreground one of the terminal on stdin. TTOU is blocked, so this does not stop.
fn take_terminal() -> Result<(), SysError> {
    const TIOCSPGRP: usize = 0x5410;
    let group = pid();
    // SAFETY: the kernel reads one int.
    match unsafe { syscall(nr::IOCTL, [0, TIOCSPGRP, &raw const group as usize]) } {
        // No stdin, not a terminal, not ours, or hung up: then there is none to hand on.
        Ok(_) | Err(Errno::EBADF | Errno::ENOTTY | Errno::ENXIO | Errno::EIO | Errno::EINVAL | Errno::ENODEV) => Ok(()),
        Err(errno) => Err(SysError::of(c"ioctl", errno)),
    }
}

/// Puts `fd` in the place of stdin.
fn make_stdin(fd: RawFd) -> Result<(), SysError> {
    if fd == 0 {
        return set_close_on_exec(0, false);
    }
    // SAFETY: touches no memory.
    let ret = unsafe { syscall(nr::DUP3, [word(fd), 0, 0]) };
    ret.map(|_| ()).map_err(|errno| SysError::of(c"dup3", errno))
}

/// `args` without the one at `left_out`.
fn without<'a>(args: Strings<'a>, left_out: Option<usize>) -> Result<List<'a>, SysError> {
    let mut list = List::new(args.len())?;
    for (_, arg) in args.iter().enumerate().filter(|&(place, _)| Some(place) != left_out) {
        list.push(arg);
    }
    Ok(list)
}

/// The environment with `added`, each in the place of an entry of the same name.
fn add_env<'a>(env: Strings<'a>, added: &'a [&'a CStr]) -> Result<List<'a>, SysError> {
    let mut list = List::new(env.len() + added.len())?;
    for entry in env.iter() {
        if !added.iter().any(|new| name_of(new) == name_of(entry)) {
            list.push(entry);
        }
    }
    for entry in added {
        list.push(entry);
    }
    Ok(list)
}

/// What stands before the first `=`.
fn name_of(entry: &CStr) -> &[u8] {
    let bytes = entry.to_bytes();
    bytes.split(|&byte| byte == b'=').next().unwrap_or(bytes)
}

/// Runs the program; returns only the reason why it could not.
fn run(program: Program<'_>, args: Strings<'_>, env: Strings<'_>) -> Errno {
    match program {
        Program::Open(fd) => execute(fd, c"", args, env),
        Program::Search(name) => search(name, args, env),
    }
}

/// Runs `name`, looked up in `PATH` where it has no slash, as `execvp(3)` does.
fn search(name: &CStr, args: Strings<'_>, env: Strings<'_>) -> Errno {
    let bytes = name.to_bytes();
    if bytes.is_empty() {
        return Errno::ENOENT;
    }
    if bytes.iter().position(|&byte| byte == b'/').is_some() {
        return execute_or_interpret(name, args, env);
    }
    let path = env.value_of(b"PATH").map_or(b"/bin:/usr/bin".as_slice(), CStr::to_bytes);
    let mut space = [0_u8; 4096 + 256];
    let mut refused = Errno::ENOENT;
    for dir in path.split(|&byte| byte == b':') {
        let Some(candidate) = join(dir, bytes, &mut space) else {
            continue;
        };
        match execute_or_interpret(candidate, args, env) {
            // Not here; a refusal seen earlier is the better reason.
            Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV | Errno::ESTALE => {}
            Errno::EACCES => refused = Errno::EACCES,
            errno => return errno,
        }
    }
    refused
}

/// `dir/name` in `space`; an empty `dir` is the working directory. `None` where it does not fit.
fn join<'a>(dir: &[u8], name: &[u8], space: &'a mut [u8]) -> Option<&'a CStr> {
    let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
    let mut len = 0;
    for part in [dir, slash, name, b"\0"] {
        space.get_mut(len..)?.get_mut(..part.len())?.copy_from_slice(part);
        len += part.len();
    }
    // SAFETY: the last part is a zero.
    Some(unsafe { CStr::from_ptr(space.as_ptr().cast()) })
}

/// Runs the file `path`, by `/bin/sh` where it is text without an interpreter line.
fn execute_or_interpret(path: &CStr, args: Strings<'_>, env: Strings<'_>) -> Errno {
    match execute(crate::file::AT_FDCWD, path, args, env) {
        Errno::ENOEXEC => interpret(path, args, env),
        errno => errno,
    }
}

/// Runs `/bin/sh path args…`.
fn interpret(path: &CStr, args: Strings<'_>, env: Strings<'_>) -> Errno {
    let Ok(mut line) = List::new(args.len() + 2) else {
        return Errno::ENOEXEC;
    };
    line.push(c"/bin/sh");
    line.push(path);
    for arg in args.skip(1).iter() {
        line.push(arg);
    }
    match execute(crate::file::AT_FDCWD, c"/bin/sh", line.strings(), env) {
        Errno::ENOENT => Errno::ENOEXEC,
        errno => errno,
    }
}

/// `execveat(2)` of `path` below `dir`, or of `dir` itself where `path` is empty.
fn execute(dir: RawFd, path: &CStr, args: Strings<'_>, env: Strings<'_>) -> Errno {
    const AT_EMPTY_PATH: usize = 0x1000;
    let lists = [args.as_ptr() as usize, env.as_ptr() as usize];
    let [argv, envp] = lists;
    let name = path.as_ptr() as usize;
    let ret = if path.is_empty() {
        // SAFETY: the kernel reads a C string and two lists of them.
        unsafe { syscall(nr::EXECVEAT, [word(dir), name, argv, envp, AT_EMPTY_PATH]) }
    } else {
        // SAFETY: as above. The plain call, for a sandbox may not know the newer one.
        unsafe { syscall(nr::EXECVE, [name, argv, envp]) }
    };
    ret.err().unwrap_or(Errno::EIO)
}
