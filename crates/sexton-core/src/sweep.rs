//! Reaps zombies of processes that nobody here started: orphans that reparented to this process.
//!
//! A process that is PID 1 or a subreaper inherits them, and the owners of its own children (`std::process`, tokio,
//! libuv, `waitpid` somewhere) never ask for them. Taking a status away from such an owner loses it for good, so a
//! zombie is reaped here only if all of this holds:
//!
//! 1. it is not registered with the [`Reaper`] that the sweep was given;
//! 2. it hangs on the main thread, to which the kernel gives orphans: what another thread started is this program's
//!    own, and is never touched ([`proc::own_children`]);
//! 3. two looks have found it, as the same process, at least the grace apart. An owner that is told of its children
//!    by `SIGCHLD` or a pidfd has reaped them long before;
//! 4. the kernel would hand it out at once: not a leader whose threads live on, not one that a tracer holds.
//!
//! That leaves the owner that starts children on the main thread and then lets them lie for longer than the grace. Such
//! a host says which they are ([`Sweeper::spare`], [`Sweep::spare`]), as the binding for Python does; or it makes the
//! looks itself on that thread ([`Sweeper::pass`]), as the binding for Node does: a thread that is too busy to reap is
//! then too busy to sweep.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use sexton_plan::id::Pid;
use sexton_plan::state::ExitStatus;
use sexton_sys::wait::{self, Ended};
use sexton_sys::{Errno, pidfd, process, time};

use crate::features;
use crate::proc::{self, ReadProcError};
use crate::reaper::{Holds, Reaper};

/// Interval and grace where nothing else is said.
const DEFAULT: Duration = Duration::from_secs(1);

/// BOUND: no two passes are closer together, however often the host rings.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// How far an idle timer stretches: so that `2 × interval + grace` holds, and further where the host rings.
const STRETCH: u32 = 2;
const STRETCH_WHERE_RUNG: u32 = 32;

/// Whether, how often and how late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepSettings {
    /// Off unless asked for: a library does not reap its host's children unasked.
    pub enabled: bool,
    /// Between two looks. A zombie is gone at the latest two of these and the grace after its end.
    pub interval: Duration,
    /// How long a zombie is left to an owner.
    pub grace: Duration,
}

impl Default for SweepSettings {
    fn default() -> SweepSettings {
        SweepSettings { enabled: false, interval: DEFAULT, grace: DEFAULT }
    }
}

impl SweepSettings {
    /// The same within bounds; what is outside is named in the log and replaced by the default.
    fn within_bounds(self) -> SweepSettings {
        const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
        let bounded = |value: Duration, least: Duration, name: &str| {
            if (least..=LONGEST).contains(&value) {
                return value;
            }
            tracing::warn!(?value, "sweep: the {name} is out of bounds; using {DEFAULT:?}");
            DEFAULT
        };
        SweepSettings {
            enabled: self.enabled,
            interval: bounded(self.interval, LEAST_PAUSE, "interval"),
            grace: bounded(self.grace, Duration::ZERO, "grace"),
        }
    }
}

/// Why there is nothing to sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inactive {
    /// Nobody asked for it.
    Disabled,
    /// This build or this system cannot.
    Unsupported,
    /// Orphans go elsewhere.
    NotTheirParent,
    /// `/proc` does not show this process its children.
    Proc(String),
    /// There is no thread to be had.
    Thread(String),
    /// It has been stopped.
    Stopped,
}

impl fmt::Display for Inactive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Inactive::Disabled => f.write_str("not enabled"),
            Inactive::Unsupported => f.write_str("this build or system cannot"),
            Inactive::NotTheirParent => f.write_str("neither PID 1 nor a subreaper: orphans go elsewhere"),
            Inactive::Proc(why) => write!(f, "/proc is not usable: {why}"),
            Inactive::Thread(why) => write!(f, "no thread to be had: {why}"),
            Inactive::Stopped => f.write_str("stopped"),
        }
    }
}

/// One zombie that is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReapedZombie {
    /// The number it had.
    pub pid: Pid,
    /// The name it gave itself, with control characters escaped: a hint for human eyes.
    pub name: String,
    /// How it had ended.
    pub status: ExitStatus,
}

