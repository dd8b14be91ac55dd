//! One connection: hyper over a socket whose every byte is metered, so that slow and idle ones can be told.
//!
//! ```text
//!   Idle ── first byte ──► Head ── head complete ──► Busy ── answer written ──► Idle
//! ```
//! What hyper itself answers to a broken head has no body; it is replaced here by a problem document.

use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::answer::raw_problem;
use super::dispatch::{Peer, Service};
use crate::refusal::{Kind, Refusal};

/// The head of a request: request line and headers, in bytes.
const HEAD_MAX: usize = 16 * 1_024;

/// Headers of one request.
const HEADERS_MAX: usize = 100;

/// Bytes that a refused upload may still send before it is cut off, so that its sender can read why.
const LINGER_BYTES: usize = 8 << 20;

/// How long it may take for that.
const LINGER_TIME: Duration = Duration::from_secs(1);

/// A stream socket of one of the kinds that are listened on.
#[derive(Debug)]
pub(super) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Unix(stream) => stream.poll_read_ready(cx),
            Socket::Tcp(stream) => stream.poll_read_ready(cx),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Unix(stream) => stream.poll_write_ready(cx),
            Socket::Tcp(stream) => stream.poll_write_ready(cx),
        }
    }

    async fn readable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_read_ready(cx)).await
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.try_read(buffer),
            Socket::Tcp(stream) => stream.try_read(buffer),
        }
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.try_write(bytes),
            Socket::Tcp(stream) => stream.try_write(bytes),
        }
    }

    /// Tells the peer that nothing more comes.
    fn end_writing(&self) -> io::Result<()> {
        let end = std::net::Shutdown::Write;
        match self {
            Socket::Unix(stream) => {
                std::os::unix::net::UnixStream::from(stream.as_fd().try_clone_to_owned()?).shutdown(end)
            }
            Socket::Tcp(stream) => std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?).shutdown(end),
        }
    }

    /// Whether the peer has closed its end altogether, not just the direction that it writes in.
    fn is_abandoned(&self) -> bool {
        match self {
            // KERNEL: a write of nothing tells: `unix_stream_sendmsg` looks for `SEND_SHUTDOWN`, which only a full
            // close sets, before it looks at the length.
            Socket::Unix(stream) => {
                matches!(stream.try_write(&[]), Err(error) if error.kind() == io::ErrorKind::BrokenPipe)
            }
            Socket::Tcp(_) => false,
        }
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    /// Between two requests.
    Idle,
    /// Some of a request's head has come.
    Head,
    /// A request is being carried out or answered.
    Busy,
}

/// What is known about a connection from outside of it.
#[derive(Debug)]
pub(super) struct Meter {
    socket: Arc<Socket>,
    begin: Instant,
    phase: AtomicU8,
    /// Milliseconds since `begin` when `phase` was entered.
    since: AtomicU64,
    /// Milliseconds since `begin` when a write began to wait for its reader; `u64::MAX` while none waits.
    stalled: AtomicU64,
    /// The request line of the head that is being read is complete.
    has_line: AtomicBool,
    /// The request was answered before its body was read.
    pub(super) is_unread: AtomicBool,
    /// Whoever wants the connection gone wakes it here.
    pub(super) gone: Notify,
}

