//! A JSON object as bytes: one member is set, every other byte stays.

use std::ops::Range;

use serde_json::{Map, Value};
use sexton_plan::claim::Field;

/// A text that holds one JSON object, and where its members lie.
#[derive(Debug)]
pub struct Object<'a> {
    text: &'a str,
    /// Behind the opening brace.
    begin: usize,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    key: Range<usize>,
    value: Range<usize>,
}

/// Why a text is no object that one may write to; completes "the file …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseObjectError {
    /// Not a JSON object, or one that other programs may read otherwise.
    #[error("is no JSON object")]
    NotAnObject,
    /// The member is there more than once: nobody knows which one counts.
    #[error("has a member twice")]
    Twice,
}

impl<'a> Object<'a> {
    /// Reads `text`, whose members `names` may be there once each.
    ///
    /// # Errors
    /// It is no JSON object, or has one of `names` twice.
    pub fn parse(text: &'a [u8], names: &[&str]) -> Result<Object<'a>, ParseObjectError> {
        let text = std::str::from_utf8(text).map_err(|_| ParseObjectError::NotAnObject)?;
        // The whole text is JSON before a byte of it is located, so the scan below meets no surprise.
        serde_json::from_str::<Map<String, Value>>(text).map_err(|_| ParseObjectError::NotAnObject)?;
        let object = scan(text).ok_or(ParseObjectError::NotAnObject)?;
        let is_twice = |name: &&str| object.members.iter().filter(|member| object.is_called(member, name)).count() > 1;
        if names.iter().any(is_twice) { Err(ParseObjectError::Twice) } else { Ok(object) }
    }

    fn is_called(&self, member: &Member, name: &str) -> bool {
        let key = self.text.get(member.key.clone()).and_then(|key| serde_json::from_str::<String>(key).ok());
        key.as_deref() == Some(name)
    }

    /// What stands in member `name`; a number counts only as it would be written.
    pub fn field(&self, name: &str) -> Field {
        let Some(member) = self.members.iter().find(|member| self.is_called(member, name)) else {
            return Field::Absent;
        };
        let text = self.text.get(member.value.clone()).unwrap_or_default();
        text.parse::<u64>().ok().filter(|number| number.to_string() == text).map_or(Field::Other, Field::Number)
    }

    /// The text with member `name` set to `number`: its value's bytes replaced, or one member inserted behind the last.
    pub fn with(&self, name: &str, number: u64) -> String {
        let spliced = |at: Range<usize>, new: &str| {
            let (before, after) = (self.text.get(..at.start), self.text.get(at.end..));
            [before.unwrap_or_default(), new, after.unwrap_or_default()].concat()
        };
        if let Some(member) = self.members.iter().find(|member| self.is_called(member, name)) {
            return spliced(member.value.clone(), &number.to_string());
        }
        let key = Value::from(name);
        let Some(last) = self.members.last() else {
            return spliced(self.begin..self.begin, &format!("{key}:{number}"));
        };
        // As the last member is set off from what is before it.
        let before = self.members.iter().rev().nth(1).map_or(self.begin, |member| member.value.end);
        let lead = self.text.get(before..last.key.start).unwrap_or_default();
        let lead = lead.split_once(',').map_or(lead, |(_, lead)| lead);
        let colon = self.text.get(last.key.end..last.value.start).unwrap_or(":");
        spliced(last.value.end..last.value.end, &format!(",{lead}{key}{colon}{number}"))
    }
}

/// Locates the members of the object that `text`, which is JSON, holds.
fn scan(text: &str) -> Option<Object<'_>> {
    let mut cursor = Cursor { bytes: text.as_bytes(), at: 0 };
    cursor.skip_space();
    cursor.take(b'{')?;
    let begin = cursor.at;
    let mut members = Vec::new();
    loop {
        cursor.skip_space();
        if cursor.peek()? == b'}' {
            return Some(Object { text, begin, members });
        }
        let key = cursor.string()?;
        cursor.skip_space();
        cursor.take(b':')?;
        cursor.skip_space();
        members.push(Member { key, value: cursor.value()? });
        cursor.skip_space();
        if cursor.peek()? == b',' {
            cursor.at += 1;
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn string(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        self.take(b'"')?;
        loop {
            match self.next()? {
                b'"' => return Some(start..self.at),
                b'\\' => self.at += 1,
                _ => {}
            }
        }
    }

    fn value(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' | b',' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return Some(start..self.at),
                b'}' | b']' => {
                    depth -= 1;
                    self.at += 1;
                }
                _ => self.at += 1,
            }
            let closed = matches!(self.bytes.get(self.at.wrapping_sub(1)), Some(b'"' | b'}' | b']'));
            if depth == 0 && closed {
                return Some(start..self.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(text: &str, name: &str, number: u64) -> String {
        Object::parse(text.as_bytes(), &[name]).expect("an object").with(name, number)
    }

    #[test]
    fn a_value_is_replaced_and_nothing_else() {
        for (before, after) in [
            (r#"{"Pid":1}"#, r#"{"Pid":42}"#),
            (
                "{\n  \"a\": [1, {\"Pid\": 9}],\n  \"Pid\" : null ,\n  \"b\": 1.50\n}\n",
                "{\n  \"a\": [1, {\"Pid\": 9}],\n  \"Pid\" : 42 ,\n  \"b\": 1.50\n}\n",
            ),
            (r#"{"Pid":"x,}\" y","z":{}}"#, r#"{"Pid":42,"z":{}}"#),
            (r#" {"P\u0069d":{"Pid":[]}} "#, r#" {"P\u0069d":42} "#),
            (r#"{"Pid":-1}"#, r#"{"Pid":42}"#),
        ] {
            assert_eq!(set(before, "Pid", 42), after);
        }
    }

    #[test]
    fn a_member_is_inserted_as_its_neighbours_are_written() {
        for (before, after) in [
            ("{}", r#"{"Pid":42}"#),
            ("{ }\n", "{\"Pid\":42 }\n"),
            (r#"{"a":1}"#, r#"{"a":1,"Pid":42}"#),
            ("{\n  \"a\": 1,\n  \"b\": \"x\"\n}\n", "{\n  \"a\": 1,\n  \"b\": \"x\",\n  \"Pid\": 42\n}\n"),
            ("{\n\t\"a\" : {}\n}", "{\n\t\"a\" : {},\n\t\"Pid\" : 42\n}"),
        ] {
            assert_eq!(set(before, "Pid", 42), after);
        }
    }

    #[test]
    fn what_is_no_plain_object_is_refused() {
        for text in ["", "[]", "1", "null", "{", "{}x", "{\"a\":}", "\u{feff}{}", "{'a':1}", "{\"a\":1,}", "{}{}"] {
            let parsed = Object::parse(text.as_bytes(), &["a"]).map(|_| ());
            assert_eq!(parsed, Err(ParseObjectError::NotAnObject), "{text}");
        }
        assert_eq!(Object::parse(b"{\"a\":\"\xff\"}", &[]).map(|_| ()), Err(ParseObjectError::NotAnObject));
        let twice = Object::parse(br#"{"a":1,"\u0061":2}"#, &["a"]).map(|_| ());
        assert_eq!(twice, Err(ParseObjectError::Twice));
    }

    #[test]
    fn only_a_number_as_it_would_be_written_is_right() {
        for (text, field) in [
            (r#"{"p":42}"#, Field::Number(42)),
            (r#"{"p":42.0}"#, Field::Other),
            (r#"{"p":"42"}"#, Field::Other),
            (r#"{"p":null}"#, Field::Other),
            (r#"{"q":42}"#, Field::Absent),
        ] {
            assert_eq!(Object::parse(text.as_bytes(), &["p"]).expect("an object").field("p"), field, "{text}");
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z\"\\\\{}\\[\\],: \u{e9}\n]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let key = "[ap\"\\\\]{0,2}";
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn setting_a_member_is_what_a_json_library_would_do(
            members in prop::collection::vec(("[ap\"\\\\]{0,2}", json()), 0..5),
            pretty in any::<bool>(),
            number in any::<u64>(),
        ) {
            let mut value = Value::Object(members.into_iter().collect());
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.expect("text");
            let changed = set(&text, "p", number);
            let before: Value = value.clone();
            value["p"] = number.into();
            prop_assert_eq!(&serde_json::from_str::<Value>(&changed).expect("still JSON"), &value);
            let object = Object::parse(changed.as_bytes(), &["p"]).expect("an object");
            prop_assert_eq!(object.field("p"), Field::Number(number));
            // Put back what was there, and every byte is as before.
            if let Some(old) = before.get("p").and_then(Value::as_u64) {
                prop_assert_eq!(object.with("p", old), text);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[{}\\[\\]\",:\\\\ap1 \n]{0,24}") {
            if let Ok(object) = Object::parse(text.as_bytes(), &["p"]) {
                let changed = object.with("p", 7);
                prop_assert!(serde_json::from_str::<Value>(&changed).is_ok(), "{} -> {}", text, changed);
            }
        }
    }
}
