//! One connection: hyper over a socket whose every byte is metered, so that slow and idle ones can be told.
//!
//! ```text
//!   New ──► Idle ── first byte ──► Head ── head complete ──► Busy ── answer written ──► Idle
//!                                                            │  ▲
//!                                                            ▼  │ while a body is on its way
//!                                                            Body
//! ```
//! What hyper itself answers to a broken head has no body; it is replaced here by a problem document.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;

use super::answer::raw_problem;
use super::call::Peer;
use super::dispatch::Service;
use super::framing::Framing;
use super::meter::{Meter, Phase};
use super::socket::Socket;
use crate::refusal::{Kind, Refusal};

/// The head of a request: request line and headers, in bytes.
const HEAD_MAX: usize = 16 * 1_024;

/// Headers of one request.
const HEADERS_MAX: usize = 100;

/// Bytes that a refused upload may still send before it is cut off, so that its sender can read why.
const LINGER_BYTES: usize = 8 << 20;

/// How long it may take for that.
const LINGER_TIME: Duration = Duration::from_secs(1);

/// A request that tells its length twice.
#[derive(Debug, thiserror::Error)]
#[error("a request tells its length once: by one `Content-Length`, or by `Transfer-Encoding`")]
struct Ambiguous;

/// Hyper's end of the socket.
struct Io {
    meter: Arc<Meter>,
    framing: Framing,
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
        let this = &mut *self;
        let mut chunk = [0; CHUNK];
        let room = into.remaining().min(CHUNK);
        let space = chunk.get_mut(..room).unwrap_or_default();
        loop {
            ready!(this.meter.socket.poll_read_ready(cx))?;
            match this.meter.socket.try_read(space) {
                Ok(count) => {
                    let bytes = space.get(..count).unwrap_or_default();
                    if !this.framing.follow(bytes) {
                        this.meter.is_ambiguous.store(true, Ordering::Relaxed);
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, Ambiguous)));
                    }
                    this.meter.note_read(bytes);
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
        if is_ours || self.meter.phase() >= Phase::Body {
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
    meter.enter(Phase::Idle);
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
    let mut framing = Framing::default();
    if !framing.follow(&first) {
        return refuse_ambiguous(&meter.socket).await;
    }
    let io =
        Io { meter: meter.clone(), framing, first, substitute: Vec::new(), is_substituted: is_substituted.clone() };
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
    // Letting go of what was carried out makes the connection idle.
    let cut = meter.phase();
    drop(connection);
    // Hyper may take the error that ended its reading for an end without a reason.
    if meter.is_ambiguous.load(Ordering::Relaxed) {
        return refuse_ambiguous(&meter.socket).await;
    }
    let is_substituted = is_substituted.load(Ordering::Relaxed);
    match ended {
        None if cut == Phase::Head => {
            say(&meter.socket, &Refusal::new(Kind::RequestTimeout, "the request's head did not arrive in time"));
        }
        None if cut == Phase::Body => {
            say(&meter.socket, &Refusal::new(Kind::RequestTimeout, "the request's body did not arrive in time"));
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

async fn refuse_ambiguous(socket: &Socket) {
    say(socket, &Refusal::new(Kind::BadArgument, Ambiguous.to_string()));
    Box::pin(linger(socket)).await;
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
