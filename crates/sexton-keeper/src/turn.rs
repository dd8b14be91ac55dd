//! The keeper: one loop that starts the worker, outlives it, and starts it again.
//!
//! It does no more than must outlive a worker: hold its listeners, record the exits of the processes it leaves behind,
//! reap what nobody holds, and decide which program runs. Every step is bounded, nothing waits but `poll` and, where
//! held processes have ended, the disk. While nothing happens nothing wakes it.

use sexton_sys::poll::{PollFd, events, poll};
use sexton_sys::process::{self, Child, SignalState};
use sexton_sys::signal::{self, Disposition, Signal, SignalFd, SignalSet};
use sexton_sys::text::Text;
use sexton_sys::wait::{self, Ended};
use sexton_sys::{Errno, Fd, SysError, time};

use crate::children::{self, Finder, Urgency};
use crate::clock::Time;
use crate::connection::{Heard, News};
use crate::records::Records;
use crate::roster::{Claim, Roster};
use crate::starts::Starts;
use crate::status::{self, Status, Words};
use crate::store::Store;
use crate::swap::{Next, Outcome, Swap};
use crate::sweep::Sweep;
use crate::text::{STDERR, say};
use crate::wire::{ExitRecord, HeldProcess, LastEnd, OnShutdown, ToKeeper, VERSION, Welcome};
use crate::worker::{Image, KeeperConfig, Phase, Worker};

/// BOUND: signals that one turn takes.
const SIGNALS_A_TURN: usize = 64;
/// BOUND: messages that one turn takes from one worker; more than its socket holds.
const MESSAGES_A_TURN: usize = 4096;
/// BOUND: workers that were ended and are not reaped yet; they end within a moment.
const LEAVERS: usize = 4;
/// How long the end waits for workers that were killed; longer only where the kernel does not let them go.
const LAST_WAIT: Time = Time::SECOND;
/// How long to wait after a record could not be written.
const DISK_DELAY: Time = Time::millis(250);

/// Exit codes of a worker that refuses to start, which another one would refuse as well (`sysexits.h`).
const REFUSALS: [u8; 7] = [64, 69, 73, 75, 76, 77, 78];
/// The host lacks something required.
const UNAVAILABLE: i32 = 69;

/// Prints a line of the keeper's own log.
macro_rules! log {
    ($($part:expr),+) => { say(STDERR, line()$(.add($part))+) };
}

/// The beginning of a line of that log.
fn line() -> Text {
    let mut line = Text::new();
    line.add("sexton-keeper: ");
    line
}

/// Keeps a worker alive until it finishes or is told to end; tells the exit code.
///
/// The caller has one thread, and nothing else in the process starts or waits for children.
// Apart from the init, in whose frame a keeper's state would take pages.
#[inline(never)]
pub fn run(config: &KeeperConfig<'_>) -> i32 {
    match Keeper::new(config) {
        Ok(mut keeper) => keeper.run(),
        Err(error) => {
            log!("could not begin: ", error);
            UNAVAILABLE
        }
    }
}

