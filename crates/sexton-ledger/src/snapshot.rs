//! What an owner keeps with its instance to resume.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Any JSON value, as it was written: a number that is read and written again may be another one, and a reader of the
/// row around it would meet its depth.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Snapshot(Box<RawValue>);

impl Snapshot {
    /// The value that `text` is, without the white space around its parts.
    ///
    /// # Errors
    /// `text` is not JSON.
    pub fn new(text: &str) -> Result<Snapshot, serde_json::Error> {
        let value: &RawValue = serde_json::from_str(text)?;
        RawValue::from_string(without_space(value.get())).map(Snapshot)
    }

    /// The value as JSON, on one line.
    pub fn as_json(&self) -> &str {
        self.0.get()
    }
}

impl PartialEq for Snapshot {
    fn eq(&self, other: &Snapshot) -> bool {
        self.as_json() == other.as_json()
    }
}

/// A JSON text without what has no meaning in it.
fn without_space(text: &str) -> String {
    let (mut within, mut escaped) = (false, false);
    let mut keeps = |c: &char| {
        let is_kept = within || !c.is_ascii_whitespace();
        within ^= *c == '"' && !escaped;
        escaped = within && *c == '\\' && !escaped;
        is_kept
    };
    text.chars().filter(|c| keeps(c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_keeps_every_letter_that_means_something() {
        for (text, kept) in [
            (" null\n", "null"),
            ("[ 1.50 ,\t1E400, -0 ]", "[1.50,1E400,-0]"),
            (r#"{ "a b" : "\\" , "\" c" : " \\\" " }"#, r#"{"a b":"\\","\" c":" \\\" "}"#),
        ] {
            assert_eq!(Snapshot::new(text).expect(text).as_json(), kept);
        }
        let deep = "[".repeat(1_000) + &"]".repeat(1_000);
        assert_eq!(Snapshot::new(&deep).expect("deep").as_json(), deep);
        for bad in ["", "1 2", "[1", "{a:1}", "nul l"] {
            assert!(Snapshot::new(bad).is_err(), "{bad}");
        }
    }
}
