//! A JSON object as bytes: one member is set, every other byte stays.
//!
//! Every text of RFC 8259 is read, and no other: a number that no machine holds, half of a surrogate pair or a depth of
//! thousands in the owner's other members is the owner's business. So nothing is interpreted but the names of the outer
//! members.

use std::ops::Range;

use serde_json::Value;
use sexton_plan::claim::Field;

/// Levels that are read, as by most owners' own libraries; behind this many an owner's may give up, and so do we.
const MOST_LEVELS: usize = 10_000;

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

/// Locates the members of the object that `text` holds; `None` where that is no JSON.
fn scan(text: &str) -> Option<Object<'_>> {
    let mut cursor = Cursor { bytes: text.as_bytes(), at: 0 };
    cursor.skip_space();
    cursor.take(b'{')?;
    let begin = cursor.at;
    let mut members = Vec::new();
    cursor.skip_space();
    let mut is_over = cursor.try_take(b'}');
    while !is_over {
        let key = cursor.key()?;
        members.push(Member { key, value: cursor.value()? });
        cursor.skip_space();
        is_over = cursor.try_take(b'}');
        if !is_over {
            cursor.take(b',')?;
            cursor.skip_space();
        }
    }
    cursor.skip_space();
    cursor.peek().is_none().then_some(Object { text, begin, members })
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

    fn try_take(&mut self, wanted: u8) -> bool {
        let is_next = self.peek() == Some(wanted);
        self.at += usize::from(is_next);
        is_next
    }

    fn string(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        self.take(b'"')?;
        loop {
            match self.next()? {
                b'"' => return Some(start..self.at),
                b'\\' => match self.next()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        for _ in 0..4 {
                            self.next().filter(u8::is_ascii_hexdigit)?;
                        }
                    }
                    _ => return None,
                },
                0..=0x1f => return None,
                _ => {}
            }
        }
    }

    /// A member's name, and what sets it off from its value.
    fn key(&mut self) -> Option<Range<usize>> {
        let key = self.string()?;
        self.skip_space();
        self.take(b':')?;
        self.skip_space();
        Some(key)
    }

    /// One value with all that is in it, below the outer object.
    fn value(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        let mut closers = Vec::new();
        loop {
            let closer = match self.peek()? {
                b'{' => Some(b'}'),
                b'[' => Some(b']'),
                b'"' => {
                    self.string()?;
                    None
                }
                _ => {
                    self.word()?;
                    None
                }
            };
            if let Some(closer) = closer {
                self.at += 1;
                self.skip_space();
                if closers.len() + 2 > MOST_LEVELS {
                    return None;
                }
                if !self.try_take(closer) {
                    closers.push(closer);
                    self.begin_element(closer)?;
                    continue;
                }
            }
            // A value has ended, and so may what it is in.
            loop {
                let Some(closer) = closers.last().copied() else { return Some(start..self.at) };
                self.skip_space();
                if self.try_take(closer) {
                    closers.pop();
                    continue;
                }
                self.take(b',')?;
                self.skip_space();
                self.begin_element(closer)?;
                break;
            }
        }
    }

    /// What is before the value of an element in what ends with `closer`.
    fn begin_element(&mut self, closer: u8) -> Option<()> {
        if closer == b'}' { self.key().map(drop) } else { Some(()) }
    }

    /// A number, or one of the three words.
    fn word(&mut self) -> Option<()> {
        let rest = self.bytes.get(self.at..)?;
        for word in ["true", "false", "null"] {
            if rest.starts_with(word.as_bytes()) {
                self.at += word.len();
                return Some(());
            }
        }
        self.try_take(b'-');
        // No other digit follows a leading zero.
        if !self.try_take(b'0') {
            self.digits()?;
        }
        if self.try_take(b'.') {
            self.digits()?;
        }
        if self.try_take(b'e') || self.try_take(b'E') {
            let _sign = self.try_take(b'+') || self.try_take(b'-');
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
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
        let texts =
            ["", "[]", "1", "null", "{", "{}x", "\u{feff}{}", "{'a':1}", "{\"a\":1,}", "{}{}"].map(str::to_owned);
        let values =
            ["", "01", "1.", "+1", "-", ".5", "1e", "tru", "\"\\x\"", "\"\\u12g4\"", "\"\n\"", "\"", "[1,]", "[}]"];
        let values = values.into_iter().chain(["{\"b\"}", "{\"b\":1,}", "{1:1}", "1 2", "[", "[1", "{\"b\":[1}"]);
        for text in texts.into_iter().chain(values.map(|value| format!("{{\"a\":{value}}}"))) {
            let parsed = Object::parse(text.as_bytes(), &["a"]).map(|_| ());
            assert_eq!(parsed, Err(ParseObjectError::NotAnObject), "{text}");
        }
        assert_eq!(Object::parse(b"{\"a\":\"\xff\"}", &[]).map(|_| ()), Err(ParseObjectError::NotAnObject));
        let twice = Object::parse(br#"{"a":1,"\u0061":2}"#, &["a"]).map(|_| ());
        assert_eq!(twice, Err(ParseObjectError::Twice));
    }

    #[test]
    fn what_the_owner_alone_has_to_understand_is_no_hindrance() {
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let too_deep = format!("{{\"x\":{}}}", nested(MOST_LEVELS));
        let parsed = Object::parse(too_deep.as_bytes(), &["Pid"]).map(drop);
        assert_eq!(parsed, Err(ParseObjectError::NotAnObject));
        let deep = nested(MOST_LEVELS - 1);
        for value in ["1e999", "-0.0E+99999", r#""\ud800""#, r#"{"\udc00":[{}]}"#, &deep] {
            let text = format!("{{\"x\":{value},\"Pid\":1}}");
            assert_eq!(set(&text, "Pid", 42), format!("{{\"x\":{value},\"Pid\":42}}"));
            let text = format!("{{\"Pid\":{value}}}");
            assert_eq!(set(&text, "Pid", 42), "{\"Pid\":42}");
        }
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
        fn what_a_json_library_reads_is_read_and_nothing_else(text in "\\{?[{}\\[\\]\":,\\\\apnu01.eE+ \n-]{0,24}\\}?") {
            let known = serde_json::from_str::<serde_json::Map<String, Value>>(&text);
            // What it refuses all the same is too large a number, or half of a pair.
            let parsed = Object::parse(text.as_bytes(), &["p"]);
            if known.is_ok() {
                prop_assert_ne!(parsed.map(drop).err(), Some(ParseObjectError::NotAnObject), "{}", text);
            } else if !text.contains(['e', 'E', 'u']) {
                prop_assert_eq!(parsed.map(drop), Err(ParseObjectError::NotAnObject), "{}", text);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[{}\\[\\]\":,\\\\ap1 \n]{0,24}") {
            if let Ok(object) = Object::parse(text.as_bytes(), &["p"]) {
                let changed = object.with("p", 7);
                prop_assert!(serde_json::from_str::<Value>(&changed).is_ok(), "{} -> {}", text, changed);
            }
        }
    }
}
