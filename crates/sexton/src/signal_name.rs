//! Signals as they are written in requests, on the command line and in the configuration.

use sexton_sys::signal::Signal;

/// The number of the signal that `text` names: with or without `SIG`, or `1` to `64`.
pub fn parse(text: &str) -> Option<u8> {
    // Upper case alone: `term` is as likely a slip as meant.
    let is_name = !text.bytes().any(|b| b.is_ascii_lowercase()) && !text.starts_with('0');
    if is_name { Signal::parse(text.as_bytes()).map(Signal::number) } else { None }
}

/// The name of a signal without `SIG`, or its number.
pub fn name(number: u8) -> String {
    match Signal::new(number) {
        Some(signal) => {
            let name = signal.to_string();
            name.strip_prefix("SIG").map_or_else(|| number.to_string(), ToOwned::to_owned)
        }
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_and_slips_do_not() {
        for number in 1..=64 {
            assert_eq!(parse(&name(number)), Some(number));
        }
        for slip in ["term", "SIGterm", "0", "015", "65", "", "TREM", "-9", "9 "] {
            assert_eq!(parse(slip), None, "{slip:?}");
        }
    }
}
