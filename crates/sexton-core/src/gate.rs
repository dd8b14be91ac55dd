//! The gate: what is admitted before it closes finishes, and nothing is admitted after.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bit that says closed; the rest counts permits.
const CLOSED: u64 = 1 << 63;

/// Admission to a node, a drain's one truth. Cheap to clone; all clones are one gate.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    word: Arc<AtomicU64>,
}

/// One admitted operation; over when dropped.
#[derive(Debug)]
pub struct Permit {
    word: Arc<AtomicU64>,
}

impl Gate {
    /// Admits one operation, or `None` where the gate is closed. Never blocks.
    pub fn enter(&self) -> Option<Permit> {
        // RACE: the count goes up before the bit is looked at, so whoever sees the gate closed and nobody inside
        // knows that nobody will be admitted later.
        let before = self.word.fetch_add(1, Ordering::SeqCst);
        let permit = Permit { word: Arc::clone(&self.word) };
        (before & CLOSED == 0).then_some(permit)
    }

    /// Closes it; idempotent.
    pub fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::SeqCst);
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.word.load(Ordering::SeqCst) & CLOSED == 0
    }

    /// Operations inside; on a closed gate it can be too high for a moment, never too low.
    pub fn inside(&self) -> u64 {
        self.word.load(Ordering::SeqCst) & !CLOSED
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.word.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    #[test]
    fn a_closed_gate_admits_nobody_and_empties() {
        let gate = Gate::default();
        let inside = gate.enter().expect("open");
        gate.close();
        assert!(gate.enter().is_none());
        assert_eq!(gate.inside(), 1);
        drop(inside);
        assert_eq!(gate.inside(), 0);
        assert!(!gate.is_open());
    }

    #[test]
    fn nobody_is_admitted_after_a_closed_gate_was_seen_empty() {
        for _ in 0..200 {
            let (gate, seen_empty) = (Gate::default(), Arc::new(AtomicBool::new(false)));
            let starts: Vec<_> = (0..2)
                .map(|_| {
                    let (gate, seen_empty) = (gate.clone(), Arc::clone(&seen_empty));
                    thread::spawn(move || {
                        for _ in 0..200 {
                            let Some(_permit) = gate.enter() else { return };
                            assert!(!seen_empty.load(Ordering::SeqCst), "admitted after the drain had seen idle");
                        }
                    })
                })
                .collect();
            gate.close();
            while gate.inside() > 0 {
                std::hint::spin_loop();
            }
            seen_empty.store(true, Ordering::SeqCst);
            for start in starts {
                start.join().expect("no start after idle");
            }
        }
    }
}
