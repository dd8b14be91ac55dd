//! Values of the configuration, parsed once: what holds one of these types is inside its rules.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sexton_ledger::duration;

/// Why a text is no value of the configuration; completes "…: ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseValueError(String);

fn refuse<T>(what: impl Into<String>) -> Result<T, ParseValueError> {
    Err(ParseValueError(what.into()))
}

macro_rules! text_value {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

/// A length of time, written `250ms`, `5s`, `10m`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);
text_value!(Span);

impl FromStr for Span {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Span, ParseValueError> {
        duration::parse(text).map(Span).or_else(|error| refuse(error.to_string()))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&duration::format(self.0))
    }
}

/// A number of bytes, written `4096`, `512KiB`, `64MiB`, `2GiB`, `1TiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

impl FromStr for Size {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Size, ParseValueError> {
        let what = || {
            ParseValueError("a size is a number of bytes above 0, or written like `512KiB`, `64MiB` or `2GiB`".into())
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| what())?;
        let shift = match unit {
            "" => 0,
            unit => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, shift)| *shift).ok_or_else(what)?,
        };
        let bytes = number.checked_mul(1 << shift).filter(|bytes| (1..=i64::MAX.unsigned_abs()).contains(bytes));
        bytes.map(Size).ok_or_else(what)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().rev().find(|(_, shift)| self.0.trailing_zeros() >= *shift) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size is a number of bytes above 0, or written like `64MiB`")]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => bytes.to_string().parse(),
            Written::Text(text) => text.parse(),
        }
        .map_err(D::Error::custom)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A subtree below the cgroup2 root: relative components without `.` and `..`, none empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath(String);
text_value!(CgroupPath);

