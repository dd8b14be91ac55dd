//! `sexton-init` as an image's entry point, beside the programs whose place it takes.
//!
//! Each row is what tini, dumb-init or catatonit document, and runs against every one of them that documents it and is
//! installed, so that the suite is known to be fair; what is not installed is skipped, and said so.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what goes wrong in a test is to fail it, and what is skipped is to be seen"
)]

mod common;
#[path = "common/peers.rs"]
mod peers;

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};

use common::{eventually, is_alive, send, stat};
use peers::Init::{Catatonit, DumbInit, Sexton, Tini};
use peers::{ALL, Init, TINI_LIKE, installed};
use sexton_sys::pidfd;
use sexton_sys::signal::{self, SignalSet};

const TERM: u8 = 15;

fn output(mut command: Command) -> Output {
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A run whose output is read line by line, and which is ended with the test.
struct Run {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Run {
    fn new(mut command: Command) -> Run {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Run { child, lines }
    }

    /// The next line that begins so; the rest of it.
    fn line(&mut self, beginning: &str) -> String {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.trim().to_owned();
            }
            line.clear();
        }
        panic!("the output ended before a line that begins with `{beginning}`");
    }

    fn number(&mut self, beginning: &str) -> u32 {
        self.line(beginning).parse().unwrap()
    }

    fn signal(&self, signal: u8) {
        send(self.child.id(), signal);
    }

    fn status(mut self) -> ExitStatus {
        eventually("init ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Whoever is left below it would be nobody's; a child of a child that we have not reaped keeps its number.
        for pid in children_of(self.child.id()) {
            if let Ok(fd) = pidfd::open(i32::try_from(pid).unwrap()) {
                children_of(pid).into_iter().for_each(|below| send(below, 9));
                let _ended = pidfd::send_signal(fd.raw(), 9);
            }
        }
        // One that has ended already is no error.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The witness's part: tells every signal that it gets; does nothing unless a test started it.
#[test]
fn witness() {
    if std::env::var_os("WITNESS").is_none() {
        return;
    }
    println!("\nready {}", std::process::id());
    loop {
        if let Ok(Some(caught)) = signal::wait(SignalSet::ALL, None) {
            println!("got {}", caught.signal.number());
        }
    }
}

/// Runs a witness under `init`; tells its PID.
fn run_witness(init: Init, flags: &[&str]) -> (Run, u32) {
    let mut command = init.command(flags);
    // All signals are blocked before it starts, and so in all of its threads.
    command.args(["env", "--block-signal"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "witness", "--nocapture"]).env("WITNESS", "1");
    command.stderr(Stdio::null());
    let mut run = Run::new(command);
    let pid = run.number("ready ");
    (run, pid)
}

#[test]
fn every_exit_code_is_the_commands() {
    for init in installed(&ALL) {
        for code in 0..=255 {
            let status = output(init.shell(&[], &format!("exit {code}"))).status;
            assert_eq!(status.code(), Some(code), "{init:?}");
        }
    }
}

#[test]
fn a_signal_that_kills_the_command_adds_128() {
    for init in installed(&ALL) {
        for signal in [1, 2, 3, 6, 9, 13, 14, 15] {
            let status = output(init.shell(&[], &format!("ulimit -c 0; kill -{signal} $$"))).status;
            assert_eq!(status.code(), Some(128 + signal), "{init:?}");
        }
    }
}

#[test]
fn what_is_not_there_is_127_and_what_cannot_be_run_is_126() {
    let dir = std::env::temp_dir().join(format!("sexton-init-{}-exec", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("plain"), "echo not executable").unwrap();
    for init in installed(&TINI_LIKE) {
        for (name, code) in [("no-such-program", 127), ("/no/such/program", 127), ("/", 126), ("plain", 126)] {
            let mut command = init.command(&["-s"]);
            command.arg(if name == "plain" { dir.join(name) } else { PathBuf::from(name) });
            let output = output(command);
            assert_eq!(output.status.code(), Some(code), "{init:?} {name}");
            assert!(text(&output.stderr).contains("failed: "), "{init:?}: {}", text(&output.stderr));
        }
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn every_signal_that_can_be_forwarded_is() {
    for init in installed(&ALL) {
        let (mut run, _) = run_witness(init, &[]);
        for number in (1..=64).filter(|&number| init.forwards(number)) {
            run.signal(number);
            assert_eq!(run.number("got "), u32::from(number), "{init:?}");
        }
    }
}

#[test]
fn what_the_terminal_sends_to_a_background_group_is_not_for_the_command() {
    for init in installed(&TINI_LIKE) {
        let (mut run, _) = run_witness(init, &["-s"]);
        run.signal(21);
        run.signal(22);
        // Were they passed on, they would come first: of those that wait the lowest is taken, and TERM comes after.
        run.signal(28);
        assert_eq!(run.number("got "), 28, "{init:?}");
    }
    let (mut run, _) = run_witness(Sexton, &["-r", "TTIN:TTIN", "-r", "TTOU:HUP"]);
    run.signal(21);
    assert_eq!(run.number("got "), 21, "asked for by name");
    run.signal(22);
    assert_eq!(run.number("got "), 1);
}

#[test]
fn two_dashes_behind_the_command_are_not_for_it() {
    // dumb-init hands them on.
    for init in installed(&[Sexton, Tini, Catatonit]) {
        for (args, shown) in [
            (&["echo", "--", "a", "--", "b"][..], "a -- b\n"),
            (&["--", "echo", "--", "a"], "-- a\n"),
            (&["echo", "--"], "\n"),
        ] {
            let mut command = Command::new(init.path());
            command.args(args).stdin(Stdio::null());
            assert_eq!(text(&output(command).stdout), shown, "{init:?} {args:?}");
        }
        let mut command = Command::new(init.path());
        command.args(["sh", "--", "-c", "exit 5"]).stdin(Stdio::null());
        assert_eq!(output(command).status.code(), Some(5), "{init:?}");
    }
    // tini and catatonit take what is not directly behind the command for theirs too, and options there.
    for init in installed(&[Sexton, DumbInit]) {
        let mut command = Command::new(init.path());
        command.args(["echo", "checkout", "--", "f"]).stdin(Stdio::null());
        assert_eq!(text(&output(command).stdout), "checkout -- f\n", "{init:?}");
    }
}

#[test]
fn signals_reach_the_group_where_that_is_asked_for_and_the_command_alone_otherwise() {
    // The shell survives to tell; the grandchild in its group ends if the signal reaches it too.
    // It speaks for itself, for a shell that has only just forked may swallow the signal instead.
    let script = "trap 'echo got' TERM; sh -c 'echo other $$; exec sleep 1000' & wait; wait; echo over; exit 5";
    for (init, flags, group) in
        [(Sexton, "-g", true), (Tini, "-g", true), (Catatonit, "-g", true), (Sexton, "-s", false), (Tini, "-s", false)]
    {
        for init in installed(&[init]) {
            let mut run = Run::new(init.shell(&[flags], script));
            let other = run.number("other ");
            run.signal(TERM);
            run.line("got");
            if group {
                eventually("the other is gone", || (!is_alive(other)).then_some(()));
            } else {
                assert!(is_alive(other), "{init:?}");
                send(other, TERM);
            }
            run.line("over");
            assert_eq!(run.status().code(), Some(5), "{init:?}");
        }
    }
}

#[test]
fn the_command_leads_a_group_of_its_own() {
    for init in installed(&[Sexton, Tini, DumbInit]) {
        let (_run, pid) = run_witness(init, &[]);
        assert_eq!(stat(pid, 5), Some(pid.to_string()), "{init:?}");
    }
}

#[test]
fn the_command_gets_the_terminal() {
    for init in installed(&TINI_LIKE) {
        // Fields 5 and 8 of its own stat: its group, and the foreground group of its terminal.
        let program = init.path();
        let inner =
            format!("{} -s -- sh -c 'cut -d\" \" -f5,8 /proc/$$/stat; test -t 0 && echo tty'", program.display());
        let mut script = Command::new("script");
        script.args(["-qefc", &inner, "/dev/null"]).stdin(Stdio::null());
        let shown = text(&output(script).stdout);
        let mut numbers = shown.lines().next().unwrap().split_ascii_whitespace();
        assert_eq!(numbers.next(), numbers.next(), "{init:?}: {shown}");
        assert!(shown.contains("tty"), "{init:?}: {shown}");
    }
}

#[test]
fn the_command_has_the_signal_state_that_init_was_started_with() {
    for init in installed(&TINI_LIKE) {
        // Where CHLD is ignored tini never learns that its command has ended.
        let ignored = if init == Tini { "--ignore-signal=HUP,TTOU" } else { "--ignore-signal=HUP,TTOU,CHLD" };
        let mut env = Command::new("env");
        env.args([ignored, "--block-signal=USR1,RTMIN"]).arg(init.path());
        env.args(["-s", "--", "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]).stdin(Stdio::null());
        let shown = text(&output(env).stdout);
        let mask = |key: &str| {
            let line = shown.lines().find(|line| line.starts_with(key)).unwrap();
            u64::from_str_radix(line.split_ascii_whitespace().nth(1).unwrap(), 16).unwrap()
        };
        let bit = |number: u32| 1_u64 << (number - 1);
        assert_eq!(mask("SigBlk"), bit(10) | bit(34), "{init:?}: {shown}");
        let child = if init == Tini { 0 } else { bit(17) };
        // Whatever else the caller of this test ignores stays so too.
        assert_eq!(mask("SigIgn") & (bit(1) | bit(17) | bit(22)), bit(1) | child | bit(22), "{init:?}: {shown}");
    }
}

#[test]
fn the_command_has_no_descriptor_that_init_had_not() {
    let plain = text(&output(listing(Command::new("ls"))).stdout);
    for init in installed(&TINI_LIKE) {
        let mut command = init.command(&["-s"]);
        command.arg("ls");
        assert_eq!(text(&output(listing(command)).stdout), plain, "{init:?}");
    }
}

/// `ls` of its own descriptors.
fn listing(mut command: Command) -> Command {
    command.arg("/proc/self/fd").stdin(Stdio::null());
    command
}

#[test]
fn the_parents_death_is_a_signal() {
    for init in installed(&TINI_LIKE) {
        let program = init.path();
        let mut sh = Command::new("sh");
        // What the shell has after the command keeps it from becoming init itself.
        sh.args(["-c", &format!("{} -p SIGTERM -s -- sh -c 'echo pid $$; exec sleep 1000'; exit", program.display())]);
        let mut run = Run::new({
            sh.stdin(Stdio::null());
            sh
        });
        let command = run.number("pid ");
        let init_pid = stat(command, 4).unwrap().parse().unwrap();
        run.signal(9);
        eventually("the command is gone", || (!is_alive(command)).then_some(()));
        eventually("init is gone", || (!is_alive(init_pid)).then_some(()));
    }
}

#[test]
fn expected_codes_turn_into_0() {
    for init in installed(&TINI_LIKE) {
        for (flags, script, code) in [
            (&["-e", "143"][..], "kill -TERM $$", 0),
            (&["-e", "3", "-e255"], "exit 255", 0),
            (&["-e", "3", "-e255"], "exit 3", 0),
            (&["-e", "3"], "exit 4", 4),
            (&["-e", "0"], "exit 0", 0),
        ] {
            assert_eq!(output(init.shell(flags, script)).status.code(), Some(code), "{init:?} {flags:?} {script}");
        }
        for bad in ["256", "-1", "x", "1x"] {
            assert_eq!(output(init.shell(&["-e", bad], "exit 0")).status.code(), Some(1), "{init:?} {bad}");
        }
    }
}

#[test]
fn signals_are_rewritten_or_dropped() {
    for init in installed(&[Sexton, DumbInit]) {
        let (mut run, _) = run_witness(init, &["-r15:3", "-r", "1:0"]);
        run.signal(1);
        run.signal(TERM);
        assert_eq!(run.number("got "), 3, "{init:?}: HUP is dropped, TERM becomes QUIT");
        run.signal(2);
        assert_eq!(run.number("got "), 2, "{init:?}: INT stays");
    }
    let (mut run, _) = run_witness(Sexton, &["-r", "SIGTERM:USR1", "-r", "usr2:SIGRTMIN+1"]);
    run.signal(TERM);
    assert_eq!(run.number("got "), 10);
    run.signal(12);
    assert_eq!(run.number("got "), 35);
}

#[test]
fn what_is_reaped_is_told_where_that_is_asked_for() {
    let script = "for i in 1 2 3; do (sh -c 'echo orphan $$' &) ; done; sleep 0.2; exit 4";
    for init in installed(&TINI_LIKE) {
        let output = output(init.shell(&["-s", "-w"], script));
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(4), "{init:?}");
        let orphans: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("orphan ")).collect();
        assert_eq!(orphans.len(), 3, "{init:?}: {out}");
        for pid in orphans {
            assert!(err.contains(&format!("Reaped zombie process with pid={pid}\n")), "{init:?}: {err}");
        }
        assert!(!err.contains("zombie reaping won't work"), "{init:?}: {err}");
    }
}

#[test]
fn one_that_can_reap_nobody_says_so_unless_it_is_told_to_be_silent() {
    for init in installed(&TINI_LIKE) {
        let warning = "zombie reaping won't work";
        let warned = |flags: &[&str], variable: (&str, &str)| {
            let mut command = init.shell(flags, "exit 0");
            command.env(variable.0, variable.1);
            text(&output(command).stderr).contains(warning)
        };
        assert!(warned(&[], ("NOTHING", "")), "{init:?}");
        assert!(!warned(&["-s"], ("NOTHING", "")), "{init:?}");
        assert!(!warned(&[], ("TINI_SUBREAPER", "")), "{init:?}");
        assert!(!warned(&[], ("TINI_VERBOSITY", "0")), "{init:?}");
        assert!(warned(&["-v"], ("TINI_VERBOSITY", "1")), "{init:?}");
    }
}

#[test]
fn verbosity_shows_more_and_more() {
    for init in installed(&TINI_LIKE) {
        for (flags, shown, hidden) in [
            (&["-s"][..], "", "Spawned"),
            (&["-s", "-v"], "Spawned child process 'true' with pid", "Exiting"),
            (&["-s", "-vvv"], "Main child exited normally (with status '0')", "Nothing"),
            (&["-s", "-vvv"], "Registered as child subreaper", "Nothing"),
            (&["-s", "-vvv"], "Reaped child with pid: '", "Nothing"),
        ] {
            let mut command = init.command(flags);
            command.arg("true");
            let out = text(&output(command).stdout);
            assert!(out.contains(shown) && !out.contains(hidden), "{init:?} {flags:?}: {out}");
        }
    }
}

#[test]
fn the_environment_asks_for_the_group_too() {
    for init in installed(&TINI_LIKE) {
        let mut command = init.shell(&["-s"], "sh -c 'echo other $$; exec sleep 1000' & wait; exit 9");
        command.env("TINI_KILL_PROCESS_GROUP", "");
        let mut run = Run::new(command);
        let other = run.number("other ");
        run.signal(1);
        eventually("the other is gone", || (!is_alive(other)).then_some(()));
        assert_eq!(run.status().code(), Some(129), "{init:?}");
    }
}

#[test]
fn usage_is_shown_on_request_and_on_a_mistake() {
    for init in installed(&TINI_LIKE) {
        let run = |args: &[&str]| {
            let mut command = Command::new(init.path());
            command.args(args);
            let output = output(command);
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        };
        let (code, out, _) = run(&["-h"]);
        assert!(code == Some(0) && out.contains("Usage:"), "{init:?}: {out}");
        for mistake in [&[][..], &["-s"], &["-x", "true"], &["--"], &["-p", "SIGNOTHING", "true"], &["-p"]] {
            let (code, out, err) = run(mistake);
            assert!(code == Some(1) && out.is_empty() && !err.is_empty(), "{init:?} {mistake:?}: {code:?} {out} {err}");
        }
        let (code, out, _) = run(&["--version"]);
        assert!(code == Some(0) && out.contains("version"), "{init:?}: {out}");
    }
}

/// The program for images, that is: the suite is run against it too.
#[cfg(not(feature = "keeper"))]
#[test]
fn one_without_the_keeper_says_so_by_its_path_and_holds_nothing_of_it() {
    let mut keeper = Command::new(common::INIT);
    keeper.args(["--keeper", "--run-dir", "/nonexistent", "--lock-fd", "3", "--", "/nonexistent/sexton"]);
    let output = output(keeper);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{err}");
    assert!(err.starts_with(common::INIT) && err.contains("without the keeper"), "{err}");
    let program = std::fs::read(common::INIT).unwrap();
    for (word, is_there) in [(&b"sexton-keeper: "[..], false), (b"SEXTON_KEEPER_FD", false), (b"TINI_SUBREAPER", true)]
    {
        let found = program.windows(word.len()).any(|bytes| bytes == word);
        assert_eq!(found, is_there, "{}", text(word));
    }
}

#[test]
fn a_command_is_found_and_interpreted_as_execvp_does() {
    let dir = std::env::temp_dir().join(format!("sexton-init-{}-path", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let script = dir.join("no-interpreter-line");
    std::fs::write(&script, "echo \"$1-$2\"\n").unwrap();
    assert!(Command::new("chmod").arg("755").arg(&script).status().unwrap().success());
    for init in installed(&TINI_LIKE) {
        let mut command = init.command(&["-s"]);
        command.args(["no-interpreter-line", "a", "b"]);
        command.env("PATH", format!("/nonexistent::/etc/passwd:{}", dir.display()));
        assert_eq!(text(&output(command).stdout), "a-b\n", "{init:?}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn it_works_with_no_descriptor_to_spare() {
    for init in installed(&TINI_LIKE) {
        let mut prlimit = Command::new("prlimit");
        // One, which the command's own start needs.
        prlimit.arg("--nofile=4:4").arg(init.path()).args(["-s", "--", "sh", "-c", "kill -TERM $PPID; sleep 9"]);
        prlimit.stdin(Stdio::null());
        assert_eq!(output(prlimit).status.code(), Some(143), "{init:?}");
    }
}

#[test]
fn a_full_pipe_for_its_messages_does_not_stop_it() {
    // Nobody reads this pipe until the end, and it is full from the start.
    let mut command = Sexton.shell(
        &["-s", "-w", "-vvv"],
        "echo pid $$ >&2; trap 'kill $!; exit 7' TERM; while :; do sleep 1000 & wait; done",
    );
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("pid ") {
        line.clear();
        err.read_line(&mut line).unwrap();
    }
    for _ in 0..3000 {
        send(child.id(), 28);
    }
    send(child.id(), TERM);
    assert_eq!(eventually("it ends", || child.try_wait().unwrap()).code(), Some(7));
}

/// Runs `script` under `init` as PID 1 of a PID namespace of its own.
fn as_pid_1(init: Init, proc: bool, flags: &[&str], script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork"]);
    if proc {
        command.arg("--mount-proc");
    }
    command.arg(init.path()).args(flags).args(["--", "sh", "-c", script]).stdin(Stdio::null());
    command
}

#[test]
fn ten_thousand_orphans_leave_no_zombie_to_pid_1() {
    // Orphans come in bursts, many of which end at the same moment; the shell counts what is left.
    let script = "i=0; while [ $i -lt 100 ]; do \
                  (j=0; while [ $j -lt 100 ]; do sleep 0.01 & j=$((j+1)); done) & i=$((i+1)); done; wait; \
                  n=0; while [ $n -lt 400 ]; do set -- /proc/[0-9]*; \
                  if [ $# -le 2 ]; then echo left $(($# - 2)); exit 6; fi; sleep 0.05; n=$((n+1)); done; exit 1";
    for init in installed(&[Sexton, Tini]) {
        let output = output(as_pid_1(init, true, &[], script));
        assert_eq!(output.status.code(), Some(6), "{init:?}: {} {}", text(&output.stdout), text(&output.stderr));
        assert!(text(&output.stdout).contains("left 0"), "{init:?}");
    }
}

#[test]
fn without_its_own_proc_orphans_are_reaped_all_the_same() {
    let script = "i=0; while [ $i -lt 300 ]; do (sleep 0.01 &); i=$((i+1)); done; echo forked; exec sleep 1000";
    for init in installed(&TINI_LIKE) {
        let mut run = Run::new(as_pid_1(init, false, &[], script));
        run.line("forked");
        // The namespace's init is the only child of `unshare`, seen from outside with all that reparented to it.
        let inner = eventually("init is there", || children_of(run.child.id()).first().copied());
        eventually("only the command is left", || (children_of(inner).len() == 1).then_some(()));
        send(inner, TERM);
        assert_eq!(run.status().code(), Some(143), "{init:?}");
    }
}

#[test]
fn an_idle_init_sleeps_and_stays_small() {
    let (run, _) = run_witness(Sexton, &["-s"]);
    let told = |key: &str| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", run.child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // A second of nothing: this is the measurement itself. The first may begin before init has gone to sleep.
    let sleeps = |_| {
        let before = told("voluntary_ctxt_switches");
        std::thread::sleep(std::time::Duration::from_secs(1));
        told("voluntary_ctxt_switches") == before
    };
    assert!((0..5).any(sleeps), "something wakes it every second");
    let bound = if cfg!(debug_assertions) { 1024 } else { 128 };
    assert!(told("VmRSS") <= bound, "{} KiB", told("VmRSS"));
}

/// The children of `pid`; none where it is gone.
fn children_of(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(Path::new(&path)).unwrap_or_default();
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn a_signal_from_outside_ends_init_by_way_of_the_command() {
    for init in installed(&ALL) {
        let mut command = init.shell(&[], "echo ready; exec sleep 1000");
        command.stderr(Stdio::null());
        let mut run = Run::new(command);
        run.line("ready");
        run.signal(TERM);
        let status = run.status();
        assert_eq!((status.code(), status.signal()), (Some(143), None), "{init:?}");
    }
}
