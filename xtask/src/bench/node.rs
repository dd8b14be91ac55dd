//! A daemon to be measured, and bare processes to measure it against.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sexton_core::domain::{Domain, Subtree};
use sexton_core::handle::{Handle, Life};
use sexton_core::proc::{self, Here};
use sexton_core::spawn::{self, Program};
use sexton_sys::poll::{PollFd, events, poll};
use sexton_testkit::{Connection, Daemon, Ground, processes_in};

use super::timed;

/// What every measured process runs: it does nothing.
pub const SLEEPER: [&str; 2] = ["/bin/sleep", "100000"];

/// How long anything may take that ends at all.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running daemon on a ground of its own.
#[derive(Debug)]
pub struct Node {
    // Before the ground, which takes away what it stands on.
    daemon: Daemon,
    ground: Ground,
}

impl Node {
    /// Starts a daemon whose state lies below `parent`, and waits until it is ready.
    pub fn serve(sexton: &Path, parent: &Path) -> Result<Node> {
        Node::serve_with(sexton, parent, "")
    }

    /// As [`Node::serve`], with that configuration.
    pub fn serve_with(sexton: &Path, parent: &Path, config: &str) -> Result<Node> {
        let ground = Ground::within(sexton, parent)?;
        fs::write(ground.config(), config)?;
        let daemon = ground.serve()?;
        Ok(Node { daemon, ground })
    }

    /// A connection to be used again and again.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(&self.ground.run_dir().join("sexton.sock"))
    }

    /// Starts an instance that sleeps.
    pub fn create(&self, connection: &mut Connection, name: &str) -> Result<()> {
        self.create_of(connection, name, &SLEEPER)
    }

    fn create_of(&self, connection: &mut Connection, name: &str, argv: &[&str]) -> Result<()> {
        let body = json!({ "name": name, "argv": argv }).to_string();
        let answer = connection.ask("POST", "/v1/instances", &[], Some(body.as_bytes()))?;
        ensure!(answer.status == 201, "{} {}", answer.status, answer.text());
        Ok(())
    }

    /// Starts `count` instances that sleep, named `PREFIX-0` and so on.
    pub fn create_many(&self, prefix: &str, count: usize) -> Result<()> {
        self.create_many_of(prefix, count, &SLEEPER)
    }

    /// Starts `count` instances of `argv`, named `PREFIX-0` and so on.
    pub fn create_many_of(&self, prefix: &str, count: usize, argv: &[&str]) -> Result<()> {
        let create =
            |connection: &mut Connection, index| self.create_of(connection, &format!("{prefix}-{index}"), argv);
        self.on_connections(count, create)
    }

    /// How many processes live in the daemon's cgroups.
    pub fn processes(&self) -> usize {
        processes_in(&self.ground.cgroup_dir()).len()
    }

    /// Orders a drain by force, and waits for the answer that the node is drained; tells how long that took.
    pub fn drain_by_force(&self) -> Result<Duration> {
        let mut connection = self.connect()?;
        let began = Instant::now();
        order_drain(&mut connection, "/v1/nodes/self?wait=60s", 200)?;
        Ok(began.elapsed())
    }

    /// As [`Node::drain_by_force`], as somebody learns of it who follows every event.
    pub fn drain_by_force_followed(&self) -> Result<Duration> {
        let mut events = self.follow_events()?;
        let mut connection = self.connect()?;
        let began = Instant::now();
        order_drain(&mut connection, "/v1/nodes/self", 202)?;
        loop {
            let chunk = events.chunk()?.context("the stream of events ended")?;
            if String::from_utf8_lossy(&chunk).contains("\"node.drained\"") {
                return Ok(began.elapsed());
            }
        }
    }

    /// Orders the end of those instances, by force, and waits until nothing of any is left; tells how long that took.
    pub fn stop_many(&self, prefix: &str, count: usize) -> Result<Duration> {
        let mut events = self.follow_events()?;
        let began = Instant::now();
        std::thread::scope(|scope| {
            let stopping = scope.spawn(|| {
                self.on_connections(count, |connection, index| {
                    let path = format!("/v1/instances/{prefix}-{index}/stop");
                    let answer = connection.ask("POST", &path, &[], Some(br#"{"force":true}"#))?;
                    ensure!(answer.status < 300, "{} {}", answer.status, answer.text());
                    Ok(())
                })
            });
            let mut left = count;
            while left > 0 {
                let chunk = events.chunk()?.context("the stream of events ended")?;
                left = left.saturating_sub(String::from_utf8_lossy(&chunk).matches("\"instance.exited\"").count());
            }
            let took = began.elapsed();
            stopping.join().ok().context("the orders were sent")??;
            Ok(took)
        })
    }

    /// Takes instances off the list that are over.
    pub fn remove_many(&self, prefix: &str, count: usize) -> Result<()> {
        self.on_connections(count, |connection, index| {
            let answer = connection.ask("DELETE", &format!("/v1/instances/{prefix}-{index}?wait=30s"), &[], None)?;
            ensure!(answer.status < 300, "{} {}", answer.status, answer.text());
            Ok(())
        })
    }

    /// Ends one instance and takes it off the list.
    pub fn stop_and_remove(&self, connection: &mut Connection, name: &str) -> Result<()> {
        let stop = format!("/v1/instances/{name}/stop?wait=30s");
        let stopped = connection.ask("POST", &stop, &[], Some(br#"{"force":true}"#))?;
        ensure!(stopped.status == 200, "{} {}", stopped.status, stopped.text());
        let removed = connection.ask("DELETE", &format!("/v1/instances/{name}?wait=30s"), &[], None)?;
        ensure!(removed.status < 300, "{} {}", removed.status, removed.text());
        Ok(())
    }

    /// Kills the worker; tells how long until its successor is ready, and how long of that the successor itself took.
    pub fn replace_worker(&mut self) -> Result<Replaced> {
        let worker = self.daemon.worker()?;
        let log_before = self.daemon.log().len();
        let began = Instant::now();
        worker.kill9()?;
        self.daemon.wait_ready()?;
        let seen = began.elapsed();
        let log = self.daemon.log();
        let lines = log.get(log_before..).context("the log only grows")?;
        let at = |mark: &str| {
            let line =
                lines.lines().find(|line| line.contains(mark)).with_context(|| format!("`{mark}` in {lines}"))?;
            millis_of_day(line)
        };
        let told = at(" ready ")?.checked_sub(at("worker begins")?).context("midnight came between")?;
        Ok(Replaced { seen, told: Duration::from_millis(told) })
    }

    /// The worker's PID.
    pub fn worker_pid(&self) -> Result<i32> {
        self.daemon.worker_pid()
    }

    /// The keeper's PID.
    pub fn keeper_pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.daemon.keeper_pid())?)
    }

    /// The PIDs of all that runs.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let found = self.daemon.client().list("/v1/instances?state=running")?;
        let pid = |item: &Value| item.pointer("/identity/pid").and_then(Value::as_i64);
        found.iter().map(|item| Ok(i32::try_from(pid(item).context("a PID")?)?)).collect()
    }

    /// The stream of events from now on.
    fn follow_events(&self) -> Result<Connection> {
        let newest = self.daemon.client().list("/v1/events")?;
        let seq = newest.last().and_then(|event| event.get("seq")).and_then(Value::as_u64).unwrap_or(0);
        let mut connection = self.connect()?;
        let ask = format!("GET /v1/events?after={seq} HTTP/1.1\r\nhost: sexton\r\naccept: text/event-stream\r\n\r\n");
        connection.send_raw(ask.as_bytes())?;
        connection.head()?;
        Ok(connection)
    }

    /// Does `work` for each of `count` indexes, over a few connections at once.
    fn on_connections(&self, count: usize, work: impl Fn(&mut Connection, usize) -> Result<()> + Sync) -> Result<()> {
        const CONNECTIONS: usize = 32;
        std::thread::scope(|scope| {
            let work = &work;
            let ask = |first: usize| {
                let mut connection = self.connect()?;
                (first..count).step_by(CONNECTIONS).try_for_each(|index| work(&mut connection, index))
            };
            let asking: Vec<_> = (0..CONNECTIONS).map(|first| scope.spawn(move || ask(first))).collect();
            asking.into_iter().try_for_each(|thread| thread.join().ok().context("a thread of the bench panicked")?)
        })
    }
}

