//! The reaper under a model checker: every interleaving of its thread, its callers, other owners and the kernel, up to
//! a bound of preemptions. The reaper's own files run here, on a kernel that is played.

#![allow(dead_code, unused_imports, missing_docs, reason = "the files under test are included as they are")]
#![allow(clippy::indexing_slicing, reason = "the played kernel is a test's")]

#[path = "../src/reaper/mod.rs"]
mod reaper;

/// The played kernel, and threads that the checker interleaves.
mod model;

use model::{handle, played as sys, proc, sync};

use std::sync::Arc;

use loom::thread;
use sexton_plan::id::Pid;
use sexton_plan::state::ExitStatus;

use reaper::{Exit, Fate, Reaper, RegisterError};
use sys::{Child, World};

/// Runs `model` through its interleavings with at most `preemptions` each.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(move || {
        model();
        World::end();
    });
}

fn pid(child: Child) -> Pid {
    Pid::new(child.pid()).expect("not init")
}

fn fate(code: u8) -> Fate {
    Fate::Reaped(ExitStatus::Code(code))
}

#[test]
fn every_exit_is_told_once_whoever_comes_first() {
    check(2, || {
        let [first, second] = World::begin();
        let reaper = Reaper::start().expect("started");
        let told = reaper.subscribe();
        let ending = thread::spawn(move || {
            first.end(3);
            second.end(7);
        });
        let registrations = [first, second].map(|child| reaper.register(pid(child)).expect("a child"));
        let exits: Vec<Fate> = registrations.iter().map(|one| one.wait(None).expect("ended").fate).collect();
        assert_eq!(exits, [fate(3), fate(7)]);
        ending.join().expect("ended");
        reaper.stop();
        let mut codes: Vec<i32> =
            std::iter::from_fn(|| told.try_recv().ok()).map(|exit: Exit| exit.pid.as_raw()).collect();
        codes.sort_unstable();
        assert_eq!(codes, [first.pid(), second.pid()]);
        assert_eq!([first, second].map(Child::is_reaped), [true, true]);
    });
}

#[test]
fn two_callers_register_one_child_once() {
    check(2, || {
        let [child, _other] = World::begin();
        let reaper = Arc::new(Reaper::start().expect("started"));
        let caller = {
            let reaper = Arc::clone(&reaper);
            thread::spawn(move || reaper.register(pid(child)).map(|one| one.wait(None).map(|exit| exit.fate)))
        };
        let mine = reaper.register(pid(child)).expect("nobody has reaped it");
        child.end(9);
        assert_eq!(mine.wait(None).map(|exit| exit.fate), Some(fate(9)));
        match caller.join().expect("ended") {
            Ok(theirs) => assert_eq!(theirs, Some(fate(9))),
            // It came when all was over.
            Err(error) => assert!(matches!(error, RegisterError::Gone(_)), "{error}"),
        }
        let stats = reaper.stats();
        assert_eq!((stats.reaped, stats.vanished, stats.registered), (1, 0, 0));
    });
}

#[test]
fn a_status_goes_to_one_owner_and_the_other_learns_it() {
    check(3, || {
        let [child, bystander] = World::begin();
        let reaper = Reaper::start().expect("started");
        let registered = reaper.register(pid(child)).expect("a child");
        let owner = thread::spawn(move || {
            child.end(5);
            child.reap_as_another_owner()
        });
        let fate = registered.wait(None).expect("ended").fate;
        match owner.join().expect("ended") {
            Some(code) => assert_eq!((code, fate), (5, Fate::Vanished(Some(ExitStatus::Code(5))))),
            None => assert_eq!(fate, self::fate(5)),
        }
        let stats = reaper.stats();
        assert_eq!((stats.reaped + stats.vanished, stats.registered), (1, 0));
        bystander.end(1);
        reaper.stop();
        assert!(!bystander.is_reaped(), "nobody registered it");
    });
}

#[test]
fn a_child_that_its_tracer_holds_delays_no_other() {
    check(2, || {
        let [traced, other] = World::begin();
        let reaper = Reaper::start().expect("started");
        let [held, free] = [traced, other].map(|child| reaper.register(pid(child)).expect("a child"));
        traced.end_traced(1);
        other.end(2);
        assert_eq!(free.wait(None).map(|exit| exit.fate), Some(fate(2)));
        assert!(held.try_exit().is_none());
        traced.let_go();
        assert_eq!(held.wait(None).map(|exit| exit.fate), Some(fate(1)));
    });
}

#[test]
fn a_reaper_that_is_stopped_meanwhile_refuses_or_keeps_and_never_hangs() {
    check(3, || {
        let [child, _other] = World::begin();
        let reaper = Arc::new(Reaper::start().expect("started"));
        let stopping = {
            let reaper = Arc::clone(&reaper);
            thread::spawn(move || reaper.stop())
        };
        let registered = reaper.register(pid(child));
        stopping.join().expect("stopped");
        match registered {
            Ok(waits) => {
                assert!(reaper.holds(pid(child)));
                assert_eq!(waits.wait(None), None, "nobody tells any more");
            }
            Err(error) => assert!(matches!(error, RegisterError::Stopped), "{error}"),
        }
        child.end(4);
        assert!(!child.is_reaped(), "nobody is there to");
        assert!(matches!(reaper.register(pid(child)), Err(RegisterError::Stopped)));
        assert!(!World::has_threads(), "a thread lives on");
    });
}

#[test]
fn a_thread_that_cannot_wait_is_replaced_and_nothing_is_lost() {
    check(2, || {
        let [child, _other] = World::begin();
        let reaper = Reaper::start().expect("started");
        let registered = reaper.register(pid(child)).expect("a child");
        World::fail_next_wait();
        child.end(6);
        // Each look at the statistics replaces a thread that is gone.
        while registered.try_exit().is_none() {
            assert!(reaper.stats().registered <= 1);
            thread::yield_now();
        }
        assert_eq!(registered.try_exit().map(|exit| exit.fate), Some(fate(6)));
        assert!(reaper.stats().restarts <= 1);
    });
}
