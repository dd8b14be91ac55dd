//! What the tests of the daemon share: a daemon that may die at any moment, and questions that outlive it.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(missing_docs, reason = "for the tests beside it")]
#![allow(clippy::indexing_slicing, reason = "a JSON value indexed by a name that is not there is null")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use sexton_testkit::{Daemon, Ground, Held, Response, SOON, eventually};

/// The program under test.
pub const SEXTON: &str = env!("CARGO_BIN_EXE_sexton");

/// A program of that name which becomes `sexton` by `line`: its arguments are the shell's `"$@"`.
pub fn launcher(name: &str, line: &str) -> PathBuf {
    let launcher = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // By a new file: another test may be executing the one that is there.
    let unique = format!("{}-{:?}", std::process::id(), std::thread::current().id());
    let (text, new) = (launcher.with_extension(format!("{unique}-text")), launcher.with_extension(unique));
    fs::write(&text, format!("#!/bin/sh\n{line}\n")).expect("written");
    // RACE: by another process, for a child that a thread beside this one forks would hold a descriptor of ours until it
    // execs, and nobody can execute what is open for writing.
    let installed = Command::new("install").args(["-m", "755"]).args([&text, &new]).status();
    assert!(installed.expect("install").success(), "{line}");
    fs::remove_file(text).expect("removed");
    fs::rename(&new, &launcher).expect("in its place");
    launcher
}

pub const SIGSTOP: i32 = 19;
pub const SIGCONT: i32 = 18;

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dead {
    Nobody,
    Worker,
    Keeper,
    Both,
}

/// A daemon on its ground, followed by another one whenever it has died.
pub struct Node {
    pub daemon: Option<Daemon>,
    pub ground: Ground,
    env: Vec<(String, String)>,
    bond: Option<Bond>,
}

/// A keeper that dies with its worker: stopped, so that it cannot start another one, and killed by whoever watches.
struct Bond {
    keeper: Arc<Held>,
    ended: Arc<AtomicBool>,
    watcher: JoinHandle<()>,
}

impl Bond {
    fn new(daemon: &Daemon) -> Bond {
        let (keeper, worker) = (daemon.keeper().expect("keeper"), daemon.worker().expect("worker"));
        keeper.signal(SIGSTOP).expect("stopped");
        let (keeper, ended) = (Arc::new(keeper), Arc::new(AtomicBool::new(false)));
        let (held, done) = (Arc::clone(&keeper), Arc::clone(&ended));
        let watcher = std::thread::spawn(move || {
            while !done.load(Ordering::Acquire) {
                if worker.ends_within(Duration::from_millis(50)) {
                    // While the keeper lived, whoever connects would wait for an answer: it holds the listener.
                    held.kill9().expect("keeper killed");
                    return;
                }
            }
        });
        Bond { keeper, ended, watcher }
    }

