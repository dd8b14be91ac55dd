//! A conversation with the kernel over netlink: requests go out together, and each is answered.

use std::fmt;

use sexton_sys::net::{self, Family};
use sexton_sys::{Errno, Fd, SysError};

use super::NetError;
use super::message::{self, Attributes, Incoming, Message, NLM_F_ACK, NLM_F_DUMP};

/// An error, or the acknowledgement that there is none.
const NLMSG_ERROR: u16 = 2;
/// The end of a dump.
const NLMSG_DONE: u16 = 3;
/// What was dumped changed meanwhile.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The kernel's own words.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// BOUND: the kernel hands a dump out in parts of at most 32 KiB to whoever has the room.
const BUFFER: usize = 64 * 1024;
/// BOUND: how often a dump that was changed meanwhile is begun anew; links come and go in bursts.
const DUMPS: usize = 32;

/// What the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub errno: Errno,
    /// The kernel's own words, where it has any.
    pub says: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.says.as_str() {
            "" => write!(f, "{}", self.errno),
            says => write!(f, "{} ({says})", self.errno),
        }
    }
}

impl From<SysError> for Refused {
    fn from(error: SysError) -> Refused {
        Refused { errno: error.errno, says: error.call.to_string() }
    }
}

impl Refused {
    /// The error of a step `what`, which completes "could not".
    pub fn during(self, what: &str) -> NetError {
        match self.errno {
            Errno::EPERM | Errno::EACCES | Errno::ENOSYS | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => {
                NetError::Unsupported(format!("could not {what}: {self}"))
            }
            _ => NetError::Failed(format!("could not {what}: {self}")),
        }
    }
}

/// A socket that talks to one family of the kernel's, in the network namespace that it was opened in.
#[derive(Debug)]
pub struct Netlink {
    socket: Fd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket of the calling thread's network namespace.
    ///
    /// # Errors
    /// As `sexton_sys::net::netlink`.
    pub fn open(family: Family) -> Result<Netlink, Refused> {
        Ok(Netlink { socket: net::netlink(family)?, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Asks for all of `messages`, each of which the kernel tries whatever became of the one before.
    ///
    /// # Errors
    /// What was refused first.
    pub fn ask(&mut self, messages: Vec<Message>) -> Result<(), Refused> {
        let count = messages.len();
        self.send(messages, NLM_F_ACK)?;
        self.hear(count, |_| ())
    }

    /// Asks for one thing, and hands what is answered to `each`.
    ///
    /// # Errors
    /// It was refused.
    pub fn look(&mut self, message: Message, each: impl FnMut(Incoming<'_>)) -> Result<(), Refused> {
        self.send(vec![message], NLM_F_ACK)?;
        self.hear(1, each)
    }

    /// Everything that a dump tells, each made into what `each` makes of it. What changed while it was told is told
    /// anew, so that nothing is missing.
    ///
    /// # Errors
    /// It was refused, or never stayed the same.
    pub fn dump<T>(
        &mut self,
        message: impl Fn() -> Message,
        each: impl Fn(Incoming<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Refused> {
        for _ in 0..DUMPS {
            let mut found = Vec::new();
            let mut is_torn = false;
            self.send(vec![message()], NLM_F_DUMP)?;
            self.hear(1, |incoming| {
                is_torn |= incoming.flags & NLM_F_DUMP_INTR != 0;
                found.extend(each(incoming));
            })?;
            if !is_torn {
                return Ok(found);
            }
        }
        Err(Refused { errno: Errno::EAGAIN, says: "what was looked at kept changing".to_owned() })
    }

    /// Carries `messages` out between `begin` and `end` as one: all, or none.
    ///
    /// # Errors
    /// What was refused first.
    pub fn transact(&mut self, begin: Message, messages: Vec<Message>, end: Message) -> Result<(), Refused> {
        // RACE: a thousand acknowledgements would overflow the socket. Errors come all the same; so one for the last
        // tells that all went well, and an answer to the beginning that nothing did.
        let first = self.sequence.wrapping_add(1);
        let mut bytes = begin.finish(0, first);
        let mut next = first;
        let count = messages.len();
        for (place, message) in messages.into_iter().enumerate() {
            next = next.wrapping_add(1);
            bytes.extend(message.finish(if place + 1 == count { NLM_F_ACK } else { 0 }, next));
        }
        let last = next;
        self.sequence = next.wrapping_add(1);
        bytes.extend(end.finish(0, self.sequence));
        sexton_sys::fd::write(self.socket.raw(), &bytes)?;
        let mut refused = None;
        loop {
            let len = sexton_sys::fd::read(self.socket.raw(), &mut self.buffer)?;
            for incoming in message::messages(self.buffer.get(..len).unwrap_or_default()) {
                let is_ours = incoming.sequence.wrapping_sub(first) <= last.wrapping_sub(first);
                if incoming.kind != NLMSG_ERROR || !is_ours {
                    continue;
                }
                if let Err(error) = verdict(&incoming) {
                    refused.get_or_insert(error);
                }
                if incoming.sequence == last || incoming.sequence == first {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn send(&mut self, messages: Vec<Message>, flags: u16) -> Result<(), Refused> {
        let mut bytes = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            bytes.extend(message.finish(flags, self.sequence));
        }
        // A datagram goes whole or not at all.
        sexton_sys::fd::write(self.socket.raw(), &bytes)?;
        Ok(())
    }

    /// Reads until the last `count` requests have their answer.
    fn hear(&mut self, count: usize, mut each: impl FnMut(Incoming<'_>)) -> Result<(), Refused> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let first = self.sequence.wrapping_sub(count);
        let mut open = count;
        let mut refused = None;
        while open > 0 {
            let len = sexton_sys::fd::read(self.socket.raw(), &mut self.buffer)?;
            for incoming in message::messages(self.buffer.get(..len).unwrap_or_default()) {
                // What an abandoned request left behind.
                if incoming.sequence.wrapping_sub(first).wrapping_sub(1) >= count {
                    continue;
                }
                match incoming.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        open = open.saturating_sub(1);
                        if let Err(error) = verdict(&incoming) {
                            refused.get_or_insert(error);
                        }
                    }
                    _ => each(incoming),
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

/// What an error message, or the end of a dump, says.
fn verdict(incoming: &Incoming<'_>) -> Result<(), Refused> {
    /// The error and the header of the request.
    const ERROR_HEAD: usize = 4 + message::HEADER;
    let code = message::number(incoming.body, 0).unwrap_or_default().cast_signed();
    if code >= 0 {
        return Ok(());
    }
    let head = if incoming.kind == NLMSG_ERROR { ERROR_HEAD } else { 4 };
    let words = Attributes::of(incoming.body.get(head..).unwrap_or_default()).find(NLMSGERR_ATTR_MSG);
    Err(Refused { errno: Errno(code.saturating_neg()), says: words.map(message::text_of).unwrap_or_default() })
}
