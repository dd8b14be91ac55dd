//! What is listened on. A socket is bound once under a keeper, which holds it over the deaths of workers: nobody who
//! connects meanwhile is refused, and nobody else can take the address.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use sexton_keeper::wire::{StoreName, ToKeeper};
use sexton_sys::Fd;

use super::{Refused, exit};
use crate::api;
use crate::api::serve::Listener;
use crate::config::Settings;
use crate::node::keeper::Keeper;

/// Under which names the keeper holds the listeners.
const UNIX: &[u8] = b"api";
const TCP: &[u8] = b"tcp";

/// A shorter token could be guessed.
const TOKEN_MIN: usize = 16;

/// How often an address that is in use is asked for before somebody else is believed to have it, and the pause between:
/// a child that a dead worker had not released yet holds copies of its descriptors until it has seen that nobody will.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// The listeners of the worker before, as the keeper kept them.
#[derive(Debug, Default)]
pub(super) struct Kept {
    unix: Option<Fd>,
    tcp: Option<Fd>,
}

impl Kept {
    /// Takes in what the keeper stored under `name`.
    pub(super) fn put(&mut self, name: StoreName, fd: Option<Fd>) {
        match name.as_bytes() {
            UNIX => self.unix = fd,
            TCP => self.tcp = fd,
            _ => {}
        }
    }
}

/// Opens every listener of the settings, the kept ones first; those that are new are given to the keeper.
///
/// # Errors
/// One cannot be had. Not the TCP one while `is_successor`: a daemon that works is not ended by an address that came
/// in by a reload, it says so and goes on with the unix socket.
pub(super) async fn open(
    settings: &Settings,
    kept: Kept,
    keeper: &Keeper,
    is_successor: bool,
) -> Result<Vec<Listener>, Refused> {
    let mut listeners = Vec::new();
    // First, for the socket file of a daemon that died stays where this one is refused.
    match tcp(settings, kept.tcp.as_ref(), keeper) {
        Ok(Some(listener)) => listeners.push(listener),
        Ok(None) if kept.tcp.is_some() => forget(keeper, TCP).await,
        Ok(None) => {}
        Err(refused) if is_successor => tracing::error!(why = refused.why, "no TCP listener"),
        Err(refused) => return Err(refused),
    }
    let path = settings.listen_path();
    // Where its file is gone nobody reaches the kept one any more.
    let unix = match kept.unix.filter(|_| path.exists()) {
        Some(fd) => api::owned(fd.raw()).map(UnixListener::from),
        None => api::serve::listen(&path).map_err(io::Error::other),
    };
    let unix = unix.and_then(|listener| {
        listener.set_nonblocking(true)?;
        store(keeper, UNIX, listener.as_raw_fd());
        tokio::net::UnixListener::from_std(listener)
    });
    let unix = unix.map_err(|error| {
        Refused::new(exit::CANT_CREATE, format!("could not listen at `{}`: {error}", path.display()))
    })?;
    let users = settings.access.iter().map(|access| access.uid).collect();
    if let Err(error) = api::entry::let_in(&path, &users) {
        tracing::error!(%error, ?users, "the users of `[[access]]` cannot be let in to the socket");
    }
    listeners.push(Listener::Unix(unix));
    Ok(listeners)
}

/// Whether the TCP listener of the settings can be had, if there is one; nothing stays bound.
///
/// # Errors
/// With the exit code of the contract.
///
/// # Blocking
/// For 1 s where the address is in use.
pub(super) fn check_tcp(settings: &Settings) -> Result<(), Refused> {
    let Some((address, _)) = wanted_tcp(settings)? else { return Ok(()) };
    once_free(|| TcpListener::bind(address)).map(drop).map_err(|error| cannot_listen(address, &error))
}

/// Waits a moment for an address that is in use.
fn once_free<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..TRIES {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => thread::sleep(PAUSE),
            bound => return bound,
        }
    }
    bind()
}

/// The extra TCP listener, if one is configured: the kept one where it has the right address.
fn tcp(settings: &Settings, kept: Option<&Fd>, keeper: &Keeper) -> Result<Option<Listener>, Refused> {
    let Some((address, token)) = wanted_tcp(settings)? else { return Ok(None) };
    let kept = kept.and_then(|fd| api::owned(fd.raw()).ok()).map(TcpListener::from);
    let kept = kept.filter(|kept| kept.local_addr().is_ok_and(|bound| is_same(bound, address)));
    let listener = kept.map_or_else(|| TcpListener::bind(address), Ok);
    let usable = listener.and_then(|listener| {
        listener.set_nonblocking(true)?;
        store(keeper, TCP, listener.as_raw_fd());
        tokio::net::TcpListener::from_std(listener)
    });
    let listener = usable.map_err(|error| cannot_listen(address, &error))?;
    if let Ok(bound) = listener.local_addr() {
        tracing::info!(%bound, "listens on TCP");
    }
    Ok(Some(Listener::Tcp { listener, token }))
}

/// Whether a socket bound at `bound` is what `wanted` asks for: port 0 is whichever the kernel gave.
fn is_same(bound: SocketAddr, wanted: SocketAddr) -> bool {
    bound.ip() == wanted.ip() && (wanted.port() == 0 || bound.port() == wanted.port())
}

/// The address and the token of the settings; never an address without a token.
fn wanted_tcp(settings: &Settings) -> Result<Option<(SocketAddr, Arc<str>)>, Refused> {
    let (Some(address), Some(file)) = (settings.listen, &settings.listen_token_file) else { return Ok(None) };
    let refused = |why: String| Refused::new(exit::USAGE, format!("`listen_token_file` `{}` {why}", file.display()));
    let text = fs::read_to_string(file).map_err(|error| refused(format!("cannot be read: {error}")))?;
    let token: Arc<str> = text.trim().into();
    if token.len() < TOKEN_MIN {
        return Err(refused(format!("holds a token of less than {TOKEN_MIN} characters")));
    }
    Ok(Some((address, token)))
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> Refused {
    Refused::new(exit::CANT_CREATE, format!("could not listen at `{address}` (`--listen`): {error}"))
}

fn store(keeper: &Keeper, name: &[u8], fd: std::os::fd::RawFd) {
    if let Some(name) = StoreName::new(name) {
        keeper.store(name, fd);
    }
}

async fn forget(keeper: &Keeper, name: &[u8]) {
    if let Some(name) = StoreName::new(name) {
        keeper.send(ToKeeper::Unstore(name)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[test]
    fn an_address_that_comes_free_in_a_moment_is_waited_for_and_nothing_else() {
        let going = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = going.local_addr().unwrap();
        let (going, tries) = (RefCell::new(Some(going)), Cell::new(0));
        let bound = once_free(|| {
            tries.set(tries.get() + 1);
            if tries.get() == 3 {
                going.take();
            }
            TcpListener::bind(address)
        });
        // REGRESSION: a start just after a killed daemon was refused for good.
        assert_eq!(bound.and_then(|bound| bound.local_addr()).unwrap(), address);
        assert_eq!(tries.get(), 3);
        let _somebody_elses = TcpListener::bind(address).unwrap();
        assert_eq!(once_free(|| TcpListener::bind(address)).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let refused = once_free(|| -> io::Result<()> { Err(io::ErrorKind::PermissionDenied.into()) });
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
