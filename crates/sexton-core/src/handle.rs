//! A live hold on one process: the only thing that can be signalled.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, RawFd};

use sexton_plan::id::Pid;
use sexton_plan::identity::{Identity, Match};
use sexton_plan::state::{ExitSource, ExitStatus};
use sexton_sys::pidfd::{self, FileHandle};
use sexton_sys::{Errno, Fd, SysError, wait, xattr};

use crate::cgroup2;
use crate::proc::{self, Here, ReadProcError};

/// The tag on a process's pidfd, which only root can write.
const TAG: &std::ffi::CStr = c"trusted.sexton";

/// A pidfd, and the identity that was read through it.
#[derive(Debug)]
pub struct Handle {
    pidfd: Fd,
    identity: Identity,
}

/// Why no hold on a process could be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenHandleError {
    /// No such process, or not the one that was recorded: that one is gone.
    #[error("the process is gone")]
    Gone,
    /// There is a process of that number, and nothing proves that it is, or is not, the recorded one.
    #[error("the process of that number is not proven to be the recorded one")]
    Unproven,
    /// It was recorded in a PID namespace that need not be visible from here: nothing is known of it.
    #[error("the process may live in a PID namespace that cannot be seen from here")]
    OutOfSight,
    /// The kernel refused to say.
    #[error("could not open the process")]
    Sys(#[from] SysError),
    /// `/proc` refused to say.
    #[error("could not read the process")]
    Proc(#[from] ReadProcError),
}

/// What a handle knows of its process's life, without blocking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs, or its status is not to be had yet.
    Alive,
    /// It has ended, its parent has not reaped it, and this is what its zombie tells, if anything.
    Zombie(Option<ExitStatus>),
    /// It has been reaped, and this is what the kernel kept, if anything.
    Reaped(Option<ExitStatus>),
}

impl Handle {
    /// A hold on whatever process `pid` names at this moment; its identity is read through the open pidfd, and
    /// `/proc` is believed only where the pidfd still lives afterwards.
    ///
    /// # Errors
    /// Gone, or the kernel refused.
    pub fn open(pid: Pid, here: &Here) -> Result<Handle, OpenHandleError> {
        let pidfd = pidfd::open(pid.as_raw()).map_err(no_process_or)?;
        let start_ticks = read_start_ticks(&pidfd, pid)?;
        Handle::identify(pidfd, pid, start_ticks, here)
    }

    /// A hold on the caller's own child, whose pidfd came with its birth; `/proc` is asked for its start tick where that
    /// is not known.
    ///
    /// # Errors
    /// The kernel refused to say who it is.
    pub(crate) fn of_child(
        pidfd: Fd,
        pid: Pid,
        start_ticks: Option<u64>,
        here: &Here,
    ) -> Result<Handle, OpenHandleError> {
        let start_ticks = match start_ticks {
            Some(known) => Some(known),
            None => read_start_ticks(&pidfd, pid)?,
        };
        Handle::identify(pidfd, pid, start_ticks, here)
    }

    fn identify(pidfd: Fd, pid: Pid, start_ticks: Option<u64>, here: &Here) -> Result<Handle, OpenHandleError> {
        let identity = Identity {
            pid,
            pidfs_ino: crate::features::pidfs().then(|| pidfd::inode(pidfd.raw())).transpose()?,
            start_ticks,
            boottime_offset: here.boottime_offset,
            boot_id: here.boot_id.clone(),
            pid_ns: here.pid_ns,
        };
        Ok(Handle { pidfd, identity })
    }

