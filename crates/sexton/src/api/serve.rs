//! Listening: accepts, and sees to it that slow and idle connections go before anyone else waits.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Context;
use super::call::Peer;
use super::connection;
use super::meter::{Meter, Phase};
use super::socket::Socket;
use crate::refusal::{Kind, Refusal};

/// Connections at once: above the 1,024 that are promised, so that there is somebody to drop.
const CONNECTIONS_MAX: usize = 1_536;

/// How long a request's head may take from its first byte on.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// How long a connection may say nothing.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// How long a connection says nothing before it counts as idle: who has just come, or was just answered, is about to speak.
const ABOUT_TO_SPEAK: Duration = Duration::from_millis(100);

/// How long an answer waits for its reader before that counts as slow.
const ABOUT_TO_READ: Duration = Duration::from_secs(1);

/// How often the connections are looked at; nothing is looked at while there are none.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A pause when the process has no descriptor left and nobody to drop.
const NO_DESCRIPTOR_PAUSE: Duration = Duration::from_millis(50);

/// What is listened on.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket; the peer's user decides what it may do.
    Unix(UnixListener),
    /// A TCP socket, whose callers present this token.
    Tcp {
        /// The socket.
        listener: TcpListener,
        /// What they present.
        token: Arc<str>,
    },
}

impl Listener {
    async fn accept(&self) -> io::Result<(Socket, Peer)> {
        match self {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred().map(|credentials| credentials.uid()).ok();
                Ok((Socket::Unix(stream), Peer::Unix { uid }))
            }
            Listener::Tcp { listener, token } => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Socket::Tcp(stream), Peer::Tcp { address, token: token.clone() }))
            }
        }
    }
}

/// The connections there are.
#[derive(Default)]
struct Registry {
    meters: Mutex<(u64, BTreeMap<u64, Arc<Meter>>)>,
    /// Somebody came when there was nobody.
    came: Notify,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Arc<Meter>>)> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, meter: Arc<Meter>) -> u64 {
        let mut meters = self.lock();
        meters.0 += 1;
        let id = meters.0;
        meters.1.insert(id, meter);
        self.came.notify_one();
        id
    }

    fn leave(&self, id: u64) {
        self.lock().1.remove(&id);
    }

    fn is_full(&self) -> bool {
        self.lock().1.len() >= CONNECTIONS_MAX
    }

    /// Drops whoever does the least: the longest idle, then the slowest sender, then the slowest reader; and then who has
    /// hardly come, or whose answer has hardly begun to wait.
    fn drop_one(&self) -> bool {
        let mut meters = self.lock();
        let rank = |meter: &Meter| {
            let (place, age) = match (meter.phase(), meter.age(), meter.stall()) {
                (Phase::Idle, age, _) if age >= ABOUT_TO_SPEAK => (0, age),
                (Phase::Head | Phase::Body, age, _) => (1, age),
                (Phase::Busy, _, Some(stall)) if stall >= ABOUT_TO_READ => (2, stall),
                (Phase::New | Phase::Idle, age, _) => (3, age),
                (Phase::Busy, _, Some(stall)) => (4, stall),
                (Phase::Busy, _, None) => return None,
            };
            Some((place, std::cmp::Reverse(age)))
        };
        let victim = meters.1.iter().filter_map(|(id, meter)| Some((rank(meter)?, *id))).min();
        let Some(meter) = victim.and_then(|(_, id)| meters.1.remove(&id)) else { return false };
        meter.gone.notify_one();
        true
    }

    /// Drops whoever has been slow or idle for too long, or has gone without a word.
    fn drop_overdue(&self) {
        for meter in self.lock().1.values() {
            let is_overdue = match meter.phase() {
                Phase::New => false,
                Phase::Idle => meter.age() > IDLE_TIME,
                Phase::Head => meter.age() > HEAD_TIME,
                // What a body may take is told where it is read.
                Phase::Body | Phase::Busy => meter.is_abandoned(),
            };
            if is_overdue {
                meter.gone.notify_one();
            }
        }
    }

    async fn watch(&self) {
        loop {
            if self.lock().1.is_empty() {
                self.came.notified().await;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.drop_overdue();
        }
    }
}

/// Serves `listeners` until the future is dropped, which ends every connection.
///
/// Needs a tokio runtime with I/O and time.
pub async fn serve_all(listeners: Vec<Listener>, context: Arc<Context>) {
    let registry = Arc::new(Registry::default());
    let notices = context.clone();
    let mut tasks = JoinSet::new();
    for listener in listeners {
        tasks.spawn(accept_all(listener, context.clone(), registry.clone()));
    }
    tokio::select! {
        () = registry.watch() => {}
        () = notices.writes.run() => {}
        () = async { while tasks.join_next().await.is_some() {} } => {}
    }
}

async fn accept_all(listener: Listener, context: Arc<Context>, registry: Arc<Registry>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_ended) = connections.join_next() => continue,
        };
        match accepted {
            Ok((socket, peer)) => {
                admit(socket, peer, &context, &registry, &mut connections);
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                if registry.drop_one() {
                    // Its descriptor is free once its task has had its turn.
                    tokio::task::yield_now().await;
                } else {
                    tokio::time::sleep(NO_DESCRIPTOR_PAUSE).await;
                }
            }
        }
    }
}