impl CgroupPath {
    /// The path, without a slash at either end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The longest cgroup path accepted, so that what is made below it stays under the kernel's `PATH_MAX`.
const CGROUP_PATH_MAX: usize = 1_024;

impl FromStr for CgroupPath {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<CgroupPath, ParseValueError> {
        // Files of the kernel begin so.
        let is_name = |part: &str| part != "." && part != ".." && !part.starts_with("cgroup.");
        let is_component =
            |part: &str| !part.is_empty() && is_name(part) && part.len() <= 255 && !part.chars().any(char::is_control);
        if text.len() > CGROUP_PATH_MAX || !text.split('/').all(is_component) {
            return refuse(
                "a cgroup is a path below the cgroup2 root such as `sexton` or `system.slice/sexton`: no `/` at either \
                 end, no empty part, no `.` or `..`, none that begins with `cgroup.`, no control characters",
            );
        }
        Ok(CgroupPath(text.to_owned()))
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An IPv4 network that slots are cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Its first address.
    pub base: Ipv4Addr,
    /// Bits of the network part, 8–28.
    pub prefix: u8,
}
text_value!(Subnet);

impl FromStr for Subnet {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Subnet, ParseValueError> {
        let what = "a subnet is an IPv4 network such as `10.231.0.0/16`, its prefix 8 to 28 and no host bits set";
        let Some((base, prefix)) = text.split_once('/') else { return refuse(what) };
        let (Ok(base), Ok(prefix)) = (base.parse::<Ipv4Addr>(), prefix.parse::<u8>()) else { return refuse(what) };
        let hosts = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        let is_plain = prefix.to_string() == text.split_once('/').map_or("", |(_, p)| p);
        if !(8..=28).contains(&prefix) || u32::from(base) & hosts != 0 || !is_plain {
            return refuse(what);
        }
        Ok(Subnet { base, prefix })
    }
}

/// Bits of a subnet that one slot takes: network, gateway, address, broadcast.
pub const SLOT_BITS: u8 = 2;
/// BOUND: slots of one daemon. Five digits fit a link's name, and sixteen bits the number of a namespace.
const MOST_SLOTS: u32 = 1 << 16;

impl Subnet {
    /// How many slots fit into it.
    pub fn slots(&self) -> u32 {
        let bits = 32_u8.saturating_sub(self.prefix).saturating_sub(SLOT_BITS);
        1_u32.checked_shl(bits.into()).unwrap_or(MOST_SLOTS).min(MOST_SLOTS)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// Name of a network interface (`IFNAMSIZ`: 15 bytes), or empty for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface(pub String);
text_value!(Interface);

impl FromStr for Interface {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Interface, ParseValueError> {
        let fits = |b: u8| b.is_ascii_graphic() && !b"/:\"'\\{};,".contains(&b);
        if text.len() > 15 || !text.bytes().all(fits) || text == "." || text == ".." {
            return refuse(
                "an interface is at most 15 printable characters without spaces, `/`, `:` or quotes, or empty",
            );
        }
        Ok(Interface(text.to_owned()))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An absolute path without `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsolutePath(PathBuf);

impl AbsolutePath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// `path`, from `base` on where it is relative.
    ///
    /// # Errors
    /// An empty path, one with `..`, or one with a NUL.
    pub fn new(path: &Path, base: Option<&Path>) -> Result<AbsolutePath, ParseValueError> {
        let joined = base.map_or_else(|| path.to_owned(), |base| base.join(path));
        if path.as_os_str().is_empty() || path.as_os_str().as_encoded_bytes().contains(&0) {
            return refuse("a path must not be empty or hold a NUL");
        }
        if !joined.is_absolute() {
            return refuse("the path must be absolute here");
        }
        // A `..` after a symbolic link is not where it looks; whoever wants one can write the place itself.
        if path.components().any(|part| part == Component::ParentDir) && base.is_none() {
            return refuse("the path must not hold `..`");
        }
        Ok(AbsolutePath(joined.components().collect()))
    }
}

impl FromStr for AbsolutePath {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<AbsolutePath, ParseValueError> {
        AbsolutePath::new(Path::new(text), None)
    }
}

impl<'de> Deserialize<'de> for AbsolutePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<AbsolutePath, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for AbsolutePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.display())
    }
}

/// What the CLI talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A unix socket.
    Unix(PathBuf),
    /// A URL of a node elsewhere.
    Url(String),
}

impl Target {
    /// A path, from `base` where it is relative; `http+unix://` with a path or a percent-encoded one; or a URL.
    ///
    /// # Errors
    /// It is none of these. Whoever writes another scheme means no file.
    pub fn parse(text: &str, base: Option<&Path>) -> Result<Target, ParseValueError> {
        let unix = |path: &Path, base| AbsolutePath::new(path, base).map(|path| Target::Unix(path.0));
        match text.split_once("://") {
            Some(("http+unix", path)) => unix(Path::new(&crate::api::path::decode(path).unwrap_or_default()), None),
            Some(("https" | "http", _)) => Ok(Target::Url(text.to_owned())),
            Some((scheme, _)) if is_scheme(scheme) => {
                refuse(format!("`{scheme}://` is not known: a path, `http+unix://` and a path, or `https://`"))
            }
            _ => unix(Path::new(text), base),
        }
    }
}

/// RFC 3986, section 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte))
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Target::Unix(path) => serializer.collect_str(&path.display()),
            Target::Url(url) => serializer.serialize_str(url),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print_in_binary_units() {
        for (text, bytes) in [("1", 1), ("512KiB", 512 << 10), ("64MiB", 64 << 20), ("2GiB", 2 << 30)] {
            let size: Size = text.parse().expect(text);
            assert_eq!(size, Size(bytes), "{text}");
            assert_eq!(size.to_string(), text);
        }
        for bad in ["", "0", "0MiB", "-1", "64MB", "64 MiB", "MiB", "1.5GiB", "99999999999TiB", "18446744073709551615"]
        {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cgroup_is_relative_and_never_climbs() {
        for good in ["sexton", "a/b/c", "system.slice/sexton.service", "user.slice/user@1000.service"] {
            assert!(good.parse::<CgroupPath>().is_ok(), "{good}");
        }
        for bad in ["", "/", "/sexton", "sexton/", "a//b", ".", "..", "a/../b", "./a", "a\nb", "a\0", "cgroup.procs"] {
            assert!(bad.parse::<CgroupPath>().is_err(), "{bad:?}");
        }
        assert!("a/".repeat(600).trim_end_matches('/').parse::<CgroupPath>().is_err(), "too long");
    }

    #[test]
    fn a_subnet_has_no_host_bits() {
        assert_eq!("10.231.0.0/16".parse::<Subnet>().expect("a network").to_string(), "10.231.0.0/16");
        for bad in
            ["", "10.231.0.0", "10.231.0.1/16", "10.0.0.0/33", "10.0.0.0/7", "10.0.0.0/30", "::/64", "10.0.0.0/+8"]
        {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_of_the_file_are_absolute_and_those_of_flags_are_from_where_the_caller_is() {
        assert!("state".parse::<AbsolutePath>().is_err());
        assert!("/var/../etc".parse::<AbsolutePath>().is_err());
        let path = AbsolutePath::new(Path::new("state"), Some(Path::new("/base"))).expect("joined");
        assert_eq!(path.as_path(), Path::new("/base/state"));
    }
}
