//! One look over the host's processes, cheap enough to be taken often: orphans are children of PID 1 or of a
//! subreaper, so nothing else need be read.
//!
//! Nothing here decides. Processes vanish while they are looked at, and that is no error; what could not be read is
//! part of what was found, for it may live.

use std::path::PathBuf;

use sexton_plan::id::Pid;

use crate::handle::{Handle, Life, OpenHandleError};
use crate::proc::{self, Here, ReadProcError, User};

/// Processes above the keeper that are asked whether they are ours.
const MOST_ANCESTORS: usize = 64;

/// Who takes in the children of the dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Adopter {
    /// PID 1.
    Init,
    /// A subreaper.
    Process(Pid),
}

impl Adopter {
    /// Its number.
    pub const fn as_raw(self) -> i32 {
        match self {
            Adopter::Init => 1,
            Adopter::Process(pid) => pid.as_raw(),
        }
    }
}

/// The children of all adopters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Their numbers, ascending.
    pub pids: Vec<Pid>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The process, where it is known.
    pub pid: Option<Pid>,
    /// Why.
    pub why: String,
}

impl Unread {
    fn of(pid: Option<Pid>, error: &dyn std::error::Error) -> Unread {
        let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
        Unread { pid, why: format!("{error}{source}") }
    }
}

/// Lists the children of `adopters`. One that is being born or taken in at this very moment may be missed: look twice.
pub fn look_adopted(adopters: &[Adopter]) -> Adopted {
    let mut found = Adopted::default();
    for adopter in adopters {
        let children = match adopter {
            Adopter::Init => proc::children_of_init(),
            Adopter::Process(pid) => proc::children(*pid),
        };
        match children {
            Ok(pids) => found.pids.extend(pids),
            Err(ReadProcError::Gone(_)) => {}
            // A kernel without `children`, or one that hides it: every process is asked for its parent.
            Err(ReadProcError::Unreadable { .. } | ReadProcError::Malformed { .. }) => {
                return scan(adopters);
            }
        }
    }
    found.pids.sort_unstable();
    found.pids.dedup();
    found
}

/// As [`look_adopted`], by the parent that each process's `stat` tells.
fn scan(adopters: &[Adopter]) -> Adopted {
    let mut found = Adopted::default();
    if let Err(error) = proc::usable() {
        // What is hidden is not listed, and may be adopted.
        found.unread.push(Unread::of(None, &error));
    }
    let pids = match proc::all() {
        Ok(pids) => pids,
        Err(error) => return Adopted { pids: Vec::new(), unread: vec![Unread::of(None, &error)] },
    };
    for pid in pids {
        match proc::stat(pid) {
            Ok(stat) if adopters.iter().any(|adopter| adopter.as_raw() == stat.ppid) => found.pids.push(pid),
            Ok(_) | Err(ReadProcError::Gone(_)) => {}
            Err(error @ (ReadProcError::Unreadable { .. } | ReadProcError::Malformed { .. })) => {
                found.unread.push(Unread::of(Some(pid), &error));
            }
        }
    }
    found.pids.sort_unstable();
    found
}

/// One process, and what was read of it while a pidfd held its number.
#[derive(Debug)]
pub struct Seen {
    /// The hold on it.
    pub handle: Handle,
    /// Its parent's number.
    pub parent: i32,
    /// On whose behalf it runs.
    pub user: User,
    /// Whether it was given a root of its own, as [`proc::is_jailed`] has it; not looked for where it is root's.
    pub is_jailed: bool,
    /// The file that it executes.
    pub executable: PathBuf,
    /// Whether that is the file of this name here: a process may have a root or mounts of its own.
    pub is_here: bool,
    /// Its arguments, as it shows them.
    pub arguments: Vec<Vec<u8>>,
    /// Its environment, as it shows it.
    pub environment: Vec<Vec<u8>>,
}

