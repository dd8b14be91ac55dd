//! Durations as they are written outside: `250ms`, `5s`, `10m`, `1h30m`. A bare number is refused.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a duration is written like `250ms`, `5s`, `10m` or `1h30m`")]
pub struct ParseDurationError;

/// The longest duration accepted: 1,000 days.
pub const LONGEST: Duration = Duration::from_secs(1_000 * 24 * 3_600);

/// Reads `text`: whole numbers, each with one of the units `d`, `h`, `m`, `s`, `ms`, biggest first.
///
/// # Errors
/// Anything else, a bare number and more than [`LONGEST`] among it.
pub fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    let mut rest = text;
    let mut total_ms: u64 = 0;
    let mut unit_before = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| ParseDurationError)?;
        let letters = tail.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, tail) = tail.split_at(letters);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(ParseDurationError),
        };
        if unit_ms >= unit_before {
            return Err(ParseDurationError);
        }
        unit_before = unit_ms;
        let part = number.checked_mul(unit_ms).ok_or(ParseDurationError)?;
        total_ms = total_ms.checked_add(part).ok_or(ParseDurationError)?;
        rest = tail;
    }
    let total = Duration::from_millis(total_ms);
    if text.is_empty() || total > LONGEST { Err(ParseDurationError) } else { Ok(total) }
}

/// Writes `duration`, to the millisecond, as [`parse`] reads it.
pub fn format(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut text = String::new();
    for (unit, unit_ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest / unit_ms > 0 {
            text.push_str(&format!("{}{unit}", rest / unit_ms));
            rest %= unit_ms;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// For `#[serde(with = "…::duration")]`.
///
/// # Errors
/// The serializer's own.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

/// For `#[serde(with = "…::duration")]`.
///
/// # Errors
/// A text that [`parse`] refuses, or no text.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_the_contract_writes_them() {
        for (text, ms) in [("250ms", 250), ("5s", 5_000), ("10m", 600_000), ("1h30m", 5_400_000), ("0s", 0)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(parse(&format(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "s", "5 s", "-5s", "1.5s", "5S", "5s5s", "5s1m", "99999999999999999999s", "1001d", "5µs"]
        {
            assert_eq!(parse(text), Err(ParseDurationError), "{text}");
        }
    }
}
