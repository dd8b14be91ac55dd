//! The keeper: one loop that starts the worker, outlives it, and starts it again.
//!
//! It does no more than must outlive a worker: hold its listeners, record the exits of the processes it leaves behind,
//! reap what nobody holds, and decide which program runs. Every step is bounded, nothing waits but `poll` and, where
//! held processes have ended, the disk. While nothing happens nothing wakes it.

use core::time::Duration;

use sexton_sys::poll::{PollFd, events, poll};
use sexton_sys::process::{self, Child, SignalState};
use sexton_sys::signal::{self, Disposition, Signal, SignalFd, SignalSet};
use sexton_sys::text::Text;
use sexton_sys::wait::{self, Ended};
use sexton_sys::{Errno, Fd, SysError, time};

use crate::children::{Finder, Urgency};
use crate::connection::{Heard, News};
use crate::records::{BATCH, Records};
use crate::roster::{Claim, Roster};
use crate::starts::Starts;
use crate::status::{self, Status, Words};
use crate::store::Store;
use crate::swap::{Next, Outcome, Swap};
use crate::sweep::{Fate, Sweep};
use crate::text::{STDERR, millis, say};
use crate::wire::{ExitRecord, HeldProcess, LastEnd, OnShutdown, ToKeeper, VERSION, Welcome};
use crate::worker::{Image, KeeperConfig, Phase, Worker};

/// BOUND: signals that one turn takes.
const SIGNALS_A_TURN: usize = 64;
/// BOUND: messages that one turn takes from one worker; more than its socket holds.
const MESSAGES_A_TURN: usize = 4096;
/// BOUND: workers that were ended and are not reaped yet; they end within a moment.
const LEAVERS: usize = 4;
/// How long the end waits for workers that were killed; longer only where the kernel does not let them go.
const LAST_WAIT: Duration = Duration::from_secs(1);
/// How long to wait after a record could not be written.
const DISK_DELAY: Duration = Duration::from_millis(250);

/// Exit codes of a worker that refuses to start, which another one would refuse as well (`sysexits.h`).
const REFUSALS: [u8; 7] = [64, 69, 73, 75, 76, 77, 78];
/// The host lacks something required.
const UNAVAILABLE: i32 = 69;

/// Prints a line of the keeper's own log.
macro_rules! log {
    ($($part:expr),+) => { say(STDERR, Text::new().add("sexton-keeper: ")$(.add($part))+) };
}

/// Keeps a worker alive until it finishes or is told to end; tells the exit code.
///
/// The caller has one thread, and nothing else in the process starts or waits for children.
pub fn run(config: &KeeperConfig<'_>) -> i32 {
    match Keeper::new(config) {
        Ok(mut keeper) => keeper.run(),
        Err(error) => {
            log!("could not begin: ", error);
            UNAVAILABLE
        }
    }
}

/// Held processes that have ended and are about to be recorded.
#[derive(Debug)]
struct Batch {
    records: [ExitRecord; BATCH],
    len: usize,
    /// Nothing is written before, because it could not be.
    not_before: Duration,
}

#[derive(Debug)]
struct Keeper<'a> {
    config: &'a KeeperConfig<'a>,
    /// The signal state that the keeper was started with, for the workers.
    inherited: SignalState,
    signals: SignalFd,
    finder: Finder,
    roster: Roster,
    records: Records<'a>,
    batch: Batch,
    sweep: Sweep,
    store: Store,
    good: Image,
    worker: Option<Worker>,
    swap: Swap,
    swap_again: bool,
    outcome: Outcome,
    leavers: [Option<Child>; LEAVERS],
    starts: Starts,
    last_end: Option<LastEnd>,
    ever_ready: bool,
    mode: OnShutdown,
    shutdown: u8,
    finished: Option<u8>,
    verdict: Option<i32>,
    shown: Option<Status>,
}