    /// A hold on exactly the recorded process, by its kernel handle where there is one, else by number and proof.
    /// `cgroup` is the id of the cgroup2 made for it: the second witness where its start tick is the only evidence.
    ///
    /// # Errors
    /// `Gone` only where that is proven; `Unproven` where a process of that number may be it; `OutOfSight` where no
    /// process that can be seen from here may be it.
    pub fn reopen(
        recorded: &Identity,
        handle: &[u8],
        cgroup: Option<u64>,
        here: &Here,
    ) -> Result<Handle, OpenHandleError> {
        if recorded.boot_id != here.boot_id {
            return Err(OpenHandleError::Gone);
        }
        if let Some(handle) = FileHandle::from_bytes(handle) {
            match handle.open_process() {
                Ok(pidfd) => return Ok(Handle { pidfd, identity: recorded.clone() }),
                // KERNEL(6.14): it says the same of what lives outside the caller's PID namespace.
                Err(error) if error.errno == Errno::ESTALE && here.sees(recorded.pid_ns) => {
                    return Err(OpenHandleError::Gone);
                }
                // Without the right or the call, the number and its proofs are left.
                Err(error) => tracing::debug!(%error, "no process by handle"),
            }
        }
        if recorded.pid_ns != here.pid_ns {
            return Err(OpenHandleError::OutOfSight);
        }
        let found = Handle::open(recorded.pid, here)?;
        match recorded.compare(&found.identity) {
            Match::Same => Ok(found),
            Match::Different => Err(OpenHandleError::Gone),
            Match::Unproven if found.is_vouched_for(recorded, cgroup) => Ok(found),
            Match::Unproven => Err(OpenHandleError::Unproven),
        }
    }

    /// Whether an equal start tick and a cgroup that only the recorded process's kin can be in agree.
    fn is_vouched_for(&self, recorded: &Identity, cgroup: Option<u64>) -> bool {
        let same_tick = recorded.began_with(&self.identity) == Some(true);
        same_tick && cgroup.is_some() && self.cgroup_id() == cgroup
    }

    /// A hold through a pidfd that the kernel itself kept for the recorded process (a pin).
    pub fn of_pinned(pidfd: Fd, recorded: Identity) -> Handle {
        Handle { pidfd, identity: recorded }
    }

