//! Lines for people, and never waited for.

use sexton_sys::RawFd;
use sexton_sys::poll::offer;
use sexton_sys::text::{Show, Text};

/// Bytes from outside, for people: what is not printable ASCII is escaped.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl Show for Shown<'_> {
    fn show(&self, text: &mut Text) {
        for byte in self.0 {
            match byte {
                b' '..=b'~' => text.add([*byte].as_slice()),
                _ => text.add("\\x").add([hex(byte >> 4), hex(byte & 15)].as_slice()),
            };
        }
    }
}

/// The digit for `value`, which is below 16.
fn hex(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'a' + value - 10 }
}

/// Stdout and stderr.
pub(crate) const STDOUT: RawFd = 1;
pub(crate) const STDERR: RawFd = 2;

/// Writes `line` to `fd`, unless nobody takes it at the moment: whoever does not read our messages must not be able to
/// stop us from forwarding signals.
pub(crate) fn say(fd: RawFd, line: &mut Text) {
    let _lost = offer(fd, line.add("\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bytes_are_escaped() {
        assert_eq!(Text::new().add(Shown(b"a\x1b[m\xff")).as_bytes(), b"a\\x1b[m\\xff");
    }
}
