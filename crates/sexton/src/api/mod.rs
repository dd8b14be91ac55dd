//! The API: HTTP/1.1 and JSON over the unix socket, and over TCP with a token.
//!
//! One table ([`table::ROUTES`]) says what is served; the dispatcher, the OpenAPI document and the tests read it.
//! Routes ask the node and show what it answers; they decide nothing about processes.

pub mod answer;
mod call;
mod connection;
mod dispatch;
pub mod entry;
mod follow;
mod framing;
pub mod json;
mod meter;
pub mod openapi;
pub mod path;
pub mod redact;
mod routes;
pub mod serve;
mod socket;
pub mod spec;
pub mod table;
mod tally;
#[cfg(test)]
mod tests;
pub mod types;
mod writes;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use hyper::body::Bytes;
use sexton_ledger::Reader;
use sexton_sys::file;
use tokio::sync::{Semaphore, watch};

use crate::config::{Role, Settings};
use crate::metrics::Metrics;
use crate::node::host::Host;
use crate::node::request::Node;
use serve::{Listener, serve_all};
use writes::Writes;

/// What routes work with.
#[derive(Debug)]
pub struct Context {
    /// The way to the driver.
    pub node: Node,
    /// The settings this daemon was started with.
    pub settings: Arc<Settings>,
    /// Reads events beside the writer.
    pub events: Events,
    /// The newest event's number.
    pub last_seq: watch::Receiver<u64>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Notices of writes to followed logs.
    writes: Writes,
    /// Turns at reading from the disk.
    disk: Semaphore,
    /// Who knows of the ledger and the keeper, where there is a host to ask.
    host: Option<Arc<Host>>,
    /// The OpenAPI document of all that is served, written when it is first asked for.
    document: LazyLock<Bytes>,
    /// This process's user.
    own_uid: u32,
    /// Whether root is let in as the daemon's own user is; tests that run as root say no.
    is_root_let_in: bool,
}

/// Threads that read for callers at once: enough to keep a disk busy; each costs memory.
const DISK_READERS: usize = 4;

/// The reader of events, with nothing to show of itself.
#[derive(Clone)]
pub struct Events(Reader);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Context {
    /// What routes work with, on `host`.
    pub fn new(
        node: Node,
        settings: Arc<Settings>,
        reader: Reader,
        last_seq: watch::Receiver<u64>,
        host: Arc<Host>,
    ) -> Arc<Context> {
        let mut context = Context::without_host(node, settings, reader, last_seq);
        context.metrics = Arc::clone(&host.metrics);
        context.host = Some(host);
        Arc::new(context)
    }

    /// What routes work with, where nothing but the node and the event log is there.
    fn without_host(node: Node, settings: Arc<Settings>, reader: Reader, last_seq: watch::Receiver<u64>) -> Context {
        // Without `/proc` nobody is the daemon's own user; root is let in all the same.
        let own_uid = serve::own_uid().unwrap_or(0);
        let events = Events(reader);
        Context {
            node,
            settings,
            events,
            last_seq,
            metrics: Arc::default(),
            writes: Writes::new(),
            disk: Semaphore::new(DISK_READERS),
            host: None,
            document: LazyLock::new(|| openapi::document().to_string().into()),
            own_uid,
            is_root_let_in: true,
        }
    }

    /// Whether `uid` is root or the daemon's own user.
    fn is_owner(&self, uid: u32) -> bool {
        (uid == 0 && self.is_root_let_in) || uid == self.own_uid
    }

    /// What the user `uid` may do, if anything.
    fn role_of(&self, uid: u32) -> Option<Role> {
        if self.is_owner(uid) {
            return Some(Role::Admin);
        }
        self.settings.access.iter().find(|access| access.uid == uid).map(|access| access.role)
    }

    /// The ledger's file.
    fn ledger_path(&self) -> PathBuf {
        self.settings.state_dir.join(sexton_ledger::FILE_NAME)
    }
}

/// A descriptor of the standard library's for the open file that `fd` names.
///
/// # Errors
/// There is no descriptor left.
pub fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    // Any descriptor of our own will do: its number is made to name the other file.
    let ours = OwnedFd::from(File::open("/dev/null")?);
    match file::duplicate_over(fd, ours.as_raw_fd()) {
        Ok(()) => Ok(ours),
        Err(error) => Err(io::Error::from_raw_os_error(error.errno.0)),
    }
}

/// Serves the API on `listeners` until the future is dropped.
///
/// Needs a tokio runtime with I/O and time.
pub async fn serve(listeners: Vec<Listener>, context: Arc<Context>) {
    tokio::join!(serve_all(listeners, context.clone()), tally::run(context));
}
