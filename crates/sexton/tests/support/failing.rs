//! One system call on one file that fails for a daemon, as a disk or a kernel without memory makes it fail, or takes long.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(missing_docs, reason = "for the tests beside it")]
#![allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sexton_testkit::{SOON, eventually};

/// What a process is traced by, of which calls fail. Dropped, they are as ever.
pub struct Failing(Child);

impl Failing {
    /// From now on `call` fails with `error` for process `pid` wherever it is about `path`; `when` is what `strace -e
    /// inject` says of which of them do.
    pub fn of(pid: i32, call: &str, path: &Path, error: &str, when: &str) -> Failing {
        Failing::by(&["-P".as_ref(), path.as_os_str()], pid, call, &format!("error={error}:when={when}"))
    }

    /// From now on `call` takes so much longer for process `pid` wherever it is about `path`.
    pub fn slowly(pid: i32, call: &str, path: &Path, longer: Duration) -> Failing {
        let delay = format!("delay_enter={}", longer.as_micros());
        Failing::by(&["-P".as_ref(), path.as_os_str()], pid, call, &delay)
    }

    /// As [`Failing::of`], wherever it is about.
    pub fn everywhere(pid: i32, call: &str, error: &str, when: &str) -> Failing {
        Failing::by(&[], pid, call, &format!("error={error}:when={when}"))
    }

    /// As [`Failing::slowly`], wherever it is about.
    pub fn slowly_everywhere(pid: i32, call: &str, longer: Duration) -> Failing {
        Failing::by(&[], pid, call, &format!("delay_enter={}", longer.as_micros()))
    }

    fn by(filter: &[&OsStr], pid: i32, call: &str, how: &str) -> Failing {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", "/dev/null", "-p", &pid.to_string()]).args(filter);
        strace.args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:{how}")]);
        let failing = Failing(strace.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace runs"));
        eventually("every thread is traced", SOON, || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
            let texts: Vec<String> = tasks
                .flatten()
                .map(|task| fs::read_to_string(task.path().join("status")).unwrap_or_default())
                .collect();
            let tracer = format!("TracerPid:\t{}\n", failing.0.id());
            if texts.iter().all(|text| text.contains(&tracer)) {
                Ok(())
            } else {
                Err(format!("{} threads", texts.len()))
            }
        });
        failing
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("ended");
    }
}
