//! What is known about a connection from outside of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::socket::Socket;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    /// Accepted, and not looked at yet.
    New,
    /// Before the first request, or between two.
    Idle,
    /// Some of a request's head has come.
    Head,
    /// The head is whole, and its body is on its way.
    Body,
    /// A request is being carried out or answered.
    Busy,
}

/// What is known about a connection from outside of it.
#[derive(Debug)]
pub(super) struct Meter {
    pub(super) socket: Arc<Socket>,
    begin: Instant,
    phase: AtomicU8,
    /// Milliseconds since `begin` when `phase` was entered.
    since: AtomicU64,
    /// Milliseconds since `begin` when a write began to wait for its reader; `u64::MAX` while none waits.
    stalled: AtomicU64,
    /// The request line of the head that is being read is complete.
    pub(super) has_line: AtomicBool,
    /// The request was answered before its body was read.
    pub(super) is_unread: AtomicBool,
    /// A request told its length twice.
    pub(super) is_ambiguous: AtomicBool,
    /// Whoever wants the connection gone wakes it here.
    pub(super) gone: Notify,
}

impl Meter {
    pub(super) fn new(socket: Arc<Socket>) -> Meter {
        Meter {
            socket,
            begin: Instant::now(),
            phase: AtomicU8::new(Phase::New as u8),
            since: AtomicU64::new(0),
            stalled: AtomicU64::new(u64::MAX),
            has_line: AtomicBool::new(false),
            is_unread: AtomicBool::new(false),
            is_ambiguous: AtomicBool::new(false),
            gone: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::New,
            1 => Phase::Idle,
            2 => Phase::Head,
            3 => Phase::Body,
            _ => Phase::Busy,
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.since.store(self.now(), Ordering::Relaxed);
        if phase != Phase::Head {
            self.has_line.store(false, Ordering::Relaxed);
        }
    }

    /// How long it has been in its phase.
    pub(super) fn age(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.since.load(Ordering::Relaxed)))
    }

    /// How long a write has waited for its reader.
    pub(super) fn stall(&self) -> Option<Duration> {
        match self.stalled.load(Ordering::Relaxed) {
            u64::MAX => None,
            since => Some(Duration::from_millis(self.now().saturating_sub(since))),
        }
    }

    /// Whether nobody is there any more to read an answer.
    pub(super) fn is_abandoned(&self) -> bool {
        self.socket.is_abandoned()
    }

    pub(super) fn note_read(&self, bytes: &[u8]) {
        if !bytes.is_empty() && self.phase() == Phase::Idle {
            self.enter(Phase::Head);
        }
        if self.phase() == Phase::Head && bytes.contains(&b'\n') {
            self.has_line.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn note_write(&self, waits: bool) {
        let now = if waits { self.now() } else { u64::MAX };
        if !waits || self.stalled.load(Ordering::Relaxed) == u64::MAX {
            self.stalled.store(now, Ordering::Relaxed);
        }
    }
}