/// How long it took to replace a worker.
#[derive(Clone, Copy, Debug)]
pub struct Replaced {
    /// From the death of the old one to the first answer `ready`.
    pub seen: Duration,
    /// From the new one's first log line to its line `ready`.
    pub told: Duration,
}

/// The time of day, in milliseconds, with which a log line begins: `2026-01-02T03:04:05.678Z`.
fn millis_of_day(line: &str) -> Result<u64> {
    let number = |from: usize, to: usize| line.get(from..to).and_then(|digits| digits.parse::<u64>().ok());
    let parts = number(11, 13).zip(number(14, 16)).zip(number(17, 19)).zip(number(20, 23));
    let (((hours, minutes), seconds), millis) = parts.with_context(|| format!("no time in `{line}`"))?;
    Ok(((hours * 60 + minutes) * 60 + seconds) * 1000 + millis)
}

/// Processes of the bench's own, made as cheaply as the kernel allows: what the daemon is measured against.
#[derive(Debug)]
pub struct Bare {
    subtree: Subtree,
    here: Here,
    null: [File; 3],
}

/// One of them.
#[derive(Debug)]
pub struct BareProcess {
    handle: Handle,
    domain: Domain,
}

impl Bare {
    /// Makes a cgroup subtree for them, named by this process.
    pub fn new() -> Result<Bare> {
        let subtree = Subtree::find(&format!("sexton-bench-{}", std::process::id()))?;
        subtree.make()?;
        let null = || File::options().read(true).write(true).open("/dev/null");
        Ok(Bare { subtree, here: proc::here()?, null: [null()?, null()?, null()?] })
    }

