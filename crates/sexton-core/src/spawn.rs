//! Making a process that waits: born in its domain, known and pinned before it runs anything.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use sexton_plan::id::Pid;
use sexton_sys::clone::{ChildFailure, ChildSpec, Ids, ReleasedChild, Report, WaitingChild};
use sexton_sys::time::boottime;
use sexton_sys::{Errno, SysError};

use crate::domain::{Domain, DomainError};
use crate::handle::{Handle, OpenHandleError};
use crate::proc::{Here, tick_between};

/// Where programs are looked for when the environment names no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run. Descriptors are borrowed until `execve`.
#[derive(Debug)]
pub struct Program<'a> {
    /// Program and arguments; a program without `/` is looked for in the `PATH` of `env`.
    pub argv: &'a [String],
    /// The whole environment.
    pub env: &'a [(String, String)],
    /// Working directory.
    pub cwd: &'a str,
    /// Numeric identity to take on; `None` keeps the caller's.
    pub user: Option<&'a User>,
    /// Descriptors, each above 2, that become stdin, stdout and stderr.
    pub stdio: [RawFd; 3],
    /// A file whose first 8 bytes tell how far the child came, whoever died meanwhile.
    pub mark: Option<RawFd>,
    /// The domain to be born in.
    pub domain: Option<&'a Domain>,
    /// The network namespace to run in; `None` keeps the caller's.
    pub netns: Option<BorrowedFd<'a>>,
    /// A PID namespace of its own, with a `/proc` to match.
    pub pidns: bool,
    /// No new privileges over `execve`.
    pub no_new_privs: bool,
    /// Memory of its own instead of its maker's until `execve`: to be asked for where what `domain` may use is so little
    /// that `execve` could exceed it, for who does is killed with everybody who shares its memory. It costs what `fork`
    /// costs.
    pub own_memory: bool,
    /// Soft and hard limit of open files.
    pub nofile: Option<[u64; 2]>,
}

/// A numeric identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No arguments at all, or a NUL inside a text.
    #[error("a program needs at least one argument, and no text may hold a NUL")]
    BadText,
    /// Its domain is gone, or no descriptor of it is to be had.
    #[error("could not enter its domain")]
    Domain(#[source] DomainError),
    /// The kernel refused the new process.
    #[error("could not make a process")]
    Clone(#[source] SysError),
    /// The new process could not be identified; it ran nothing.
    #[error("could not identify the new process")]
    Identify(#[source] OpenHandleError),
}

/// A process that has run nothing yet. Dropped, it never will.
#[derive(Debug)]
pub struct Waiting {
    child: WaitingChild,
}

/// A process that was told to go on.
#[derive(Debug)]
pub struct Going {
    child: ReleasedChild,
}

/// Why a program never ran: step and errno, printed like strace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", .0.step.call(), .0.errno)]
pub struct NeverRan(pub ChildFailure);

/// Makes the process. It waits for [`Waiting::release`], and runs nothing if its maker dies before.
///
/// # Errors
/// The kernel refused, or a text cannot be an argument.
///
/// # Blocking
/// Never for long: the memory of the caller is not copied, unless that is asked for or the caller has an
/// `oom_score_adj`, which would be laid down with the child's.
pub fn spawn(program: &Program<'_>, here: &Here) -> Result<(Waiting, Handle), SpawnError> {
    let argv = c_strings(program.argv.iter())?;
    let env = c_strings(program.env.iter().map(|(key, value)| format!("{key}={value}")))?;
    let cwd = CString::new(program.cwd).map_err(|_| SpawnError::BadText)?;
    let candidates = candidates(program)?;
    let domain = program.domain.map(Domain::open).transpose().map_err(SpawnError::Domain)?;
    let spec = ChildSpec {
        programs: &borrow(&candidates),
        argv: &borrow(&argv),
        env: &borrow(&env),
        cwd: &cwd,
        ids: program.user.map(|user| Ids { uid: user.uid, gid: user.gid, groups: &user.groups }),
        stdio: program.stdio,
        mark: program.mark,
        cgroup: domain.as_ref().map(AsRawFd::as_raw_fd),
        netns: program.netns.map(|netns| netns.as_raw_fd()),
        pidns: program.pidns,
        no_new_privs: program.no_new_privs,
        own_memory: program.own_memory,
        nofile: program.nofile,
    };
    let before = boottime();
    let mut child = WaitingChild::spawn(&spec).map_err(SpawnError::Clone)?;
    // Looked up in `/proc`, it would leave entries there, which cost the kernel as much again when it is reaped.
    let start_ticks = tick_between(before, boottime());
    let pid = Pid::new(child.pid()).ok_or(SpawnError::Clone(SysError::of(c"clone", Errno::EINVAL)))?;
    let pidfd = child.take_pidfd().ok_or(SpawnError::Clone(SysError::of(c"clone", Errno::EBADF)))?;
    let handle = Handle::of_child(pidfd, pid, start_ticks, here).map_err(SpawnError::Identify)?;
    Ok((Waiting { child }, handle))
}

impl Waiting {
    /// Lets it go on to `execve`. One that was killed meanwhile has left, and its exit status tells how.
    ///
    /// # Errors
    /// It could not be told (`write(2)`), and runs nothing.
    pub fn release(self) -> Result<Going, SysError> {
        self.child.release().map(|child| Going { child })
    }
}

impl Going {
    /// What is known by now; [`AsRawFd`] gives the descriptor that becomes readable when there is more. `Ok(true)`:
    /// its program runs, or it died on the way there, which its exit status tells.
    ///
    /// # Errors
    /// `NeverRan` names the refused step.
    pub fn has_left(&mut self) -> Result<bool, NeverRan> {
        match self.child.report() {
            Ok(Report::Pending) => Ok(false),
            // A pipe of our own that cannot be read tells nothing: the process's own end will.
            Ok(Report::Left) | Err(_) => Ok(true),
            Ok(Report::Failed(failure)) => Err(NeverRan(failure)),
        }
    }
}

impl AsRawFd for Going {
    fn as_raw_fd(&self) -> RawFd {
        self.child.report_fd()
    }
}

/// The paths to try for the program, in order (`execvp(3)`).
fn candidates(program: &Program<'_>) -> Result<Vec<CString>, SpawnError> {
    let name = program.argv.first().ok_or(SpawnError::BadText)?;
    if name.contains('/') {
        return c_strings([name]);
    }
    let path = program.env.iter().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, path)| path);
    c_strings(path.split(':').map(|dir| if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") }))
}

fn c_strings(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Vec<CString>, SpawnError> {
    texts.into_iter().map(|text| CString::new(text.as_ref()).map_err(|_| SpawnError::BadText)).collect()
}

fn borrow(strings: &[CString]) -> Vec<&CStr> {
    strings.iter().map(CString::as_c_str).collect()
}
