//! Text that is built in place: lines for people, paths and variables for the kernel.
//!
//! A program that is as small as can be does without `core::fmt`, which knows widths, signs and fills that nobody here
//! asks for. What is shown this way and by `Display` is written down once, in `Show`.

use core::ffi::CStr;
use core::fmt;

/// BOUND: bytes of a text, the zero behind it included. Below `PIPE_BUF`, so that a pipe which has room takes a line whole.
const BOUND: usize = 1024;

/// Some text; what does not fit is cut off.
#[derive(Clone, Debug)]
pub struct Text {
    bytes: [u8; BOUND],
    len: usize,
}

/// Words that have numbers, one behind the other, and of each its number and its length: a table of strings would be as
/// long again.
pub(crate) struct Words {
    pub(crate) all: &'static str,
    pub(crate) each: &'static [(u8, u8)],
}

impl Words {
    /// The first word that suits, by its number and itself; both.
    pub(crate) fn find(&self, suits: impl Fn(u8, &str) -> bool) -> Option<(u8, &'static str)> {
        let mut rest = self.all;
        for &(number, len) in self.each {
            let (word, behind) = rest.split_at_checked(len.into())?;
            if suits(number, word) {
                return Some((number, word));
            }
            rest = behind;
        }
        None
    }
}

/// What can be part of a text.
pub trait Show {
    /// Adds it to `text`.
    fn show(&self, text: &mut Text);
}

impl Text {
    /// An empty one.
    #[allow(clippy::new_without_default, reason = "it is written where it is needed, and never a part of something")]
    // A call is half as long as what clears the bytes, and there is one for every line that may ever be printed.
    #[inline(never)]
    pub const fn new() -> Text {
        Text { bytes: [0; BOUND], len: 0 }
    }

    /// Adds `part`.
    pub fn add(&mut self, part: impl Show) -> &mut Text {
        part.show(self);
        self
    }

    /// The bytes so far.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The text as the kernel takes it, up to its first zero; empty where something may have been cut off.
    pub fn as_c_str(&self) -> &CStr {
        if self.len + 1 >= BOUND {
            return c"";
        }
        // SAFETY: behind a text that is not full there are zeroes.
        unsafe { CStr::from_ptr(self.bytes.as_ptr().cast()) }
    }
}

impl<T: Show + ?Sized> Show for &T {
    fn show(&self, text: &mut Text) {
        (**self).show(text);
    }
}

impl Show for [u8] {
    fn show(&self, text: &mut Text) {
        let room = text.bytes.get_mut(text.len..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(self) {
            *to = *from;
            text.len += 1;
        }
    }
}

impl Show for str {
    fn show(&self, text: &mut Text) {
        self.as_bytes().show(text);
    }
}

impl Show for Text {
    fn show(&self, text: &mut Text) {
        self.as_bytes().show(text);
    }
}

impl Show for u64 {
    fn show(&self, text: &mut Text) {
        let mut digits = [0; 20];
        let mut rest = *self;
        let mut first = digits.len();
        for (place, digit) in digits.iter_mut().enumerate().rev() {
            // A digit fits a byte.
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            first = place;
            if rest == 0 {
                break;
            }
        }
        digits.get(first..).unwrap_or_default().show(text);
    }
}

impl Show for u32 {
    fn show(&self, text: &mut Text) {
        u64::from(*self).show(text);
    }
}

impl Show for i32 {
    fn show(&self, text: &mut Text) {
        if *self < 0 {
            text.add("-");
        }
        self.unsigned_abs().show(text);
    }
}

/// Shows `part` where `core::fmt` asks for it.
pub(crate) fn display(part: impl Show, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(core::str::from_utf8(Text::new().add(part).as_bytes()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_text_is_cut_at_its_bound() {
        let mut text = Text::new();
        text.add("-".repeat(BOUND - 3).as_str());
        assert_eq!(text.as_c_str().count_bytes(), BOUND - 3);
        assert_eq!(text.add(12).add("rest").as_bytes().last_chunk(), Some(b"-12r"));
        assert_eq!(text.add("more").as_bytes().len(), BOUND);
        assert!(text.as_c_str().is_empty());
    }

    #[test]
    fn numbers_are_shown_as_everywhere() {
        for number in [0, 7, 10, 4711, i32::MAX, -1, i32::MIN] {
            assert_eq!(Text::new().add(number).as_bytes(), number.to_string().as_bytes());
        }
        assert_eq!(Text::new().add(u64::MAX).as_bytes(), u64::MAX.to_string().as_bytes());
    }
}