    /// Which process it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The storable handle by which a later process reopens exactly this one; empty where the kernel has none.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut buffer = [0; 20];
        match FileHandle::of(self.pidfd.raw()) {
            Ok(handle) => {
                let len = handle.to_bytes(&mut buffer);
                buffer.get(..len).unwrap_or_default().to_vec()
            }
            Err(_) => Vec::new(),
        }
    }

    /// Sends `signal` to this process and no other; `false` where it has been reaped already.
    ///
    /// # Errors
    /// The kernel refused, as for another user's process.
    pub fn signal(&self, signal: u8) -> Result<bool, SysError> {
        match pidfd::send_signal(self.pidfd.raw(), i32::from(signal)) {
            Ok(()) => Ok(true),
            Err(error) if error.errno == Errno::ESRCH => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where its life is, without blocking.
    ///
    /// # Errors
    /// The pidfd could not be polled.
    pub fn life(&self) -> Result<Life, SysError> {
        match pidfd::poll_end(self.pidfd.raw())? {
            pidfd::End::None => Ok(Life::Alive),
            pidfd::End::Zombie => Ok(self.life_when_over()),
            pidfd::End::Reaped => Ok(Life::Reaped(self.kept_status())),
        }
    }

    /// Whether what is over has been reaped. KERNEL(6.9): before, its pidfd looks alike before and after.
    fn life_when_over(&self) -> Life {
        match self.zombie_status() {
            None if self.signal(0) == Ok(false) => Life::Reaped(self.kept_status()),
            status => Life::Zombie(status),
        }
    }

    /// Whether all of its threads have ended, reaped or not; one call, where [`Handle::life`] reads a zombie's status.
    ///
    /// # Errors
    /// The pidfd could not be polled.
    pub fn is_over(&self) -> Result<bool, SysError> {
        Ok(match pidfd::poll_end(self.pidfd.raw())? {
            pidfd::End::None => false,
            pidfd::End::Zombie | pidfd::End::Reaped => true,
        })
    }

    /// Reaps it, if it is the caller's own child and has ended; `None` while it runs, or is held by a tracer.
    ///
    /// # Errors
    /// `ECHILD` where it is not the caller's child.
    pub fn reap(&self) -> Result<Option<ExitStatus>, SysError> {
        Ok(wait::reap_pidfd(self.pidfd.raw())?.and_then(|ended| ExitStatus::from_wait_word(ended.raw())))
    }

    /// As [`Handle::reap`], but leaves it the zombie that it is: that keeps the status until its parent of then reaps it.
    ///
    /// # Errors
    /// `ECHILD` where it is not the caller's child.
    pub fn peek(&self) -> Result<Option<ExitStatus>, SysError> {
        Ok(wait::peek_pidfd(self.pidfd.raw())?.and_then(|ended| ExitStatus::from_wait_word(ended.raw())))
    }

    /// What a zombie's `/proc/PID/stat` tells, believed only where the pidfd says afterwards that the number is
    /// still its own, and its own here: a recorded number may be another PID namespace's.
    fn zombie_status(&self) -> Option<ExitStatus> {
        let pid = self.identity.pid;
        let stat = proc::stat(pid).ok()?;
        let status = proc::zombie_status(pid, &stat)?;
        // RACE: asked last. Who has not been reaped by now had the number when it was read.
        let is_its_own = match pidfd::facts(self.pidfd.raw()) {
            Ok(facts) => facts.pid == Some(pid.as_raw()),
            // Without the kernel's word the start tick tells, which another time namespace counts from elsewhere.
            Err(_) => {
                let still_here = pidfd::send_signal(self.pidfd.raw(), 0).is_ok();
                still_here && self.identity.start_ticks.is_none_or(|ticks| ticks == stat.start_ticks)
            }
        };
        is_its_own.then_some(status)
    }

    /// What the kernel kept of a reaped process.
    fn kept_status(&self) -> Option<ExitStatus> {
        ExitStatus::from_wait_word(pidfd::facts(self.pidfd.raw()).ok()?.wait_word?)
    }

    /// The id of its cgroup2, the second witness for weak identities; `None` where nobody says.
    pub fn cgroup_id(&self) -> Option<u64> {
        match pidfd::facts(self.pidfd.raw()) {
            Ok(facts) => facts.cgroup_id,
            Err(_) => self.cgroup_id_by_path(),
        }
    }

    /// Whether a thread of it is in one of these cgroups2: where its main thread has ended, [`Handle::cgroup_id`] tells
    /// where that was.
    pub(crate) fn has_thread_in(&self, cgroups: &HashSet<u64>) -> bool {
        let paths = proc::cgroup_paths_of_threads(self.identity.pid);
        let is_in = paths.iter().filter_map(|path| cgroup2::id_of_path(path)).any(|id| cgroups.contains(&id));
        // RACE: asked last, as below.
        is_in && pidfd::send_signal(self.pidfd.raw(), 0).or_else(alive_all_the_same).is_ok()
    }

    /// KERNEL(6.13): before, `/proc` names the cgroup, whose id is its inode.
    fn cgroup_id_by_path(&self) -> Option<u64> {
        let found = cgroup2::id_of_path(&proc::cgroup_path(self.identity.pid).ok()?)?;
        // RACE: asked last. Who still takes a signal had the number when it was read.
        pidfd::send_signal(self.pidfd.raw(), 0).or_else(alive_all_the_same).ok()?;
        Some(found)
    }

    /// Its parent's PID, where the kernel says.
    pub fn parent(&self) -> Option<i32> {
        pidfd::facts(self.pidfd.raw()).ok()?.ppid
    }

    /// Writes the owner's tag where only root can; `false` where there is one, or the kernel has no place for it.
    pub fn tag(&self, owner: &str) -> bool {
        xattr::create(self.pidfd.raw(), TAG, owner.as_bytes()).is_ok()
    }

    /// Takes the tag away, if it is `owner`'s.
    pub fn untag(&self, owner: &str) {
        if self.tagged().as_deref() == Some(owner) {
            let _untagged = xattr::remove(self.pidfd.raw(), TAG);
        }
    }

    /// The owner's tag.
    pub fn tagged(&self) -> Option<String> {
        let mut buffer = [0; 128];
        let tag = xattr::read(self.pidfd.raw(), TAG, &mut buffer).ok()??;
        Some(String::from_utf8_lossy(tag).into_owned())
    }

    /// Keeps the kernel's exit status of it behind `file` of the calling thread's mount namespace.
    pub(crate) fn attach(&self, file: &std::ffi::CStr) -> Result<(), SysError> {
        sexton_sys::mount::attach(self.pidfd.raw(), file)
    }
}

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.raw()
    }
}

/// Who tells what `life` tells.
pub const fn source_of(life: Life) -> ExitSource {
    match life {
        Life::Alive | Life::Reaped(_) => ExitSource::Pidfd,
        Life::Zombie(_) => ExitSource::Proc,
    }
}

