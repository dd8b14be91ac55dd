//! A daemon under test.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::client::Client;
use crate::ground::Ground;
use crate::held::Held;
use crate::{SOON, eventually};

const SIGSTOP: i32 = 19;
const SIGCONT: i32 = 18;

/// A running `sexton serve`: its keeper is this test's child. Dropped, both its processes are ended with SIGKILL, and
/// its instances are left to the [`Ground`].
#[derive(Debug)]
pub struct Daemon {
    keeper: Child,
    client: Client,
    log: PathBuf,
}

impl Ground {
    /// Starts a daemon and waits until it is ready.
    ///
    /// # Errors
    /// It ended, or did not become ready.
    pub fn serve(&self) -> Result<Daemon> {
        Daemon::start(self, &[])
    }

    /// As [`Ground::serve`], with more in its environment.
    ///
    /// # Errors
    /// It ended, or did not become ready.
    pub fn serve_with(&self, env: &[(&str, &str)]) -> Result<Daemon> {
        Daemon::start(self, env)
    }
}

impl Daemon {
    fn start(ground: &Ground, env: &[(&str, &str)]) -> Result<Daemon> {
        let mut daemon = Daemon::launch(ground, env)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts a daemon and does not wait for it.
    ///
    /// # Errors
    /// It could not be started.
    pub fn launch(ground: &Ground, env: &[(&str, &str)]) -> Result<Daemon> {
        let log = ground.dir().join("daemon.log");
        let stderr = OpenOptions::new().append(true).create(true).open(&log)?;
        let mut command = ground.command(&["serve"]);
        command.envs(env.iter().copied()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let keeper = command.spawn().with_context(|| ground.program().display().to_string())?;
        Ok(Daemon { keeper, client: ground.client(), log })
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// It ended.
    pub fn wait_ready(&mut self) -> Result<()> {
        let client = self.client.clone();
        let ended = eventually("the daemon is ready", SOON, || {
            if let Ok(Some(status)) = self.keeper.try_wait() {
                return Ok(Some(status));
            }
            match client.get("/readyz") {
                Ok(answer) if answer.status == 200 => Ok(None),
                Ok(answer) => Err(format!("{} {}", answer.status, answer.text())),
                Err(error) => Err(format!("{error:#}\n{}", last_lines(&self.log(), 30))),
            }
        });
        match ended {
            None => Ok(()),
            Some(status) => bail!("the daemon ended with {status}\n{}", self.log()),
        }
    }

    /// Asks it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What it has logged; of every daemon on this ground.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The keeper's PID.
    pub fn keeper_pid(&self) -> u32 {
        self.keeper.id()
    }

    /// A hold on the keeper.
    ///
    /// # Errors
    /// It has ended.
    pub fn keeper(&self) -> Result<Held> {
        Held::child_of(std::process::id(), i32::try_from(self.keeper.id())?)
    }

    /// A hold on the present worker.
    ///
    /// # Errors
    /// It does not answer, or names a process that is no child of the keeper.
    pub fn worker(&self) -> Result<Held> {
        let told = self.client.get("/v1/self")?.json();
        let pid = told.get("worker_pid").and_then(Value::as_i64).with_context(|| format!("no worker in {told}"))?;
        Held::child_of(self.keeper.id(), i32::try_from(pid)?)
    }

    /// The present worker's PID.
    ///
    /// # Errors
    /// It does not answer.
    pub fn worker_pid(&self) -> Result<i32> {
        self.worker().map(|worker| worker.pid())
    }

    /// Ends the worker, and waits until it has ended. The keeper starts another.
    ///
    /// # Errors
    /// There is none that answers.
    pub fn kill9_worker(&self) -> Result<()> {
        self.worker()?.kill9()
    }

    /// Ends the worker, and waits until another one is ready.
    ///
    /// # Errors
    /// There is none that answers, or the keeper ends.
    pub fn replace_worker(&mut self) -> Result<()> {
        self.kill9_worker()?;
        self.wait_ready()
    }

    /// Ends the keeper alone, reaps it, and waits until the worker has followed it.
    ///
    /// # Errors
    /// It has ended.
    pub fn kill9_keeper(mut self) -> Result<()> {
        let worker = self.worker()?;
        self.keeper.kill()?;
        self.keeper.wait()?;
        worker.wait_end();
        Ok(())
    }

    /// Ends keeper and worker at one instant, as far as anybody can tell: both are stopped before.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn kill9_both(mut self) -> Result<()> {
        let (keeper, worker) = (self.keeper()?, self.worker()?);
        keeper.signal(SIGSTOP)?;
        worker.signal(SIGSTOP)?;
        worker.kill9()?;
        keeper.kill9()?;
        self.keeper.wait()?;
        Ok(())
    }

    /// Asks the keeper to end as an operator does, and waits for it.
    ///
    /// # Errors
    /// It has ended, or takes too long.
    pub fn terminate(mut self, limit: Duration) -> Result<ExitStatus> {
        const SIGTERM: i32 = 15;
        self.keeper()?.signal(SIGTERM)?;
        Ok(eventually("the daemon ends", limit, || match self.keeper.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(last_lines(&self.log(), 30)),
            Err(error) => Err(error.to_string()),
        }))
    }

    /// Waits for its end without asking for it.
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        eventually("the daemon ends", limit, || match self.keeper.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it lives".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Whether its keeper has not ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.keeper.try_wait(), Ok(None))
    }

    fn end(&mut self) {
        if !self.is_alive() {
            return;
        }
        if std::thread::panicking() {
            eprintln!("the end of the daemon's log:\n{}", last_lines(&self.log(), 30));
        }
        // Stopped, the keeper starts no other worker meanwhile.
        let Ok(keeper) = self.keeper() else { return };
        let _stopped = keeper.signal(SIGSTOP);
        for held in children(self.keeper.id()).into_iter().filter_map(|pid| Held::child_of(self.keeper.id(), pid).ok())
        {
            // Orphaned workloads are children of the keeper too; they are the ground's to end.
            if is_daemon(pid_exe(held.pid()).as_deref()) {
                let _killed = held.kill9();
            }
        }
        let _killed = keeper.signal(9);
        let _continued = keeper.signal(SIGCONT);
        let _reaped = self.keeper.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

/// The children of a process, as the kernel lists them.
fn children(pid: u32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn pid_exe(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

fn is_daemon(exe: Option<&std::path::Path>) -> bool {
    let name = exe.and_then(|exe| exe.file_name()).map(|name| name.to_string_lossy().into_owned());
    name.is_some_and(|name| name.trim_end_matches(" (deleted)") == "sexton")
}
