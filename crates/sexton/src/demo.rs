//! `sexton demo`: the main promises, live, with real processes in a temporary directory. It says what it proves at each
//! step, and fails if a step is not true. Everything is done with the commands that a user has.
#![allow(clippy::disallowed_types, reason = "it is a user of the programs, and starts them as one")]

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sexton_core::domain::Subtree;
use sexton_core::handle::Handle;
use sexton_core::proc;
use sexton_plan::id::Pid;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(15);
const KILL: u8 = 9;
const TERM: u8 = 15;

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A promise was not kept.
    #[error("not true: {0}")]
    NotTrue(String),
    /// The demo itself could not go on.
    #[error("could not show it: {0}")]
    Io(#[from] io::Error),
}

type Shown<T> = Result<T, DemoError>;

/// Shows the promises; every line goes to `out`.
///
/// # Errors
/// A step is not true, or the demo could not go on.
pub fn run(out: &mut dyn Write) -> Shown<()> {
    let mut stage = Stage::set()?;
    let shown = show_all(&mut stage, out);
    if let Err(error) = stage.clear() {
        shown?;
        return Err(error);
    }
    shown?;
    writeln!(out, "\nEvery step was true.")?;
    Ok(())
}

fn show_all(stage: &mut Stage, out: &mut dyn Write) -> Shown<()> {
    show_run(stage, out)?;
    show_worker_dies(stage, out)?;
    show_both_die(stage, out)?;
    show_stop(stage, out)?;
    show_stranger(stage, out)?;
    show_events(stage, out)?;
    show_end(stage, out)
}

fn show_run(stage: &mut Stage, out: &mut dyn Write) -> Shown<()> {
    say(out, "1. A daemon, and processes in its custody")?;
    stage.serve(out)?;
    stage.ok(out, &["run", "steady", "--", "sleep", "1000"])?;
    let tree =
        "trap '' TERM; (setsid sh -c \"trap '' TERM; sleep 1000\" &); sleep 1000 & while :; do wait; sleep 1; done";
    stage.ok(out, &["run", "stubborn", "--grace", "300ms", "--", "sh", "-c", tree])?;
    if let Some(qemu) = find_program("qemu-system-x86_64") {
        let socket = format!("unix:{},server=on,wait=off", stage.dir.join("qmp").display());
        let machine = ["-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-qmp", &socket];
        let command = [&["run", "guest", "--runtime", "qemu", "--", &qemu][..], &machine].concat();
        stage.ok(out, &command)?;
    } else {
        say(out, "   (qemu-system-x86_64 is not installed: no guest in this demo)")?;
    }
    stage.ok(out, &["ps"])?;
    Ok(())
}

fn show_worker_dies(stage: &mut Stage, out: &mut dyn Write) -> Shown<()> {
    say(out, "2. The worker is killed with -9: nobody notices")?;
    let before = stage.identity("steady")?;
    stage.ok(out, &["run", "brief", "--", "sh", "-c", "sleep 0.4; exit 7"])?;
    stage.kill_worker(out)?;
    let exit = stage.exit(out, "brief")?;
    check(exit.get("code") == Some(&Value::from(7)), "`brief` ended with 7 under a worker that did not start it")?;
    check(stage.identity("steady")? == before, "`steady` is the same process, proven by the inode of its pidfd")?;
    say(out, &format!("   exit code 7, told by `{}`; `steady` is the same process", word(&exit, "/source")))
}