/// What one pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// The zombies reaped.
    pub reaped: Vec<ReapedZombie>,
    /// Zombies that are left to an owner for the rest of their grace.
    pub waiting: usize,
    /// When the first of those will be due.
    pub due_in: Option<Duration>,
}

/// Proof that a zombie of one look is the zombie of the next, though their number be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// The inode of its pidfd.
    Pidfs(u64),
    /// Its start tick. Two zombies that are seen a grace apart can share it only if the first lived, died and was
    /// reaped within one tick of the first look.
    StartTicks(u64),
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    proof: Proof,
    since: Duration,
}

/// The looks, one at a time, on whatever thread the host makes them.
#[derive(Debug)]
pub struct Sweeper {
    grace: Duration,
    registered: Option<Holds>,
    candidates: HashMap<Pid, Candidate>,
    spared: HashSet<Pid>,
}

impl Sweeper {
    /// Ready to look, beside `reaper`, whose registered processes are left alone.
    ///
    /// # Errors
    /// There is nothing to sweep, and why.
    pub fn new(settings: SweepSettings, reaper: Option<&Reaper>) -> Result<Sweeper, Inactive> {
        let settings = settings.within_bounds();
        if !settings.enabled {
            return Err(Inactive::Disabled);
        }
        inherits_orphans()?;
        proc::usable().map_err(why)?;
        Ok(Sweeper {
            grace: settings.grace,
            registered: reaper.map(Reaper::registered),
            candidates: HashMap::new(),
            spared: HashSet::new(),
        })
    }

    /// Leaves the child `pid` to its owner, however long that takes; until it is no child any more.
    pub fn spare(&mut self, pid: Pid) {
        self.spared.insert(pid);
    }

    /// One look: reaps what two looks have found, and says so in one line of the log.
    ///
    /// # Errors
    /// `/proc` did not tell; nothing is reaped then.
    ///
    /// # Blocking
    /// Never; about a microsecond for each child.
    pub fn pass(&mut self) -> Result<SweepReport, ReadProcError> {
        let now = time::monotonic();
        let mut candidates = HashMap::new();
        let mut report = SweepReport::default();
        let children = proc::own_children()?;
        // A number that is no child's now may be an orphan's next.
        self.spared.retain(|pid| children.contains(pid));
        for pid in children {
            let is_owned =
                self.spared.contains(&pid) || self.registered.as_ref().is_some_and(|registered| registered.holds(pid));
            let Some(proof) = (!is_owned).then(|| look_zombie(pid)).flatten() else { continue };
            let before = self.candidates.get(&pid).filter(|before| before.proof == proof);
            match before {
                Some(before) if now.saturating_sub(before.since) >= self.grace => {
                    report.reaped.extend(reap(pid, proof));
                }
                Some(before) => drop(candidates.insert(pid, *before)),
                None => drop(candidates.insert(pid, Candidate { proof, since: now })),
            }
        }
        report.waiting = candidates.len();
        let first = candidates.values().map(|candidate| candidate.since).min();
        report.due_in = first.map(|since| (since + self.grace).saturating_sub(now));
        self.candidates = candidates;
        report.log();
        Ok(report)
    }
}

impl SweepReport {
    fn log(&self) {
        if self.reaped.is_empty() {
            return;
        }
        let pids: Vec<i32> = self.reaped.iter().map(|zombie| zombie.pid.as_raw()).collect();
        let names: Vec<&str> = self.reaped.iter().map(|zombie| zombie.name.as_str()).collect();
        tracing::info!(count = self.reaped.len(), ?pids, ?names, "reaped zombies of processes nobody here started");
    }
}

/// Whether orphans reparent to this process at all.
fn inherits_orphans() -> Result<(), Inactive> {
    match process::is_subreaper() {
        Err(error) if error.errno == Errno::ENOSYS => Err(Inactive::Unsupported),
        Ok(true) => Ok(()),
        Ok(false) | Err(_) if std::process::id() == 1 => Ok(()),
        Ok(false) | Err(_) => Err(Inactive::NotTheirParent),
    }
}

fn why(error: ReadProcError) -> Inactive {
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    Inactive::Proc(format!("{error}{}", source.unwrap_or_default()))
}

