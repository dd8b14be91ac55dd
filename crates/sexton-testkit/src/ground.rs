//! A place of one's own on the host.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use sexton_sys::mount;

use crate::client::Client;
use crate::host::{cgroup2, mounts_below, processes_in, tree};

/// A directory and a cgroup subtree that no other test uses. Dropped, it leaves the host as it was.
#[derive(Debug)]
pub struct Ground {
    id: String,
    cgroup: String,
    /// The first that a daemon here had; all others are below it.
    first_cgroup: String,
    dir: PathBuf,
    program: PathBuf,
    cgroup_mount: PathBuf,
}

/// Where the programs with crash points lie; `cargo xtask ci` builds them and tells.
pub fn crash_bin_dir() -> Option<PathBuf> {
    std::env::var_os("SEXTON_TEST_CRASH_BIN_DIR").map(PathBuf::from)
}

impl Ground {
    /// A ground for daemons of the program `sexton` at that path; `env!("CARGO_BIN_EXE_sexton")` in its own tests.
    ///
    /// # Errors
    /// The host has no cgroup2, or the directory cannot be made.
    pub fn new(sexton: impl Into<PathBuf>) -> Result<Ground> {
        Ground::within(sexton, &std::env::temp_dir())
    }

    /// As [`Ground::new`], with its directory in `parent`.
    ///
    /// # Errors
    /// The host has no cgroup2, or the directory cannot be made.
    pub fn within(sexton: impl Into<PathBuf>, parent: &Path) -> Result<Ground> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("sexton-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup_mount = cgroup2().context("no cgroup2 is mounted")?;
        let dir = parent.join(&id);
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        // An empty configuration of one's own: the host's is not meant.
        fs::write(dir.join("sexton.toml"), "")?;
        let (cgroup, first_cgroup) = (id.clone(), id.clone());
        Ok(Ground { id, cgroup, first_cgroup, dir, program: sexton.into(), cgroup_mount })
    }

    /// A ground for another daemon of the same program, whose cgroup lies below the one of this.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn below(&self) -> Result<Ground> {
        let mut below = Ground::within(&self.program, &self.dir)?;
        below.cgroup = format!("{}/{}", self.cgroup, below.id);
        below.first_cgroup.clone_from(&below.cgroup);
        Ok(below)
    }

    /// The run id, which every name made here holds.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory of this ground.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The program that daemons here are made of.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Where the daemon keeps its ledger.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where the daemon keeps its socket.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The daemon's cgroup, as `--cgroup` takes it.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Gives daemons that begin from now on another cgroup, below the one before.
    pub fn change_cgroup(&mut self) {
        self.cgroup.push_str("/below");
    }

    /// The daemon's configuration, empty until a test writes it.
    pub fn config(&self) -> PathBuf {
        self.dir.join("sexton.toml")
    }

    /// The directory of the daemon's cgroup.
    pub fn cgroup_dir(&self) -> PathBuf {
        self.cgroup_mount.join(&self.cgroup)
    }

    /// The directory of a cgroup that is named as in `/proc/PID/cgroup`.
    pub fn cgroup_at(&self, path: &str) -> PathBuf {
        self.cgroup_mount.join(path.trim_start_matches('/'))
    }

    /// A client of the daemon here, whichever it is at the moment.
    pub fn client(&self) -> Client {
        Client::new(&self.run_dir().join("sexton.sock"))
    }

    /// The flags by which every command finds the daemon here.
    pub fn flags(&self) -> Vec<String> {
        let pair = |flag: &str, value: String| [flag.to_owned(), value];
        [
            pair("--state-dir", self.state_dir().display().to_string()),
            pair("--run-dir", self.run_dir().display().to_string()),
            pair("--cgroup", self.cgroup.clone()),
        ]
        .concat()
    }

    /// A command of the CLI, without this process's own `SEXTON_*` settings.
    #[allow(clippy::disallowed_types, reason = "a test starts programs as a user does")]
    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.as_bytes().starts_with(b"SEXTON_")) {
            command.env_remove(key);
        }
        command.env("SEXTON_CONFIG", self.config());
        // In front: what stands behind `--` is another program's.
        command.args(self.flags()).args(args);
        command
    }

    /// Ends every process in the cgroups of this ground, and removes it with all below.
    ///
    /// # Errors
    /// Something in it does not end.
    pub fn clear_cgroup(&self) -> Result<()> {
        let dir = self.cgroup_mount.join(&self.first_cgroup);
        if !dir.exists() {
            return Ok(());
        }
        for dir in tree(&dir) {
            // A frozen one would hold on to what it was doing.
            let _thawed = fs::write(dir.join("cgroup.freeze"), "0");
        }
        let began = std::time::Instant::now();
        loop {
            let _killed = fs::write(dir.join("cgroup.kill"), "1");
            self.sweep(&dir);
            if tree(&dir).iter().rev().all(|dir| fs::remove_dir(dir).is_ok() || !dir.exists()) {
                return Ok(());
            }
            if began.elapsed() > crate::SOON {
                bail!("cannot clear `{}`: {:?}", dir.display(), processes_in(&dir));
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// `cgroup.kill` misses a process whose leader thread has ended; a pidfd does not.
    fn sweep(&self, dir: &Path) {
        for dir in tree(dir) {
            let Ok(ino) = fs::metadata(&dir).map(|dir| dir.ino()) else { continue };
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for held in text.lines().filter_map(|pid| crate::Held::in_cgroup(ino, pid.parse().ok()?).ok()) {
                let _sent = held.signal(9);
            }
        }
    }

    fn clear(&self) -> Result<()> {
        self.clear_cgroup()?;
        for controller in ["pids", "memory"] {
            // The daemon's place for v1 limits, where the host keeps them there, with those of lives that it left.
            let place = Path::new("/sys/fs/cgroup").join(controller).join(&self.id);
            tree(&place).iter().rev().for_each(|dir| drop(fs::remove_dir(dir)));
        }
        for point in mounts_below(&self.dir) {
            let target = std::ffi::CString::new(point.as_os_str().as_bytes())?;
            mount::unmount(&target).with_context(|| point.display().to_string())?;
        }
        fs::remove_dir_all(&self.dir).with_context(|| self.dir.display().to_string())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let cleared = self.clear();
        if !std::thread::panicking() {
            cleared.expect("the ground can be left as it was");
        }
    }
}