fn show_both_die(stage: &mut Stage, out: &mut dyn Write) -> Shown<()> {
    say(out, "3. Worker and keeper are killed with -9, and a process ends while nobody is there")?;
    let before = stage.identity("steady")?;
    let gate = stage.dir.join("gate");
    let waits = format!("while [ ! -e {} ]; do sleep 0.1; done; exit 42", gate.display());
    stage.ok(out, &["run", "lonely", "--", "sh", "-c", &waits])?;
    let lonely = stage.pid("lonely")?;
    stage.kill_both(out)?;
    fs::write(&gate, "")?;
    eventually("`lonely` has ended", || proc::stat(lonely).map_or(true, |stat| stat.state == 'Z'))?;
    stage.serve(out)?;
    let exit = stage.exit(out, "lonely")?;
    if exit.is_null() && !stage.pins_exits()? {
        check(
            word(&stage.show("lonely")?, "/state") == "lost",
            "an exit code that nobody can know is told to be lost",
        )?;
        say(out, "   lost and not invented: this host pins no exit codes (`sexton doctor` tells what it takes)")?;
    } else {
        check(exit.get("code") == Some(&Value::from(42)), "the exit code of a process that ended unseen is 42")?;
        let source = word(&exit, "/source");
        say(out, &format!("   exit code 42, told by `{source}`: the kernel kept it when nobody else could"))?;
    }
    check(stage.identity("steady")? == before, "`steady` is the same process")?;
    let guest = stage.dir.join("qmp");
    if guest.exists() {
        let greeting = greet(&guest)?;
        check(greeting.contains("QMP"), "the QEMU guest answers on QMP")?;
        say(out, "   the QEMU guest answers on QMP")?;
    }
    Ok(())
}

fn show_stop(stage: &mut Stage, out: &mut dyn Write) -> Shown<()> {
    say(out, "4. A stop is proven: a tree that ignores TERM, with a session of its own")?;
    let cgroup = word(&stage.show("stubborn")?, "/cgroup/path");
    check(!cgroup.is_empty() && cgroup_exists(&cgroup), "it has a cgroup")?;
    stage.ok(out, &["stop", "stubborn"])?;
    check(!cgroup_exists(&cgroup), "its cgroup is gone, so nothing of it lives")?;
    say(out, "   its cgroup is gone: nothing of it lives")
}

fn show_stranger(stage: &mut Stage, out: &mut dyn Write) -> Shown<()> {
    say(out, "5. A name outside the rules, and a program that does not exist, change nothing")?;
    let names = |stage: &Stage| stage.json(&["ps", "-a"]);
    let before = names(stage)?;
    check(stage.command(&["run", "../etc", "--", "true"]).output()?.status.code() == Some(2), "a bad name is exit 2")?;
    check(names(stage)? == before, "and no instance was made")?;
    let missing = stage.command(&["run", "missing", "--", "/no/such/program"]).output()?;
    check(missing.status.code() == Some(1), "a missing program is exit 1")?;
    say(out, &format!("   {}", String::from_utf8_lossy(&missing.stderr).lines().next().unwrap_or_default()))
}