    /// Ends the keeper as soon as `order` is gone, for then its worker stays where it was ordered to.
    fn to_order(daemon: &Daemon, order: PathBuf) -> Bond {
        let keeper = Arc::new(daemon.keeper().expect("keeper"));
        let ended = Arc::new(AtomicBool::new(false));
        let (held, done) = (Arc::clone(&keeper), Arc::clone(&ended));
        let watcher = std::thread::spawn(move || {
            loop {
                // RACE: it is looked for once more at the end, or a worker that has just come to its point stays there.
                let over = done.load(Ordering::Acquire);
                if !order.exists() {
                    held.kill9().expect("keeper killed");
                    return;
                }
                if over {
                    return;
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Bond { keeper, ended, watcher }
    }

    fn is_broken(&self) -> bool {
        !self.keeper.is_alive()
    }

    fn end(self) {
        self.ended.store(true, Ordering::Release);
        self.watcher.join().expect("the watcher ends");
        self.keeper.signal(SIGCONT).expect("continued");
    }
}

impl Node {
    pub fn new(program: impl Into<PathBuf>, env: &[(&str, &str)]) -> Node {
        Node::prepared(program, env, |_| {})
    }

    /// As [`Node::new`], on ground that `prepare` has been to first.
    pub fn on(program: impl Into<PathBuf>, prepare: impl FnOnce(&Ground)) -> Node {
        Node::prepared(program, &[], prepare)
    }

    /// As [`Node::on`], with more in its environment.
    pub fn prepared(program: impl Into<PathBuf>, env: &[(&str, &str)], prepare: impl FnOnce(&Ground)) -> Node {
        let ground = Ground::new(program).expect("a ground");
        prepare(&ground);
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut node = Node { daemon: None, ground, env, bond: None };
        node.serve();
        node
    }

    /// Starts a daemon where there is none.
    pub fn serve(&mut self) {
        let env: Vec<(&str, &str)> = self.env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        self.daemon = Some(self.ground.serve_with(&env).expect("the daemon starts"));
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("a daemon runs")
    }

    /// From now on, whoever ends the worker ends the keeper as well.
    pub fn bind_keeper_to_worker(&mut self) {
        let bond = Bond::new(self.daemon());
        self.bond = Some(bond);
    }

    /// From now on, the keeper ends once `order` is carried out by a worker that stays there.
    pub fn end_keeper_at(&mut self, order: PathBuf) {
        let bond = Bond::to_order(self.daemon(), order);
        self.bond = Some(bond);
    }

    /// Lets the keeper live on its own again.
    pub fn unbind(&mut self) {
        self.revive();
        if let Some(bond) = self.bond.take() {
            bond.end();
        }
        if !self.daemon().is_alive() {
            self.daemon = None;
            self.serve();
        }
    }

    /// Starts another daemon where a bond has ended the one before.
    pub fn revive(&mut self) {
        if self.bond.as_ref().is_some_and(Bond::is_broken) {
            self.bond.take().expect("a bond").end();
            self.daemon = None;
            self.serve();
        }
    }

    /// Ends whom it says, and has a whole daemon again afterwards; `meanwhile` runs while they are dead.
    pub fn kill(&mut self, who: Dead, meanwhile: impl FnOnce()) {
        match who {
            Dead::Nobody => meanwhile(),
            Dead::Worker => {
                let daemon = self.daemon();
                let keeper = daemon.keeper().expect("keeper");
                keeper.signal(SIGSTOP).expect("stopped");
                daemon.kill9_worker().expect("worker killed");
                meanwhile();
                keeper.signal(SIGCONT).expect("continued");
                daemon.wait_ready().expect("another worker");
            }
            Dead::Keeper => {
                self.daemon.take().expect("a daemon runs").kill9_keeper().expect("keeper killed");
                meanwhile();
                self.serve();
            }
            Dead::Both => {
                self.daemon.take().expect("a daemon runs").kill9_both().expect("both killed");
                meanwhile();
                self.serve();
            }
        }
    }

    /// Lets the worker hold `more` descriptors than it does.
    pub fn limit_descriptors(&mut self, more: usize) {
        let open = usize::try_from(self.get("/v1/self")["fds"].as_u64().expect("a number")).expect("small");
        let pid = self.daemon().worker_pid().expect("a worker").to_string();
        let set = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={}:", open + more)]).status();
        assert!(set.expect("prlimit").success());
    }

    /// Asks until there is an answer, whoever dies meanwhile. Tells the answer, and whether an earlier question may
    /// have been heard.
    pub fn ask(&mut self, method: &str, path: &str, key: Option<&str>, body: Option<&Value>) -> (Response, bool) {
        let headers: Vec<(&str, &str)> = key.iter().map(|key| ("idempotency-key", *key)).collect();
        let mut asked = 0;
        let answer = eventually(&format!("an answer to {method} {path}"), SOON, || {
            self.revive();
            asked += 1;
            let answer = self.ground.client().ask(method, path, &headers, body);
            answer.map_err(|error| format!("{error:#}"))
        });
        (answer, asked > 1)
    }

    pub fn get(&mut self, path: &str) -> Value {
        self.ask("GET", path, None, None).0.expect(200)
    }

    /// One instance.
    pub fn instance(&mut self, name: &str) -> Value {
        self.get(&format!("/v1/instances/{name}"))
    }

    /// Every instance.
    pub fn instances(&mut self) -> Vec<Value> {
        eventually("the list", SOON, || {
            self.revive();
            self.ground.client().list("/v1/instances").map_err(|error| format!("{error:#}"))
        })
    }

    /// Waits until the instance is terminal and has given everything back, or has left the list.
    pub fn settled(&mut self, name: &str) -> Value {
        let path = format!("/v1/instances/{name}");
        eventually(&format!("{name} settles"), SOON, || {
            self.revive();
            let answer = self.ground.client().get(&path).map_err(|error| format!("{error:#}"))?;
            let entry = answer.json();
            if answer.status == 404 || is_settled(&entry) { Ok(entry) } else { Err(entry.to_string()) }
        })
    }

    /// Stops everything at once, and takes it off the list.
    pub fn clear(&mut self) {
        for entry in self.instances() {
            let name = text(&entry, "name");
            let (answer, _) = self.ask("DELETE", &format!("/v1/instances/{name}?force=true&wait=20s"), None, None);
            assert!(matches!(answer.status, 200 | 404), "{name}: {}", answer.text());
        }
        let left = self.instances();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The daemon must end before its ground is cleared.
        if let Some(bond) = self.bond.take() {
            bond.end();
        }
        self.daemon = None;
    }
}

/// Terminal, with nothing left to give back.
pub fn is_settled(entry: &Value) -> bool {
    is_terminal(entry) && entry["resources"].as_array().is_none_or(Vec::is_empty)
}

pub fn is_terminal(entry: &Value) -> bool {
    matches!(entry["state"].as_str(), Some("exited" | "failed" | "lost"))
}

pub fn text(entry: &Value, key: &str) -> String {
    entry[key].as_str().unwrap_or_default().to_owned()
}

/// What to create.
pub fn spec(name: &str, argv: &[&str]) -> Value {
    json!({ "name": name, "argv": argv })
}

/// As [`spec`], for a script of the shell.
pub fn script(name: &str, script: &str) -> Value {
    spec(name, &["/bin/sh", "-c", script])
}

/// Waits until a file is there.
pub fn file_appears(path: &std::path::Path) {
    eventually(&format!("{} appears", path.display()), Duration::from_secs(20), || {
        if path.exists() { Ok(()) } else { Err("not there".to_owned()) }
    });
}

/// Compiles the C program `source` to `program`.
pub fn compile(source: &str, program: &std::path::Path) {
    compile_as(&["-pthread"], source, program);
}

/// As [`compile`], with these flags.
pub fn compile_as(flags: &[&str], source: &str, program: &std::path::Path) {
    use std::io::Write as _;
    let mut cc = std::process::Command::new("cc");
    cc.args(["-x", "c", "-"]).args(flags).arg("-o").arg(program).stdin(std::process::Stdio::piped());
    let mut compiler = cc.spawn().expect("a C compiler, which Rust needs too");
    compiler.stdin.take().expect("its input").write_all(source.as_bytes()).expect("compiled");
    assert!(compiler.wait().expect("compiled").success());
}

/// A program whose main thread leaves, once the file `GATE` is there if one is named, while another runs: `Z` in `/proc`,
/// and alive. It makes the file `READY` afterwards.
pub fn leaderless(dir: &std::path::Path) -> String {
    const SOURCE: &str = "
        #include <pthread.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <unistd.h>
        static void *stay(void *main) {
            pthread_join(*(pthread_t *)main, NULL);
            fclose(fopen(getenv(\"READY\"), \"w\"));
            for (;;) pause();
        }
        int main(void) {
            static pthread_t main_thread, other;
            const char *gate = getenv(\"GATE\");
            main_thread = pthread_self();
            pthread_create(&other, NULL, stay, &main_thread);
            while (gate && access(gate, F_OK)) usleep(1000);
            pthread_exit(NULL);
        }";
    let program = dir.join("leaderless");
    compile(SOURCE, &program);
    program.display().to_string()
}

/// Checks what is told of an end that PID 1 may have been the only one to wait for: how it came, `exit` holding `value`
/// at `key`; or that nobody can know, where the kernel keeps no status for pidfds (before Linux 6.15).
pub fn ended_unwatched(over: &Value, key: &str, value: i64) {
    if sexton_testkit::pidfds_can_be_mounted() || over["state"] == "exited" {
        assert_eq!((&over["state"], &over["exit"][key]), (&json!("exited"), &json!(value)), "{over}");
    } else {
        let told = (&over["state"], &over["reason"], &over["exit"]);
        assert_eq!(told, (&json!("lost"), &json!("vanished"), &Value::Null), "{over}");
    }
}