    /// Makes a cgroup, a process in it by `clone3` with `CLONE_VM`, and sees its program run; tells how long that took.
    pub fn spawn(&self, name: &str, argv: &[&str]) -> Result<(Duration, BareProcess)> {
        let argv: Vec<String> = argv.iter().map(|arg| (*arg).to_owned()).collect();
        timed(|| {
            let domain = self.subtree.create(name, "bench")?;
            let program = Program {
                argv: &argv,
                env: &[],
                cwd: "/",
                user: None,
                stdio: [self.null[0].as_raw_fd(), self.null[1].as_raw_fd(), self.null[2].as_raw_fd()],
                mark: None,
                domain: Some(&domain),
                netns: None,
                pidns: false,
                no_new_privs: false,
                own_memory: false,
                nofile: None,
            };
            let (waiting, handle) = spawn::spawn(&program, &self.here)?;
            let mut going = waiting.release()?;
            while !going.has_left()? {
                let report = wait_readable(going.as_raw_fd(), PATIENCE)?;
                ensure!(report, "a bare process does not run");
            }
            Ok(BareProcess { handle, domain })
        })
    }

    /// Ends all of `processes` by one write to `cgroup.kill` of their parent, and tells how long it took until nothing
    /// lived there: the kernel's own floor.
    pub fn kill(&self, processes: Vec<BareProcess>) -> Result<Duration> {
        let root = self.root()?;
        let began = Instant::now();
        fs::write(root.join("cgroup.kill"), "1")?;
        for process in &processes {
            while matches!(process.handle.life()?, Life::Alive) {
                ensure!(wait_readable(process.handle.as_raw_fd(), PATIENCE)?, "a process lives on");
            }
        }
        while fs::read_to_string(root.join("cgroup.events"))?.contains("populated 1") {
            ensure!(began.elapsed() < PATIENCE, "the cgroup stays populated");
        }
        let took = began.elapsed();
        clear_away(processes)?;
        Ok(took)
    }

    /// Ends each of `processes` by its own `cgroup.kill`, waits for it, reaps it and removes its cgroup, as one would by
    /// hand. Tells how long it took.
    pub fn kill_each(&self, processes: Vec<BareProcess>) -> Result<Duration> {
        let began = Instant::now();
        for process in &processes {
            process.domain.kill()?;
        }
        for process in &processes {
            while matches!(process.handle.life()?, Life::Alive) {
                ensure!(wait_readable(process.handle.as_raw_fd(), PATIENCE)?, "a process lives on");
            }
        }
        clear_away(processes)?;
        Ok(began.elapsed())
    }

    /// Ends each of `processes` by its own `cgroup.kill`, and looks at all of them every so often until nothing lives:
    /// what is written most. Tells how long it took.
    pub fn kill_and_poll(&self, processes: Vec<BareProcess>, every: Duration) -> Result<Duration> {
        let began = Instant::now();
        for process in &processes {
            process.domain.kill()?;
        }
        for process in &processes {
            while process.domain.is_populated()? {
                ensure!(began.elapsed() < PATIENCE, "a process lives on");
                std::thread::sleep(every);
            }
        }
        let took = began.elapsed();
        clear_away(processes)?;
        Ok(took)
    }

    /// The directory of their subtree.
    pub fn root(&self) -> Result<PathBuf> {
        Ok(sexton_testkit::cgroup2().context("cgroup2")?.join(self.subtree.path().trim_start_matches('/')))
    }
}

fn clear_away(processes: Vec<BareProcess>) -> Result<()> {
    for process in processes {
        process.handle.reap()?;
        process.domain.remove()?;
    }
    Ok(())
}

impl Drop for Bare {
    fn drop(&mut self) {
        // An error on the way has been told already, and may have left a process there.
        let _removed = self.subtree.remove();
    }
}

/// Waits until `fd` is readable; whether it became so in time.
fn wait_readable(fd: RawFd, limit: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(fd, events::IN)];
    Ok(poll(&mut fds, Some(limit))? > 0)
}

/// Starts the sleeper as std does, by `vfork` and `execve` in this process's own cgroup, and tells how long it took;
/// then ends it.
pub fn spawn_by_std() -> Result<Duration> {
    let [program, arg] = SLEEPER;
    let mut command = std::process::Command::new(program);
    command.arg(arg).env_clear();
    let (took, mut child) = timed(|| Ok(command.spawn()?))?;
    child.kill()?;
    child.wait()?;
    Ok(took)
}

/// Reads and parses `/proc/PID/stat` of each, which is how others find their processes again; tells how long it took.
pub fn read_stats(pids: &[i32]) -> Result<Duration> {
    let (took, found) = timed(|| {
        let stat = |pid: &i32| Some((*pid, proc::stat(sexton_plan::id::Pid::new(*pid)?).ok()?.start_ticks));
        Ok(pids.iter().filter_map(stat).collect::<BTreeMap<_, _>>())
    })?;
    ensure!(found.len() == pids.len(), "{} of {} are there", found.len(), pids.len());
    Ok(took)
}

/// Orders a drain by force.
fn order_drain(connection: &mut Connection, path: &str, wanted: u16) -> Result<()> {
    let answer = connection.ask("POST", path, &[], Some(br#"{"status":"draining","forceStop":true}"#))?;
    ensure!(answer.status == wanted, "{} {}", answer.status, answer.text());
    Ok(())
}
