//! Requests under an idempotency key: which of them were made before, and how they were answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use sexton_ledger::RequestRecord;
use sexton_ledger::entry::Entry;
use sexton_plan::id::Name;
use tokio::sync::watch;

use super::host::Host;
use super::life::LifeHandle;
use super::request::IdempotencyKey;
use crate::refusal::{Kind, Refusal};

/// Idempotency keys remembered beside the ledger, while their intents become durable.
const MOST_KEYS: usize = 4_096;

/// The lives of the driver.
type Lives = BTreeMap<Name, LifeHandle>;

/// A request that was made before.
pub enum Known {
    /// It is in the ledger.
    Kept(RequestRecord),
    /// Its intent is on the way to the ledger.
    Begun(LifeHandle),
}

/// The requests whose intents are on their way to the ledger.
#[derive(Debug, Default)]
pub struct Keys(BTreeMap<String, Begun>);

/// What was asked for, and the life that was begun for it.
#[derive(Debug)]
struct Begun {
    fingerprint: u64,
    name: Name,
    shown: watch::Receiver<Option<Arc<Entry>>>,
}

impl Begun {
    /// Its life, unless that is gone: then it was never recorded, and whoever has the name now is another one.
    fn life<'a>(&self, lives: &'a Lives) -> Option<&'a LifeHandle> {
        lives.get(&self.name).filter(|life| life.entry.same_channel(&self.shown))
    }
}

impl Keys {
    /// Remembers that `life` was begun for a request with this key, among `lives`.
    pub fn begun(&mut self, key: &IdempotencyKey, name: &Name, life: &LifeHandle, lives: &Lives) {
        if self.0.len() >= MOST_KEYS {
            self.0.retain(|_, begun| begun.life(lives).is_some_and(|life| life.entry.borrow().is_none()));
        }
        let begun = Begun { fingerprint: key.fingerprint, name: name.clone(), shown: life.entry.clone() };
        self.0.insert(key.key.clone(), begun);
    }

    /// What is known of a request with this key.
    ///
    /// # Errors
    /// It was made with another body, or the ledger cannot be read.
    pub fn known(&self, key: &IdempotencyKey, host: &Host, lives: &Lives) -> Result<Option<Known>, Refusal> {
        let differs = || Refusal::new(Kind::KeyReused, "this idempotency key was used with another body");
        let kept = host.request(&key.key).map_err(|error| Refusal::new(Kind::Internal, error.to_string()))?;
        let begun = self.0.get(&key.key).and_then(|begun| Some((begun.fingerprint, begun.life(lives)?)));
        let known = kept.as_ref().map(|record| record.fingerprint).or(begun.map(|(fingerprint, _)| fingerprint));
        if known.is_some_and(|fingerprint| fingerprint != key.fingerprint) {
            return Err(differs());
        }
        let is_shown = |life: &LifeHandle| life.entry.borrow().is_some();
        Ok(match (kept, begun) {
            // Of a try that is not shown yet the ledger does not know.
            (Some(RequestRecord { answer: None, .. }), Some((_, life))) if !is_shown(life) => {
                Some(Known::Begun(life.clone()))
            }
            // What is gone and was not answered for good never ran: the request may be made anew.
            (Some(record), _) if record.answer.is_none() && !lives.contains_key(&record.name) => None,
            (Some(record), _) => Some(Known::Kept(record)),
            (None, begun) => begun.map(|(_, life)| Known::Begun(life.clone())),
        })
    }
}
