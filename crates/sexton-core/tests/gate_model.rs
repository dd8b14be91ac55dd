//! The gate's seats under a model checker: every interleaving of what a few threads do, up to a bound of preemptions.

#![allow(dead_code, missing_docs, reason = "the file under test is included as it is, and not all of it is modelled")]

#[path = "../src/gate/seats.rs"]
mod seats;

mod sync {
    pub(super) use loom::sync::Mutex;
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
}

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use seats::{Full, Note, Seats};

const NOTE: Note = Note { kind: 0, since: 0 };

/// Runs `model` through its interleavings, with at most three preemptions each: what needs more is beyond a minute.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn nobody_is_admitted_after_the_drain_has_seen_idle() {
    check(|| {
        let seats = Arc::new(Seats::new(2));
        let seen_idle = Arc::new(AtomicBool::new(false));
        let starts: Vec<_> = (0..2)
            .map(|home| {
                let (seats, seen_idle) = (Arc::clone(&seats), Arc::clone(&seen_idle));
                thread::spawn(move || match seats.take(home, NOTE) {
                    Ok(seat) => {
                        assert!(!seen_idle.load(Ordering::SeqCst), "admitted after the drain had seen idle");
                        seats.give_back(&seat);
                    }
                    Err(full) => assert_eq!(full, Full::Closed),
                })
            })
            .collect();
        seats.close();
        if seats.is_idle() {
            seen_idle.store(true, Ordering::SeqCst);
        }
        for start in starts {
            start.join().expect("a start");
        }
        assert!(seats.is_idle());
    });
}

#[test]
fn whoever_waits_for_an_empty_gate_is_told_exactly_once_and_not_before() {
    check(|| {
        let seats = Arc::new(Seats::new(2));
        let (inside, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let starts: Vec<_> = (0..2)
            .map(|home| {
                let (seats, inside) = (Arc::clone(&seats), Arc::clone(&inside));
                thread::spawn(move || {
                    let Ok(seat) = seats.take(home, NOTE) else { return };
                    inside.fetch_add(1, Ordering::SeqCst);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    seats.give_back(&seat);
                })
            })
            .collect();
        let (hears, sees) = (Arc::clone(&told), Arc::clone(&inside));
        seats.when_idle(Box::new(move || {
            assert_eq!(sees.load(Ordering::SeqCst), 0, "told while somebody was inside");
            hears.fetch_add(1, Ordering::SeqCst);
        }));
        seats.close();
        for start in starts {
            start.join().expect("a start");
        }
        assert_eq!(told.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn two_never_sit_on_one_seat() {
    check(|| {
        let seats = Arc::new(Seats::new(1));
        let other = Arc::clone(&seats);
        let start = thread::spawn(move || other.take(0, Note { kind: 1, since: 1 }).expect("a seat"));
        let mine = seats.take(0, Note { kind: 2, since: 2 }).expect("a seat");
        let theirs = start.join().expect("a start");
        let mut notes = seats.look();
        notes.sort_unstable_by_key(|note| note.kind);
        assert_eq!(notes, [Note { kind: 1, since: 1 }, Note { kind: 2, since: 2 }]);
        seats.give_back(&theirs);
        seats.close();
        assert!(!seats.is_idle());
        seats.give_back(&mine);
        assert!(seats.is_idle());
    });
}