impl<'a> Keeper<'a> {
    /// Makes this process a keeper. Nothing is written, for the worker may yet refuse to start.
    fn new(config: &'a KeeperConfig<'a>) -> Result<Keeper<'a>, SysError> {
        let good = Image::open(config.program)?;
        let mask = signal::replace_mask(SignalSet::ALL);
        let child = signal::set_disposition(Signal::CHLD, Disposition::Default)?;
        process::become_subreaper()?;
        Ok(Keeper {
            config,
            inherited: SignalState { mask, child },
            signals: SignalFd::new(SignalSet::ALL)?,
            finder: Finder::new(),
            roster: Roster::new()?,
            records: Records::load(config.run_dir)?,
            batch: Batch { records: [ExitRecord::EMPTY; BATCH], len: 0, not_before: Duration::ZERO },
            sweep: Sweep::new()?,
            store: Store::new(),
            good,
            worker: None,
            swap: Swap::Idle,
            swap_again: false,
            outcome: Outcome::None,
            leavers: [const { None }; LEAVERS],
            starts: Starts { at: Some(Duration::ZERO), ..Starts::default() },
            last_end: None,
            ever_ready: false,
            mode: OnShutdown::Detach,
            shutdown: 0,
            finished: None,
            verdict: None,
            shown: None,
        })
    }

    /// Turns until the end; tells the exit code.
    fn run(&mut self) -> i32 {
        loop {
            let now = time::monotonic();
            let hints = self.take_signals(now);
            // Whom a worker held just before it died must be known before anybody is taken for an orphan; and one that
            // was taken for one in an earlier turn is asked about again.
            self.hear_worker(now);
            self.hear_candidate(now);
            if self.sweep.run_if_due(now, |pid| fate_of(&self.roster, pid)) {
                self.finder.want();
            }
            hints.into_iter().for_each(|pid| self.hint(pid, now));
            self.find_ended(now);
            self.record_exits(now);
            self.see_to_worker(now);
            self.see_to_swap(now);
            self.start_if_due(now);
            self.tell(now);
            if let Some(code) = self.verdict {
                return self.leave(code);
            }
            self.show(now);
            self.wait();
        }
    }

    /// Acts on the signals that have come; tells which children may have ended, 0 for none.
    fn take_signals(&mut self, now: Duration) -> [u32; SIGNALS_A_TURN] {
        let mut hints = [0; SIGNALS_A_TURN];
        for hint in &mut hints {
            let Ok(Some(caught)) = self.signals.take() else {
                break;
            };
            match caught.signal {
                Signal::CHLD => {
                    self.finder.want();
                    *hint = caught.pid;
                }
                Signal::TERM | Signal::INT => self.shut_down(now),
                Signal::HUP => self.replace(now),
                _ => {}
            }
        }
        hints
    }

    /// TERM and INT: ask, force, go.
    fn shut_down(&mut self, now: Duration) {
        self.shutdown = self.shutdown.saturating_add(1).min(3);
        log!("told to end (", u32::from(self.shutdown), " of 3)");
        self.swap_again = false;
        if !self.swap.is_retiring() {
            let leaver = self.swap.abandon();
            self.await_leaver(leaver);
        }
        if self.shutdown == 3 {
            // The workers end before us; instances do not.
            self.worker.iter().for_each(Worker::kill);
            let leaver = self.worker.take().map(|worker| worker.child);
            self.await_leaver(leaver);
            self.verdict = Some(0);
        } else if self.worker.is_none() && !self.swap.has_candidate() {
            self.without_worker(now);
        }
    }

    /// HUP: brings the program on disk.
    fn replace(&mut self, now: Duration) {
        if self.shutdown > 0 {
            return;
        }
        if !self.swap.is_idle() {
            self.swap_again = true;
            return;
        }
        match Swap::begin(self.config, self.inherited, now) {
            Ok(swap) => self.swap = swap,
            Err(error) => self.end_swap(Outcome::NotStarted(error)),
        }
    }

    /// Notes how a swap ended, and begins the one that was asked for meanwhile.
    fn end_swap(&mut self, outcome: Outcome) {
        log!("reload: ", outcome);
        self.outcome = outcome;
        if core::mem::take(&mut self.swap_again) {
            self.replace(time::monotonic());
        }
    }

    /// Takes what the worker says.
    fn hear_worker(&mut self, now: Duration) {
        for _ in 0..MESSAGES_A_TURN {
            match self.worker.as_mut().map(|worker| worker.connection.hear(now)) {
                Some(Heard::Message(message, fd)) => self.act_on(message, fd, now),
                Some(Heard::Skipped) => log!("a message of the worker means nothing here"),
                Some(Heard::Silence) | None => break,
            }
        }
        if let Some(worker) = &mut self.worker
            && worker.connection.take_overdue(now)
        {
            worker.kill();
        }
    }

    /// Takes what the candidate says: only whether it is prepared counts, for it answers for nothing yet.
    fn hear_candidate(&mut self, now: Duration) {
        let Some(candidate) = self.swap.candidate_mut() else {
            return;
        };
        for _ in 0..MESSAGES_A_TURN {
            match candidate.connection.hear(now) {
                Heard::Message(ToKeeper::Prepared, _) => candidate.phase = Phase::Prepared,
                Heard::Message(_, _) | Heard::Skipped => {}
                Heard::Silence => break,
            }
        }
        if candidate.connection.take_overdue(now) {
            candidate.kill();
        }
    }

    /// Does what the worker says.
    fn act_on(&mut self, message: ToKeeper, fd: Option<Fd>, now: Duration) {
        match message {
            ToKeeper::Hello { .. } | ToKeeper::Prepared => {}
            ToKeeper::Ready => self.become_ready(),
            ToKeeper::Hold(held) if !self.roster.hold(held) => log!("too many processes are held"),
            ToKeeper::Hold(_) => {}
            ToKeeper::Release(held) => self.roster.release(held),
            ToKeeper::Ack { seq } => self.records.forget(seq),
            ToKeeper::Store(name) => {
                if !fd.is_some_and(|fd| self.store.put(name, fd)) {
                    log!("a descriptor could not be stored");
                }
            }
            ToKeeper::Unstore(name) => self.store.forget(name),
            ToKeeper::Sweep(policy) => {
                self.sweep.set_policy(policy, now);
                // Those that were let alone so far are not under grace yet.
                self.finder.want();
            }
            ToKeeper::Mode(mode) => self.mode = mode,
            ToKeeper::Finished { code } => self.finished = Some(code),
        }
    }

    /// Notes that the worker serves.
    fn become_ready(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.phase = Phase::Ready;
        }
        self.ever_ready = true;
        self.starts.failures = 0;
        if let Some(image) = self.swap.prove() {
            self.good = image;
            self.end_swap(Outcome::Replaced);
        }
    }

    /// Looks for children that have ended, where one may have.
    fn find_ended(&mut self, now: Duration) {
        let mut finder = core::mem::replace(&mut self.finder, Finder::resting());
        finder.scan_if_due(now, |pid, urgency| self.consider(pid, now, urgency));
        finder.merge(&self.finder);
        self.finder = finder;
    }

    /// Looks at child `pid`, of which CHLD told.
    fn hint(&mut self, pid: u32, now: Duration) {
        let _reaped = self.consider(pid, now, Urgency::None);
    }

    /// Looks at child `pid`: who it is if it has ended. Tells whether it was reaped.
    fn consider(&mut self, pid: u32, now: Duration, urgency: Urgency) -> bool {
        let known = self.sweep.has(pid) && urgency == Urgency::None;
        if pid == 0 || known || self.is_own(pid) {
            return false;
        }
        let Ok(Some(ended)) = wait::peek(pid) else {
            return false;
        };
        match self.roster.claim_on(pid) {
            Claim::Held(held) => {
                self.take_exit(ExitRecord { seq: 0, pid, ino: held.ino, status: ended.raw(), at_ns: now_ns() }, now);
                false
            }
            Claim::Nobody => self.sweep.take(pid, now, urgency == Urgency::Now),
            Claim::Unread => {
                self.finder.want_at(now.saturating_add(DISK_DELAY));
                false
            }
        }
    }

    /// Whether `pid` is a worker, which is seen to elsewhere.
    fn is_own(&self, pid: u32) -> bool {
        let workers = self.worker.iter().chain(self.swap.candidate()).map(|worker| worker.child.pid());
        workers.chain(self.leavers.iter().flatten().map(Child::pid)).any(|own| own == pid)
    }

    /// Puts the end of a held process on the list; what has no room on it is found again.
    fn take_exit(&mut self, exit: ExitRecord, now: Duration) {
        let taken = self.batch.records.get(..self.batch.len).unwrap_or_default();
        if taken.iter().any(|other| other.pid == exit.pid) {
            return;
        }
        match self.batch.records.get_mut(self.batch.len) {
            Some(slot) if now >= self.batch.not_before => {
                *slot = exit;
                self.batch.len += 1;
            }
            Some(_) => self.finder.want_at(self.batch.not_before),
            None => self.finder.want(),
        }
    }

    /// Writes the list to disk, and then reaps who is on it.
    ///
    /// Where it cannot be written nobody is reaped: a zombie keeps its status, which costs a place in the PID table
    /// and nothing else, and its pin is no witness before the reap either.
    fn record_exits(&mut self, now: Duration) {
        let batch = self.batch.records.get_mut(..core::mem::take(&mut self.batch.len)).unwrap_or_default();
        if batch.is_empty() {
            return;
        }
        let written = if self.records.has_room() { self.records.add(batch) } else { Err(NO_ROOM) };
        if let Err(error) = written {
            log!("could not record ", batch.len() as u64, " exits, they stay zombies: ", error);
            self.batch.not_before = now.saturating_add(DISK_DELAY);
            self.finder.want_at(self.batch.not_before);
            return;
        }
        for exit in batch {
            let _ended = wait::reap(exit.pid);
            self.roster.release(HeldProcess { pid: exit.pid, ino: exit.ino });
        }
    }

    /// Sees whether the worker has ended.
    fn see_to_worker(&mut self, now: Duration) {
        self.reap_leavers();
        if self.worker.as_ref().and_then(Worker::end).is_none() {
            return;
        }
        // What it said before it died is heard to the end.
        self.hear_worker(now);
        let Some(worker) = self.worker.take() else {
            return;
        };
        let pid = worker.child.pid();
        if let Ok(ended) = worker.child.reap() {
            // Whom it left behind may have ended already.
            self.finder.want();
            self.last_end = Some(LastEnd { pid, status: ended.raw() });
            self.worker_ended(pid, ended, now);
        }
    }

    /// Decides what follows the worker's end.
    fn worker_ended(&mut self, pid: u32, ended: Ended, now: Duration) {
        if let Some(code) = self.finished {
            self.verdict = Some(code.into());
            return;
        }
        if self.swap.is_retiring() {
            return;
        }
        match ended {
            Ended::Exited(code) if !self.ever_ready && self.swap.is_idle() && REFUSALS.contains(&code) => {
                self.verdict = Some(code.into());
                return;
            }
            Ended::Exited(_) | Ended::Killed { .. } => log!("worker ", pid, " ", Words(ended)),
        }
        if self.swap.prove().is_some() {
            // The one on trial: whatever it ran is not run again.
            self.starts.at = Some(now);
            self.end_swap(Outcome::FellBack);
        }
        self.without_worker(now);
    }

    /// Decides what to do while no worker is alive and none is coming: plan the next, or end.
    fn without_worker(&mut self, now: Duration) {
        if self.shutdown > 0 && self.mode == OnShutdown::Detach {
            self.verdict = Some(0);
        } else if self.starts.at.is_none() {
            let delay = self.starts.plan(now);
            log!("the next worker is started in ", millis(delay), " ms");
        }
    }

    /// Goes on with a replacement.
    fn see_to_swap(&mut self, now: Duration) {
        match self.swap.advance(now) {
            Next::Wait | Next::Retire => {}
            Next::KillWorker => self.worker.iter().for_each(Worker::kill),
            Next::Failed(outcome, leaver) => {
                self.await_leaver(leaver);
                self.end_swap(outcome);
                // One that has been told to retire is of no use any more; it is started again.
                self.worker.iter().filter(|worker| worker.connection.is_retired()).for_each(Worker::kill);
                if self.worker.is_none() && self.starts.at.is_none() {
                    self.starts.at = Some(now);
                }
            }
        }
        if self.worker.is_none()
            && self.verdict.is_none()
            && let Some(worker) = self.swap.promote(now)
        {
            self.starts.count += 1;
            self.starts.at = None;
            self.worker = Some(worker);
        }
    }

    /// Keeps a worker that was ended until it can be reaped.
    fn await_leaver(&mut self, leaver: Option<Child>) {
        if let (Some(child), Some(slot)) = (leaver, self.leavers.iter_mut().find(|slot| slot.is_none())) {
            *slot = Some(child);
        }
    }

    fn reap_leavers(&mut self) {
        for leaver in &mut self.leavers {
            *leaver = leaver.take().and_then(|child| child.reap().err());
        }
    }

    /// Starts a worker if none is alive and it is time to.
    fn start_if_due(&mut self, now: Duration) {
        let due = self.starts.at.is_some_and(|at| at <= now);
        if !due || self.worker.is_some() || self.swap.has_candidate() || self.verdict.is_some() {
            return;
        }
        self.starts.at = None;
        match Worker::start(self.config, &self.good, self.inherited, Phase::Starting) {
            Ok(worker) => {
                self.starts.count += 1;
                self.worker = Some(worker);
            }
            Err(error) => {
                log!("could not start a worker: ", error);
                let never_will = *error.call == "execve" && !matches!(error.errno, Errno::ENOMEM | Errno::EAGAIN);
                if never_will && self.starts.count == 0 {
                    self.verdict = Some(UNAVAILABLE);
                } else {
                    self.without_worker(now);
                }
            }
        }
    }

    /// Tells the worker what it has not been told yet.
    fn tell(&mut self, now: Duration) {
        let welcome = self.welcome();
        let Some(worker) = &mut self.worker else {
            return;
        };
        worker.connection.tell(
            now,
            &mut News {
                welcome,
                store: &self.store,
                records: &self.records,
                sweep: &mut self.sweep,
                retire: self.swap.is_retiring(),
                shutdown: self.shutdown.min(2),
            },
        );
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            version: VERSION,
            keeper_pid: process::pid(),
            restarts: self.starts.count.saturating_sub(1),
            last_end: self.last_end,
            was_ready: self.ever_ready,
        }
    }

    /// Writes the status file where something in it has changed.
    fn show(&mut self, now: Duration) {
        let status = Status {
            worker: self.worker.as_ref().map(|worker| (worker.child.pid(), worker.phase == Phase::Ready)),
            restarts: self.starts.count.saturating_sub(1),
            last_end: self.last_end,
            next_start: self.starts.at.map(|at| at.saturating_sub(now)),
            outcome: self.outcome,
            swapping: !self.swap.is_idle(),
            shutdown: self.shutdown,
        };
        let news = self.shown.is_none_or(|shown| Status { next_start: status.next_start, ..shown } != status);
        if self.ever_ready && news {
            // It is for people; a full disk must not keep a worker from being started.
            let _unwritten = status::write(self.config.run_dir, &status);
            self.shown = Some(status);
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let now = time::monotonic();
        let worker = self.worker.as_ref();
        let pauses = [
            self.finder.pause(now),
            self.sweep.pause(now),
            self.swap.pause(now),
            worker.and_then(|worker| worker.connection.pause(now)),
            self.swap.candidate().and_then(|candidate| candidate.connection.pause(now)),
            self.starts.at.filter(|_| !self.swap.has_candidate()).map(|at| at.saturating_sub(now)),
        ];
        // Children that end are told by CHLD, and each turn looks at the workers: a pidfd of one that a tracer holds
        // would be ready all the time.
        let mut fds = [PollFd::new(self.signals.raw(), events::IN), PollFd::unused(), PollFd::unused()];
        let [_, links @ ..] = &mut fds;
        let workers = worker.into_iter().chain(self.swap.candidate());
        links.iter_mut().zip(workers).for_each(|(slot, worker)| *slot = worker.connection.watched());
        // An error here is a lack of memory; the next turn finds what there is to do all the same.
        let _ready = poll(&mut fds, pauses.into_iter().flatten().min());
    }

    /// Leaves nothing behind that is of no use to a later keeper, and no worker; tells the exit code.
    fn leave(&mut self, code: i32) -> i32 {
        let leaver = self.swap.abandon();
        self.await_leaver(leaver);
        let until = time::monotonic().saturating_add(LAST_WAIT);
        loop {
            self.reap_leavers();
            let left = until.saturating_sub(time::monotonic());
            if self.leavers.iter().all(Option::is_none) || left.is_zero() {
                break;
            }
            // CHLD tells of each end; whatever else comes has come to its end.
            let _ready = poll(&mut [PollFd::new(self.signals.raw(), events::IN)], Some(left));
            while let Ok(Some(_)) = self.signals.take() {}
        }
        if self.ever_ready {
            status::remove(self.config.run_dir);
            self.records.remove_file();
        }
        code
    }
}

/// There is no place for another record.
const NO_ROOM: SysError = SysError::of(&"exits", Errno::ENOSPC);

/// Whether a zombie whose grace is over is nobody's still.
fn fate_of(roster: &Roster, pid: u32) -> Fate {
    match roster.claim_on(pid) {
        Claim::Nobody => Fate::Reap,
        Claim::Held(_) => Fate::Held,
        Claim::Unread => Fate::Unread,
    }
}

/// Nanoseconds since 1970.
fn now_ns() -> u64 {
    u64::try_from(time::realtime().as_nanos()).unwrap_or(u64::MAX)
}
