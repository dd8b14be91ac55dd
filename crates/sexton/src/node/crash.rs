//! Named points at which the fault tests end the worker as `kill -9` would. Compiled only with the feature
//! `crash-points`; elsewhere they are nothing.

/// Ends the process here, if the file that `SEXTON_CRASH_FILE` names orders it: `POINT N ANYTHING` for the Nth time
/// that this worker passes the point from now on. The file is removed first, so that an order is carried out once,
/// whichever worker comes upon it; a changed ANYTHING makes it a new order. Where ANYTHING ends with `hold`, the worker
/// stays at the point, for the test to end its keeper, which it does not outlive.
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
    use std::sync::{Mutex, PoisonError};
    /// The present order, and how often its point was passed.
    static ORDER: Mutex<(String, u32)> = Mutex::new((String::new(), 0));
    let Some(path) = std::env::var_os("SEXTON_CRASH_FILE") else { return };
    let Ok(order) = std::fs::read_to_string(&path) else { return };
    let mut words = order.split(' ');
    let (point, nth) = (words.next(), words.next().and_then(|nth| nth.parse().ok()).unwrap_or(1));
    if point != Some(name) {
        return;
    }
    let mut present = ORDER.lock().unwrap_or_else(PoisonError::into_inner);
    if present.0 != order {
        *present = (order, 0);
    }
    present.1 += 1;
    if present.1 == nth && std::fs::remove_file(&path).is_ok() {
        while present.0.ends_with("hold") {
            std::thread::park();
        }
        sexton_core::kill_self();
    }
}
