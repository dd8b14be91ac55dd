//! Bodies: strict JSON, every field known, each refusal naming its field.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use sexton_ledger::duration;

use crate::refusal::{Kind, Refusal};

/// A refusal that names `field`.
pub(crate) fn bad_field(field: &str, what: impl fmt::Display) -> Refusal {
    Refusal::new(Kind::BadArgument, format!("field `{field}`: {what}"))
}

/// Reads a JSON text in which no object names a member twice.
///
/// # Errors
/// 400: no JSON, not UTF-8, a member given twice, nested deeper than 128.
pub fn parse(body: &[u8]) -> Result<Value, Refusal> {
    let told = |error: serde_json::Error| Refusal::new(Kind::BadArgument, format!("the body is not JSON: {error}"));
    // Within strings serde_json would find it too, but elsewhere it would talk of something else.
    if std::str::from_utf8(body).is_err() {
        return Err(Refusal::new(Kind::BadArgument, "the body is not UTF-8"));
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = Strict.deserialize(&mut reader).map_err(told)?;
    reader.end().map_err(told)?;
    Ok(value)
}

/// Builds a value, refusing what `Value`'s own reading takes silently: a member given twice.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, fact: bool) -> Result<Value, E> {
        Ok(Value::Bool(fact))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        Number::from_f64(number).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element_seed(Strict)? {
            list.push(element);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let value = members.next_value_seed(Strict)?;
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("`{}` is given twice", key.escape_debug())));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// The members of a body that are not yet taken; null is as good as absent.
#[derive(Debug, Default)]
pub struct Fields {
    members: Map<String, Value>,
}

impl Fields {
    /// The members of `value`.
    ///
    /// # Errors
    /// 400 for what is no object.
    pub fn new(value: Value) -> Result<Fields, Refusal> {
        if let Value::Object(members) = value {
            return Ok(Fields { members });
        }
        let told = format!("the body must be a JSON object, not {}", named(&value));
        Err(Refusal::new(Kind::BadArgument, told))
    }

    /// Takes `field`, if it is there and not null.
    pub fn take(&mut self, field: &str) -> Option<Value> {
        self.members.swap_remove(field).filter(|value| !value.is_null())
    }

    /// Takes a string.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn string(&mut self, field: &str) -> Result<Option<String>, Refusal> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(bad_field(field, format_args!("must be a string, not {}", named(&other)))),
        }
    }

    /// Takes a boolean, false where absent.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn fact(&mut self, field: &str) -> Result<bool, Refusal> {
        match self.take(field) {
            None => Ok(false),
            Some(Value::Bool(fact)) => Ok(fact),
            Some(other) => Err(bad_field(field, format_args!("must be true or false, not {}", named(&other)))),
        }
    }

    /// Takes a duration.
    ///
    /// # Errors
    /// 400 for another type or a text that is none.
    pub fn duration(&mut self, field: &str) -> Result<Option<Duration>, Refusal> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => duration::parse(&text).map(Some).map_err(|error| bad_field(field, error)),
            Some(_) => Err(bad_field(field, duration::ParseDurationError)),
        }
    }

    /// Takes a whole number of at least `least`.
    ///
    /// # Errors
    /// 400 for anything else, also `1.0`.
    pub fn number(&mut self, field: &str, least: u64) -> Result<Option<u64>, Refusal> {
        let most = i64::MAX.unsigned_abs();
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_u64().filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(bad_field(field, format_args!("must be a whole number of at least {least}"))),
        }
    }

    /// Takes an array of strings, `None` where absent.
    ///
    /// # Errors
    /// 400 for another type, of it or of an element.
    pub fn strings(&mut self, field: &str) -> Result<Option<Vec<String>>, Refusal> {
        let texts = |value| match text_of(value) {
            Ok(text) => Ok(text),
            Err(what) => Err(bad_field(field, format_args!("must hold strings alone, not {what}"))),
        };
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(list)) => list.into_iter().map(texts).collect::<Result<_, _>>().map(Some),
            Some(other) => Err(bad_field(field, format_args!("must be an array of strings, not {}", named(&other)))),
        }
    }

    /// Takes an object of strings, empty where absent.
    ///
    /// # Errors
    /// 400 for another type, of it or of a value.
    pub fn text_map(&mut self, field: &str) -> Result<BTreeMap<String, String>, Refusal> {
        let pair = |(key, value): (String, Value)| match text_of(value) {
            Ok(text) => Ok((key, text)),
            Err(what) => {
                let key = key.escape_debug();
                Err(bad_field(field, format_args!("`{key}` must be a string, not {what}")))
            }
        };
        match self.take(field) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(members)) => members.into_iter().map(pair).collect(),
            Some(other) => Err(bad_field(field, format_args!("must be an object of strings, not {}", named(&other)))),
        }
    }

    /// Takes an object's members.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn object(&mut self, field: &str) -> Result<Fields, Refusal> {
        match self.take(field) {
            None => Ok(Fields::default()),
            Some(Value::Object(members)) => Ok(Fields { members }),
            Some(other) => Err(bad_field(field, format_args!("must be an object, not {}", named(&other)))),
        }
    }

    /// What nobody took.
    pub fn rest(self) -> Map<String, Value> {
        self.members
    }

    /// Refuses what nobody took; `within` is where these fields stand, empty for the body itself.
    ///
    /// # Errors
    /// 400 that names the first unknown field.
    pub fn end(self, within: &str, known: &[&str]) -> Result<(), Refusal> {
        match self.members.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let place = if within.is_empty() { String::new() } else { format!("{within}.") };
                let told = format!("unknown field `{place}{}`; known are {}", key.escape_debug(), known.join(", "));
                Err(Refusal::new(Kind::BadArgument, told))
            }
        }
    }
}

/// How deep arrays and objects lie in one another.
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
    }
}

/// The text of a string, or what it is instead.
fn text_of(value: Value) -> Result<String, &'static str> {
    if let Value::String(text) = value { Ok(text) } else { Err(named(&value)) }
}

fn named(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_given_twice_is_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":2}"#, r#"{"a":[{"b":1,"b":1}]}"#] {
            assert!(parse(text.as_bytes()).expect_err(text).detail.contains("twice"));
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let deep = "[".repeat(200);
        for bad in [&b""[..], b"{", b"{}x", b"nul", b"\xff", b"\"\xc3\"", b"{'a':1}", b"1e999", deep.as_bytes()] {
            assert_eq!(parse(bad).expect_err("not JSON").kind, Kind::BadArgument);
        }
        assert_eq!(
            parse(b" [1, -2, 1.5, \"x\", null, true] ").expect("JSON").to_string(),
            "[1,-2,1.5,\"x\",null,true]"
        );
    }

    #[test]
    fn fields_are_typed_and_named() {
        let fields = |text: &str| Fields::new(parse(text.as_bytes()).expect(text)).expect(text);
        assert!(fields(r#"{"cwd":5}"#).string("cwd").expect_err("a number").detail.contains("`cwd`"));
        assert!(fields(r#"{"n":1.0}"#).number("n", 1).is_err());
        assert!(fields(r#"{"n":0}"#).number("n", 1).is_err());
        assert!(fields(r#"{"g":5}"#).duration("g").is_err());
        assert!(fields(r#"{"env":{"A":1}}"#).text_map("env").expect_err("a number").detail.contains("`A`"));
        assert_eq!(fields(r#"{"cwd":null}"#).string("cwd"), Ok(None));
        assert!(fields(r#"{"forse":true}"#).end("", &["force"]).expect_err("unknown").detail.contains("`forse`"));
        assert!(Fields::new(Value::Array(vec![])).is_err());
    }
}