/// Proof of the zombie `pid`, if it is one that the kernel would hand out now: it leaves a leader with live threads
/// and a traced child to those who hold them.
fn look_zombie(pid: Pid) -> Option<Proof> {
    wait::peek(pid.as_raw().cast_unsigned()).ok()??;
    prove(pid)
}

fn prove(pid: Pid) -> Option<Proof> {
    if features::pidfs()
        && let Ok(fd) = pidfd::open(pid.as_raw())
    {
        return pidfd::inode(fd.raw()).ok().map(Proof::Pidfs);
    }
    Some(Proof::StartTicks(proc::stat(pid).ok()?.start_ticks))
}

/// Reaps the zombie that `proof` names and no other.
fn reap(pid: Pid, proof: Proof) -> Option<ReapedZombie> {
    let name = proc::stat(pid).map(|stat| printable(&stat.comm)).unwrap_or_default();
    let ended = match proof {
        Proof::Pidfs(ino) => {
            let fd = pidfd::open(pid.as_raw()).ok()?;
            if pidfd::inode(fd.raw()) != Ok(ino) {
                return None;
            }
            wait::reap_pidfd(fd.raw()).ok()??
        }
        Proof::StartTicks(ticks) => {
            if proc::stat(pid).ok()?.start_ticks != ticks {
                return None;
            }
            wait::reap(pid.as_raw().cast_unsigned()).ok()??
        }
    };
    let status = match ended {
        Ended::Exited(code) => ExitStatus::Code(code),
        Ended::Killed { signal, core: _ } => ExitStatus::Signal(signal.number()),
    };
    Some(ReapedZombie { pid, name, status })
}

/// A name that can be printed.
fn printable(comm: &[u8]) -> String {
    let mut text = String::new();
    for letter in String::from_utf8_lossy(comm).chars() {
        if letter.is_control() { text.extend(letter.escape_default()) } else { text.push(letter) }
    }
    text
}

/// What a sweep is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepStatus {
    /// Why it does nothing, if it does nothing.
    pub inactive: Option<Inactive>,
    /// Looks so far.
    pub passes: u64,
    /// Zombies reaped so far.
    pub reaped: u64,
    /// Zombies that are left to an owner for the rest of their grace.
    pub waiting: usize,
    /// When the last look was.
    pub last_pass: Option<SystemTime>,
    /// How often a callback's panic was survived.
    pub panics: u64,
}

type OnReport = Box<dyn Fn(&SweepReport) + Send>;

/// A sweep on a thread and a timer of its own. Stops when it is dropped.
#[derive(Debug)]
pub struct Sweep {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
    owner: u32,
}

/// What the sweep's thread shares with the host.
#[derive(Debug)]
struct Desk {
    state: Mutex<DeskState>,
    rung: Condvar,
}

