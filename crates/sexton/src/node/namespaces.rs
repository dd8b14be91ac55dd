//! PID namespaces that have ended. What was recorded in another one cannot be looked for from here; but all of a
//! namespace ends with its first process, as a container does, and that is known where a keeper was it: whoever holds
//! the state directory now has outlived that keeper.

use std::collections::{BTreeMap, BTreeSet};

use sexton_core::proc::Here;
use sexton_plan::id::BootId;

/// The ledger's key.
const KEY: &str = "node.pid_namespaces";

/// Numbers of the PID namespaces of this boot in which a keeper was the first process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    ended: BTreeSet<u64>,
}

impl Namespaces {
    /// As the ledger has them, which was last open during `boot_before`.
    pub fn resume(meta: &BTreeMap<String, String>, boot_before: Option<&BootId>, here: &Here) -> Namespaces {
        let same_boot = boot_before == Some(&here.boot_id);
        let kept = meta.get(KEY).filter(|_| same_boot).and_then(|text| serde_json::from_str(text).ok());
        let mut ended: BTreeSet<u64> = kept.unwrap_or_default();
        // The number has been given out anew: whatever is recorded in this one can be seen.
        ended.remove(&here.pid_ns);
        Namespaces { ended }
    }

    /// Whether nothing lives in the namespace `pid_ns` any more.
    pub fn has_ended(&self, pid_ns: u64) -> bool {
        self.ended.contains(&pid_ns)
    }

    /// What the ledger is to keep. `is_first`: this keeper is the first process of this namespace.
    pub fn meta(&self, here: &Here, is_first: bool) -> (String, Option<String>) {
        let all: BTreeSet<u64> = self.ended.iter().copied().chain(is_first.then_some(here.pid_ns)).collect();
        (KEY.to_owned(), if all.is_empty() { None } else { serde_json::to_string(&all).ok() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_ends_with_the_keeper_that_was_its_first_process() {
        let boot: BootId = "0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().expect("a UUID");
        let here = |pid_ns| Here { boot_id: boot.clone(), pid_ns, boottime_offset: 0 };
        let mut meta = BTreeMap::new();
        let mut begin = |pid_ns, is_first| {
            let namespaces = Namespaces::resume(&meta, Some(&boot), &here(pid_ns));
            let (key, value) = namespaces.meta(&here(pid_ns), is_first);
            meta = value.into_iter().map(|value| (key.clone(), value)).collect();
            [7, 8, 9].map(|other| namespaces.has_ended(other))
        };
        assert_eq!(begin(7, true), [false; 3], "it has just begun");
        assert_eq!(begin(8, false), [true, false, false]);
        assert_eq!(begin(9, false), [true, false, false], "the keeper in the one before was not its first process");
        assert_eq!(begin(7, false), [false; 3], "the number is another's");
        assert_eq!(begin(9, true), [false; 3]);
        let later: BootId = "1f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse().expect("a UUID");
        assert!(Namespaces::resume(&meta, Some(&boot), &here(7)).has_ended(9));
        assert!(!Namespaces::resume(&meta, Some(&later), &here(7)).has_ended(9), "numbers of another boot");
    }
}
