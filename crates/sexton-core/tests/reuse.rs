//! A PID that passed to a stranger: never signalled, whatever else the two have in common.

use sexton_core::features;
use sexton_core::handle::{Handle, OpenHandleError};
use sexton_core::proc;
use sexton_plan::id::Pid;
use sexton_plan::identity::Identity;
use sexton_sys::pidfd::{self, End};
use sexton_sys::{Fd, renumber, wait};

const NUMBER: i32 = 4711;
const ROUNDS: u32 = 4000;
/// The cgroup that the recorded process was in and the stranger is not: nothing vouches for a weak identity then.
const OTHER_CGROUP: u64 = u64::MAX;

#[test]
fn a_stranger_with_the_same_number_and_start_tick_is_never_signalled() {
    let test = "a_stranger_with_the_same_number_and_start_tick_is_never_signalled";
    sexton_testkit::with_own_numbers(test, reuse_many_times);
}

fn reuse_many_times() {
    let pid = Pid::new(NUMBER).expect("not init");
    let here = proc::here().expect("proc");
    let mut same_tick = 0;
    for round in 0..ROUNDS {
        let first = renumber::child_with_pid(NUMBER).expect("free number");
        let handle = Handle::open(pid, &here).expect("alive");
        // KERNEL(6.9): before, all pidfds have one inode, which names nobody.
        let named = features::pidfs().then(|| pidfd::inode(first.raw()).expect("its inode"));
        assert_eq!(handle.identity().pidfs_ino, named);
        end(&first);
        let stranger = renumber::child_with_pid(NUMBER).expect("free number");
        let now = Handle::open(pid, &here).expect("alive");
        same_tick += u32::from(now.identity().start_ticks == handle.identity().start_ticks);

        assert!(!handle.signal(9).expect("answered"), "round {round}");
        for recorded in recordings(&handle) {
            let again = Handle::reopen(&recorded.0, &recorded.1, Some(OTHER_CGROUP), &here);
            let refused = again.expect_err("a stranger was taken for the recorded process");
            assert!(matches!(refused, OpenHandleError::Gone | OpenHandleError::Unproven), "{refused:?}");
        }
        assert_eq!(pidfd::poll_end(stranger.raw()).expect("polled"), End::None, "round {round}");
        end(&stranger);
    }
    assert!(same_tick > ROUNDS / 10, "only {same_tick} reuses had the same start tick: this proved little");
}

/// What a ledger may hold of a process, from the strongest evidence to the weakest.
fn recordings(handle: &Handle) -> [(Identity, Vec<u8>); 3] {
    let identity = handle.identity().clone();
    let weak = Identity { pidfs_ino: None, ..identity.clone() };
    [(identity.clone(), handle.to_bytes()), (identity, Vec::new()), (weak, Vec::new())]
}

/// Kills a child and reaps it, which frees its number.
fn end(child: &Fd) {
    pidfd::send_signal(child.raw(), 9).expect("signalled");
    while wait::reap_pidfd(child.raw()).expect("our child").is_none() {
        std::thread::yield_now();
    }
}

#[test]
fn the_number_of_a_thread_that_leads_no_process_is_nobodys() {
    let here = proc::here().expect("proc");
    let (told, number) = std::sync::mpsc::channel();
    let (ends, ended) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let link = std::fs::read_link("/proc/thread-self").expect("a thread");
        let name = link.file_name().expect("a number").to_string_lossy().into_owned();
        told.send(name.parse().expect("a number")).expect("told");
        let _over = ended.recv();
    });
    let pid = Pid::new(number.recv().expect("its number")).expect("not init");
    assert!(matches!(Handle::open(pid, &here), Err(OpenHandleError::Gone)));
    // As of an instance whose process had that number before.
    let me = Pid::new(i32::try_from(std::process::id()).expect("fits")).expect("not init");
    let recorded = Identity { pid, ..Handle::open(me, &here).expect("alive").identity().clone() };
    assert!(matches!(Handle::reopen(&recorded, &[], None, &here), Err(OpenHandleError::Gone)));
    drop(ends);
    thread.join().expect("ended");
}
