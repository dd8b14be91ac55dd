//! The build for systems that Sexton has no hands on: `RUSTFLAGS='--cfg sexton_stub' cargo test -p sexton-core --test stub`.

#![cfg(sexton_stub)]

use sexton_core::handle::{Handle, OpenHandleError};
use sexton_core::proc;
use sexton_core::reaper::{Reaper, StartReaperError};
use sexton_core::sweep::{Inactive, Sweep, SweepSettings};
use sexton_plan::id::Pid;

#[test]
fn every_call_says_that_it_is_unsupported() {
    assert!(matches!(Reaper::start(), Err(StartReaperError::Unsupported)));
    let enabled = SweepSettings { enabled: true, ..SweepSettings::default() };
    assert_eq!(Sweep::start(enabled, None).status().inactive, Some(Inactive::Unsupported));
    let here = proc::here().expect("proc");
    let me = Pid::new(i32::try_from(std::process::id()).expect("fits")).expect("not init");
    let refused = Handle::open(me, &here).expect_err("unsupported");
    assert!(matches!(refused, OpenHandleError::Sys(error) if error.errno == sexton_sys::Errno::ENOSYS));
}
