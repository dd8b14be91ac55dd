//! How a process is asked to end, step by step, by its runtime: in the runtime's own words where it has some, then by
//! signal. What follows when it does not end is the same for all of them, and is not here.
//!
//! A socket that is named on a command line may belong to anybody, so nothing is said to a peer that is not proven to
//! be the process itself, by the inode of its pidfd.

mod http;
mod qmp;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sexton_ledger::entry::{Entry, Spec};
use sexton_plan::identity::Identity;
use sexton_sys::file::flags;
use sexton_sys::{pidfd, socket};
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How long a peer may take to be connected to.
const CONNECTS: Duration = Duration::from_secs(1);

/// One step of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A signal to the main process; without a wait, the rest of the grace is waited.
    Signal(u8, Option<Duration>),
    /// A sentence to the runtime.
    Say(Sentence, Duration),
}

/// A sentence, and who is to hear it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    language: Language,
    wish: Wish,
    line: Line,
}

/// Where a process listens, if it is to be believed, and who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    socket: PathBuf,
    identity: Identity,
}

/// The languages that are spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Qemu,
    Firecracker,
    CloudHypervisor,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// The guest is to shut down by itself.
    PowerDown,
    /// The runtime is to end, whatever its guest does.
    Quit,
}

/// What follows once something was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It was taken, and takes its time.
    Wait,
    /// It is done: there is nothing to wait for.
    Done,
}

/// Why nothing was said; the next step follows.
#[derive(Debug, thiserror::Error)]
pub enum SayError {
    /// Nobody answers.
    #[error("nobody answers in time")]
    Silent(#[from] tokio::time::error::Elapsed),
    /// The socket is none, or nobody listens there.
    #[error("the socket cannot be used")]
    Io(#[from] std::io::Error),
    /// Somebody else listens there.
    #[error("the peer is not the process that is asked")]
    Stranger,
    /// The peer speaks another language, or refuses.
    #[error("the answer is a refusal, or makes no sense")]
    Malformed,
}

/// Who is at a runtime's control socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The instance.
    Instance,
    /// Somebody else, who is not spoken to.
    Stranger,
    /// Nobody that could be reached.
    Nobody,
}

impl Peer {
    /// Its word in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Peer::Instance => "instance",
            Peer::Stranger => "stranger",
            Peer::Nobody => "nobody",
        }
    }
}

/// One signal of a declared runtime, and how long it is waited for; without a wait, for the rest of the grace.
pub type SignalStep = (u8, Option<Duration>);

/// How each declared runtime is asked to end, by its name; SIGKILL is in no list, for it follows each.
#[derive(Clone, Debug, Default)]
pub struct Runtimes(pub BTreeMap<String, Vec<SignalStep>>);

/// Who is asked, as far as that tells how.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its runtime.
    pub runtime: &'a str,
    /// Its command line.
    pub argv: &'a [String],
    /// Its main process, while that lives.
    pub main: Option<&'a Identity>,
    /// What a runtime without words and steps is asked with.
    pub stop_signal: u8,
}

impl<'a> Asked<'a> {
    /// An instance; `main`: its main process, while that lives.
    pub fn instance(spec: &'a Spec, main: Option<&'a Identity>) -> Asked<'a> {
        Asked { runtime: &spec.runtime, argv: &spec.argv, main, stop_signal: spec.stop_signal }
    }
}

impl Runtimes {
    /// How it is asked within `grace`.
    pub fn steps(&self, asked: Asked<'_>, grace: Duration) -> VecDeque<Step> {
        if let Some(declared) = self.0.get(asked.runtime).filter(|declared| !declared.is_empty()) {
            return declared.iter().map(|(signal, wait)| Step::Signal(*signal, *wait)).collect();
        }
        let said = sentences(asked, grace).unwrap_or_default();
        said.into_iter().chain([Step::Signal(asked.stop_signal, None)]).collect()
    }
}

/// What a built-in runtime understands; `None` where it has no language, names no socket, or does not live.
fn sentences(asked: Asked<'_>, grace: Duration) -> Option<Vec<Step>> {
    let (language, line) = line(asked)?;
    // The guest has half the grace, the runtime a quarter, so that the signal after them has its time too.
    let wishes: &[(Wish, u32)] = match language {
        Language::Qemu | Language::CloudHypervisor => &[(Wish::PowerDown, 2), (Wish::Quit, 4)],
        Language::Firecracker => &[(Wish::PowerDown, 2)],
    };
    let step =
        |(wish, part): &(Wish, u32)| Step::Say(Sentence { language, wish: *wish, line: line.clone() }, grace / *part);
    Some(wishes.iter().map(step).collect())
}

fn line(asked: Asked<'_>) -> Option<(Language, Line)> {
    let identity = asked.main?.clone();
    let (language, socket) = match asked.runtime {
        "qemu" => (Language::Qemu, qmp::socket_of(asked.argv)?),
        "firecracker" => (Language::Firecracker, http::socket_of(asked.argv, "--api-sock")?),
        "cloud-hypervisor" => (Language::CloudHypervisor, http::socket_of(asked.argv, "--api-socket")?),
        _ => return None,
    };
    Some((language, Line { socket, identity }))
}

/// The control socket of a live instance as its command line names it, and who is there; `None` where its runtime has
/// none. Nothing is said.
pub async fn look(entry: &Entry) -> Option<(PathBuf, Peer)> {
    let main = entry.identity.as_ref().filter(|_| !entry.state.is_terminal() && entry.exit.is_none());
    let (_, line) = line(Asked::instance(&entry.spec, main))?;
    let peer = match line.connect().await {
        Ok(_) => Peer::Instance,
        Err(SayError::Stranger) => Peer::Stranger,
        Err(SayError::Silent(_) | SayError::Io(_) | SayError::Malformed) => Peer::Nobody,
    };
    Some((line.socket, peer))
}

