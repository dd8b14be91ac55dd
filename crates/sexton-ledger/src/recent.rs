//! The newest events, kept in memory: whoever follows the log need not read back what was written a moment ago.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::event::Event;

/// Events kept. BOUND: some hundred bytes each, and several times what is committed at once, so that a follower of
/// usual speed finds its next ones here.
const KEPT: usize = 1_024;

/// The newest events that this process has recorded, without a gap.
#[derive(Default)]
pub(crate) struct Recent {
    events: Mutex<VecDeque<Arc<Event>>>,
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Event>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what is durable now, oldest first.
    pub(crate) fn take_in(&self, newer: impl IntoIterator<Item = Event>) {
        let mut events = self.lock();
        for event in newer {
            if events.back().is_some_and(|last| last.seq + 1 != event.seq) {
                // Another process has recorded what came between.
                events.clear();
            }
            if events.len() == KEPT {
                events.pop_front();
            }
            events.push_back(Arc::new(event));
        }
    }

    /// At most `limit` events after number `after`, oldest first; none where the next one is not kept.
    pub(crate) fn after(&self, after: u64, limit: usize) -> Vec<Arc<Event>> {
        let events = self.lock();
        let first = events.front().and_then(|first| (after + 1).checked_sub(first.seq));
        let Some(skipped) = first.and_then(|skipped| usize::try_from(skipped).ok()) else { return Vec::new() };
        events.iter().skip(skipped).take(limit).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;

    fn event(seq: u64) -> Event {
        let boot_id = "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().unwrap();
        let (at, node) = ("2025-01-01T00:00:00Z".parse().unwrap(), "here".parse().unwrap());
        let (kind, data) = (EventKind::ApiCalled, serde_json::Value::Null);
        Event { seq, at, boot_id, node, instance: None, incarnation: None, kind, data }
    }

    fn seqs(recent: &Recent, after: u64, limit: usize) -> Vec<u64> {
        recent.after(after, limit).iter().map(|event| event.seq).collect()
    }

    #[test]
    fn what_follows_is_told_only_where_nothing_between_is_missing() {
        let recent = Recent::default();
        assert!(seqs(&recent, 0, 9).is_empty());
        recent.take_in([3, 4, 5].map(event));
        assert_eq!(seqs(&recent, 2, 9), [3, 4, 5]);
        assert_eq!(seqs(&recent, 3, 1), [4], "bounded");
        assert!(seqs(&recent, 1, 9).is_empty(), "2 is not kept");
        assert!(seqs(&recent, 5, 9).is_empty(), "6 may be somebody else's");
        recent.take_in([7, 8].map(event));
        assert!(seqs(&recent, 4, 9).is_empty(), "6 is somebody else's");
        assert_eq!(seqs(&recent, 6, 9), [7, 8]);
        recent.take_in((9..=9 + KEPT as u64).map(event));
        assert!(seqs(&recent, 8, 9).is_empty(), "the oldest went");
        assert_eq!(seqs(&recent, 9, 2), [10, 11]);
    }
}
