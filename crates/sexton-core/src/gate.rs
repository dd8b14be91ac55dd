//! The gate: what is admitted before it closes finishes, and nothing is admitted after.
//!
//! A program has one. Whatever a drain must wait for enters it: starts, uploads, builds. To enter and to leave takes no
//! lock and, as long as no more than 63 operations of a thread are inside, touches no memory that another thread writes.
//!
//! ```
//! use sexton_core::gate::{EnterError, Gate, Kind};
//!
//! let gate = Gate::default();
//! let upload = gate.kind("upload")?;
//! let permit = gate.enter(upload)?;
//! gate.begin_drain();
//! assert_eq!(gate.enter(Kind::START).unwrap_err(), EnterError::Draining);
//! drop(permit);
//! assert!(gate.wait_idle(None).is_ok());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod seats;

/// What the seats are made of; the model checker has its own.
mod sync {
    pub(super) use std::sync::Mutex;
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
}

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sexton_plan::id::Word;

use seats::{Full, Note, Seat, Seats};

/// Blocks of 63 seats: 64,512 operations at once, as many as a node has instances.
const BLOCKS: usize = 1_024;
/// Between the home blocks of two threads, so that what overflows one is far from the next.
const STRIDE: usize = 67;
/// Holds on the gate, for permits that own one: as many threads count theirs without meeting.
const DOORS: usize = 64;
/// Kinds that one gate can tell apart.
const MOST_KINDS: usize = 64;
/// The kinds that every gate knows, in the order of their numbers.
const KNOWN: [&str; 6] = ["start", "restart", "adopt", "hook", "snapshot", "log_export"];

/// What an operation is; of the gate that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(u8);

impl Kind {
    /// A new instance, or a terminal one anew.
    pub const START: Kind = Kind(0);
    /// A restart by an instance's own policy.
    pub const RESTART: Kind = Kind(1);
    /// Taking custody of what something else started.
    pub const ADOPT: Kind = Kind(2);
    /// Something that is run before or after another operation.
    pub const HOOK: Kind = Kind(3);
    /// Keeping what is needed to resume.
    pub const SNAPSHOT: Kind = Kind(4);
    /// Handing out a log.
    pub const LOG_EXPORT: Kind = Kind(5);
}

/// Why a program's own kind of operation could not be made known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// It is no word such as `build` or `volume/delete`.
    #[error("`{}` is no kind", .0.escape_debug())]
    NoWord(String),
    /// There are too many already.
    #[error("a gate tells {MOST_KINDS} kinds apart")]
    TooMany,
}

/// Why an operation was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnterError {
    /// The gate is closed, for good.
    #[error("draining")]
    Draining,
    /// More operations are inside than a gate counts.
    #[error("too many operations at once")]
    Full,
}

/// An operation that is inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// What it is.
    pub kind: String,
    /// How long it has been inside. Of a [`Permit`] at most so long: since the gate last looked at a clock before.
    pub age: Duration,
}

/// Admission, a drain's one truth. Cheap to clone; all clones are one gate.
#[derive(Clone, Debug)]
pub struct Gate {
    shared: Arc<Shared>,
    doors: Arc<[Arc<Door>]>,
}

impl Default for Gate {
    fn default() -> Gate {
        let shared = Arc::<Shared>::default();
        let door = |_| Arc::new(Door { shared: Arc::clone(&shared) });
        Gate { doors: (0..DOORS).map(door).collect(), shared }
    }
}

/// A hold on the gate whose count lies on a cache line of its own: threads that use different ones never meet.
#[repr(align(64))]
#[derive(Debug)]
struct Door {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    seats: Seats,
    own_kinds: Mutex<Vec<String>>,
    made: Instant,
    /// Milliseconds from `made` to when the gate last looked at a clock.
    looked_at: AtomicU64,
}

impl Default for Shared {
    #[allow(clippy::disallowed_methods, reason = "ages are counted from here")]
    fn default() -> Shared {
        Shared {
            seats: Seats::new(BLOCKS),
            own_kinds: Mutex::new(Vec::new()),
            made: Instant::now(),
            looked_at: AtomicU64::new(0),
        }
    }
}

impl Shared {
    /// Milliseconds since the gate was made.
    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// As [`Shared::now`], also for the permits to come.
    fn look_at_clock(&self) -> u64 {
        let now = self.now();
        self.looked_at.store(now, Ordering::Relaxed);
        now
    }

    fn enter(&self, home: usize, kind: Kind, since: u64) -> Result<Seat, EnterError> {
        self.seats.take(home, Note { kind: kind.0, since }).map_err(|full| match full {
            Full::Closed => EnterError::Draining,
            Full::NoSeat => EnterError::Full,
        })
    }
}