/// The start tick of the process behind `pidfd`, whose number is `pid`; `None` where `/proc` does not tell it.
fn read_start_ticks(pidfd: &Fd, pid: Pid) -> Result<Option<u64>, OpenHandleError> {
    let start_ticks = proc::stat(pid).map(|stat| stat.start_ticks);
    // RACE: the number may have passed to another process before `/proc` was read; a pidfd that still takes
    // signal 0 afterwards had the number all the while.
    pidfd::send_signal(pidfd.raw(), 0).or_else(alive_all_the_same).map_err(gone_or)?;
    match start_ticks {
        Ok(ticks) => Ok(Some(ticks)),
        Err(ReadProcError::Gone(_)) => Err(OpenHandleError::Gone),
        Err(ReadProcError::Unreadable { .. } | ReadProcError::Malformed { .. }) => Ok(None),
    }
}

/// As [`gone_or`], for a number: that of a thread which leads no process is no process's. KERNEL: such a number is
/// `EINVAL`, or `ENOENT` on newer kernels, and nothing else is, where no flag is given (`pidfd_open(2)`).
fn no_process_or(error: SysError) -> OpenHandleError {
    if matches!(error.errno, Errno::ENOENT | Errno::EINVAL) { OpenHandleError::Gone } else { gone_or(error) }
}

fn gone_or(error: SysError) -> OpenHandleError {
    if error.errno == Errno::ESRCH { OpenHandleError::Gone } else { OpenHandleError::Sys(error) }
}

/// Without the right to signal it, a process is there all the same.
fn alive_all_the_same(error: SysError) -> Result<(), SysError> {
    if error.errno == Errno::EPERM { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_been_reaped_is_no_zombie_though_the_pidfd_looks_alike() {
        let mut child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().expect("runs");
        let pid = Pid::new(child.id().cast_signed()).expect("not init");
        let handle = Handle::open(pid, &proc::here().expect("readable")).expect("a hold");
        while !handle.is_over().expect("polled") {
            std::thread::yield_now();
        }
        let told = Some(ExitStatus::Code(7));
        assert_eq!(handle.life_when_over(), Life::Zombie(told));
        child.wait().expect("reaped");
        // REGRESSION: before Linux 6.9, what had been reaped was taken for a zombie for ever, and never settled.
        assert_eq!(handle.life_when_over(), handle.life().expect("polled"));
        assert!(matches!(handle.life_when_over(), Life::Reaped(_)));
    }

    #[test]
    fn what_the_zombie_of_that_number_tells_is_not_this_ones_unless_the_number_is() {
        let here = proc::here().expect("readable");
        let zombie = |code: &str| {
            let child = std::process::Command::new("sh").args(["-c", code]).spawn().expect("runs");
            let handle = Handle::open(Pid::new(child.id().cast_signed()).expect("not init"), &here).expect("a hold");
            while !handle.is_over().expect("polled") {
                std::thread::yield_now();
            }
            (child, handle)
        };
        let ((mut one, it), (mut other, stranger)) = (zombie("exit 7"), zombie("exit 9"));
        // As where it was recorded in another PID namespace, in which the stranger's number was its own.
        let recorded = Identity { start_ticks: None, ..stranger.identity().clone() };
        let pinned = Handle::of_pinned(pidfd::open(it.identity().pid.as_raw()).expect("opened"), recorded);
        if pidfd::facts(pinned.pidfd.raw()).is_ok() {
            assert_eq!(pinned.life_when_over(), Life::Zombie(None));
        }
        one.wait().expect("reaped");
        other.wait().expect("reaped");
    }

    #[test]
    fn nobody_takes_the_tag_of_another_away() {
        let here = proc::here().expect("readable");
        let me = Handle::open(Pid::new(std::process::id().cast_signed()).expect("not init"), &here).expect("a hold");
        if !me.tag("its-owner") {
            // Not root, or no pidfs.
            return;
        }
        me.untag("another");
        assert_eq!(me.tagged().as_deref(), Some("its-owner"));
        assert!(!me.tag("another"), "nor is it given to another");
        assert_eq!(me.tagged().as_deref(), Some("its-owner"));
        me.untag("its-owner");
        assert_eq!(me.tagged(), None);
        assert!(me.tag("another"), "what was given back can be taken again");
        me.untag("another");
    }
}
