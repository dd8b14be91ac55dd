//! Named points at which the fault tests end the worker as `kill -9` would. Compiled only with the feature
//! `crash-points`; elsewhere they are nothing.

/// Ends the process here, if the environment variable `SEXTON_CRASH_AT` names this point: `POINT`, or `POINT:N` for
/// the Nth time it is passed.
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(feature = "crash-points")]
        $crate::node::crash::pass($name);
    };
}

pub(crate) use crash_point;

/// Passes a named point.
#[cfg(feature = "crash-points")]
pub fn pass(name: &str) {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};
    static PASSED: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());
    let Ok(wanted) = std::env::var("SEXTON_CRASH_AT") else { return };
    let (point, nth) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if point != name {
        return;
    }
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    let count = passed.entry(name.to_owned()).or_default();
    *count += 1;
    if count.to_string() == nth {
        sexton_core::kill_self();
    }
}
