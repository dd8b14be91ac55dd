//! Which keeper this daemon has, and whether it follows one that ended without a word.
//!
//! A keeper outlives its workers, and ends after the last one has let go. So the ledger names the keeper of a daemon that
//! runs, and nobody once a worker has let go: who is named there and is another one has died.

use sexton_core::proc;
use sexton_ledger::{Batch, EventKind, NewEvent};
use sexton_plan::id::Pid;

use crate::node::host::Host;

/// The fact's key: boot, PID and start tick of the keeper.
pub const KEEPER: &str = "daemon.keeper";

/// Records the keeper `pid`, and tells that it follows the one that was recorded `before`, if that is another one of this
/// boot: what ended with the host `boot.changed` tells.
pub fn begin(host: &Host, before: Option<&str>, pid: u32) {
    let boot = host.here.boot_id.as_str();
    let stat = i32::try_from(pid).ok().and_then(Pid::new).and_then(|pid| proc::stat(pid).ok());
    let now = format!("{boot} {pid} {}", stat.map_or(0, |stat| stat.start_ticks));
    if before == Some(now.as_str()) {
        return;
    }
    let died =
        before.and_then(|before| before.strip_prefix(boot)?.split_ascii_whitespace().next()?.parse::<u32>().ok());
    let event = died
        .map(|died| NewEvent::of_node(EventKind::KeeperRestarted, serde_json::json!({ "pid": pid, "before": died })));
    let meta = vec![(KEEPER.to_owned(), Some(now))];
    host.owe_unwaited(Batch { events: event.into_iter().collect(), meta, ..Batch::default() });
}

/// Records that the daemon has let go, and its keeper ends as it is to.
pub async fn end(host: &Host) {
    host.owe(Batch { meta: vec![(KEEPER.to_owned(), None)], ..Batch::default() }).await;
}
