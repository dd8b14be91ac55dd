//! What stands on the command line, parsed once; nothing bad gets as far as a connection.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use sexton_ledger::duration;
use sexton_plan::id::{Name, ParseIdError, Word};

use crate::api::spec::{LABEL_KEY, is_label_key};
use crate::signal_name;

/// An instance's name.
pub fn name(text: &str) -> Result<Name, ParseIdError> {
    text.parse()
}

/// A label-like word.
pub fn word(text: &str) -> Result<Word, ParseIdError> {
    text.parse()
}

/// A duration.
pub fn span(text: &str) -> Result<Duration, duration::ParseDurationError> {
    duration::parse(text)
}

/// `K=V`, the key not empty.
pub fn pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("write it as `KEY=VALUE`, the key not empty"),
    }
}

/// A label to look for: `K=V`, or `K` for any value.
pub fn label(text: &str) -> Result<String, &'static str> {
    let key = text.split_once('=').map_or(text, |(key, _)| key);
    if is_label_key(key) { Ok(text.to_owned()) } else { Err(LABEL_KEY) }
}

/// A signal, written as the API takes it.
pub fn signal(text: &str) -> Result<String, &'static str> {
    match signal_name::parse(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("a signal is a name such as `TERM` or `SIGTERM`, or a number from 1 to 64"),
    }
}

/// A number of bytes.
pub fn size(text: &str) -> Result<u64, String> {
    text.parse::<crate::config::value::Size>().map(|size| size.0).map_err(|error| error.to_string())
}

/// The arguments as text.
///
/// # Errors
/// A sentence that names the first one that is no UTF-8, its bytes escaped.
pub fn utf8(args: Vec<OsString>) -> Result<Vec<String>, String> {
    let numbered = args.into_iter().enumerate();
    numbered
        .map(|(number, arg)| {
            arg.into_string().map_err(|arg| {
                let shown = arg.as_bytes().escape_ascii();
                format!("argument {number} is not UTF-8: \"{shown}\"")
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn signals_are_written_as_the_api_takes_them() {
        for good in ["TERM", "SIGTERM", "15", "RTMIN+3", "64"] {
            assert_eq!(signal(good).as_deref(), Ok(good));
        }
        for bad in ["", "term", "0", "015", "65", "-1", "SIG", "TERM\n"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs_have_a_key() {
        assert_eq!(pair("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("A="), Ok(("A".to_owned(), String::new())));
        assert!(pair("A").is_err() && pair("=b").is_err() && pair("").is_err());
    }

    #[test]
    fn bytes_that_are_no_text_are_named() {
        let args = vec!["sexton".into(), OsString::from_vec(b"a\xff\x1b".to_vec())];
        assert_eq!(utf8(args), Err("argument 1 is not UTF-8: \"a\\xff\\x1b\"".to_owned()));
    }
}
