//! The event log, checked in the background: rows that are acted on are checked before a worker begins, and the log,
//! which nobody acts on and which can hold a million events, once it serves.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use sexton_ledger::Reader;

/// Events read at once: others who read the log wait for no more.
const PAGE: usize = 256;
/// The rest between two pages, so that the check is never what the daemon is busy with.
const REST: Duration = Duration::from_millis(2);
/// Events are a few short strings.
const STACK: usize = 256 * 1024;

/// What is known of the event log.
#[derive(Debug, Default)]
pub struct EventLog(OnceLock<Result<u64, String>>);

impl EventLog {
    /// How many events were found sound, or what is wrong; `None` while it is being read.
    pub fn found(&self) -> Option<&Result<u64, String>> {
        self.0.get()
    }

    /// Reads every event up to number `last` on a thread of its own.
    pub fn check(self: &Arc<EventLog>, reader: Reader, last: u64) {
        let log = Arc::clone(self);
        let check = move || {
            let found = read(&reader, last);
            if let Err(problem) = &found {
                tracing::error!(problem, "the event log is damaged; `sexton ledger verify` tells all");
            }
            let _first = log.0.set(found);
        };
        if let Err(error) = thread::Builder::new().name("event-log".to_owned()).stack_size(STACK).spawn(check) {
            tracing::warn!(%error, "the event log is not checked");
        }
    }
}

/// Reads the log; tells how many events there are, or the first thing that is wrong.
fn read(reader: &Reader, last: u64) -> Result<u64, String> {
    let Some(first) = reader.first_seq().map_err(|error| crate::chain::chain(&error))? else { return Ok(0) };
    let mut after = first.saturating_sub(1);
    while after < last {
        let page = reader.events_after(after, PAGE).map_err(|error| crate::chain::chain(&error))?;
        for event in &page {
            // The oldest are removed meanwhile where there are too many; nothing else may be missing.
            let forgotten = reader.first_seq().ok().flatten() == Some(event.seq);
            if event.seq != after + 1 && !forgotten {
                return Err(format!("event {} follows event {after}", event.seq));
            }
            after = event.seq;
        }
        if page.is_empty() {
            return Err(format!("event {last} is missing; the newest is {after}"));
        }
        thread::sleep(REST);
    }
    Ok(last.saturating_sub(first) + 1)
}
