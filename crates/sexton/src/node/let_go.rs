//! Letting go of what kept an exit while it was not durable: the zombie, the pin, the keeper's roster, the mark.

use std::sync::Arc;

use sexton_core::handle::Handle;
use sexton_keeper::wire::ToKeeper;
use sexton_ledger::entry::Entry;
use sexton_sys::Errno;
use tokio::sync::oneshot;

use super::host::{Host, SharedHost};
use super::keeper;
use super::noted::{self, Kept, Note};

/// Reaps who is our own child and not reaped yet.
pub fn reap(zombie: Option<&Handle>) {
    if let Some(Err(error)) = zombie.map(Handle::reap)
        && error.errno != Errno::ECHILD
    {
        tracing::error!(%error, "a child cannot be waited for");
    }
}

/// Lets go of all but the zombie.
pub async fn let_go(host: &Host, entry: &Entry) {
    let key = entry.incarnation.to_string();
    if let Some(Err(error)) = host.with_pins(move |pins| pins.unpin(&key)).await {
        tracing::warn!(name = %entry.name, %error, "pin not removed");
    }
    host.remove_mark(&entry.incarnation);
    if let Some(identity) = &entry.identity {
        host.keeper.tell(ToKeeper::Release(keeper::held(identity)));
        if let Some((seq, _)) = host.keeper.exit_of(identity) {
            host.keeper.settled(seq);
        }
    }
}

/// Lets go of all once the end is `durable`: until then, what kept the exit is all that would know it after a crash.
/// Where nothing is pinned that is a note, for worker and keeper may end both.
pub fn let_go_later(
    host: SharedHost,
    entry: Arc<Entry>,
    (zombie, is_pinned): (Option<Arc<Handle>>, bool),
    durable: oneshot::Receiver<()>,
) {
    let note = |exit| Note::Exit { life: entry.incarnation.clone(), exit };
    let kept = entry.exit.filter(|_| !is_pinned).and_then(|exit| noted::keep(&host, &note(exit)));
    entry.identity.iter().for_each(|identity| host.keeper.end_is_owed(identity));
    tokio::spawn(async move {
        if durable.await.is_ok() {
            entry.identity.iter().for_each(|identity| host.keeper.end_is_durable(identity));
            reap(zombie.as_deref());
            let_go(&host, &entry).await;
            kept.into_iter().for_each(Kept::remove);
        }
    });
}
