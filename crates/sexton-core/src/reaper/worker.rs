//! The reaper's thread, and what it shares with the callers.
//!
//! A thread that panics leaves everything as it was: the set, the registrations and the exits that were collected and
//! not yet told are here. Its last act is to start its successor; a caller that finds none starts one too.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use super::registry::Registry;
use super::{Callback, Exit, ReaperStats, RegisterError, Watching};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mutex, MutexGuard, mpsc};
use crate::sys::poll::{Epoll, Event, EventFd, Trigger, events};
use crate::sys::signal::{self, Signal, SignalSet};
use crate::sys::{SysError, time};

/// The bell's token; registrations count from 1.
const BELL: u64 = 0;

/// BOUND: events taken in one turn; the rest come in the next.
const EVENTS: usize = 256;

pub(super) struct Shared {
    pub epoll: Epoll,
    pub bell: EventFd,
    /// A fork has the memory and the descriptors, and neither the thread nor the children.
    owner: u32,
    registry: Mutex<Registry>,
    callback: Option<Callback>,
    channels: Mutex<Vec<mpsc::Sender<Exit>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    alive: AtomicBool,
    stopping: AtomicBool,
    restarts: AtomicU64,
    /// Turns taken, for whoever waits to see one.
    turns: Mutex<u64>,
    turned: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Shared {
    pub fn new(watching: Watching, callback: Option<Callback>) -> Result<Shared, SysError> {
        let (epoll, bell) = (Epoll::new()?, EventFd::new()?);
        epoll.add(bell.raw(), events::IN, Trigger::Level, BELL)?;
        Ok(Shared {
            epoll,
            bell,
            owner: std::process::id(),
            registry: Mutex::new(Registry::new(watching)),
            callback,
            channels: Mutex::default(),
            thread: Mutex::default(),
            alive: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            restarts: AtomicU64::new(0),
            turns: Mutex::default(),
            turned: Condvar::new(),
        })
    }

    /// A lock that a panic poisoned is taken all the same: each change of the registry is whole before anything that
    /// can panic.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.registry)
    }

    pub fn subscribe(&self) -> mpsc::Receiver<Exit> {
        let (told, news) = mpsc::channel();
        let mut channels = lock(&self.channels);
        // RACE: asked under the lock under which `close` empties the list.
        if !self.stopping.load(Ordering::Acquire) {
            channels.push(told);
        }
        news
    }

    /// Tells all who wait for an exit that there is nobody any more to tell of one.
    fn close(&self) {
        lock(&self.channels).clear();
        self.registry().abandon();
    }

    pub fn stats(&self, alive: bool) -> ReaperStats {
        let registry = self.registry();
        let counts = registry.counts;
        ReaperStats {
            registered: registry.len(),
            polled: registry.polled(),
            held: registry.held(),
            reaped: counts.reaped,
            vanished: counts.vanished,
            sweeps: counts.sweeps,
            last_sweep: counts.last_sweep,
            alive,
            restarts: self.restarts.load(Ordering::Acquire),
            latency_total: counts.latency_total,
            latency_max: counts.latency_max,
        }
    }

    /// Rings and waits for a turn that began afterwards.
    pub fn turns_within(&self, limit: Duration) -> bool {
        let turns = lock(&self.turns);
        let before = *turns;
        self.bell.set();
        let waited = self.turned.wait_timeout_while(turns, limit, |turns| *turns == before);
        *waited.unwrap_or_else(PoisonError::into_inner).0 != before
    }

    /// One wake-up: whatever ended is collected first, and told afterwards without the lock.
    fn turn(&self, space: &mut [Event]) -> Result<(), SysError> {
        let due = self.registry().next_due();
        let timeout = due.map(|due| due.saturating_sub(time::monotonic()));
        let came = self.epoll.wait(space, timeout)?;
        let woke = time::monotonic();
        for event in came {
            match event.token() {
                BELL => drop(self.bell.clear()),
                token => self.registry().collect(token, &self.epoll, woke),
            }
        }
        let overdue = self.registry().overdue(woke);
        for token in overdue {
            self.registry().collect(token, &self.epoll, woke);
        }
        self.end_turn();
        self.tell();
        Ok(())
    }