#[derive(Debug)]
struct Keeper<'a> {
    /// The moment at which the present turn began.
    now: Time,
    config: &'a KeeperConfig<'a>,
    /// The signal state that the keeper was started with, for the workers.
    inherited: SignalState,
    signals: SignalFd,
    finder: Finder,
    roster: Roster,
    records: Records<'a>,
    /// No exit is recorded before, because one could not be.
    no_record_before: Time,
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
            now: Time::ZERO,
            config,
            inherited: SignalState { mask, child },
            signals: SignalFd::new(SignalSet::ALL)?,
            finder: Finder::new(),
            roster: Roster::new()?,
            records: Records::load(config.run_dir)?,
            no_record_before: Time::ZERO,
            sweep: Sweep::new()?,
            store: Store::new(),
            good,
            worker: None,
            swap: Swap::IDLE,
            swap_again: false,
            outcome: Outcome::None,
            leavers: [const { None }; LEAVERS],
            starts: Starts::new(),
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
    // By itself, so that its state is reached by short offsets.
    #[inline(never)]
    fn run(&mut self) -> i32 {
        loop {
            self.now = Time::now();
            let hints = self.take_signals();
            // Whom a worker held just before it died must be known before anybody is taken for an orphan; and one that
            // was taken for one in an earlier turn is asked about again.
            self.hear_worker();
            self.hear_candidate();
            if self.sweep.run_if_due(self.now, |pid| self.roster.claim_on(pid)) {
                self.finder.want();
            }
            for pid in hints {
                let _reaped = self.consider(pid, Urgency::None);
            }
            self.find_ended();
            self.record_exits();
            self.see_to_worker();
            self.see_to_swap();
            self.start_if_due();
            self.tell();
            if let Some(code) = self.verdict {
                return self.leave(code);
            }
            self.show();
            self.wait();
        }
    }

    /// Acts on the signals that have come; tells which children may have ended, 0 for none.
    fn take_signals(&mut self) -> [u32; SIGNALS_A_TURN] {
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
                Signal::TERM | Signal::INT => self.shut_down(),
                Signal::HUP => self.replace(),
                _ => {}
            }
        }
        hints
    }

    /// TERM and INT: ask, force, go.
    fn shut_down(&mut self) {
        self.shutdown = self.shutdown.saturating_add(1).min(3);
        log!("told to end (", u32::from(self.shutdown), " of 3)");
        self.swap_again = false;
        self.worker.iter().for_each(Worker::wake);
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
            self.without_worker();
        }
    }

    /// HUP: brings the program on disk.
    fn replace(&mut self) {
        if self.shutdown > 0 {
            return;
        }
        if !self.swap.is_idle() {
            self.swap_again = true;
            return;
        }
        match Swap::begin(self.config, self.inherited, self.now) {
            Ok(swap) => self.swap = swap,
            Err(error) => self.end_swap(Outcome::NotStarted(error)),
        }
    }

    /// Notes how a swap ended, and begins the one that was asked for meanwhile.
    fn end_swap(&mut self, outcome: Outcome) {
        log!("reload: ", outcome);
        self.outcome = outcome;
        if core::mem::take(&mut self.swap_again) {
            self.replace();
        }
    }

    /// Takes what the worker says.
    fn hear_worker(&mut self) {
        for _ in 0..MESSAGES_A_TURN {
            match self.worker.as_mut().map(|worker| worker.connection.hear(self.now)) {
                Some(Heard::Message(message, fd)) => self.act_on(message, fd),
                Some(Heard::Skipped) => log!("a message of the worker means nothing here"),
                Some(Heard::Silence) | None => break,
            }
        }
        if let Some(worker) = &mut self.worker
            && worker.connection.take_overdue(self.now)
        {
            worker.kill();
        }
    }

    /// Takes what the candidate says: only whether it is prepared counts, for it answers for nothing yet.
    fn hear_candidate(&mut self) {
        let Some(candidate) = self.swap.candidate_mut() else {
            return;
        };
        for _ in 0..MESSAGES_A_TURN {
            match candidate.connection.hear(self.now) {
                Heard::Message(ToKeeper::Prepared, _) => candidate.phase = Phase::Prepared,
                Heard::Message(_, _) | Heard::Skipped => {}
                Heard::Silence => break,
            }
        }
        if candidate.connection.take_overdue(self.now) {
            candidate.kill();
        }
    }

    /// Does what the worker says.
    fn act_on(&mut self, message: ToKeeper, fd: Option<Fd>) {
        match message {
            ToKeeper::Hello { .. } | ToKeeper::Prepared => {}
            ToKeeper::Ready => self.become_ready(),
            ToKeeper::Hold(held) if !self.roster.hold(held) => log!("too many processes are held"),
            ToKeeper::Hold(_) => {}
            ToKeeper::Release(held) => self.release(held),
            ToKeeper::Ack { seq } => self.records.forget(seq),
            ToKeeper::Store(name) => {
                if !fd.is_some_and(|fd| self.store.put(name, fd)) {
                    log!("a descriptor could not be stored");
                }
            }
            ToKeeper::Unstore(name) => self.store.forget(name),
            ToKeeper::Sweep(policy) => {
                self.sweep.set_policy(policy, self.now);
                // Those that were let alone so far are not under grace yet.
                self.finder.want();
            }
            ToKeeper::Mode(mode) => self.mode = mode,
            ToKeeper::Finished { code } => self.finished = Some(code),
        }
    }

    /// Lets go of a process whose exit is durable; where that could not be recorded here, it is a zombie that nobody else
    /// reaps.
    fn release(&mut self, held: HeldProcess) {
        let has_ended = matches!(wait::peek(held.pid), Ok(Some(_)));
        if has_ended && self.roster.claim_on(held.pid) == Claim::Held(held) {
            let _ended = wait::reap(held.pid);
            self.sweep.forget(held.pid);
        }
        self.roster.release(held);
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
    fn find_ended(&mut self) {
        if self.finder.due() <= self.now {
            let begun = self.finder.begin();
            let reaped = children::look(&mut |pid, urgency| self.consider(pid, urgency));
            self.finder.end(self.now, begun, reaped);
        }
    }

    /// Looks at child `pid`: who it is if it has ended. Tells whether it was reaped.
    fn consider(&mut self, pid: u32, urgency: Urgency) -> bool {
        let known = self.sweep.has(pid) && urgency == Urgency::None;
        if pid == 0 || known || self.is_own(pid) {
            return false;
        }
        let Ok(Some(ended)) = wait::peek(pid) else {
            return false;
        };
        match self.roster.claim_on(pid) {
            Claim::Held(held) => {
                self.take_exit(&ExitRecord {
                    seq: 0,
                    pid,
                    ino: held.ino,
                    status: ended.raw(),
                    at_ns: Time::of(time::realtime()).nanos(),
                });
                false
            }
            Claim::Nobody => self.sweep.take(pid, self.now, urgency == Urgency::Now),
            Claim::Unread => {
                self.finder.want_at(self.now + DISK_DELAY);
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
    fn take_exit(&mut self, exit: &ExitRecord) {
        if self.now < self.no_record_before {
            self.finder.want_at(self.no_record_before);
        } else if !self.records.stage(exit) {
            self.finder.want();
        }
    }

    /// Writes the list to disk, and then reaps who is on it.
    ///
    /// Where it cannot be written nobody is reaped: a zombie keeps its status, which costs a place in the PID table
    /// and nothing else, and its pin is no witness before the reap either.
    fn record_exits(&mut self) {
        let staged = self.records.staged();
        if staged.is_empty() {
            return;
        }
        if let Err(error) = self.records.commit() {
            log!("could not record ", staged.end - staged.start, " exits, they stay zombies: ", error);
            self.no_record_before = self.now + DISK_DELAY;
            self.finder.want_at(self.no_record_before);
            return;
        }
        for exit in staged.filter_map(|seq| self.records.from(seq)) {
            let _ended = wait::reap(exit.pid);
            self.sweep.forget(exit.pid);
            self.roster.release(HeldProcess { pid: exit.pid, ino: exit.ino });
        }
    }

    /// Sees whether the worker has ended.
    fn see_to_worker(&mut self) {
        self.reap_leavers();
        if self.worker.as_ref().and_then(Worker::end).is_none() {
            return;
        }
        // What it said before it died is heard to the end.
        self.hear_worker();
        let Some(worker) = self.worker.take() else {
            return;
        };
        let pid = worker.child.pid();
        if let Ok(ended) = worker.child.reap() {
            // Whom it left behind may have ended already.
            self.finder.want();
            self.last_end = Some(LastEnd { pid, status: ended.raw() });
            self.worker_ended(pid, ended);
        }
    }

    /// Decides what follows the worker's end.
    fn worker_ended(&mut self, pid: u32, ended: Ended) {
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
            self.starts.at = self.now;
            self.end_swap(Outcome::FellBack);
        }
        self.without_worker();
    }

    /// Decides what to do while no worker is alive and none is coming: plan the next, or end.
    fn without_worker(&mut self) {
        if self.shutdown > 0 && self.mode == OnShutdown::Detach {
            self.verdict = Some(0);
        } else if self.starts.at == Time::NEVER {
            let delay = self.starts.plan(self.now);
            log!("the next worker is started in ", delay, " ms");
        }
    }

    /// Goes on with a replacement.
    fn see_to_swap(&mut self) {
        match self.swap.advance(self.now) {
            Next::Wait => {}
            Next::KillWorker => self.worker.iter().for_each(Worker::kill),
            Next::Failed(outcome, leaver) => {
                self.await_leaver(leaver);
                self.end_swap(outcome);
                // One that has been told to retire is of no use any more; it is started again.
                self.worker.iter().filter(|worker| worker.connection.is_retired()).for_each(Worker::kill);
                if self.worker.is_none() && self.starts.at == Time::NEVER {
                    self.starts.at = self.now;
                }
            }
        }
        if self.worker.is_none()
            && self.verdict.is_none()
            && let Some(worker) = self.swap.promote(self.now)
        {
            self.starts.count += 1;
            self.starts.at = Time::NEVER;
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
    fn start_if_due(&mut self) {
        if self.starts.at > self.now || self.worker.is_some() || self.swap.has_candidate() || self.verdict.is_some() {
            return;
        }
        self.starts.at = Time::NEVER;
        match Worker::start(self.config, &self.good, self.inherited, Phase::Starting) {
            Ok(worker) => {
                self.starts.count += 1;
                self.worker = Some(worker);
            }
            Err(error) => {
                log!("could not start a worker: ", error);
                let never_will = match error.errno {
                    // The kernel, or a filter, has its reasons.
                    Errno::ENOSYS | Errno::EPERM => true,
                    Errno::ENOMEM | Errno::EAGAIN => false,
                    _ => error.call.name() == c"execve",
                };
                if never_will && self.starts.count == 0 {
                    self.verdict = Some(UNAVAILABLE);
                } else {
                    self.without_worker();
                }
            }
        }
    }

    /// Tells the worker what it has not been told yet.
    fn tell(&mut self) {
        let welcome = self.welcome();
        let Some(worker) = &mut self.worker else {
            return;
        };
        worker.connection.tell(
            self.now,
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
    fn show(&mut self) {
        let status = Status {
            worker: self.worker.as_ref().map(|worker| (worker.child.pid(), worker.phase == Phase::Ready)),
            restarts: self.starts.count.saturating_sub(1),
            last_end: self.last_end,
            next_start: self.starts.at,
            outcome: self.outcome,
            swapping: !self.swap.is_idle(),
            shutdown: self.shutdown,
        };
        if self.ever_ready && self.shown != Some(status) {
            // It is for people; a full disk must not keep a worker from being started.
            let _unwritten = status::write(self.config.run_dir, &status, self.now);
            self.shown = Some(status);
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let start = if self.swap.has_candidate() { Time::NEVER } else { self.starts.at };
        let mut due = self.finder.due().min(self.sweep.due()).min(self.swap.due()).min(start);
        // Children that end are told by CHLD, and each turn looks at the workers: a pidfd of one that a tracer holds
        // would be ready all the time.
        let mut fds = [PollFd::new(self.signals.raw(), events::IN), PollFd::unused(), PollFd::unused()];
        let [_, links @ ..] = &mut fds;
        for (slot, worker) in links.iter_mut().zip([self.worker.as_ref(), self.swap.candidate()]) {
            if let Some(worker) = worker {
                *slot = worker.connection.watched();
                due = due.min(worker.connection.due());
            }
        }
        // An error here is a lack of memory; the next turn finds what there is to do all the same.
        let _ready = poll(&mut fds, due.pause(Time::now()));
    }

    /// Leaves nothing behind that is of no use to a later keeper, and no worker; tells the exit code.
    fn leave(&mut self, code: i32) -> i32 {
        let leaver = self.swap.abandon();
        self.await_leaver(leaver);
        let until = Time::now() + LAST_WAIT;
        loop {
            self.reap_leavers();
            let now = Time::now();
            if self.leavers.iter().all(Option::is_none) || until <= now {
                break;
            }
            // CHLD tells of each end; whatever else comes has come to its end.
            let _ready = poll(&mut [PollFd::new(self.signals.raw(), events::IN)], until.pause(now));
            while let Ok(Some(_)) = self.signals.take() {}
        }
        if self.ever_ready {
            status::remove(self.config.run_dir);
            self.records.remove_file();
        }
        code
    }
}
