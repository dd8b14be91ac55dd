//! The reaper and a PID that passed from one child to another behind its back: each has its own end.

#![allow(clippy::zombie_processes, reason = "the reaper waits for them")]

use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use sexton_core::handle::Handle;
use sexton_core::proc;
use sexton_core::reaper::{Fate, Reaper, RegisterError, Watching};
use sexton_plan::id::Pid;
use sexton_plan::state::ExitStatus;
use sexton_sys::{Fd, pidfd, renumber, time, wait};
use sexton_testkit::with_own_numbers;

const NUMBER: i32 = 4711;
const LONG: Option<Duration> = Some(Duration::from_secs(20));

fn number() -> Pid {
    Pid::new(NUMBER).expect("not init")
}

/// A child with the number, which only a signal ends. Its start tick is no other's: that is all that tells them apart
/// where there is no pidfd.
fn child() -> Fd {
    let tick = || time::boottime().as_millis() / 10;
    let before = tick();
    while tick() < before + 2 {
        std::thread::yield_now();
    }
    renumber::child_with_pid(NUMBER).expect("free number")
}

fn end_by_owner(child: &Fd) {
    pidfd::send_signal(child.raw(), 9).expect("signalled");
    while wait::reap_pidfd(child.raw()).expect("our child").is_none() {
        std::thread::yield_now();
    }
}

/// A reaper whose thread is in its callback until the sender is dropped.
fn held_up(watching: Watching) -> (Reaper, mpsc::Sender<()>) {
    let (entered, has_entered) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let may_leave = Mutex::new(may_leave);
    let reaper = Reaper::builder().watching(watching).on_exit(move |_| {
        let _heard = entered.send(());
        let _left = may_leave.lock().expect("lock").recv();
    });
    let reaper = reaper.start().expect("reaper");
    let first = Command::new("true").spawn().expect("true");
    reaper.register(Pid::new(first.id().cast_signed()).expect("not init")).expect("registered");
    has_entered.recv().expect("entered");
    (reaper, leave)
}

#[test]
fn whoever_has_the_number_of_one_that_another_owner_reaped_is_registered_anew() {
    with_own_numbers("whoever_has_the_number_of_one_that_another_owner_reaped_is_registered_anew", || {
        for watching in [Watching::Pidfd, Watching::Poll] {
            let (reaper, leave) = held_up(watching);
            let first = child();
            let handle = Handle::open(number(), &proc::here().expect("here")).expect("a hold");
            let of_first = reaper.register(number()).expect("registered");
            end_by_owner(&first);
            let second = child();
            let of_second = reaper.register(number()).expect("another child");
            let refused = reaper.register_handle(&handle);
            assert!(matches!(refused, Err(RegisterError::Gone(_))), "{refused:?}: the end of another is not its own");
            assert!(matches!(of_first.wait(LONG).expect("told").fate, Fate::Vanished(_)), "{watching:?}");
            drop(leave);
            assert_eq!(of_second.try_exit(), None, "{watching:?}: it lives");
            pidfd::send_signal(second.raw(), 15).expect("signalled");
            assert_eq!(of_second.wait(LONG).expect("told").fate, Fate::Reaped(ExitStatus::Signal(15)), "{watching:?}");
            assert_eq!(reaper.stats().registered, 0);
        }
    });
}

#[test]
fn a_child_that_was_not_registered_keeps_its_status_though_the_number_was() {
    with_own_numbers("a_child_that_was_not_registered_keeps_its_status_though_the_number_was", || {
        for ends_at_once in [true, false] {
            let (reaper, leave) = held_up(Watching::Poll);
            let first = child();
            let of_first = reaper.register(number()).expect("registered");
            end_by_owner(&first);
            let second = child();
            if ends_at_once {
                pidfd::send_signal(second.raw(), 15).expect("signalled");
                while wait::peek_pidfd(second.raw()).expect("our child").is_none() {
                    std::thread::yield_now();
                }
            }
            drop(leave);
            assert_eq!(of_first.wait(LONG).expect("told").fate, Fate::Vanished(None), "{ends_at_once}");
            // Reaped by whom it belongs to.
            end_by_owner(&second);
        }
    });
}

#[test]
fn without_proc_the_status_of_one_that_is_polled_is_told_all_the_same() {
    with_own_numbers("without_proc_the_status_of_one_that_is_polled_is_told_all_the_same", || {
        assert!(Command::new("umount").args(["-l", "/proc"]).status().expect("umount").success());
        let reaper = Reaper::builder().watching(Watching::Poll).start().expect("reaper");
        let own = renumber::child_with_pid(NUMBER).expect("free number");
        let registration = reaper.register(number()).expect("registered");
        pidfd::send_signal(own.raw(), 15).expect("signalled");
        // Nothing can be read of it, which proves nothing.
        assert_eq!(registration.wait(LONG).expect("told").fate, Fate::Reaped(ExitStatus::Signal(15)));
    });
}