thread_local! {
    static HOME: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The block that this thread begins at.
fn home() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    let of_thread = |cell: &Cell<usize>| {
        if cell.get() == usize::MAX {
            cell.set(THREADS.fetch_add(1, Ordering::Relaxed).wrapping_mul(STRIDE) % BLOCKS);
        }
        cell.get()
    };
    HOME.try_with(of_thread).unwrap_or(0)
}

/// One admitted operation, over when dropped.
#[derive(Debug)]
#[must_use = "the operation is over when this is dropped"]
pub struct Permit<'gate> {
    gate: &'gate Shared,
    seat: Seat,
}

/// As [`Permit`], for an operation that outlives the one who admitted it.
#[derive(Debug)]
#[must_use = "the operation is over when this is dropped"]
pub struct OwnedPermit {
    door: Arc<Door>,
    seat: Seat,
}

impl Gate {
    /// The program's own kind of that name: `build`, `upload`, `delete`. Asked for again it is the same.
    ///
    /// # Errors
    /// No word, or one too many.
    pub fn kind(&self, name: &str) -> Result<Kind, KindError> {
        name.parse::<Word>().map_err(|_| KindError::NoWord(name.to_owned()))?;
        let mut own = self.shared.own_kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let known = KNOWN.iter().copied().chain(own.iter().map(String::as_str)).position(|kind| kind == name);
        let number = known.unwrap_or(KNOWN.len() + own.len());
        if number >= MOST_KINDS {
            return Err(KindError::TooMany);
        }
        if known.is_none() {
            own.push(name.to_owned());
        }
        u8::try_from(number).map(Kind).map_err(|_| KindError::TooMany)
    }

    /// Admits one operation.
    ///
    /// # Errors
    /// Draining, or full.
    ///
    /// # Blocking
    /// Never.
    pub fn enter(&self, kind: Kind) -> Result<Permit<'_>, EnterError> {
        let seat = self.shared.enter(home(), kind, self.shared.looked_at.load(Ordering::Relaxed))?;
        Ok(Permit { gate: &self.shared, seat })
    }

    /// As [`Gate::enter`]; it also looks at the clock, which costs more than all the rest.
    ///
    /// A coarser clock would do for an age in milliseconds, but is only quick in a C library, which this crate's system
    /// calls do without; what outlives the one who admitted it takes ten thousand times as long as a look at this one.
    ///
    /// # Errors
    /// Draining, or full.
    pub fn enter_owned(&self, kind: Kind) -> Result<OwnedPermit, EnterError> {
        let home = home();
        let door = self.doors.get(home % DOORS).ok_or(EnterError::Full)?;
        // The permits to come are not told what the clock says: all threads would write to that one place.
        let seat = self.shared.enter(home, kind, self.shared.now())?;
        Ok(OwnedPermit { door: Arc::clone(door), seat })
    }

    /// Closes it, for good. When this returns, whatever was admitted is inside, and nothing is admitted any more.
    pub fn begin_drain(&self) {
        self.shared.look_at_clock();
        self.shared.seats.close();
    }

    /// Whether nothing is admitted any more.
    pub fn is_draining(&self) -> bool {
        self.shared.seats.is_closed()
    }

    /// Whether it is closed and empty, and so stays.
    pub fn is_idle(&self) -> bool {
        self.shared.seats.is_idle()
    }

    /// Every operation inside, the oldest first. Looks at the clock for the permits to come.
    pub fn in_flight(&self) -> Vec<Inside> {
        let now = self.shared.look_at_clock();
        let mut notes = self.shared.seats.look();
        notes.sort_unstable_by_key(|note| (note.since, note.kind));
        let own = self.shared.own_kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |number: u8| KNOWN.iter().copied().chain(own.iter().map(String::as_str)).nth(number.into());
        let inside = |note: Note| Inside {
            // A kind that another gate gave has no name here.
            kind: name(note.kind).unwrap_or("other").to_owned(),
            age: Duration::from_millis(now.saturating_sub(note.since)),
        };
        notes.into_iter().map(inside).collect()
    }

    /// Waits until the gate is closed and empty.
    ///
    /// # Errors
    /// `limit` has passed: what is inside then.
    ///
    /// # Blocking
    /// For `limit`, or for as long as it takes; for ever on a gate that nobody closes.
    pub fn wait_idle(&self, limit: Option<Duration>) -> Result<(), Vec<Inside>> {
        let (tell, told) = mpsc::sync_channel(1);
        let wait = self.shared.seats.when_idle(Box::new(move || {
            // Nobody hears it who has given up.
            let _heard = tell.try_send(());
        }));
        let Some(limit) = limit else { return told.recv().map_err(|_| self.in_flight()) };
        match told.recv_timeout(limit) {
            Ok(()) => Ok(()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                self.shared.seats.forget(wait);
                Err(self.in_flight())
            }
        }
    }

    /// Calls `told` once, when the gate is closed and empty: at once, or by the thread that leaves last. It must not
    /// block; to send on a channel is what it is for.
    pub fn when_idle(&self, told: impl FnOnce() + Send + 'static) {
        self.shared.seats.when_idle(Box::new(told));
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.gate.seats.give_back(&self.seat);
    }
}

