//! A hold on a process that a test may kill.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use sexton_sys::pidfd::{self, End};
use sexton_sys::poll::{self, PollFd, events};
use sexton_sys::{Errno, Fd};

/// A pidfd on a process that was proven to be ours when it was opened.
#[derive(Debug)]
pub struct Held {
    pid: i32,
    fd: Fd,
}

impl Held {
    /// A hold on `pid`, if its parent is `parent`: a process of ours, which has not reaped it.
    ///
    /// # Errors
    /// There is no such process, or it is another's.
    pub fn child_of(parent: u32, pid: i32) -> Result<Held> {
        let fd = pidfd::open(pid)?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Behind the name, which may hold anything, come the state and the parent.
        let found = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        ensure!(found == Some(parent), "process {pid} is a child of {found:?}, not of {parent}");
        Held { pid, fd }.that_still_has_its_number()
    }

    /// A hold on `pid`, if it is in the cgroup2 with the id `cgroup`, which is a test's own.
    ///
    /// # Errors
    /// There is no such process, or it is elsewhere.
    pub fn in_cgroup(cgroup: u64, pid: i32) -> Result<Held> {
        let fd = pidfd::open(pid)?;
        let found = match pidfd::facts(fd.raw()) {
            Ok(facts) => facts.cgroup_id,
            // KERNEL(6.13): before, `/proc` names the cgroup, whose id is its inode.
            Err(_) => cgroup_by_path(pid),
        };
        ensure!(found == Some(cgroup), "process {pid} is in the cgroup {found:?}, not in {cgroup}");
        Held { pid, fd }.that_still_has_its_number()
    }

    /// What was read by number was read of this process, if it has not been reaped by now.
    fn that_still_has_its_number(self) -> Result<Held> {
        pidfd::send_signal(self.fd.raw(), 0)?;
        Ok(self)
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends `signal` to exactly this process; fine if it has ended.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn signal(&self, signal: i32) -> Result<()> {
        match pidfd::send_signal(self.fd.raw(), signal) {
            Err(error) if error.errno != Errno::ESRCH => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        matches!(pidfd::poll_end(self.fd.raw()), Ok(End::None))
    }

    /// Waits for its end, for `limit` at most; whether it has ended.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(self.fd.raw(), events::IN)];
        let _woken = poll::poll(&mut fds, Some(limit));
        !self.is_alive()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It lives on.
    pub fn wait_end(&self) {
        assert!(self.ends_within(crate::SOON), "process {} lives on", self.pid);
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn kill9(&self) -> Result<()> {
        self.signal(9)?;
        self.wait_end();
        Ok(())
    }
}

fn cgroup_by_path(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    fs::metadata(crate::cgroup2()?.join(path)).ok().map(|dir| dir.ino())
}