impl Meter {
    pub(super) fn new(socket: Arc<Socket>) -> Meter {
        Meter {
            socket,
            begin: Instant::now(),
            phase: AtomicU8::new(Phase::Idle as u8),
            since: AtomicU64::new(0),
            stalled: AtomicU64::new(u64::MAX),
            has_line: AtomicBool::new(false),
            is_unread: AtomicBool::new(false),
            gone: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
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

    fn note_read(&self, bytes: &[u8]) {
        if !bytes.is_empty() && self.phase() == Phase::Idle {
            self.enter(Phase::Head);
        }
        if self.phase() == Phase::Head && bytes.contains(&b'\n') {
            self.has_line.store(true, Ordering::Relaxed);
        }
    }

    fn note_write(&self, waits: bool) {
        let now = if waits { self.now() } else { u64::MAX };
        if !waits || self.stalled.load(Ordering::Relaxed) == u64::MAX {
            self.stalled.store(now, Ordering::Relaxed);
        }
    }
}

/// Hyper's end of the socket.
struct Io {
    meter: Arc<Meter>,
    /// What was read before hyper was there.
    first: Vec<u8>,
    /// A problem document in place of what hyper answered by itself, and how much of it is written.
    substitute: Vec<u8>,
    is_substituted: Arc<AtomicBool>,
}

/// Bytes taken from the socket at first: most requests whole.
const FIRST_CHUNK: usize = 1_024;

/// Bytes taken from the socket at once.
const CHUNK: usize = 8 * 1_024;

impl Read for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(into.remaining());
            let rest = self.first.split_off(count);
            into.put_slice(&self.first);
            self.first = rest;
            return Poll::Ready(Ok(()));
        }
        let mut chunk = [0; CHUNK];
        let room = into.remaining().min(CHUNK);
        let space = chunk.get_mut(..room).unwrap_or_default();
        loop {
            ready!(self.meter.socket.poll_read_ready(cx))?;
            match self.meter.socket.try_read(space) {
                Ok(count) => {
                    let bytes = space.get(..count).unwrap_or_default();
                    self.meter.note_read(bytes);
                    into.put_slice(bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// The media type of every refusal of ours.
const PROBLEM: &[u8] = b"application/problem+json";

impl Io {
    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.meter.socket.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.meter.note_write(true);
                    return Poll::Pending;
                }
            }
            match self.meter.socket.try_write(bytes) {
                Ok(count) => {
                    self.meter.note_write(false);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// The document to send in place of `bytes`, where hyper wrote them without having asked the service.
    fn substitute_for(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        // What the service answered says what it is; hyper's own refusals are bare.
        let is_ours = bytes.windows(PROBLEM.len()).any(|window| window == PROBLEM);
        if is_ours || self.meter.phase() == Phase::Busy {
            return None;
        }
        let status = bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
        let has_line = self.meter.has_line.load(Ordering::Relaxed);
        let refusal = match status {
            b"400" => Refusal::new(Kind::BadArgument, "this is no HTTP/1.1 request"),
            b"431" if has_line => Refusal::new(
                Kind::HeadersTooLarge,
                format!("the request's headers are more than {HEADERS_MAX}, or longer than {HEAD_MAX} bytes"),
            ),
            b"414" | b"431" => {
                Refusal::new(Kind::UriTooLong, format!("the request line is longer than {HEAD_MAX} bytes"))
            }
            _ => return None,
        };
        Some(raw_problem(&refusal))
    }

    fn poll_substitute(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.substitute.is_empty() {
            let count = ready!(self.poll_send(cx, &self.substitute))?;
            self.substitute.drain(..count.min(self.substitute.len()));
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_substitute(cx))?;
        match self.substitute_for(bytes) {
            Some(substitute) => {
                self.substitute = substitute;
                self.is_substituted.store(true, Ordering::Relaxed);
                Poll::Ready(Ok(bytes.len()))
            }
            None => self.poll_send(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_substitute(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_substitute(cx))?;
        Poll::Ready(self.meter.socket.end_writing())
    }
}

/// Serves one connection until it ends or is told to.
pub(super) async fn serve(meter: Arc<Meter>, peer: Peer, context: Arc<super::Context>) {
    let first = tokio::select! {
        biased;
        () = meter.gone.notified() => return,
        first = first_bytes(&meter) => first,
    };
    let Some(first) = first else { return };
    // BOUND: who has sent nothing yet costs neither a buffer nor the room for what follows.
    Box::pin(speak(meter, peer, context, first)).await;
}

/// Waits for the first bytes, for a socket is called readable when it is accepted, whether or not it is; `None` where
/// there are none.
async fn first_bytes(meter: &Meter) -> Option<Vec<u8>> {
    loop {
        meter.socket.readable().await.ok()?;
        let mut chunk = [0; FIRST_CHUNK];
        match meter.socket.try_read(&mut chunk) {
            Ok(0) => return None,
            Ok(count) => {
                let first = chunk.get(..count)?;
                meter.note_read(first);
                return Some(first.to_vec());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

async fn speak(meter: Arc<Meter>, peer: Peer, context: Arc<super::Context>, first: Vec<u8>) {
    let is_substituted = Arc::new(AtomicBool::new(false));
    let io = Io { meter: meter.clone(), first, substitute: Vec::new(), is_substituted: is_substituted.clone() };
    let service = Service { context, peer, meter: meter.clone() };
    let mut http = http1::Builder::new();
    // A caller that half-closes after its request still wants the answer.
    http.half_close(true).max_headers(HEADERS_MAX).max_header_size(HEAD_MAX).header_read_timeout(None);
    let mut connection = http.serve_connection(io, service);
    let ended = tokio::select! {
        biased;
        () = meter.gone.notified() => None,
        ended = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(ended),
    };
    drop(connection);
    let is_substituted = is_substituted.load(Ordering::Relaxed);
    match ended {
        None if meter.phase() == Phase::Head => {
            say(&meter.socket, &Refusal::new(Kind::RequestTimeout, "the request's head did not arrive in time"));
        }
        None | Some(Ok(())) => {}
        Some(Err(error)) => {
            tracing::debug!(%error, "connection ended");
            if error.is_parse() && !is_substituted {
                say(&meter.socket, &Refusal::new(Kind::BadArgument, "this is no HTTP/1.1 request"));
            }
        }
    }
    if meter.is_unread.load(Ordering::Relaxed) || is_substituted {
        Box::pin(linger(&meter.socket)).await;
    }
}

/// Answers on a socket that hyper has let go of; what does not fit into the socket's buffer is not sent.
pub(super) fn say(socket: &Socket, refusal: &Refusal) {
    if let Err(error) = socket.try_write(&raw_problem(refusal)) {
        tracing::debug!(%error, "could not tell the refusal");
    }
}

/// Reads on for a moment: closing a socket with unread bytes would reset it before the answer is read.
async fn linger(socket: &Socket) {
    if socket.end_writing().is_err() {
        return;
    }
    let discard = async {
        let mut chunk = [0; CHUNK];
        let mut left = LINGER_BYTES;
        while left > 0 && socket.readable().await.is_ok() {
            match socket.try_read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => left = left.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    // Past the time-out there is nothing left to do but to close.
    let _whether_in_time = tokio::time::timeout(LINGER_TIME, discard).await;
}
