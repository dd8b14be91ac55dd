//! A PID namespace of a test's own, where numbers can be chosen and nobody else takes them.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::skip;

/// Set in the process that is alone in its PID namespace.
const INSIDE: &str = "SEXTON_TEST_INSIDE";

/// Runs `body` of the test of that name, which this is called from, as the first process of a PID namespace: by the
/// program itself, once more. Where there is none to be had, the test is said to be skipped.
pub fn with_own_numbers(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let may = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).status();
    if !may.is_ok_and(|status| status.success()) {
        return skip::announce("no PID namespace of one's own");
    }
    let mut inside = Command::new("unshare");
    inside.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(std::env::current_exe().expect("own program"));
    inside.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").process_group(0);
    let out = inside.output().expect("unshare runs");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}\n{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.contains("1 passed"), "{said}");
}
