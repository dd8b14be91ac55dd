//! Lines for people, built in place and never waited for.

use core::fmt::{self, Write};
use core::time::Duration;

use sexton_sys::RawFd;
use sexton_sys::fd::write;
use sexton_sys::poll::{PollFd, events, poll};

/// A line on its way. BOUND: what does not fit is cut off.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// `line`, as far as it fits.
    pub(crate) fn of(line: fmt::Arguments<'_>) -> Text<N> {
        let mut text = Text { bytes: [0; N], len: 0 };
        // A line that is cut off is better than none.
        let _cut = text.write_fmt(line);
        text
    }

    /// The bytes so far.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let fits = part.len().min(room.len());
        room.iter_mut().zip(part.as_bytes()).for_each(|(to, from)| *to = *from);
        self.len += fits;
        if fits == part.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Bytes from outside, for people: what is not printable ASCII is escaped.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| match byte {
            b' '..=b'~' => f.write_char(byte.into()),
            _ => write!(f, "\\x{byte:02x}"),
        })
    }
}

/// `span` in whole milliseconds, in a width that the program has a decimal form of anyway.
pub(crate) fn millis(span: Duration) -> u64 {
    span.as_secs().saturating_mul(1000).saturating_add(span.subsec_millis().into())
}

/// Stdout and stderr.
pub(crate) const STDOUT: RawFd = 1;
pub(crate) const STDERR: RawFd = 2;

/// Writes `line` to `fd`, unless nobody takes it at the moment: whoever does not read our messages must not be able to
/// stop us from forwarding signals.
pub(crate) fn say(fd: RawFd, line: fmt::Arguments<'_>) {
    // Below PIPE_BUF, so that a pipe which has room takes it whole.
    let text = Text::<1024>::of(format_args!("{line}\n"));
    let mut ready = [PollFd::new(fd, events::OUT)];
    let no_wait = Some(Duration::ZERO);
    if poll(&mut ready, no_wait).is_ok() && ready.iter().any(|fd| fd.has(events::OUT)) {
        let _lost = write(fd, text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_at_its_bound() {
        assert_eq!(Text::<5>::of(format_args!("{}-{}", 12, "rest")).as_bytes(), b"12-re");
    }

    #[test]
    fn control_bytes_are_escaped() {
        assert_eq!(Text::<32>::of(format_args!("{}", Shown(b"a\x1b[m\xff"))).as_bytes(), b"a\\x1b[m\\xff");
    }
}
