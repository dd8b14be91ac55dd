//! Paths and queries: segments are decoded once and never normalised.

use crate::refusal::{Kind, Refusal};

/// Undoes percent-encoding once; `None` for a broken escape or what is not UTF-8.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        match first {
            b'%' => {
                let (digits, tail) = tail.split_at_checked(2)?;
                bytes.push(hex(digits)?);
                rest = tail;
            }
            byte => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let [high, low] = digits else { return None };
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// Percent-encodes what must not stand as it is in a segment or a query's value.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The parameters of a query, each known and given at most once (but for those that may repeat).
#[derive(Debug, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads `text`, whose keys must be among `known`.
    ///
    /// # Errors
    /// A broken escape, an unknown key, a key given twice that is not among `repeatable`.
    pub fn parse(text: &str, known: &[&str], repeatable: &[&str]) -> Result<Query, Refusal> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let plain = |text: &str| decode(&text.replace('+', " "));
            let (Some(key), Some(value)) = (plain(key), plain(value)) else {
                return Err(bad("the query holds a broken percent escape, or what is not UTF-8"));
            };
            if !known.contains(&key.as_str()) {
                return Err(bad(format!("unknown query parameter `{}`; {}", key.escape_debug(), allowed(known))));
            }
            if !repeatable.contains(&key.as_str()) && pairs.iter().any(|(before, _)| *before == key) {
                return Err(bad(format!("query parameter `{key}` is given twice")));
            }
            pairs.push((key, value));
        }
        Ok(Query { pairs })
    }

    /// The value of `key`, if it is given.
    pub fn one(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Every value of `key`.
    pub fn all<'q>(&'q self, key: &'static str) -> impl Iterator<Item = &'q str> {
        self.pairs.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of `key` through `parse`.
    ///
    /// # Errors
    /// 400 with `rule` where `parse` finds nothing in it.
    pub fn parsed<T>(&self, key: &str, rule: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Refusal> {
        let Some(text) = self.one(key) else { return Ok(None) };
        let told = || bad(format!("query parameter `{key}`: `{}` is not {rule}", text.escape_debug()));
        parse(text).map(Some).ok_or_else(told)
    }

    /// A fact: `true`, `1` or nothing after the key; `false` or `0`.
    ///
    /// # Errors
    /// 400 for another word.
    pub fn flag(&self, key: &str) -> Result<bool, Refusal> {
        let parse = |text: &str| match text {
            "true" | "1" | "" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        };
        Ok(self.parsed(key, "`true` or `false`", parse)?.unwrap_or(false))
    }
}

fn allowed(known: &[&str]) -> String {
    if known.is_empty() { "none is known here".to_owned() } else { format!("known are {}", known.join(", ")) }
}

fn bad(detail: impl Into<String>) -> Refusal {
    Refusal::new(Kind::BadArgument, detail)
}

/// A whole number as it is usually written: digits alone, no sign, no space.
pub fn whole(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone_once() {
        assert_eq!(decode("a%2Fb").as_deref(), Some("a/b"));
        assert_eq!(decode("%252e").as_deref(), Some("%2e"), "not twice");
        for bad in ["%", "%2", "%zz", "%ff", "a%"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        assert_eq!(decode(&encode("ä/ %\n")).as_deref(), Some("ä/ %\n"));
    }

    #[test]
    fn a_query_knows_its_keys() {
        let query = Query::parse("limit=5&label=a%3Db&label=c", &["limit", "label"], &["label"]).expect("known");
        assert_eq!(query.one("limit"), Some("5"));
        assert_eq!(query.all("label").collect::<Vec<_>>(), ["a=b", "c"]);
        for bad in ["sate=running", "limit=1&limit=2", "limit=%"] {
            let refusal = Query::parse(bad, &["limit", "state"], &[]).expect_err(bad);
            assert_eq!(refusal.kind, Kind::BadArgument);
        }
        assert!(Query::parse("sate=x", &["state"], &[]).expect_err("unknown").detail.contains("`sate`"));
    }

    #[test]
    fn whole_numbers_have_no_sign() {
        assert_eq!(whole("42"), Some(42));
        for bad in ["", "+1", "-1", " 1", "1.0", "99999999999999999999"] {
            assert_eq!(whole(bad), None, "{bad}");
        }
    }
}
