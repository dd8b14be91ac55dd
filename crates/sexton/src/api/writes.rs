//! Notices of writes to logs: one queue of the kernel's for all readers, for there are only a few to be had
//! (`fs.inotify.max_user_instances`).

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sexton_sys::inotify::{Inotify, Interest};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// Who waits for the next write to which file.
#[derive(Debug)]
pub(super) struct Writes {
    queue: Option<Inotify>,
    /// By the kernel's number of the watch; an entry goes with its notice, for each watch gives one.
    waiting: Mutex<BTreeMap<i32, Arc<Notify>>>,
}

impl Writes {
    /// A queue, where the kernel gives one.
    pub fn new() -> Writes {
        let queue = Inotify::new();
        if let Err(error) = &queue {
            tracing::warn!(%error, "followed logs are polled");
        }
        Writes { queue: queue.ok(), waiting: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Arc<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is notified of the next write to `path` after this call; `None` where it cannot be watched.
    ///
    /// RACE: take `notified()` of it before the file is looked at, or a write between is missed.
    pub fn next(&self, path: &Path) -> Option<Arc<Notify>> {
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        // The lock first, so that a notice that comes at once finds whom to tell.
        let mut waiting = self.lock();
        let watch = self.queue.as_ref()?.watch(&path, Interest::NextWrite).ok()?;
        Some(waiting.entry(watch).or_default().clone())
    }

    /// Passes notices on, until the daemon ends.
    pub async fn run(&self) {
        let Some((queue, ready)) = self.queue.as_ref().and_then(|queue| Some((queue, register(queue)?))) else {
            return std::future::pending().await;
        };
        while let Ok(mut guard) = ready.readable().await {
            let mut numbers = Vec::new();
            while queue.take(|number, _| numbers.push(number)).is_ok() {}
            guard.clear_ready();
            let mut waiting = self.lock();
            numbers.iter().filter_map(|number| waiting.remove(number)).for_each(|waiter| waiter.notify_waiters());
        }
    }
}

#[allow(
    deprecated,
    reason = "its successor is unsafe code, for descriptors that may be closed meanwhile; this one is owned"
)]
fn register(queue: &Inotify) -> Option<AsyncFd<OwnedFd>> {
    let owned = super::owned(queue.raw()).ok()?;
    AsyncFd::with_interest(owned, tokio::io::Interest::READABLE).ok()
}