fn admit(socket: Socket, peer: Peer, context: &Arc<Context>, registry: &Arc<Registry>, tasks: &mut JoinSet<()>) {
    let socket = Arc::new(socket);
    if registry.is_full() && !registry.drop_one() {
        let told = format!("{CONNECTIONS_MAX} requests are being carried out");
        return connection::say(&socket, &Refusal::new(Kind::TooManyConnections, told));
    }
    let meter = Arc::new(Meter::new(socket));
    let id = registry.enter(meter.clone());
    let (context, registry) = (context.clone(), registry.clone());
    tasks.spawn(async move {
        connection::serve(meter, peer, context).await;
        registry.leave(id);
    });
}

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A daemon answers there.
    #[error("another daemon answers at {0}")]
    Answered(String),
    /// Something that is no socket is in the way.
    #[error("{0} exists and is no socket")]
    NotASocket(String),
    /// The socket could not be made.
    #[error("could not create the socket {path}")]
    Create {
        /// Where.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// Whether a daemon answers at `path`: a socket that nobody listens on is left over.
///
/// # Errors
/// [`ListenError::NotASocket`], or that `path` could not be looked at. Changes nothing.
pub fn is_answered(path: &Path) -> Result<bool, ListenError> {
    let create = |source| ListenError::Create { path: path.display().to_string(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.kind() == io::ErrorKind::NotADirectory => {
            Ok(false)
        }
        Err(error) => Err(create(error)),
        Ok(about) if !about.file_type().is_socket() => Err(ListenError::NotASocket(path.display().to_string())),
        Ok(_) => is_listened_at(path).map_err(create),
    }
}

/// How long the listener of a dead daemon may last: a child that its worker had not released yet holds copies of its
/// descriptors until it has seen that nobody will.
const LEAVES: Duration = Duration::from_secs(1);
/// BOUND: how often a connection may be hung up on before somebody is believed to listen: by the last such child, and by
/// a worker that another one replaces.
const HUNG_UP: u32 = 4;

/// Whether somebody listens at the unix socket at `path`, and does not just leave.
///
/// # Errors
/// As `connect(2)`, where that does not mean that nobody is there.
///
/// # Blocking
/// For [`LEAVES`] where somebody listens.
pub fn is_listened_at(path: &Path) -> io::Result<bool> {
    for _ in 0..HUNG_UP {
        let mut stream = match connect(path) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        // A daemon says nothing before it is asked. The end of the last listener hangs up, and is seen at once.
        stream.set_read_timeout(Some(LEAVES))?;
        match stream.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(true)
}

/// The longest path that `sockaddr_un` takes, its NUL not included.
const SOCKET_PATH_MAX: usize = 107;

/// Calls `with` with a path to `path` that fits into a `sockaddr_un`: through a descriptor of its directory where it
/// is too long itself.
fn with_short_path<T>(path: &Path, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    use std::os::fd::AsRawFd as _;
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        return with(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = fs::File::open(parent)?;
    with(&Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
}

/// Connects to the unix socket at `path`, however long that is.
///
/// # Errors
/// As `connect(2)`.
pub fn connect(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    with_short_path(path, |path| std::os::unix::net::UnixStream::connect(path))
}

/// Where the socket at `path` is made, before it is given its name.
pub fn fresh(path: &Path) -> PathBuf {
    [path.as_os_str(), OsStr::new(".new")].into_iter().collect::<OsString>().into()
}

/// Listens on a unix socket at `path` with mode 0600, in place of one that is left over.
///
/// It appears under its name with its mode already set: it is made under another name first, always the same one, so
/// that what is left by a worker that was killed meanwhile is replaced by the next.
///
/// # Errors
/// [`ListenError`].
pub fn listen(path: &Path) -> Result<std::os::unix::net::UnixListener, ListenError> {
    let fresh = fresh(path);
    for taken in [path, &fresh] {
        if is_answered(taken)? {
            return Err(ListenError::Answered(taken.display().to_string()));
        }
    }
    let make = || {
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = with_short_path(&fresh, |path| std::os::unix::net::UnixListener::bind(path))?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        fs::rename(&fresh, path)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    make().map_err(|source| {
        let _unmade = fs::remove_file(&fresh);
        ListenError::Create { path: path.display().to_string(), source }
    })
}

/// The user that this process acts as: the owner of its own directory in `/proc`.
///
/// # Errors
/// `/proc` cannot be read.
pub fn own_uid() -> io::Result<u32> {
    fs::metadata("/proc/self").map(|about| about.uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(phase: Phase) -> Arc<Meter> {
        let (ours, _theirs) = tokio::net::UnixStream::pair().expect("a pair");
        let meter = Arc::new(Meter::new(Arc::new(Socket::Unix(ours))));
        meter.enter(phase);
        meter
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_is_dropped_before_who_has_just_come() {
        let registry = Registry::default();
        let enter = |phase, waits| {
            let meter = connection(phase);
            meter.note_write(waits);
            registry.enter(meter)
        };
        let busy = enter(Phase::Busy, false);
        let [reader, sender, idle] =
            [(Phase::Busy, true), (Phase::Head, false), (Phase::Idle, false)].map(|(phase, waits)| enter(phase, waits));
        tokio::time::advance(2 * ABOUT_TO_READ).await;
        let new_reader = enter(Phase::Busy, true);
        let new = enter(Phase::New, false);
        let there = || registry.lock().1.keys().copied().collect::<Vec<u64>>();
        let mut dropped = Vec::new();
        loop {
            let before = there();
            if !registry.drop_one() {
                break;
            }
            dropped.extend(before.into_iter().filter(|id| !there().contains(id)));
        }
        // REGRESSION: who had just come went before slow senders and slow readers.
        assert_eq!(dropped, [idle, sender, reader, new, new_reader]);
        assert_eq!(there(), [busy], "what is carried out is let alone");
    }
}
