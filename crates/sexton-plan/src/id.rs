//! Names of things, parsed once: what holds one of these types is inside its rules.

use alloc::string::{String, ToString};
use core::fmt;
use core::num::NonZeroI32;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A process ID that may be looked at: never 0 (a process outside the reader's PID namespace), 1 or negative.
///
/// It is a number that the kernel reuses; only a `Handle` proves which process it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(NonZeroI32);

impl Pid {
    /// The PID `raw`, or `None` for 1, 0 and negative numbers.
    pub const fn new(raw: i32) -> Option<Pid> {
        match NonZeroI32::new(raw) {
            Some(pid) if raw > 1 => Some(Pid(pid)),
            Some(_) | None => None,
        }
    }

    /// The number, greater than 1.
    pub const fn as_raw(self) -> i32 {
        self.0.get()
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Pid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i32(self.as_raw())
    }
}

impl<'de> Deserialize<'de> for Pid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pid, D::Error> {
        let raw = i32::deserialize(deserializer)?;
        Pid::new(raw).ok_or_else(|| serde::de::Error::custom("a process ID greater than 1 is wanted"))
    }
}

/// Why a text is no identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// A name outside `[a-z0-9][a-z0-9._-]{0,62}`.
    #[error("a name is 1 to 63 of `a-z`, `0-9`, `.`, `_`, `-` and begins with a letter or digit")]
    Name,
    /// A kind outside `[a-z0-9][a-z0-9._/-]{0,62}`.
    #[error("a label-like word is 1 to 63 of `a-z`, `0-9`, `.`, `_`, `-`, `/` and begins with a letter or digit")]
    Word,
    /// An incarnation that is not a ULID.
    #[error("an incarnation is a ULID: 26 characters of Crockford's base 32")]
    Incarnation,
    /// A boot id that is not a UUID.
    #[error("a boot id is a UUID")]
    BootId,
}

/// Whether `text` is 1–63 of `[a-z0-9._-]` (and `also`), beginning with a letter or digit.
fn is_word(text: &str, also: &[u8]) -> bool {
    let begins = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b) || also.contains(&b);
    begins && text.len() <= 63 && text.bytes().all(fits)
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $error:expr, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<$name, ParseIdError> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok($name(text.to_string())) } else { Err($error) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id! {
    /// An instance's name: `[a-z0-9][a-z0-9._-]{0,62}`, so never a path.
    Name, ParseIdError::Name, |text| is_word(text, b"")
}

text_id! {
    /// A label-like word: an instance's kind.
    Word, ParseIdError::Word, |text| is_word(text, b"/")
}

text_id! {
    /// One life of an instance: a ULID in upper case, so that later lives sort behind earlier ones.
    Incarnation, ParseIdError::Incarnation, |text| {
        text.len() == 26
            && text.bytes().all(|b| b"0123456789ABCDEFGHJKMNPQRSTVWXYZ".contains(&b))
            && text.as_bytes().first().is_some_and(|b| *b <= b'7')
    }
}

text_id! {
    /// One boot of the kernel: `/proc/sys/kernel/random/boot_id`, a UUID in lower case.
    BootId, ParseIdError::BootId, |text| {
        text.len() == 36
            && text.bytes().enumerate().all(|(i, b)| match i {
                8 | 13 | 18 | 23 => b == b'-',
                _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
            })
    }
}

text_id! {
    /// A node of the fleet; made once and kept, or given by configuration under the rules of a name.
    NodeId, ParseIdError::Name, |text| is_word(text, b"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_is_never_init_or_a_group() {
        for raw in [i32::MIN, -1, 0, 1] {
            assert_eq!(Pid::new(raw), None);
        }
        assert_eq!(Pid::new(2).map(Pid::as_raw), Some(2));
    }

    #[test]
    fn names_follow_the_contract() {
        let long = "a".repeat(63);
        for good in ["a", "vm-1", "0", "a.b_c-d", "x..y", &long] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let longer = "a".repeat(64);
        for bad in ["", ".", "..", "-a", "_a", "A", "a/b", "a b", "ä", "a\n", &longer] {
            assert_eq!(bad.parse::<Name>(), Err(ParseIdError::Name), "{bad}");
        }
    }

    #[test]
    fn incarnations_are_ulids() {
        assert!("01ARZ3NDEKTSV4RRFFQ69G5FAV".parse::<Incarnation>().is_ok());
        for bad in ["", "01ARZ3NDEKTSV4RRFFQ69G5FA", "81ARZ3NDEKTSV4RRFFQ69G5FAV", "01arz3ndektsv4rrffq69g5fav"] {
            assert!(bad.parse::<Incarnation>().is_err(), "{bad}");
        }
    }

    #[test]
    fn boot_ids_are_uuids() {
        assert!("0f1d2c3b-4a59-6877-8695-a4b3c2d1e0ff".parse::<BootId>().is_ok());
        assert!("0f1d2c3b4a5968778695a4b3c2d1e0ff".parse::<BootId>().is_err());
    }
}
