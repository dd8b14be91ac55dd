//! What is registered, and how each end is collected.
//!
//! INVARIANT: nothing here waits for longer than a system call, and nothing here waits on a process that is not
//! registered. An entry leaves by `settle` alone, as reaped or as vanished.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sexton_plan::id::Pid;
use sexton_plan::state::ExitStatus;

use super::{Exit, Fate, Slot, Watching};
use crate::proc::{self, ReadProcError, Stat};
use crate::sys::poll::{Epoll, Trigger, events};
use crate::sys::wait::{self, Ended};
use crate::sys::{Errno, Fd, RawFd, SysError, pidfd, time};

/// How often a process without a pidfd is asked.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// First and longest pause before a process is asked again that is readable and cannot be waited for.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// BOUND: how often the status of a process that another owner is just reaping is asked for: two seconds in all.
const MAX_ASKED: u32 = 16;

/// How a registered process is watched.
#[derive(Debug)]
pub(super) enum Watch {
    /// By a pidfd in the epoll set.
    Pidfd(Fd),
    /// By its number, which stays its own until someone in this process reaps it; its start tick tells whether
    /// someone has.
    Number {
        /// Field 22 of `/proc/PID/stat`, where that could be read.
        start_ticks: Option<u64>,
    },
}

#[derive(Debug)]
struct Entry {
    pid: Pid,
    watch: Watch,
    slot: Arc<Slot>,
    /// When it is asked next without an event, and how often it has been asked in vain.
    due: Option<Duration>,
    asked: u32,
}

/// What one question about an entry brought.
enum Answer {
    Ended(Fate),
    /// It lives, and the pidfd or the next poll will tell.
    Lives,
    /// It has ended, and its status is not to be had yet.
    Held,
}

/// Counts since the reaper was started.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub reaped: u64,
    pub vanished: u64,
    pub sweeps: u64,
    pub last_sweep: Option<SystemTime>,
    pub latency_total: Duration,
    pub latency_max: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    /// Whether pidfds are to be had at all.
    pub watching: Watching,
    entries: HashMap<u64, Entry>,
    tokens: HashMap<Pid, u64>,
    last_token: u64,
    /// Entries to be asked without an event, by time.
    due: BTreeSet<(Duration, u64)>,
    /// Entries that are watched by their number.
    polled: usize,
    spare: Spare,
    /// Collected, and not yet told: survives the thread that was to tell.
    untold: VecDeque<Exit>,
    /// Nobody collects any more.
    is_abandoned: bool,
    pub counts: Counts,
}

impl Registry {
    /// Nobody is registered yet.
    pub fn new(watching: Watching) -> Registry {
        Registry { watching, ..Registry::default() }
    }

    /// The registration of the process that has the number `pid` now, if there is one. One that no longer has its
    /// number is settled on the way.
    pub fn registered(&mut self, pid: Pid, epoll: &Epoll) -> Option<Arc<Slot>> {
        let token = *self.tokens.get(&pid)?;
        let entry = self.entries.get(&token)?;
        if entry.has_its_number(&mut self.spare) {
            return Some(Arc::clone(&entry.slot));
        }
        let fate = match &entry.watch {
            Watch::Pidfd(fd) => Fate::Vanished(kept_status(fd.raw())),
            Watch::Number { .. } => Fate::Vanished(None),
        };
        self.settle(token, fate, epoll, time::monotonic());
        None
    }

    /// Whether a registered process has, or had, this number.
    pub fn holds(&self, pid: Pid) -> bool {
        self.tokens.contains_key(&pid)
    }

    /// Adds a process of whose number none is registered; one whose pidfd has no place in the set is watched by its number.
    pub fn add(&mut self, pid: Pid, watch: Watch, epoll: &Epoll) -> Arc<Slot> {
        self.last_token += 1;
        let token = self.last_token;
        let watch = self.arm(pid, watch, token, epoll);
        let slot = Arc::new(Slot::default());
        if self.is_abandoned {
            slot.abandon();
        }
        let entry = Entry { pid, watch, slot: Arc::clone(&slot), due: None, asked: 0 };
        let by_number = matches!(entry.watch, Watch::Number { .. });
        self.entries.insert(token, entry);
        self.tokens.insert(pid, token);
        if by_number {
            self.polled += 1;
            self.ask_again(token, time::monotonic() + POLL_INTERVAL);
        }
        slot
    }

    fn arm(&mut self, pid: Pid, watch: Watch, token: u64, epoll: &Epoll) -> Watch {
        match watch {
            Watch::Pidfd(fd) => match epoll.add(fd.raw(), events::IN, Trigger::OneShot, token) {
                Ok(()) => Watch::Pidfd(fd),
                Err(error) => {
                    self.warn_of_polling(pid, &error);
                    self.by_number(pid)
                }
            },
            Watch::Number { start_ticks } => Watch::Number { start_ticks },
        }
    }

    /// A watch by number on the child that has it now.
    pub fn by_number(&mut self, pid: Pid) -> Watch {
        Watch::Number { start_ticks: self.spare.stat(pid).ok().map(|stat| stat.start_ticks) }
    }