impl Sentence {
    /// Says it, within `limit`.
    ///
    /// # Errors
    /// It was not heard, or not taken.
    pub async fn say(&self, limit: Duration) -> Result<Said, SayError> {
        timeout(limit, self.speak()).await?
    }

    async fn speak(&self) -> Result<Said, SayError> {
        let stream = self.line.connect().await?;
        match (self.language, self.wish) {
            (Language::Qemu, Wish::PowerDown) => qmp::execute(stream, "system_powerdown").await?,
            (Language::Qemu, Wish::Quit) => qmp::execute(stream, "quit").await?,
            (Language::Firecracker, Wish::PowerDown | Wish::Quit) => {
                http::put(stream, "/actions", "{\"action_type\":\"SendCtrlAltDel\"}").await?;
            }
            (Language::CloudHypervisor, Wish::PowerDown) => {
                http::put(stream, "/api/v1/vm.shutdown", "").await?;
                // It answers once the guest is off.
                return Ok(Said::Done);
            }
            (Language::CloudHypervisor, Wish::Quit) => http::put(stream, "/api/v1/vmm.shutdown", "").await?,
        }
        Ok(Said::Wait)
    }

    /// Where it is said.
    pub fn socket(&self) -> &Path {
        &self.line.socket
    }
}

impl Line {
    /// Connects to the process, and to nobody else.
    async fn connect(&self) -> Result<UnixStream, SayError> {
        let line = self.clone();
        // The path leads through mounts of the instance's own, of which a lookup may never come back.
        let connected = spawn_blocking(move || line.connect_blocking());
        let stream = timeout(CONNECTS, connected).await?.map_err(std::io::Error::other)??;
        stream.set_nonblocking(true)?;
        Ok(UnixStream::from_std(stream)?)
    }

    fn connect_blocking(&self) -> Result<StdUnixStream, SayError> {
        let from = if self.socket.is_absolute() { "root" } else { "cwd" };
        // As the process itself sees it. The number may be another's by now; so may whoever listens there, see below.
        let below = self.socket.strip_prefix("/").unwrap_or(&self.socket);
        let path = PathBuf::from(format!("/proc/{}/{from}", self.identity.pid)).join(below);
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Err(SayError::Malformed) };
        // An address holds 107 bytes, a path of the instance's may be longer.
        let dir = File::options().read(true).custom_flags(flags::PATH | flags::DIRECTORY).open(dir)?;
        let stream = StdUnixStream::connect(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))?;
        let peer = socket::peer_pidfd(stream.as_raw_fd()).and_then(|peer| pidfd::inode(peer.raw()));
        let known = self.identity.pidfs_ino;
        if known.is_some() && peer.ok() == known { Ok(stream) } else { Err(SayError::Stranger) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::spec;
    use super::*;
    use sexton_plan::id::Pid;

    fn identity() -> Identity {
        Identity {
            pid: Pid::new(410).expect("greater than 1"),
            pidfs_ino: Some(1),
            start_ticks: Some(1),
            boottime_offset: 0,
            boot_id: "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().expect("a UUID"),
            pid_ns: 1,
        }
    }

    const GRACE: Duration = Duration::from_secs(8);

    fn wishes(steps: &VecDeque<Step>) -> Vec<(Option<Wish>, Option<u64>)> {
        let told = |step: &Step| match step {
            Step::Signal(_, wait) => (None, wait.map(|wait| wait.as_secs())),
            Step::Say(sentence, wait) => (Some(sentence.wish), Some(wait.as_secs())),
        };
        steps.iter().map(told).collect()
    }

    #[test]
    fn words_come_before_the_signal_and_leave_it_its_time() {
        let runtimes = Runtimes::default();
        let (identity, signal) = (identity(), (None, None));
        let (down, quit) = ((Some(Wish::PowerDown), Some(4)), (Some(Wish::Quit), Some(2)));
        for (runtime, argv, told) in [
            ("qemu", &["q", "-qmp", "unix:/q.sock,server=on"][..], &[down, quit, signal][..]),
            ("firecracker", &["f", "--api-sock", "/f.sock"], &[down, signal]),
            ("cloud-hypervisor", &["c", "--api-socket", "path=/c.sock"], &[down, quit, signal]),
            ("cloud-hypervisor", &["c"], &[signal]),
            ("command", &["c", "--api-sock", "/f.sock"], &[signal]),
        ] {
            let spec = spec(runtime, argv);
            let steps = runtimes.steps(Asked::instance(&spec, Some(&identity)), GRACE);
            assert_eq!(wishes(&steps), told, "{runtime}");
            let over = runtimes.steps(Asked::instance(&spec, None), GRACE);
            assert_eq!(wishes(&over), [signal], "there is nobody to talk to any more");
        }
    }

    #[test]
    fn a_declared_runtime_has_the_steps_that_it_declares() {
        let declared = vec![(2, Some(Duration::from_secs(1))), (15, None)];
        let runtimes = Runtimes([("shim".to_owned(), declared)].into());
        let steps = runtimes.steps(Asked::instance(&spec("shim", &["x"]), None), GRACE);
        assert_eq!(steps, [Step::Signal(2, Some(Duration::from_secs(1))), Step::Signal(15, None)]);
    }
}