fn show_events(stage: &mut Stage, out: &mut dyn Write) -> Shown<()> {
    say(out, "6. The event log has no gap, over every death")?;
    let output = stage.command(&["events", "--after", "0", "-o", "json"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let seqs: Vec<u64> =
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?.get("seq")?.as_u64()).collect();
    let gapless = seqs.iter().zip(1..).all(|(seq, expected)| *seq == expected);
    check(gapless && seqs.len() > 10, "the numbers of the events follow each other from 1")?;
    say(out, &format!("   {} events, numbered from 1 without a gap", seqs.len()))
}

fn show_end(stage: &mut Stage, out: &mut dyn Write) -> Shown<()> {
    say(out, "7. Nothing is left behind")?;
    let listed = stage.json(&["ps", "-a"])?;
    let names = listed.as_array().or_else(|| listed.get("items")?.as_array()).cloned().unwrap_or_default();
    for name in names.iter().filter_map(|one| one.get("name")?.as_str()) {
        stage.ok(out, &["rm", "--force", name])?;
    }
    stage.end(out)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let dir = stage.dir.display().to_string();
    check(!mounts.contains(&dir), "no mount is left")?;
    check(!cgroup_exists(&stage.cgroup), "no cgroup is left")?;
    say(out, "   no process, no mount, no cgroup")
}

/// A daemon in a directory of its own.
struct Stage {
    dir: PathBuf,
    cgroup: String,
    daemon: Option<Child>,
}

impl Stage {
    fn set() -> Shown<Stage> {
        let name = format!("sexton-demo-{}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir(&dir)?;
        Ok(Stage { dir, cgroup: name, daemon: None })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let this = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("sexton"));
        let mut command = Command::new(this);
        let (verb, rest) = arguments.split_first().unwrap_or((&"ps", &[]));
        command.arg(verb).arg("--state-dir").arg(self.dir.join("state")).arg("--run-dir").arg(self.dir.join("run"));
        command.arg("--cgroup").arg(&self.cgroup).args(rest).stdin(Stdio::null());
        for variable in ["SEXTON_CONFIG", "SEXTON_SOCKET", "SEXTON_LISTEN", "SEXTON_ON_SHUTDOWN"] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs a command that must succeed, and shows it with what it says.
    fn ok(&self, out: &mut dyn Write, arguments: &[&str]) -> Shown<()> {
        writeln!(out, "   $ sexton {}", arguments.join(" "))?;
        let output = self.command(arguments).output()?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            writeln!(out, "     {line}")?;
        }
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        check(output.status.success(), &format!("`sexton {}` succeeds: {why}", arguments.join(" ")))
    }

    fn json(&self, arguments: &[&str]) -> Shown<Value> {
        let output = self.command(&[arguments, &["-o", "json"]].concat()).output()?;
        let why = || format!("{arguments:?} answers: {}", String::from_utf8_lossy(&output.stderr));
        check(output.status.success(), &why())?;
        serde_json::from_slice(&output.stdout).map_err(|error| DemoError::NotTrue(format!("{arguments:?}: {error}")))
    }

    fn show(&self, name: &str) -> Shown<Value> {
        self.json(&["show", name])
    }

    fn identity(&self, name: &str) -> Shown<Value> {
        let shown = self.show(name)?;
        check(word(&shown, "/state") == "running", &format!("`{name}` runs"))?;
        Ok(shown.get("identity").cloned().unwrap_or_default())
    }

    fn pid(&self, name: &str) -> Shown<Pid> {
        let identity = self.identity(name)?;
        let pid = identity.get("pid").and_then(Value::as_i64).and_then(|pid| Pid::new(i32::try_from(pid).ok()?));
        pid.ok_or_else(|| DemoError::NotTrue(format!("`{name}` has a process")))
    }

    fn exit(&self, out: &mut dyn Write, name: &str) -> Shown<Value> {
        self.ok(out, &["wait", name, "--timeout", "10s"])?;
        Ok(self.show(name)?.get("exit").cloned().unwrap_or_default())
    }

    /// Whether the daemon says that exit codes outlive worker and keeper here.
    fn pins_exits(&self) -> Shown<bool> {
        let output = self.command(&["doctor", "-o", "json"]).output()?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| DemoError::NotTrue(format!("`sexton doctor` answers: {error}")))?;
        let checks = report.get("checks").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        Ok(checks.iter().any(|check| word(check, "/name") == "pins" && word(check, "/grade") == "ok"))
    }

    fn serve(&mut self, out: &mut dyn Write) -> Shown<()> {
        say(out, "   $ sexton serve &")?;
        let log = fs::OpenOptions::new().append(true).create(true).open(self.dir.join("log"))?;
        let mut command = self.command(&["serve"]);
        self.daemon = Some(command.stdout(Stdio::null()).stderr(log).spawn()?);
        self.ready()
    }

    fn ready(&self) -> Shown<()> {
        eventually("the daemon answers", || self.command(&["ps"]).output().is_ok_and(|output| output.status.success()))
    }

    /// A hold on the worker, proven to be the child of our own keeper.
    fn worker(&self) -> Shown<Handle> {
        let keeper = self.daemon.as_ref().map(Child::id).unwrap_or_default();
        let here = proc::here()?;
        let keeper_pid = Pid::new(i32::try_from(keeper).unwrap_or_default());
        let children = keeper_pid.and_then(|pid| proc::children(pid).ok()).unwrap_or_default();
        let status = fs::read_to_string(self.dir.join("run/keeper.status"))?;
        let recorded = status.lines().find_map(|line| line.strip_prefix("worker_pid=")?.parse::<i32>().ok());
        let pid = children.into_iter().find(|pid| Some(pid.as_raw()) == recorded);
        let handle = pid.and_then(|pid| Handle::open(pid, &here).ok());
        handle.ok_or_else(|| DemoError::NotTrue("the keeper has a worker".to_owned()))
    }

    fn kill_worker(&self, out: &mut dyn Write) -> Shown<()> {
        let worker = self.worker()?;
        writeln!(out, "   $ kill -9 {}        (the worker)", worker.identity().pid)?;
        signal(&worker, KILL)?;
        self.ready()
    }

    fn kill_both(&mut self, out: &mut dyn Write) -> Shown<()> {
        let worker = self.worker()?;
        let Some(mut keeper) = self.daemon.take() else { return Ok(()) };
        writeln!(out, "   $ kill -9 {} {}  (keeper and worker)", keeper.id(), worker.identity().pid)?;
        keeper.kill()?;
        signal(&worker, KILL)?;
        keeper.wait()?;
        eventually("the worker is gone", || !matches!(worker.life(), Ok(sexton_core::handle::Life::Alive)))
    }

    fn end(&mut self, out: &mut dyn Write) -> Shown<()> {
        let Some(mut keeper) = self.daemon.take() else { return Ok(()) };
        writeln!(out, "   $ kill -TERM {}", keeper.id())?;
        // Our own unreaped child, so the number is its own.
        let pid = Pid::new(i32::try_from(keeper.id()).unwrap_or_default());
        if let Some(handle) = pid.and_then(|pid| Handle::open(pid, &proc::here().ok()?).ok()) {
            signal(&handle, TERM)?;
        }
        let status = keeper.wait()?;
        check(status.success(), "the daemon ends with 0")
    }

    /// Takes everything down, however far the demo came.
    fn clear(&mut self) -> Shown<()> {
        if let Some(mut keeper) = self.daemon.take() {
            keeper.kill()?;
            keeper.wait()?;
        }
        if let Ok(subtree) = Subtree::find(&self.cgroup)
            && let Ok(domain) = subtree.find_path(subtree.path())
        {
            let _asked = domain.kill();
            eventually("the demo's processes are gone", || domain.remove().is_ok())?;
        }
        if self.dir.join("run/pins").exists()
            && let Ok(pins) = sexton_core::pin::PinBoard::open(&self.dir.join("run"))
        {
            let _removed = pins.remove();
        }
        fs::remove_dir_all(&self.dir)?;
        Ok(())
    }
}

fn signal(handle: &Handle, signal: u8) -> Shown<()> {
    handle.signal(signal).map(|_| ()).map_err(|error| DemoError::NotTrue(error.to_string()))
}

fn say(out: &mut dyn Write, line: &str) -> Shown<()> {
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

fn word(value: &Value, key: &str) -> String {
    value.pointer(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn check(is_true: bool, what: &str) -> Shown<()> {
    if is_true { Ok(()) } else { Err(DemoError::NotTrue(what.to_owned())) }
}

fn eventually(what: &str, mut look: impl FnMut() -> bool) -> Shown<()> {
    let deadline = Instant::now() + PATIENCE;
    while !look() {
        check(Instant::now() < deadline, &format!("{what} within {PATIENCE:?}"))?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn cgroup_exists(path: &str) -> bool {
    Subtree::find(path).is_ok_and(|subtree| subtree.exists())
}

fn find_program(name: &str) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').map(|dir| Path::new(dir).join(name)).find(|program| program.is_file())?;
    found.into_os_string().into_string().ok()
}

/// The first line that QEMU says on its QMP socket.
fn greet(socket: &Path) -> Shown<String> {
    use std::io::BufRead;
    let stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    io::BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}