    /// Says that polling begins, once and not for each process.
    pub fn warn_of_polling(&self, pid: Pid, error: &SysError) {
        if self.polled == 0 {
            tracing::warn!(%pid, %error, "no pidfd to be had: polling every 250 ms until there is");
        } else {
            tracing::debug!(%pid, %error, "no pidfd to be had: polling");
        }
    }

    /// Processes that are watched by their number.
    pub fn polled(&self) -> usize {
        self.polled
    }

    /// Processes that have ended and whose status is not to be had yet.
    pub fn held(&self) -> usize {
        self.due.len().saturating_sub(self.polled)
    }

    /// Tells all who wait for an end that nobody collects it any more.
    pub fn abandon(&mut self) {
        self.is_abandoned = true;
        self.entries.values().for_each(|entry| entry.slot.abandon());
    }

    /// How many are registered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Every entry.
    pub fn tokens(&self) -> Vec<u64> {
        self.entries.keys().copied().collect()
    }

    /// When something is to be asked without an event.
    pub fn next_due(&self) -> Option<Duration> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The entries whose time has come.
    pub fn overdue(&self, now: Duration) -> Vec<u64> {
        self.due.iter().take_while(|(due, _)| *due <= now).map(|(_, token)| *token).collect()
    }

    /// The oldest exit that nobody has been told of; from here on it has been.
    pub fn next_untold(&mut self) -> Option<Exit> {
        self.untold.pop_front()
    }

    /// Asks whether entry `token` has ended; `woke` is when its event came.
    pub fn collect(&mut self, token: u64, epoll: &Epoll, woke: Duration) {
        // An event may come for an entry that was settled in the same turn.
        let Some(entry) = self.entries.get(&token) else { return };
        match entry.ask(&mut self.spare) {
            Answer::Ended(fate) => self.settle(token, fate, epoll, woke),
            Answer::Lives => self.watch_on(token, epoll),
            Answer::Held => self.hold(token),
        }
    }

    /// A process that lives is left to its pidfd, and one without is given another if there is one by now.
    fn watch_on(&mut self, token: u64, epoll: &Epoll) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.asked = 0;
        let armed = match &entry.watch {
            Watch::Pidfd(fd) => epoll.rearm(fd.raw(), events::IN, Trigger::OneShot, token).is_ok(),
            Watch::Number { .. } if self.watching == Watching::Poll => false,
            Watch::Number { start_ticks } => match pidfd_of(entry.pid, *start_ticks, &mut self.spare) {
                Some(fd) if epoll.add(fd.raw(), events::IN, Trigger::OneShot, token).is_ok() => {
                    entry.watch = Watch::Pidfd(fd);
                    self.polled -= 1;
                    true
                }
                Some(_) | None => false,
            },
        };
        if armed {
            self.ask_no_more(token);
        } else {
            self.ask_again(token, time::monotonic() + POLL_INTERVAL);
        }
    }

    /// A traced child, or one that another owner is just reaping: asked again after a pause that doubles. Its pidfd
    /// stays disarmed, since it would be readable all the while.
    fn hold(&mut self, token: u64) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let pause = FIRST_PAUSE.saturating_mul(1 << entry.asked.min(8)).min(LONGEST_PAUSE);
        entry.asked = entry.asked.saturating_add(1);
        self.ask_again(token, time::monotonic() + pause);
    }

    fn ask_again(&mut self, token: u64, at: Duration) {
        self.ask_no_more(token);
        if let Some(entry) = self.entries.get_mut(&token) {
            entry.due = Some(at);
            self.due.insert((at, token));
        }
    }

    fn ask_no_more(&mut self, token: u64) {
        if let Some(due) = self.entries.get_mut(&token).and_then(|entry| entry.due.take()) {
            self.due.remove(&(due, token));
        }
    }

    /// The only way out.
    fn settle(&mut self, token: u64, fate: Fate, epoll: &Epoll, woke: Duration) {
        self.ask_no_more(token);
        let Some(entry) = self.entries.remove(&token) else { return };
        self.tokens.remove(&entry.pid);
        match &entry.watch {
            // Before it is closed: a copy in a forked child would keep it in the set.
            Watch::Pidfd(fd) => drop(epoll.remove(fd.raw())),
            Watch::Number { .. } => self.polled -= 1,
        }
        let exit = Exit { pid: entry.pid, fate, at: SystemTime::now() };
        self.untold.push_back(exit);
        entry.slot.fill(exit);
        let latency = time::monotonic().saturating_sub(woke);
        self.counts.latency_total = self.counts.latency_total.saturating_add(latency);
        self.counts.latency_max = self.counts.latency_max.max(latency);
        match fate {
            Fate::Reaped(_) => self.counts.reaped += 1,
            Fate::Vanished(_) => self.counts.vanished += 1,
        }
    }
}

impl Entry {
    /// Whether its number still names it: as long as nobody has reaped it, and so also while it is a zombie.
    fn has_its_number(&self, spare: &mut Spare) -> bool {
        match &self.watch {
            Watch::Pidfd(fd) => !matches!(pidfd::send_signal(fd.raw(), 0), Err(SysError { errno: Errno::ESRCH, .. })),
            Watch::Number { start_ticks } => spare.is_still(self.pid, *start_ticks),
        }
    }

