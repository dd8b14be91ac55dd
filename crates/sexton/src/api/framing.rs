//! How requests lie one behind another on the wire, as far as it must be known to tell which are ambiguous.
//!
//! Hyper takes `Transfer-Encoding` over `Content-Length` without a word, and equal lengths for one. Whoever stands in
//! between may see it otherwise, so a request that tells its length twice is refused before hyper sees it.

/// The longest line that is looked at; a longer one is refused by hyper.
const LINE_MAX: usize = 16 * 1_024;

/// Follows the bytes of one connection.
#[derive(Debug, Default)]
pub(super) struct Framing {
    part: Part,
}

#[derive(Debug)]
enum Part {
    /// Within a head.
    Head(Head),
    /// Within a body, of which so many bytes are to come.
    Body(u64),
    /// Nothing more is followed: a chunked body, after which the connection is closed, or what hyper refuses.
    Unfollowed,
}

impl Default for Part {
    fn default() -> Part {
        Part::Head(Head::default())
    }
}

#[derive(Debug, Default)]
struct Head {
    line: Vec<u8>,
    has_begun: bool,
    lengths: u32,
    length: u64,
    is_encoded: bool,
}

impl Framing {
    /// Takes the next bytes; `false` once a request told its length twice.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((first, rest)) = bytes.split_first() {
            match &mut self.part {
                Part::Unfollowed => return true,
                Part::Body(left) => {
                    let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= skipped as u64;
                    bytes = bytes.get(skipped..).unwrap_or_default();
                    if *left == 0 {
                        self.part = Part::default();
                    }
                }
                Part::Head(head) => {
                    bytes = rest;
                    if *first != b'\n' {
                        head.line.push(*first);
                        if head.line.len() > LINE_MAX {
                            self.part = Part::Unfollowed;
                        }
                        continue;
                    }
                    let is_over = head.end_line();
                    if head.is_ambiguous() {
                        return false;
                    }
                    if is_over {
                        self.part = head.body();
                    }
                }
            }
        }
        true
    }
}

impl Head {
    /// Reads the line that is whole now; whether the head is over with it.
    fn end_line(&mut self) -> bool {
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if line.is_empty() {
            return self.has_begun;
        }
        let is_header = std::mem::replace(&mut self.has_begun, true);
        let colon = line.iter().position(|byte| *byte == b':').filter(|_| is_header);
        let Some((name, value)) = colon.and_then(|at| line.split_at_checked(at)) else { return false };
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.is_encoded = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths = self.lengths.saturating_add(1);
            let digits = value.get(1..).unwrap_or_default().trim_ascii();
            self.length = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0);
        }
        false
    }

    fn is_ambiguous(&self) -> bool {
        self.lengths > 1 || (self.lengths == 1 && self.is_encoded)
    }

    /// What follows this head.
    fn body(&self) -> Part {
        match (self.is_encoded, self.length) {
            (true, _) => Part::Unfollowed,
            (false, 0) => Part::default(),
            (false, length) => Part::Body(length),
        }
    }
}