impl Drop for OwnedPermit {
    fn drop(&mut self) {
        self.door.shared.seats.give_back(&self.seat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    #[test]
    fn a_closed_gate_admits_nobody_and_empties() {
        let gate = Gate::default();
        let inside = gate.enter_owned(Kind::START).expect("open");
        assert!(!gate.is_draining() && !gate.is_idle());
        gate.begin_drain();
        assert_eq!(gate.enter(Kind::START).err(), Some(EnterError::Draining));
        assert_eq!(gate.enter_owned(Kind::ADOPT).err(), Some(EnterError::Draining));
        let left = gate.wait_idle(Some(Duration::from_millis(1))).expect_err("somebody is inside");
        assert_eq!(left.iter().map(|one| one.kind.as_str()).collect::<Vec<_>>(), ["start"]);
        drop(inside);
        assert!(gate.is_draining() && gate.is_idle());
        assert_eq!(gate.wait_idle(None), Ok(()));
    }

    #[test]
    fn an_open_gate_is_never_idle() {
        let gate = Gate::default();
        assert_eq!(gate.wait_idle(Some(Duration::from_millis(1))), Err(Vec::new()));
    }

    #[test]
    fn what_is_inside_is_told_by_kind_and_age() {
        let gate = Gate::default();
        let upload = gate.kind("upload").expect("a word");
        assert_eq!(gate.kind("upload"), Ok(upload));
        assert_eq!(gate.kind("start"), Ok(Kind::START));
        let first = gate.enter_owned(upload).expect("open");
        while gate.in_flight().iter().all(|one| one.age < Duration::from_millis(2)) {
            thread::yield_now();
        }
        let _second = gate.enter(Kind::LOG_EXPORT).expect("open");
        let kinds: Vec<String> = gate.in_flight().into_iter().map(|one| one.kind).collect();
        assert_eq!(kinds, ["upload", "log_export"]);
        drop(first);
        assert_eq!(gate.in_flight().len(), 1);
    }

    #[test]
    fn kinds_are_words_and_bounded() {
        let gate = Gate::default();
        assert_eq!(gate.kind("a b"), Err(KindError::NoWord("a b".to_owned())));
        let own = (0..MOST_KINDS - KNOWN.len()).map(|number| gate.kind(&format!("own{number}")));
        assert!(own.collect::<Result<Vec<_>, _>>().is_ok());
        assert_eq!(gate.kind("more"), Err(KindError::TooMany));
    }

    #[test]
    fn one_thread_may_be_inside_as_often_as_there_are_seats() {
        let gate = Gate::default();
        let mut permits: Vec<_> = (0..BLOCKS * 63).map(|_| gate.enter(Kind::HOOK).expect("a seat")).collect();
        assert_eq!(gate.enter(Kind::HOOK).err(), Some(EnterError::Full));
        permits.pop();
        permits.push(gate.enter(Kind::HOOK).expect("the seat that was given back"));
        gate.begin_drain();
        drop(permits);
        assert!(gate.is_idle());
    }

    #[test]
    fn nobody_is_admitted_after_a_closed_gate_was_seen_empty() {
        for _ in 0..200 {
            let (gate, seen_empty) = (Gate::default(), Arc::new(AtomicBool::new(false)));
            let starts: Vec<_> = (0..3)
                .map(|_| {
                    let (gate, seen_empty) = (gate.clone(), Arc::clone(&seen_empty));
                    thread::spawn(move || {
                        while let Ok(_permit) = gate.enter(Kind::START) {
                            assert!(!seen_empty.load(Ordering::SeqCst), "admitted after the drain had seen idle");
                        }
                    })
                })
                .collect();
            gate.begin_drain();
            gate.wait_idle(None).expect("it empties");
            seen_empty.store(true, Ordering::SeqCst);
            for start in starts {
                start.join().expect("no start after idle");
            }
        }
    }
}