    fn ask(&self, spare: &mut Spare) -> Answer {
        match &self.watch {
            Watch::Pidfd(fd) => self.ask_pidfd(fd.raw()),
            Watch::Number { start_ticks } => self.ask_number(*start_ticks, spare),
        }
    }

    fn ask_pidfd(&self, fd: RawFd) -> Answer {
        match wait::reap_pidfd(fd) {
            Ok(Some(ended)) => Answer::Ended(Fate::Reaped(status(ended))),
            // KERNEL: readable and not waitable is a child that its tracer holds.
            Ok(None) if matches!(pidfd::poll_end(fd), Ok(pidfd::End::None)) => Answer::Lives,
            Ok(None) => Answer::Held,
            Err(error) if error.errno == Errno::ECHILD => self.ask_kernel(fd),
            Err(error) => {
                tracing::debug!(pid = %self.pid, %error, "could not wait");
                Answer::Held
            }
        }
    }

    /// Another owner has reaped it, or is about to be done with that; the kernel may have kept its status.
    fn ask_kernel(&self, fd: RawFd) -> Answer {
        // RACE: whether it hung up is asked before the status is, so that a status that comes in between is not missed.
        let hung_up = matches!(pidfd::poll_end(fd), Ok(pidfd::End::Reaped));
        match pidfd::facts(fd) {
            Ok(pidfd::PidfdFacts { wait_word: Some(word), .. }) => {
                Answer::Ended(Fate::Vanished(ExitStatus::from_wait_word(word)))
            }
            Ok(_) if !hung_up && self.asked < MAX_ASKED => Answer::Held,
            Ok(_) | Err(_) => Answer::Ended(Fate::Vanished(None)),
        }
    }

    /// Peeks before it reaps: only a zombie that is the registered process is reaped by number.
    fn ask_number(&self, start_ticks: Option<u64>, spare: &mut Spare) -> Answer {
        let pid = self.pid.as_raw().cast_unsigned();
        match wait::peek(pid) {
            Ok(None) if spare.is_still(self.pid, start_ticks) => return Answer::Lives,
            Ok(Some(_)) if spare.is_still(self.pid, start_ticks) => {}
            // The number belongs to another child by now.
            Ok(_) => return Answer::Ended(Fate::Vanished(None)),
            Err(error) if error.errno == Errno::ECHILD => return Answer::Ended(Fate::Vanished(None)),
            Err(_) => return Answer::Lives,
        }
        match wait::reap(pid) {
            Ok(Some(ended)) => Answer::Ended(Fate::Reaped(status(ended))),
            Ok(None) => Answer::Lives,
            Err(_) => Answer::Ended(Fate::Vanished(None)),
        }
    }
}

const fn status(ended: Ended) -> ExitStatus {
    match ended {
        Ended::Exited(code) => ExitStatus::Code(code),
        Ended::Killed { signal, core: _ } => ExitStatus::Signal(signal.number()),
    }
}

fn kept_status(fd: RawFd) -> Option<ExitStatus> {
    ExitStatus::from_wait_word(pidfd::facts(fd).ok()?.wait_word?)
}

/// A pidfd on the child that started at `start_ticks` and is watched by its number so far.
fn pidfd_of(pid: Pid, start_ticks: Option<u64>, spare: &mut Spare) -> Option<Fd> {
    let fd = pidfd::open(pid.as_raw()).ok()?;
    let is_child = wait::peek_pidfd(fd.raw()).is_ok();
    (is_child && start_ticks.is_some() && spare.is_still(pid, start_ticks)).then_some(fd)
}

/// One descriptor kept back, so that `/proc` can be read when there is no other left.
#[derive(Debug)]
struct Spare(Option<Fd>);

impl Default for Spare {
    fn default() -> Spare {
        Spare(Spare::any())
    }
}

impl Spare {
    /// Any descriptor will do; this one needs no path.
    fn any() -> Option<Fd> {
        pidfd::open(i32::try_from(std::process::id()).ok()?).ok()
    }

    fn stat(&mut self, pid: Pid) -> Result<Stat, ReadProcError> {
        match proc::stat(pid) {
            Err(ReadProcError::Unreadable { .. }) if self.0.take().is_some() => {
                let told = proc::stat(pid);
                self.0 = Spare::any();
                told
            }
            told => {
                if self.0.is_none() {
                    self.0 = Spare::any();
                }
                told
            }
        }
    }

    /// Whether `pid` still names what started at `start_ticks`; what cannot be read proves nothing.
    fn is_still(&mut self, pid: Pid, start_ticks: Option<u64>) -> bool {
        match (self.stat(pid), start_ticks) {
            (Ok(stat), Some(ticks)) => stat.start_ticks == ticks,
            (Err(ReadProcError::Gone(_)), _) => false,
            (Ok(_), None) | (Err(ReadProcError::Unreadable { .. } | ReadProcError::Malformed { .. }), _) => true,
        }
    }
}