    /// What the last thread was told and did not come to collect is told to nobody again: each event comes once.
    fn collect_all(&self) {
        let now = time::monotonic();
        let tokens = self.registry().tokens();
        for token in tokens {
            self.registry().collect(token, &self.epoll, now);
        }
        self.tell();
    }

    fn end_turn(&self) {
        let mut registry = self.registry();
        registry.counts.sweeps += 1;
        registry.counts.last_sweep = Some(SystemTime::now());
        drop(registry);
        *lock(&self.turns) += 1;
        self.turned.notify_all();
    }

    /// Tells each exit once: it counts as told before the callback, which may panic.
    fn tell(&self) {
        loop {
            let Some(exit) = self.registry().next_untold() else { return };
            lock(&self.channels).retain(|channel| channel.send(exit).is_ok());
            if let Some(callback) = &self.callback {
                callback(&exit);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread, unless it lives, or shall not any more.
///
/// # Errors
/// There is none to be had.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let mut place = lock(&shared.thread);
    let has_ended = place.as_ref().is_none_or(JoinHandle::is_finished);
    let lives = shared.alive.load(Ordering::Acquire) && !has_ended;
    // RACE: asked last, and under the lock under which `stop` takes the thread. One that ended because it was stopped
    // is seen as such, and none begins that `stop` does not wait for.
    if lives || shared.stopping.load(Ordering::Acquire) {
        return Ok(());
    }
    let runner = Arc::clone(shared);
    let thread = thread::Builder::new().name("sexton-reaper".to_owned()).stack_size(256 * 1024);
    let restarts = shared.restarts.load(Ordering::Acquire) + u64::from(place.is_some());
    // Before the thread begins, which may be over before this goes on.
    shared.restarts.store(restarts, Ordering::Release);
    shared.alive.store(true, Ordering::Release);
    let started = thread.spawn(move || run(&runner, restarts));
    if started.is_err() {
        shared.alive.store(false, Ordering::Release);
    }
    *place = Some(started?);
    Ok(())
}

/// Refuses where there can be no thread, and starts one where the last has died unseen.
///
/// # Errors
/// Stopped, forked, or no thread to be had.
pub(super) fn ensure(shared: &Arc<Shared>) -> Result<(), RegisterError> {
    if shared.stopping.load(Ordering::Acquire) || shared.owner != std::process::id() {
        return Err(RegisterError::Stopped);
    }
    start(shared).map_err(RegisterError::Thread)
}

/// Stops the thread and waits for it, except from the thread itself, and in a fork, which has none.
pub(super) fn stop(shared: &Shared) {
    shared.stopping.store(true, Ordering::Release);
    if shared.owner != std::process::id() {
        return;
    }
    shared.bell.set();
    let mut place = lock(&shared.thread);
    if place.as_ref().is_some_and(|thread| thread.thread().id() == thread::current().id()) {
        // It has exits to tell of before it ends, and closes then.
        return;
    }
    let thread = place.take();
    drop(place);
    if let Some(thread) = thread {
        let _ended = thread.join();
    }
    shared.close();
}

fn run(shared: &Arc<Shared>, restarts: u64) {
    leave_signals_to_the_host();
    let _successor = Successor(shared);
    if restarts > 0 {
        // Not by the thread that died: a logger that panics would then end the process.
        tracing::error!(restarts, "the reaper's thread died and was restarted");
        shared.collect_all();
    }
    let mut space = [Event::EMPTY; EVENTS];
    while !shared.stopping.load(Ordering::Acquire) {
        if let Err(error) = shared.turn(&mut space) {
            tracing::error!(%error, "the reaper cannot wait; the next call restarts it");
            return;
        }
    }
}

/// Blocks the calling thread's signals, except those that the C library sends to every thread of the process, to set
/// IDs and to end threads.
pub(crate) fn leave_signals_to_the_host() {
    let all = (32..=34).filter_map(Signal::new).fold(SignalSet::ALL, SignalSet::without);
    let _before = signal::replace_mask(all);
}

/// Notices the end of a thread from within, when nobody calls for a long time.
struct Successor<'a>(&'a Arc<Shared>);

impl Drop for Successor<'_> {
    fn drop(&mut self) {
        self.0.alive.store(false, Ordering::Release);
        if self.0.stopping.load(Ordering::Acquire) {
            self.0.close();
        } else if thread::panicking() {
            // Without a thread to be had now, the next call tries again.
            let _started = start(self.0);
        }
    }
}