#[derive(Debug)]
struct DeskState {
    status: SweepStatus,
    rung: bool,
    was_ever_rung: bool,
    stopping: bool,
    /// Spared since the last look.
    spared: Vec<Pid>,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `pause`, or until the host rings or stops it, but not for less than the least pause between two
    /// looks; tells whether to go on.
    fn wait(&self, pause: Duration) -> bool {
        let started = time::monotonic();
        let mut state = self.lock();
        loop {
            let passed = time::monotonic().saturating_sub(started);
            let pause = if state.rung { pause.min(LEAST_PAUSE) } else { pause };
            if state.stopping || passed >= pause {
                state.rung = false;
                return !state.stopping;
            }
            let left = pause.saturating_sub(passed);
            state = self.rung.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Sweep {
    /// Starts sweeping, or says once in the log why not. Never fails: a host is not kept from starting by this.
    pub fn start(settings: SweepSettings, reaper: Option<&Reaper>) -> Sweep {
        Sweep::start_with(settings, reaper, |_| {})
    }

    /// As [`Sweep::start`], and calls `on_report` on the sweep's thread after each pass that reaped something.
    pub fn start_with(
        settings: SweepSettings,
        reaper: Option<&Reaper>,
        on_report: impl Fn(&SweepReport) + Send + 'static,
    ) -> Sweep {
        let status = SweepStatus { inactive: None, passes: 0, reaped: 0, waiting: 0, last_pass: None, panics: 0 };
        let state = DeskState { status, rung: false, was_ever_rung: false, stopping: false, spared: Vec::new() };
        let desk = Arc::new(Desk { state: Mutex::new(state), rung: Condvar::new() });
        let thread = Sweeper::new(settings, reaper).and_then(|sweeper| {
            let runner =
                Runner { sweeper, interval: settings.within_bounds().interval, on_report: Box::new(on_report) };
            runner.start(&desk).map_err(|error| Inactive::Thread(error.to_string()))
        });
        let thread = thread.map_err(|reason| {
            if reason == Inactive::Disabled {
                tracing::debug!(%reason, "not sweeping");
            } else {
                tracing::warn!(%reason, "not sweeping");
            }
            desk.lock().status.inactive = Some(reason);
        });
        Sweep { desk, thread: thread.ok(), owner: std::process::id() }
    }

    /// Has it look soon: for a host that hears `SIGCHLD`. The idle timer stretches further then.
    pub fn ring(&self) {
        let mut state = self.desk.lock();
        state.rung = true;
        state.was_ever_rung = true;
        drop(state);
        self.desk.rung.notify_all();
    }

    /// As [`Sweeper::spare`].
    pub fn spare(&self, pid: Pid) {
        self.desk.lock().spared.push(pid);
    }

    /// What it is doing.
    pub fn status(&self) -> SweepStatus {
        self.desk.lock().status.clone()
    }

    /// Stops the thread.
    ///
    /// # Blocking
    /// For the look that it is in.
    pub fn stop(&mut self) {
        // A fork has neither the thread nor, perhaps, the lock.
        let Some(thread) = self.thread.take().filter(|_| self.owner == std::process::id()) else { return };
        let mut state = self.desk.lock();
        state.stopping = true;
        state.status.inactive = Some(Inactive::Stopped);
        drop(state);
        self.desk.rung.notify_all();
        if thread.thread().id() != thread::current().id() {
            let _ended = thread.join();
        }
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Runner {
    sweeper: Sweeper,
    interval: Duration,
    on_report: OnReport,
}

impl Runner {
    fn start(self, desk: &Arc<Desk>) -> io::Result<JoinHandle<()>> {
        let desk = Arc::clone(desk);
        let thread = thread::Builder::new().name("sexton-sweep".to_owned()).stack_size(256 * 1024);
        thread.spawn(move || self.run(&desk))
    }

    fn run(mut self, desk: &Desk) {
        crate::reaper::leave_signals_to_the_host();
        let mut stretch = 1;
        loop {
            // What a panic leaves behind is whole: candidates are replaced in one assignment.
            let pause = catch_unwind(AssertUnwindSafe(|| self.turn(desk, &mut stretch))).unwrap_or_else(|_| {
                desk.lock().status.panics += 1;
                tracing::error!("a sweep panicked; the next one goes on");
                self.interval
            });
            if !desk.wait(pause) {
                return;
            }
        }
    }

    /// One pass; how long to wait for the next one.
    fn turn(&mut self, desk: &Desk, stretch: &mut u32) -> Duration {
        let spared = std::mem::take(&mut desk.lock().spared);
        spared.into_iter().for_each(|pid| self.sweeper.spare(pid));
        let report = self.sweeper.pass().unwrap_or_else(|error| {
            tracing::warn!(%error, "a sweep could not look");
            SweepReport::default()
        });
        let longest = desk.note(&report);
        let is_idle = report.reaped.is_empty() && report.waiting == 0;
        *stretch = if is_idle { stretch.saturating_mul(2).min(longest) } else { 1 };
        let idle = self.interval.saturating_mul(*stretch);
        let pause = report.due_in.map_or(idle, |due| due.clamp(LEAST_PAUSE, self.interval));
        if !report.reaped.is_empty() {
            (self.on_report)(&report);
        }
        pause
    }
}

impl Desk {
    /// Takes a pass into the status; how far the idle timer may stretch.
    fn note(&self, report: &SweepReport) -> u32 {
        let mut state = self.lock();
        state.status.passes += 1;
        state.status.reaped += report.reaped.len() as u64;
        state.status.waiting = report.waiting;
        state.status.last_pass = Some(SystemTime::now());
        if state.was_ever_rung { STRETCH_WHERE_RUNG } else { STRETCH }
    }
}
