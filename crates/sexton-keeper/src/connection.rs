//! The keeper's end of the connection to one worker.
//!
//! Nothing is queued here: what is to be said follows from the keeper's state and from how much of it has been said, so
//! that a worker that does not read costs no memory, and a new one is told everything.

use sexton_sys::poll::{PollFd, events};
use sexton_sys::socket::{receive, send};
use sexton_sys::{Errno, Fd, RawFd};

use crate::clock::Time;
use crate::records::Records;
use crate::store::Store;
use crate::sweep::Sweep;
use crate::wire::{MAX_MESSAGE, ToKeeper, ToWorker, Welcome};

/// How long to wait with a message that the kernel has no room for, though the socket has.
const RETRY: Time = Time::millis(100);

/// BOUND: a worker that has hung up would be alone. It does so as it ends, with an exit code that says why; one that has
/// not ended by then is ended.
const LINGER: Time = Time::SECOND;

/// What the keeper has for a worker.
pub(crate) struct News<'a, 'b> {
    pub(crate) welcome: Welcome,
    pub(crate) store: &'a Store,
    pub(crate) records: &'a Records<'b>,
    pub(crate) sweep: &'a mut Sweep,
    pub(crate) retire: bool,
    pub(crate) shutdown: u8,
}

/// One end, and how much has been said through it.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Fd,
    /// A candidate is told nothing until its predecessor has ended.
    released: bool,
    welcomed: bool,
    stored: usize,
    next_exit: u64,
    /// Whether it has been told to start.
    gone: bool,
    retired: bool,
    shutdown: u8,
    state: Sending,
    /// Whether the worker may still say something: it has not closed its end, or not all of it has been heard.
    hearing: bool,
    /// When a worker that hung up is to have ended, until it is told to.
    end_by: Time,
}

/// Whether the worker takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    /// It does.
    Open,
    /// Its socket is full.
    Full,
    /// The kernel is short of something else until then.
    Wait(Time),
    /// It has closed its end.
    Closed,
}

/// What a worker said.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A message that is known, and the descriptor that came with it.
    Message(ToKeeper, Option<Fd>),
    /// One that is not, or is none.
    Skipped,
    /// Nothing more for now.
    Silence,
}

impl Connection {
    /// The connection of a worker that may start at once, or only once it is released.
    pub(crate) fn new(socket: Fd, released: bool) -> Connection {
        Connection {
            socket,
            released,
            welcomed: false,
            stored: 0,
            next_exit: 0,
            gone: false,
            retired: false,
            shutdown: 0,
            state: Sending::Open,
            hearing: true,
            end_by: Time::NEVER,
        }
    }

    /// Lets the worker start.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }

    /// What to wait for: what the worker says and, where it is behind, that it takes more.
    pub(crate) fn watched(&self) -> PollFd {
        match self.state {
            _ if !self.hearing => PollFd::unused(),
            Sending::Full => PollFd::new(self.socket.raw(), events::IN | events::OUT),
            Sending::Open | Sending::Wait(_) | Sending::Closed => PollFd::new(self.socket.raw(), events::IN),
        }
    }

    /// Whether the worker has been told to retire.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired
    }

    /// Whether the worker hung up long ago and is to be ended; said once.
    pub(crate) fn take_overdue(&mut self, now: Time) -> bool {
        let overdue = self.end_by <= now;
        if overdue {
            self.end_by = Time::NEVER;
        }
        overdue
    }

    /// When there is something to do by itself: to try to send again, or to end who is overdue.
    pub(crate) fn due(&self) -> Time {
        match self.state {
            Sending::Wait(until) if self.hearing => until,
            Sending::Open | Sending::Full | Sending::Wait(_) | Sending::Closed => self.end_by,
        }
    }

    /// Takes one message.
    pub(crate) fn hear(&mut self, now: Time) -> Heard {
        let mut packet = [0; MAX_MESSAGE];
        while self.hearing {
            match receive(self.socket.raw(), &mut packet) {
                Ok(received) if received.len > 0 => {
                    return match ToKeeper::decode(packet.get(..received.len).unwrap_or_default()) {
                        Ok(Some(message)) => Heard::Message(message, received.fd),
                        Ok(None) | Err(_) => Heard::Skipped,
                    };
                }
                // It ended without having read all; the kernel says so once, and what it said itself comes after that.
                Err(error) if error.errno == Errno::ECONNRESET => {}
                // Nothing there, or no memory to take it with.
                Err(error) if matches!(error.errno, Errno::EAGAIN | Errno::ENOMEM) => return Heard::Silence,
                Ok(_) | Err(_) => {
                    self.hearing = false;
                    self.end_by = now + LINGER;
                }
            }
        }
        Heard::Silence
    }

    /// Says what has not been said yet, as far as the worker takes it.
    pub(crate) fn tell(&mut self, now: Time, news: &mut News<'_, '_>) {
        if self.state == Sending::Full || self.due() <= now {
            self.state = Sending::Open;
        }
        while self.released && self.state == Sending::Open && self.tell_next(now, news) {}
    }

    /// Says the next thing; `false` where there is none.
    fn tell_next(&mut self, now: Time, news: &mut News<'_, '_>) -> bool {
        // What a worker must know before it starts: the descriptors that others stored, and the exits.
        let stored = if self.gone { None } else { news.store.from(self.stored) };
        if !self.welcomed {
            self.welcomed = self.send(now, ToWorker::Welcome(news.welcome), None);
        } else if let Some((name, fd, next)) = stored {
            if self.send(now, ToWorker::Stored(name), Some(fd)) {
                self.stored = next;
            }
        } else if let Some(record) = news.records.from(self.next_exit) {
            if self.send(now, ToWorker::Exit(record), None) {
                self.next_exit = record.seq + 1;
            }
        } else if !self.gone {
            self.gone = self.send(now, ToWorker::Go, None);
        } else if news.retire && !self.retired {
            self.retired = self.send(now, ToWorker::Retire, None);
        } else if news.shutdown > self.shutdown {
            if self.send(now, ToWorker::Shutdown { level: news.shutdown }, None) {
                self.shutdown = news.shutdown;
            }
        } else if let Some(&swept) = news.sweep.untold() {
            if self.send(now, ToWorker::Swept(swept), None) {
                news.sweep.told();
            }
        } else {
            return false;
        }
        true
    }

    /// Sends one message; `false` where the worker does not take it now.
    fn send(&mut self, now: Time, message: ToWorker, fd: Option<RawFd>) -> bool {
        let mut packet = [0; MAX_MESSAGE];
        let len = message.encode(&mut packet);
        let Err(error) = send(self.socket.raw(), packet.get(..len).unwrap_or_default(), fd) else {
            return true;
        };
        self.state = match error.errno {
            Errno::EAGAIN => Sending::Full,
            Errno::EPIPE | Errno::ECONNRESET => Sending::Closed,
            _ => Sending::Wait(now + RETRY),
        };
        false
    }
}
