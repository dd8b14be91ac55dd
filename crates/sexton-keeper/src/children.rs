//! Finds the children of this process that have ended.
//!
//! `SIGCHLD` names one, and is looked at at once; but while one is pending the kernel adds no second, so that each is
//! only a hint that others may have ended too. Whether there is any, the kernel tells in one system call that waits for
//! just any child (`P_ALL`), only peeks, and names one; mostly there is none, and that is all. It walks every child each
//! time (1.1 ms at 10,000), so where there are many, or one that stays a zombie hides the others, who they are is found
//! by looking through all children. All of this takes time in proportion to their number, and therefore happens so
//! rarely that it never takes more than a twentieth of a CPU.
//!
//! Where children end so fast that more than one has ended at each look, they are a crowd: to be woken for each of them
//! costs more than to reap it, so they are let come for a moment and reaped together.

use sexton_sys::file::{self, AT_FDCWD, flags};
use sexton_sys::memory::Table;
use sexton_sys::strings::number;
use sexton_sys::{SysError, process, time, wait};

use crate::clock::Time;

/// A scan rests for this many times what it took of a CPU.
const REST: u64 = 20;

/// How long a crowd is let come. Nobody waits for an orphan, and a shell makes some twenty of them in that time.
const CROWD: Time = Time::millis(10);

/// BOUND: children that the kernel is asked to name one by one; to look through all takes about as long as so many of
/// these questions.
const NAMED: u32 = 32;

/// BOUND: room for the list of children: 4 million PIDs, the most that a kernel can have. Pages cost nothing until
/// they are used, and are given back after the scan.
const LIST_BYTES: usize = 32 << 20;

/// Whether a zombie may stay one for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// It may: the scan goes on to the others.
    None,
    /// It may not: it hides the others until it is reaped.
    Now,
}

/// When to scan.
#[derive(Debug)]
pub(crate) struct Finder {
    wanted: bool,
    not_before: Time,
    /// Until when a crowd is let come, where the last scan found one; else `Time::ZERO`.
    crowd: Time,
}

impl Finder {
    /// Wants a scan at once: children may have ended before anybody listened.
    pub(crate) const fn new() -> Finder {
        Finder { wanted: true, not_before: Time::ZERO, crowd: Time::ZERO }
    }

    /// Wants a scan, because a child ended and others may have too.
    pub(crate) fn want(&mut self) {
        self.wanted = true;
    }

    /// Wants a scan not earlier than `at`.
    pub(crate) fn want_at(&mut self, at: Time) {
        self.wanted = true;
        self.not_before = self.not_before.max(at);
    }

    /// When the next scan is to begin.
    pub(crate) fn due(&self) -> Time {
        if self.wanted { self.not_before } else { Time::NEVER }
    }

    /// Until when it is better not to listen to `SIGCHLD`, because children end faster than that pays.
    pub(crate) fn crowd(&self) -> Time {
        self.crowd
    }

    /// Begins a scan; tells what the thread has taken of a CPU by now.
    pub(crate) fn begin(&mut self) -> Time {
        // RACE: what ends from here on raises SIGCHLD, which wants the next scan.
        self.wanted = false;
        Time::of(time::thread_cpu())
    }

    /// Ends the scan that had `begun`, which reaped so many.
    pub(crate) fn end(&mut self, now: Time, begun: Time, reaped: u32) {
        // By the clock on the wall, a scan that had to wait for a busy machine would leave zombies for many seconds.
        let rest = (Time::of(time::thread_cpu()) - begun) * REST;
        self.not_before = self.not_before.max(now + rest);
        // A scan that follows a signal finds only whom no signal named.
        let is_crowd = reaped > u32::from(self.crowd != Time::ZERO);
        self.crowd = if is_crowd { now + CROWD } else { Time::ZERO };
        if is_crowd {
            self.want_at(self.crowd);
        }
    }
}

/// Has `each` look at every child that has ended, and at others too; it tells whether it has reaped the child. Tells
/// how many were.
pub(crate) fn look(each: &mut dyn FnMut(u32, Urgency) -> bool) -> u32 {
    let mut reaped = 0;
    while reaped < NAMED {
        match wait::peek_any() {
            Ok(Some((pid, _))) if each(pid, Urgency::None) => reaped += 1,
            Ok(Some(_)) => break,
            Ok(None) | Err(_) => return reaped,
        }
    }
    let Ok(list) = list_children() else {
        return reaped + ask_kernel(each);
    };
    for pid in pids_of(&list) {
        reaped += u32::from(each(pid, Urgency::None));
    }
    reaped
}

/// The text of `children` of this thread, zeroes behind it.
///
/// It is read whole before anybody is reaped: the kernel finds its place in it by counting, and whom we reap between
/// two reads would shift the others out of sight.
fn list_children() -> Result<Table<u8>, SysError> {
    check_proc()?;
    let file = file::open(AT_FDCWD, c"/proc/thread-self/children", flags::RDONLY, 0)?;
    let mut list = Table::new(LIST_BYTES)?;
    let mut room = &mut *list;
    loop {
        let len = sexton_sys::fd::read(file.raw(), room)?;
        if len == 0 {
            return Ok(list);
        }
        room = room.get_mut(len..).unwrap_or_default();
    }
}

