//! What systemd is told: ready, reloading, alive, draining, ending. Where nobody listens (`NOTIFY_SOCKET`), nothing is told.
//!
//! The worker tells it, for the keeper is without std; so the unit says `NotifyAccess=all`, and its main process is the
//! keeper all the same.

use std::time::Duration;

use sd_notify::NotifyState as Word;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::node::request::NodeState;
use crate::node::request::{InFlight, Node};

/// The pause between two words of a drain; each asks for three times as long.
const DRAIN_WORD: Duration = Duration::from_secs(5);
/// The time that a word of a drain asks for.
const EXTENSION_US: u32 = 15_000_000;

/// Tells systemd how the node is, for as long as the worker lives. Returns at once where nobody listens.
pub async fn tell(node: Node) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    say(&[Word::Ready, Word::Status("ready")]);
    let Ok(status) = node.status().await else { return };
    match watchdog() {
        // Half the time that systemd allows.
        Some(limit) => tokio::join!(drains(&node, status), lives(&node, limit / 2)).0,
        None => drains(&node, status).await,
    }
}

/// Says that it takes the place of another worker, which `READY=1` ends, be it this one's or, if this one is no good, that
/// of the one before. A candidate that never comes this far has changed nothing, and is not told of.
pub fn reloading() {
    if std::env::var_os("NOTIFY_SOCKET").is_some()
        && let Ok(now) = Word::monotonic_usec_now()
    {
        say(&[Word::Reloading, now, Word::Status("reloading")]);
    }
}

/// Says that it ends, and how many instances live on.
pub fn ending(left: &[InFlight]) {
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        let told = if left.is_empty() { "ending".to_owned() } else { format!("ending, {} instances left", left.len()) };
        say(&[Word::Stopping, Word::Status(&told)]);
    }
}

/// How long systemd waits for a sign of life. Its `WATCHDOG_PID` is the keeper, whose worker this is.
fn watchdog() -> Option<Duration> {
    let micros = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    Some(Duration::from_micros(micros)).filter(|limit| !limit.is_zero())
}

/// Gives a sign of life each `pause`, as long as the driver answers within another.
async fn lives(node: &Node, pause: Duration) {
    let mut next = Instant::now();
    loop {
        if matches!(timeout(pause, node.status()).await, Ok(Ok(_))) {
            say(&[Word::Watchdog]);
        }
        next = (next + pause).max(Instant::now());
        sleep_until(next).await;
    }
}

/// Tells how a drain goes, and while it is one that the daemon ends with, that it needs more time.
async fn drains(node: &Node, mut status: watch::Receiver<NodeState>) {
    let mut is_ending = false;
    while status.wait_for(NodeState::is_draining).await.is_ok() {
        let (ends, drained) = (status.borrow().ends, status.borrow().drained);
        if ends && !is_ending {
            is_ending = true;
            say(&[Word::Stopping]);
        }
        let left = node.facts().await.map_or(0, |facts| facts.inflight.len());
        let told = if drained { "drained".to_owned() } else { format!("draining, {left} instances left") };
        say(&[Word::Status(&told)]);
        if is_ending {
            say(&[Word::ExtendTimeoutUsec(EXTENSION_US)]);
        }
        // A change, or the next word.
        let _in_time = timeout(DRAIN_WORD, status.changed()).await;
    }
}

fn say(words: &[Word<'_>]) {
    if let Err(error) = sd_notify::notify(words) {
        tracing::debug!(%error, "systemd not told");
    }
}
