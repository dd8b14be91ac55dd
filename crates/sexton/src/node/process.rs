//! One main process in custody: waiting for its end, and learning how it ended.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sexton_core::handle::{Handle, Life};
use sexton_plan::state::{ExitSource, ExitStatus};
use sexton_sys::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use super::readiness;

/// How long a zombie's own parent is given to reap it before the zombie itself is read.
const PARENT_REAPS: Duration = Duration::from_millis(10);
/// The first and the longest pause before a process is asked again that is over and tells no status.
const ASK_AGAIN: [Duration; 2] = [Duration::from_millis(5), Duration::from_secs(1)];

/// How many there are of [`Process`].
static WATCHED: AtomicU64 = AtomicU64::new(0);

/// How many processes are watched, each by a descriptor for as long as it lives.
pub fn watched() -> u64 {
    WATCHED.load(Ordering::Relaxed)
}

/// A main process that is proven ours.
#[derive(Debug)]
pub struct Process {
    handle: AsyncFd<Arc<Handle>>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this status, told by this source.
    Known(ExitStatus, ExitSource),
    /// It is gone, and the kernel kept nothing.
    Untold,
}

/// What becomes of our own child when it has ended and its status is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zombie {
    /// It is reaped: something else keeps the status, or nobody wants it.
    Reaped,
    /// It stays, and keeps the status: should this worker die, its next parent is the keeper, which records that.
    Kept,
}

impl Process {
    /// Watches the process behind `handle`.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub fn watch(handle: Arc<Handle>) -> io::Result<Process> {
        let handle = readiness::watch(handle, Interest::READABLE)?;
        WATCHED.fetch_add(1, Ordering::Relaxed);
        Ok(Process { handle })
    }

    /// The hold on it.
    pub fn handle(&self) -> &Arc<Handle> {
        self.handle.get_ref()
    }

    /// Waits until all of its threads have ended, reaped or not. A pidfd stays readable from then on.
    pub async fn over(&self) {
        loop {
            match self.handle.readable().await {
                Ok(mut ready) => {
                    // RACE: readiness is kept by the runtime; only the kernel knows whether it is still true.
                    if !matches!(self.handle().is_over(), Ok(false)) {
                        return;
                    }
                    ready.clear_ready();
                }
                Err(error) => {
                    tracing::error!(%error, "a pidfd cannot be watched");
                    sleep(ASK_AGAIN[1]).await;
                }
            }
        }
    }

    /// Waits for its end and learns how it ended: waits for it where it is our own child, reads what the kernel kept
    /// where its parent reaped it, and the zombie where its parent does not. A traced process can be over and tell
    /// nothing for as long as its tracer likes.
    ///
    /// CANCEL: may be dropped at any await; a status already reaped stays readable through the pidfd.
    pub async fn ended(&self, zombie: Zombie) -> Ending {
        self.over().await;
        let [mut pause, longest] = ASK_AGAIN;
        let mut waited = Duration::ZERO;
        loop {
            let told = match zombie {
                Zombie::Reaped => self.handle().reap(),
                Zombie::Kept => self.handle().peek(),
            };
            match told {
                Ok(Some(status)) => return Ending::Known(status, ExitSource::Wait),
                Ok(None) => {}
                Err(error) if error.errno == Errno::ECHILD => {
                    if let Some(ending) = self.told_by_kernel(waited >= PARENT_REAPS) {
                        return ending;
                    }
                }
                Err(error) => tracing::error!(%error, "a child cannot be waited for"),
            }
            sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(longest);
        }
    }

    /// What the kernel tells of another's child that is over.
    fn told_by_kernel(&self, parent_had_its_time: bool) -> Option<Ending> {
        match self.handle().life() {
            Ok(Life::Reaped(Some(status))) => Some(Ending::Known(status, ExitSource::Pidfd)),
            Ok(Life::Reaped(None)) => Some(Ending::Untold),
            Ok(Life::Zombie(Some(status))) if parent_had_its_time => Some(Ending::Known(status, ExitSource::Proc)),
            Ok(Life::Zombie(_) | Life::Alive) => None,
            Err(error) => {
                tracing::error!(%error, "a pidfd cannot be asked");
                None
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        WATCHED.fetch_sub(1, Ordering::Relaxed);
    }
}
