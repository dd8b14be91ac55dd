//! What time it is.

use jiff::Timestamp;

/// The wall clock, for people.
#[allow(clippy::disallowed_methods, reason = "one of the places that read the clock")]
pub fn now() -> Timestamp {
    Timestamp::now()
}
