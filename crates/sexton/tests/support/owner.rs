//! Somebody else's guests: their directories, their metadata, and processes whose parent is gone.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(missing_docs, reason = "for the tests beside it")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sexton_core::handle::{Handle, Life};
use sexton_plan::id::Pid;
use sexton_testkit::{SOON, eventually};

/// How a metadata file may be written, and how it is to be written back; `@` stands for the PID.
pub const SHAPES: [(&str, &str); 5] = [
    (
        "{\n  \"Id\": \"x\",\n  \"HypervisorPID\": 1,\n  \"State\": \"Running\"\n}\n",
        "{\n  \"Id\": \"x\",\n  \"HypervisorPID\": @,\n  \"State\": \"Running\"\n}\n",
    ),
    ("{\"HypervisorPID\":null,\"n\":{\"HypervisorPID\":7}}", "{\"HypervisorPID\":@,\"n\":{\"HypervisorPID\":7}}"),
    ("{\n  \"Id\": \"x\"\n}", "{\n  \"Id\": \"x\",\n  \"HypervisorPID\": @\n}"),
    ("{}", "{\"HypervisorPID\":@}"),
    ("{ \"HypervisorPID\" : 4194304 }  ", "{ \"HypervisorPID\" : @ }  "),
];

/// Whoever has made `guests/{id}/metadata.json`, and does not live any more. Dropped, its processes are ended.
#[derive(Debug)]
pub struct Owner {
    pub dir: PathBuf,
    started: Vec<Handle>,
}

impl Owner {
    /// One whose directories are made below `dir`.
    pub fn new(dir: &Path) -> Owner {
        fs::create_dir_all(dir.join("guests")).expect("made");
        fs::create_dir_all(dir.join("bin")).expect("made");
        let owner = Owner { dir: dir.to_owned(), started: Vec::new() };
        // A program that stays, takes paths, and is called as the runtime is.
        owner.program("/usr/bin/tail", "qemu-system-fake");
        owner
    }

    /// Copies a program to `bin/{name}`.
    pub fn program(&self, from: &str, name: &str) {
        // RACE: by another process, for a child that a thread beside this one forks would hold a descriptor of ours
        // until it execs, and nobody can execute what is open for writing.
        let copied = Command::new("cp").args(["-L", from]).arg(self.dir.join("bin").join(name)).status();
        assert!(copied.expect("cp").success(), "{from}");
    }

    /// The path of every guest's metadata, as a watch names it.
    pub fn template(&self) -> String {
        format!("{}/guests/{{id}}/metadata.json", self.dir.display())
    }

    /// A `[[watch]]` of these guests, with passes on demand alone.
    pub fn config(&self, grace: &str, on_orphan: &str) -> String {
        format!(
            "[reconcile]\ninterval = \"1h\"\n[[watch]]\nname = \"hypeman\"\n\
             runtimes = [\"qemu\", \"firecracker\", \"cloud-hypervisor\"]\nmetadata = \"{}\"\n\
             pid_field = \"HypervisorPID\"\norphan_grace = \"{grace}\"\non_orphan = \"{on_orphan}\"\n",
            self.template()
        )
    }

    /// Where a guest's metadata is.
    pub fn file(&self, id: &str) -> PathBuf {
        self.guest_dir(id).join("metadata.json")
    }

    pub fn guest_dir(&self, id: &str) -> PathBuf {
        self.dir.join("guests").join(id)
    }

    pub fn read(&self, id: &str) -> String {
        fs::read_to_string(self.file(id)).expect("readable")
    }

    /// Writes a guest's metadata, in one step.
    pub fn write(&self, id: &str, text: impl AsRef<[u8]>) {
        let beside = self.guest_dir(id).join("beside");
        fs::write(&beside, text).expect("written");
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o640)).expect("mode");
        fs::rename(beside, self.file(id)).expect("renamed");
    }

    /// Makes the directory of a guest, with its metadata.
    pub fn guest(&self, id: &str, metadata: Option<&str>) {
        fs::create_dir_all(self.guest_dir(id)).expect("made");
        fs::write(self.guest_dir(id).join("disk"), "").expect("written");
        if let Some(text) = metadata {
            self.write(id, text);
        }
    }

    /// What every orphan has said on stderr.
    pub fn said(&self) -> String {
        fs::read_to_string(self.dir.join("said")).unwrap_or_default()
    }

    /// Runs a line of shell in the background of a shell that ends at once: what it starts is an orphan.
    pub fn orphan(&mut self, line: &str) -> Pid {
        let script = format!("{line} </dev/null >/dev/null 2>>{}/said & echo $!", self.dir.display());
        let told = Command::new("bash").arg("-c").arg(script).output().expect("bash");
        let pid = String::from_utf8(told.stdout).expect("text").trim().parse().expect("a PID");
        let pid = Pid::new(pid).expect("greater than 1");
        self.hold(pid);
        pid
    }

    /// Takes a process that it has started indirectly, so that it is ended with the others.
    pub fn hold(&mut self, pid: Pid) {
        self.started.push(Handle::open(pid, &sexton_core::proc::here().expect("here")).expect("alive"));
    }

    /// An orphan of the stand-in for the runtime.
    pub fn fake(&mut self, id: &str) -> Pid {
        let dir = self.dir.display();
        let pid = self.orphan(&format!("exec {dir}/bin/qemu-system-fake -f {dir}/guests/{id}/disk"));
        executes(pid, "qemu-system-fake");
        pid
    }

    fn held(&self, pid: Pid) -> &Handle {
        self.started.iter().find(|handle| handle.identity().pid == pid).expect("started here")
    }

    pub fn lives(&self, pid: Pid) -> bool {
        matches!(self.held(pid).life(), Ok(Life::Alive))
    }

    /// Ends all of them.
    pub fn end_all(&self) {
        self.started.iter().for_each(|handle| self.end(handle.identity().pid));
    }

    /// Ends one of the orphans, as a crash does.
    pub fn end(&self, pid: Pid) {
        let _gone = self.held(pid).signal(9);
        eventually("an orphan ends", SOON, || if self.lives(pid) { Err(pid.to_string()) } else { Ok(()) });
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.end_all();
    }
}

/// How old a process is at least, by the tick in which it started.
pub fn age(pid: Pid) -> Option<Duration> {
    let ticks = sexton_core::proc::stat(pid).ok()?.start_ticks;
    Some(sexton_sys::time::boottime().saturating_sub(Duration::from_millis(ticks * 10)))
}

/// Waits until a process executes a file of that name, and two passes that follow each other at once find it older than
/// a grace of a millisecond: its age is known to a tick.
pub fn executes(pid: Pid, name: &str) {
    const TWO_TICKS: Duration = Duration::from_millis(20);
    eventually(name, SOON, || match (sexton_core::proc::executable(pid), sexton_core::proc::environment(pid)) {
        // RACE: it shows its file before its arguments, and its environment last.
        (Ok(file), Ok(shown)) if file.ends_with(name) && !shown.is_empty() && age(pid) > Some(TWO_TICKS) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
