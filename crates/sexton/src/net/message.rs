//! Netlink messages as bytes: a header, a family's own header, and attributes that may hold attributes
//! (`netlink(7)`). Numbers are in the machine's order, save where nf_tables wants the network's.

/// A request.
pub const NLM_F_REQUEST: u16 = 0x1;
/// Answer with an acknowledgement.
pub const NLM_F_ACK: u16 = 0x4;
/// Everything that there is.
pub const NLM_F_DUMP: u16 = 0x300;
/// Replace what exists.
pub const NLM_F_REPLACE: u16 = 0x100;
/// Refuse what exists.
pub const NLM_F_EXCL: u16 = 0x200;
/// Make what does not exist.
pub const NLM_F_CREATE: u16 = 0x400;
/// At the end of the list.
pub const NLM_F_APPEND: u16 = 0x800;
/// The attribute holds attributes.
const NLA_F_NESTED: u16 = 0x8000;
/// Bytes of a message's header.
pub const HEADER: usize = 16;

/// One request under construction. Its number is given to it when it is sent.
#[derive(Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of `kind` with the family's own `head`.
    pub fn new(kind: u16, flags: u16, head: &[u8]) -> Message {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(head);
        let mut message = Message { bytes };
        message.pad();
        message
    }

    /// Appends bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Message {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Appends an attribute.
    pub fn put(mut self, kind: u16, payload: &[u8]) -> Message {
        let at = self.open(kind);
        self.bytes.extend_from_slice(payload);
        self.close(at);
        self
    }

    /// Appends a text with its NUL.
    pub fn text(self, kind: u16, text: &str) -> Message {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Appends a number in the machine's order.
    pub fn number(self, kind: u16, number: u32) -> Message {
        self.put(kind, &number.to_ne_bytes())
    }

    /// Appends a number in the network's order.
    pub fn big(self, kind: u16, number: u32) -> Message {
        self.put(kind, &number.to_be_bytes())
    }

    /// Appends an attribute that holds what `inner` appends.
    pub fn nest(mut self, kind: u16, inner: impl FnOnce(Message) -> Message) -> Message {
        let at = self.open(kind | NLA_F_NESTED);
        self = inner(self);
        self.close(at);
        self
    }

    /// The finished message, with more flags and its number.
    pub fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        // BOUND: no message of ours comes near 4 GiB; the largest has a few hundred bytes.
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        overwrite(&mut self.bytes, 0, &len.to_ne_bytes());
        let flags = short(&self.bytes, 6).unwrap_or_default() | flags;
        overwrite(&mut self.bytes, 6, &flags.to_ne_bytes());
        overwrite(&mut self.bytes, 8, &sequence.to_ne_bytes());
        self.bytes
    }

    fn open(&mut self, kind: u16) -> usize {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) {
        // BOUND: attributes of ours stay far below 64 KiB.
        let len = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        overwrite(&mut self.bytes, at, &len.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + with.len()) {
        place.copy_from_slice(with);
    }
}

/// One message that came.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// What it is.
    pub kind: u16,
    /// What is said about it.
    pub flags: u16,
    /// The number of the request that it answers.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

impl<'a> Incoming<'a> {
    /// The attributes behind the family's own header of `head` bytes.
    pub fn attributes(&self, head: usize) -> Attributes<'a> {
        Attributes(self.body.get(head..).unwrap_or_default())
    }
}

/// The messages in `bytes`, in order; what is cut off is left out.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Incoming<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(number(bytes, 0)?).ok()?;
        let body = bytes.get(HEADER..len)?;
        let (kind, flags) = (short(bytes, 4)?, short(bytes, 6)?);
        let sequence = number(bytes, 8)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Incoming { kind, flags, sequence, body })
    })
}

/// Attributes one after another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let len = usize::from(short(self.0, 0)?);
        let kind = short(self.0, 2)? & 0x3fff;
        let payload = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

impl<'a> Attributes<'a> {
    /// Those in `bytes`.
    pub fn of(bytes: &'a [u8]) -> Attributes<'a> {
        Attributes(bytes)
    }

    /// The first of `kind`.
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.by_ref().find(|(found, _)| *found == kind).map(|(_, payload)| payload)
    }

    /// The attributes inside the first of `kind`; none where that is missing.
    pub fn inside(self, kind: u16) -> Attributes<'a> {
        Attributes(self.find(kind).unwrap_or_default())
    }
}

/// The text of an attribute, up to its NUL.
pub fn text_of(payload: &[u8]) -> String {
    let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(payload.get(..end).unwrap_or_default()).into_owned()
}

/// Four bytes at `at` as a number in the machine's order.
pub fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

/// Two bytes at `at` as a number in the machine's order.
pub fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let message = Message::new(7, 0, &[9; 4])
            .text(1, "abc")
            .nest(2, |inner| inner.number(3, 5).nest(4, |inner| inner.put(6, &[1])))
            .finish(NLM_F_ACK, 11);
        assert_eq!(message.len() % 4, 0);
        let all: Vec<Incoming<'_>> = messages(&message).collect();
        let [only] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((only.kind, only.sequence), (7, 11));
        let attributes = only.attributes(4);
        assert_eq!(attributes.find(1).map(text_of).as_deref(), Some("abc"));
        assert_eq!(attributes.inside(2).find(3), Some(&5_u32.to_ne_bytes()[..]));
        assert_eq!(attributes.inside(2).inside(4).find(6), Some(&[1][..]));
        assert_eq!(attributes.find(9), None);
    }

    #[test]
    fn what_is_cut_off_ends_the_reading() {
        let message = Message::new(7, 0, &[0; 4]).text(1, "abc").finish(0, 1);
        for len in 0..message.len() {
            assert_eq!(messages(&message[..len]).count(), 0, "{len}");
        }
        assert_eq!(Attributes::of(&[3, 0, 0, 0, 0, 0]).count(), 0, "a length below its own header");
        let endless = [0_u8; 64];
        assert_eq!(messages(&endless).count(), 0, "a length of 0 does not go on for ever");
    }
}
