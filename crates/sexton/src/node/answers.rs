//! Answers to keyed requests, from the moment when they are given until the ledger has them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sexton_ledger::RequestRecord;

/// Answers that are on their way to the ledger: they were given, and are the answers from that moment on.
#[derive(Clone, Debug, Default)]
pub struct Answers(Arc<Mutex<BTreeMap<String, RequestRecord>>>);

impl Answers {
    /// An answer is owed to the ledger.
    pub fn owed(&self, record: RequestRecord) {
        self.lock().insert(record.key.clone(), record);
    }

    /// The answer is in the ledger.
    pub fn durable(&self, key: &str) {
        self.lock().remove(key);
    }

    /// The request with this key, if its answer is owed.
    pub fn of(&self, key: &str) -> Option<RequestRecord> {
        self.lock().get(key).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, RequestRecord>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
