//! A sweep that has nothing to do says why, and does nothing. Each case needs a process of its own kind.

use std::process::Command;

use sexton_core::sweep::{Inactive, Sweep, SweepSettings};

const ENABLED: SweepSettings = SweepSettings {
    enabled: true,
    interval: std::time::Duration::from_secs(1),
    grace: std::time::Duration::from_secs(1),
};

fn reason(settings: SweepSettings) -> Option<Inactive> {
    Sweep::start(settings, None).status().inactive
}

/// Runs `case` of this file in the process that `launcher` makes.
fn run_in(launcher: &[&str], case: &str) {
    let exe = std::env::current_exe().expect("exe");
    let (program, args) = launcher.split_first().expect("a program");
    let mut command = Command::new(program);
    command.args(args).arg(exe).args(["--exact", case, "--nocapture"]).env("SEXTON_TEST_CASE", case);
    let output = command.output().expect("launched");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Whether this is the process that was made for `case`.
fn is_case(case: &str) -> bool {
    std::env::var_os("SEXTON_TEST_CASE").is_some_and(|name| name == case)
}

#[test]
fn off_unless_asked_for() {
    assert_eq!(reason(SweepSettings::default()), Some(Inactive::Disabled));
}

#[test]
fn neither_init_nor_subreaper() {
    assert_eq!(reason(ENABLED), Some(Inactive::NotTheirParent));
}

#[test]
fn as_init() {
    if is_case("as_init") {
        assert_eq!(std::process::id(), 1);
        return assert_eq!(reason(ENABLED), None);
    }
    run_in(&["unshare", "--pid", "--fork", "--mount-proc"], "as_init");
}

#[test]
fn with_the_proc_of_another_namespace() {
    if is_case("with_the_proc_of_another_namespace") {
        let Some(Inactive::Proc(why)) = reason(ENABLED) else { panic!("active") };
        return assert!(why.contains("another PID namespace"), "{why}");
    }
    run_in(&["unshare", "--pid", "--fork"], "with_the_proc_of_another_namespace");
}

#[test]
fn with_a_proc_that_hides_others() {
    if is_case("with_a_proc_that_hides_others") {
        sexton_sys::process::become_subreaper().expect("prctl");
        let Some(Inactive::Proc(why)) = reason(ENABLED) else { panic!("active") };
        return assert!(why.contains("/proc/1/stat"), "{why}");
    }
    let script = "mount -o remount,hidepid=2 /proc && setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let launcher = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh"];
    run_in(&launcher, "with_a_proc_that_hides_others");
}