/// Refuses a `/proc` of another PID namespace, which is there when nobody has mounted ours: its numbers are not ours.
fn check_proc() -> Result<(), SysError> {
    let mut space = [0; 16];
    let link = file::readlink(AT_FDCWD, c"/proc/self", &mut space)?;
    if pids_of(link).next() == Some(process::pid()) {
        Ok(())
    } else {
        Err(SysError::of(c"readlinkat", sexton_sys::Errno::ESRCH))
    }
}

/// The numbers in `list`, as far as the first zero.
fn pids_of(list: &[u8]) -> impl Iterator<Item = u32> {
    let text = list.split(|&byte| byte == 0).next().unwrap_or_default();
    text.split(|byte| !byte.is_ascii_digit()).filter_map(number)
}

/// Asks the kernel for one ended child after the other, where `/proc` is not mounted or cannot be read; tells how many
/// were reaped.
///
/// This waits for any child, which is safe here alone: this process is the reaper of all of its children, none of them
/// belongs to a library that waits for it elsewhere, and this only peeks; who reaps is decided by `each`.
fn ask_kernel(each: &mut dyn FnMut(u32, Urgency) -> bool) -> u32 {
    let mut reaped = 0;
    while let Ok(Some((pid, _))) = wait::peek_any()
        && each(pid, Urgency::Now)
    {
        reaped += 1;
    }
    reaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Scans, as both who have a finder do.
    fn scan(finder: &mut Finder, now: Time, each: &mut dyn FnMut(u32, Urgency) -> bool) {
        let begun = finder.begin();
        let reaped = look(each);
        finder.end(now, begun, reaped);
    }

    #[test]
    fn numbers_are_read_up_to_the_zeroes() {
        assert_eq!(pids_of(b"12 345 6 \0\0 7").collect::<Vec<_>>(), [12, 345, 6]);
        assert_eq!(pids_of(b"\0").count(), 0);
        assert_eq!(pids_of(b"").count(), 0);
        assert_eq!(pids_of(b"99999999999999 5").collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn a_scan_rests_before_the_next_one_however_often_it_is_wanted() {
        let mut finder = Finder::new();
        let begun = Time::now();
        scan(&mut finder, begun, &mut |_, _| false);
        assert_eq!(finder.due(), Time::NEVER);
        finder.want();
        let took = Time::now() - begun;
        assert!(finder.due() > begun && finder.due() <= begun + took * (REST + 1));
    }

    #[test]
    #[allow(clippy::zombie_processes, reason = "they are reaped by what is tested")]
    fn a_crowd_is_let_come_until_it_is_none_any_more() {
        let ended = || {
            let child = std::process::Command::new("true").spawn().unwrap();
            while !matches!(wait::peek(child.id()), Ok(Some(_))) {
                std::thread::yield_now();
            }
            child.id()
        };
        let mut finder = Finder::new();
        let mut now = Time::now();
        // One that no signal named is a crowd; while it is let come, one is as many as a signal would have named.
        for (count, crowd) in [(0, false), (1, true), (2, true), (1, false), (0, false)] {
            let zombies: Vec<u32> = (0..count).map(|_| ended()).collect();
            scan(&mut finder, now, &mut |pid, _| zombies.contains(&pid) && matches!(wait::reap(pid), Ok(Some(_))));
            assert!(zombies.iter().all(|&pid| wait::peek(pid).is_err()), "all are found");
            assert_eq!(finder.crowd(), if crowd { now + CROWD } else { Time::ZERO });
            assert_eq!(finder.due() != Time::NEVER, crowd, "a crowd wants a scan");
            assert!(finder.due() >= finder.crowd());
            now = now + CROWD;
        }
    }

    #[test]
    fn a_scan_that_waits_for_a_busy_machine_does_not_rest_for_that() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while !matches!(wait::peek(child.id()), Ok(Some(_))) {
            std::thread::yield_now();
        }
        let mut finder = Finder::new();
        // REGRESSION: it rested for 20 times as long as it was kept from running.
        let kept = std::time::Duration::from_millis(300);
        let begun = Time::now();
        scan(&mut finder, begun, &mut |_, _| {
            std::thread::sleep(kept);
            false
        });
        finder.want();
        let (took, rest) = (Time::now() - begun, finder.due() - Time::now());
        assert!(took >= Time::of(kept) && rest < Time::of(kept * 2), "{rest:?}");
        assert!(child.wait().is_ok());
    }

    #[test]
    fn a_child_that_has_ended_is_found_by_its_list_and_its_brother_with_it() {
        let start = |program: &str| std::process::Command::new(program).arg("1000").spawn().unwrap();
        let (mut ended, mut alive) = (start("true"), start("sleep"));
        while !matches!(wait::peek(ended.id()), Ok(Some(_))) {
            std::thread::yield_now();
        }
        let mut found = Vec::new();
        look(&mut |pid, urgency| {
            found.push((pid, urgency));
            false
        });
        alive.kill().unwrap();
        assert!([&mut ended, &mut alive].map(|child| child.wait().is_ok()) == [true, true]);
        assert!([ended.id(), alive.id()].iter().all(|pid| found.contains(&(*pid, Urgency::None))), "{found:?}");
    }
}
