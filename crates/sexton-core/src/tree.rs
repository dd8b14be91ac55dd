//! Trees: what descends from a main process where no cgroup holds it together.
//!
//! A process belongs to the tree when, while its pidfd was open, one of these was so:
//! 1. its parent was one of the tree: the kernel named that parent through the pidfd, and the parent had not been
//!    reaped afterwards, so that the number was its own all the while;
//! 2. it was in the session that one of the tree leads, who had not been reaped afterwards. Only a descendant of
//!    its leader can be in a session, so this finds the double forks that stayed in theirs.
//!
//! Once held, a process stays held, whoever becomes its parent. What escapes: a process that has left its session and
//! whose parent had ended before anybody looked. It is nobody's to signal, for nothing proves whose it was.

use std::sync::Arc;

use sexton_plan::id::Pid;
use sexton_sys::{Errno, process};

use crate::handle::{Handle, Life, OpenHandleError};
use crate::proc::{self, Here, ReadProcError};

/// Passes that find somebody new: a fork bomb has an end, for whoever was found forks no more.
const PASSES: usize = 10_000;
/// Passes that wait for those who were told to stop, and have not come to it.
const QUIET_PASSES: usize = 200;

/// The descendants of one main process that were found so far, each held by pidfd; the main process itself is not
/// among them.
#[derive(Debug)]
pub struct Tree {
    held: Vec<Arc<Handle>>,
    here: Here,
}

impl Tree {
    /// A tree of which nothing is known yet.
    pub fn new(here: Here) -> Tree {
        Tree { held: Vec::new(), here }
    }

    /// Those who live, oldest knowledge first.
    pub fn living(&self) -> Vec<Arc<Handle>> {
        self.held.iter().filter(|member| lives(member)).map(Arc::clone).collect()
    }

    /// Whether one of them lives.
    pub fn is_alive(&self) -> bool {
        self.held.iter().any(|member| lives(member))
    }

    /// Looks for descendants of `main`, and of those who are held already; tells how many are new.
    pub fn look(&mut self, main: &Handle) -> usize {
        // An unreaped one is kept, alive or not: its number is its own, and proves.
        self.held.retain(|member| keeps_number(member));
        let before = self.held.len();
        self.look_for_children(main);
        // BOUND: each turn of the loop reads one who was found; the kernel bounds how many there are.
        let mut next = 0;
        while let Some(parent) = self.held.get(next).map(Arc::clone) {
            self.look_for_children(&parent);
            next += 1;
        }
        self.look_in_sessions(main);
        self.held.len() - before
    }

    /// Looks until nobody new is found and everybody stands still, with `hold_still` called on each who is new: told to
    /// stop, nobody forks between this and what follows. `false` where it did not come to that.
    pub fn settle(&mut self, main: &Handle, mut hold_still: impl FnMut(&Handle)) -> bool {
        hold_still(main);
        self.living().iter().for_each(|member| hold_still(member));
        let mut quiet = 0;
        for _ in 0..PASSES {
            let found = self.look(main);
            self.held.iter().skip(self.held.len().saturating_sub(found)).for_each(|member| hold_still(member));
            if found == 0 {
                if stands_still(main) && self.held.iter().all(|member| stands_still(member)) {
                    return true;
                }
                quiet += 1;
            }
            if quiet >= QUIET_PASSES {
                return false;
            }
            std::thread::yield_now();
        }
        false
    }

    fn look_for_children(&mut self, parent: &Handle) {
        let children = match proc::children(parent.identity().pid) {
            Ok(children) => children,
            Err(ReadProcError::Gone(_)) => return,
            Err(error @ (ReadProcError::Unreadable { .. } | ReadProcError::Malformed { .. })) => {
                tracing::warn!(%error, "children not read");
                return;
            }
        };
        for pid in children {
            self.take(pid, |child| is_child(child, parent));
        }
    }

    fn look_in_sessions(&mut self, main: &Handle) {
        // Not from `/proc`: that costs forty times as much, and everybody on the host is asked.
        let session = |pid: Pid| process::session(pid.as_raw()).ok();
        let leads = |handle: &Handle| {
            let pid = handle.identity().pid;
            session(pid) == Some(pid.as_raw())
        };
        let leaders: Vec<Pid> = std::iter::once(main)
            .chain(self.held.iter().map(Arc::as_ref))
            .filter(|handle| leads(handle) && keeps_number(handle))
            .map(|handle| handle.identity().pid)
            .collect();
        let in_session = |pid: Pid| {
            let session = session(pid)?;
            leaders.iter().copied().find(|leader| *leader != pid && session == leader.as_raw())
        };
        let everybody = match proc::all() {
            Ok(everybody) => everybody,
            Err(error) => {
                tracing::warn!(%error, "processes not listed");
                return;
            }
        };
        for pid in everybody {
            let Some(leader) = in_session(pid) else { continue };
            let known = self.held.iter().find(|member| member.identity().pid == leader).map(Arc::clone);
            self.take(pid, |member| {
                // RACE: read by number, so it is read again while the pidfd is open; both numbers must have been
                // their owners' own all the while.
                in_session(pid) == Some(leader)
                    && keeps_number(member)
                    && keeps_number(known.as_deref().unwrap_or(main))
            });
        }
    }

    /// Holds the process `pid`, if it lives, is not held yet, and `belongs`.
    fn take(&mut self, pid: Pid, belongs: impl FnOnce(&Handle) -> bool) {
        if self.held.iter().any(|member| member.identity().pid == pid) {
            return;
        }
        match Handle::open(pid, &self.here) {
            Ok(found) if lives(&found) && belongs(&found) => self.held.push(Arc::new(found)),
            Ok(_) | Err(OpenHandleError::Gone | OpenHandleError::Unproven | OpenHandleError::OutOfSight) => {}
            Err(error @ (OpenHandleError::Sys(_) | OpenHandleError::Proc(_))) => {
                tracing::warn!(%pid, %error, "a descendant was not opened");
            }
        }
    }
}

/// Whether `parent` is the parent of `child`, asked of the child's pidfd.
fn is_child(child: &Handle, parent: &Handle) -> bool {
    let told = match child.parent() {
        Some(ppid) => Some(ppid),
        // Without the kernel's word, `/proc` is read while the pidfd holds the number.
        None => proc::stat(child.identity().pid).ok().map(|stat| stat.ppid).filter(|_| keeps_number(child)),
    };
    // RACE: asked last. Who has not been reaped by now had its number when the child named it.
    told == Some(parent.identity().pid.as_raw()) && keeps_number(parent)
}

/// Whether a process has not been reaped: until then nobody else gets its number.
fn keeps_number(handle: &Handle) -> bool {
    match handle.signal(0) {
        Ok(is_there) => is_there,
        Err(error) => error.errno == Errno::EPERM,
    }
}

/// Whether a process has not ended; what cannot be asked may live.
fn lives(handle: &Handle) -> bool {
    matches!(handle.life(), Ok(Life::Alive) | Err(_))
}

/// Whether a process has come to a stop, or its end. Judged by its main thread, where that has not left.
fn stands_still(handle: &Handle) -> bool {
    !lives(handle) || proc::stat(handle.identity().pid).is_ok_and(|stat| matches!(stat.state, 'T' | 't' | 'Z' | 'X'))
}
