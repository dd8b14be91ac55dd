//! A keeper with its directories, and its workers as the test sees them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::common::{INIT, eventually, send};

/// A worker as the test sees it.
pub struct Worker {
    pub pid: u32,
    pub phase: String,
    control: UnixStream,
    lines: BufReader<UnixStream>,
    /// What the keeper said and nobody has asked for yet.
    pub heard: Vec<String>,
}

impl Worker {
    /// Gives an order and waits until it is carried out; tells the answer.
    pub fn order(&mut self, order: &str) -> String {
        writeln!(self.control, "{order}").unwrap();
        loop {
            let line = self.line().unwrap_or_else(|| panic!("the worker was gone before `{order}` was answered"));
            match line.strip_prefix("keeper: ") {
                Some(said) => self.heard.push(said.to_owned()),
                None => return line,
            }
        }
    }

    /// Gives an order that ends the worker.
    pub fn order_end(&mut self, order: &str) {
        writeln!(self.control, "{order}").unwrap();
    }

    /// The next thing that the keeper says which begins so.
    pub fn hears(&mut self, beginning: &str) -> String {
        loop {
            if let Some(at) = self.heard.iter().position(|said| said.starts_with(&format!("Some({beginning}"))) {
                return self.heard.remove(at);
            }
            let line = self.line().unwrap_or_else(|| panic!("the worker was gone before it heard `{beginning}`"));
            self.heard.push(line.strip_prefix("keeper: ").expect("only the keeper speaks unasked").to_owned());
        }
    }

    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("nothing from worker {} in time: {error}; heard {:?}", self.pid, self.heard),
        }
    }

    /// Starts a child of the worker; tells its PID and inode.
    pub fn spawn(&mut self, script: &str) -> (u32, u64) {
        let answer = self.order(&format!("spawn {script}"));
        let mut words = answer.split(' ').skip(1);
        (words.next().unwrap().parse().unwrap(), words.next().unwrap().parse().unwrap())
    }

    pub fn spawn_held(&mut self, script: &str) -> (u32, u64) {
        let (pid, ino) = self.spawn(script);
        self.order(&format!("hold {pid} {ino}"));
        (pid, ino)
    }
}

/// A keeper with its directories.
pub struct Rig {
    pub dir: PathBuf,
    pub listener: UnixListener,
    pub keeper: Child,
}

impl Rig {
    pub fn new(name: &str) -> Rig {
        let dir = std::env::temp_dir().join(format!("sexton-keeper-{}-{name}", std::process::id()));
        std::fs::create_dir_all(dir.join("run")).unwrap();
        let listener = UnixListener::bind(dir.join("control")).unwrap();
        install(&dir, &std::env::current_exe().unwrap());
        let keeper = start(Command::new("env"), &dir, &[]);
        Rig { dir, listener, keeper }
    }

    /// The next worker, once it has connected.
    pub fn worker(&self) -> Worker {
        self.listener.set_nonblocking(true).unwrap();
        let control = eventually("a worker connects", || self.listener.accept().ok()).0;
        control.set_nonblocking(false).unwrap();
        control.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let lines = BufReader::new(control.try_clone().unwrap());
        let mut worker = Worker { pid: 0, phase: String::new(), control, lines, heard: Vec::new() };
        let hello = worker.line().unwrap();
        let (phase, pid) = hello.split_once(' ').unwrap();
        (worker.phase, worker.pid) = (phase.to_owned(), pid.parse().unwrap());
        worker
    }

    pub fn ready_worker(&self) -> Worker {
        let mut worker = self.worker();
        worker.hears("Go");
        worker.order("ready");
        worker
    }

    pub fn signal(&self, signal: u8) {
        send(self.keeper.id(), signal);
    }

    pub fn ends(&mut self) -> ExitStatus {
        eventually("the keeper ends", || self.keeper.try_wait().unwrap())
    }

    /// What the status file says about `key`.
    pub fn status(&self, key: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.dir.join("run/keeper.status")).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
    }

    pub fn records(&self) -> u64 {
        std::fs::metadata(self.dir.join("run/exits")).map_or(0, |file| (file.len() - 16) / 40)
    }

    /// Has another keeper take the place of a dead one.
    pub fn restart(&mut self) {
        self.keeper.wait().unwrap();
        self.keeper = start(Command::new("env"), &self.dir, &[]);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.keeper.kill().unwrap();
        self.keeper.wait().unwrap();
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// Puts `program` in the place of the worker's file, atomically, as a package manager does.
pub fn install(dir: &Path, program: &Path) {
    let new = dir.join("worker.new");
    // By a program: a descriptor of ours that writes to it would go to what other tests fork meanwhile, and a file that
    // is being written to cannot be run.
    assert!(Command::new("cp").arg(program).arg(&new).status().unwrap().success());
    std::fs::rename(new, dir.join("worker")).unwrap();
}

pub fn start(mut keeper: Command, dir: &Path, flags: &[&str]) -> Child {
    keeper.args([INIT, "--keeper", "--run-dir"]).arg(dir.join("run")).args(flags).arg("--").arg(dir.join("worker"));
    keeper.args(["--exact", "fake_worker", "--nocapture"]).env("FAKE_CONTROL", dir.join("control"));
    keeper.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}