/// Looks at one process. `None`: it has ended.
///
/// # Errors
/// It could not be read, and may live.
pub fn look_at(pid: Pid, here: &Here) -> Result<Option<Seen>, Unread> {
    let handle = match Handle::open(pid, here) {
        Ok(handle) => handle,
        Err(OpenHandleError::Gone) => return Ok(None),
        Err(
            error @ (OpenHandleError::Unproven
            | OpenHandleError::OutOfSight
            | OpenHandleError::Sys(_)
            | OpenHandleError::Proc(_)),
        ) => {
            return Err(Unread::of(Some(pid), &error));
        }
    };
    let read = || -> Result<Seen, ReadProcError> {
        let parent = proc::stat(pid)?.ppid;
        let (executable, arguments) = (proc::executable(pid)?, proc::arguments(pid)?);
        let is_here = proc::executes(pid, &executable)?;
        let (user, environment) = (proc::user(pid)?, proc::environment(pid)?);
        let is_jailed = user.uid != 0 && proc::is_jailed(pid)?;
        Ok(Seen { handle, parent, user, is_jailed, executable, is_here, arguments, environment })
    };
    let seen = match read() {
        Ok(seen) => seen,
        Err(ReadProcError::Gone(_)) if proc::executable_of_others(pid).is_some() => {
            return Err(Unread { pid: Some(pid), why: "its main thread has ended, and others live on".to_owned() });
        }
        Err(ReadProcError::Gone(_)) => return Ok(None),
        Err(error @ (ReadProcError::Unreadable { .. } | ReadProcError::Malformed { .. })) => {
            return Err(Unread::of(Some(pid), &error));
        }
    };
    // RACE: what was read by number was read of this process only if it lives afterwards.
    match seen.handle.life() {
        Ok(Life::Alive) => Ok(Some(seen)),
        Ok(Life::Zombie(_) | Life::Reaped(_)) => Ok(None),
        Err(error) => Err(Unread::of(Some(pid), &error)),
    }
}

/// The subreapers that may have taken in what our processes left: `keeper`, and every program above it that lies at
/// the same place or beside it, as `sexton-init` does.
pub fn look_adopters(keeper: Option<Pid>) -> Vec<Adopter> {
    let mut found = vec![Adopter::Init];
    let own = keeper.and_then(|keeper| proc::executable(keeper).ok());
    let own = own.as_deref().and_then(std::path::Path::parent);
    let is_ours = |pid: Pid| {
        let file = proc::executable(pid).unwrap_or_default();
        file.parent() == own && ["sexton-init", "sexton"].iter().any(|name| file.ends_with(name))
    };
    let mut next = keeper;
    // BOUND: numbers may pass to others while they are followed, so nothing says that this would end.
    for _ in 0..MOST_ANCESTORS {
        let Some(pid) = next else { break };
        if Some(pid) == keeper || is_ours(pid) {
            found.push(Adopter::Process(pid));
        }
        next = proc::stat(pid).ok().and_then(|stat| Pid::new(stat.ppid));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Pid {
        Pid::new(i32::try_from(std::process::id()).expect("fits")).expect("not init")
    }

    #[test]
    fn both_ways_of_looking_find_a_child() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = Pid::new(i32::try_from(child.id()).expect("fits")).expect("pid");
        for found in [look_adopted(&[Adopter::Process(me())]), scan(&[Adopter::Process(me())])] {
            assert!(found.pids.contains(&pid), "{found:?}");
        }
        let here = proc::here().expect("here");
        // Its parent goes on when its `execve` is under way, and has not laid out its arguments yet.
        let seen = sexton_testkit::eventually("its arguments", sexton_testkit::SOON, || {
            let seen = look_at(pid, &here).expect("readable").expect("alive");
            if seen.arguments.is_empty() { Err("none".to_owned()) } else { Ok(seen) }
        });
        assert_eq!(seen.arguments, [b"sleep".to_vec(), b"1000".to_vec()]);
        assert_eq!(seen.parent, me().as_raw());
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert!(look_at(pid, &here).expect("readable").is_none(), "the dead are no error");
        assert!(!look_adopted(&[Adopter::Process(me())]).pids.contains(&pid));
    }

    #[test]
    fn an_adopter_that_has_ended_has_no_children() {
        let mut child = std::process::Command::new("true").spawn().expect("true");
        let pid = Pid::new(i32::try_from(child.id()).expect("fits")).expect("pid");
        child.wait().expect("reaped");
        assert_eq!(look_adopted(&[Adopter::Process(pid)]), Adopted::default());
    }

    #[test]
    fn init_and_the_keeper_adopt() {
        assert_eq!(look_adopters(None), [Adopter::Init]);
        assert!(look_adopters(Some(me())).contains(&Adopter::Process(me())));
    }
}
