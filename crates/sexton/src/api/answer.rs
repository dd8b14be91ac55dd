//! What a route answers, and how it becomes a response.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

use super::types::Problem;
use crate::refusal::{Kind, Refusal};

/// Seconds after which a refused caller may try again.
const RETRY_SECONDS: u16 = 2;

/// A response's body: whole, or pieces as they come.
#[derive(Debug)]
pub enum Payload {
    /// All of it.
    Whole(Full<Bytes>),
    /// Pieces. An empty one ends it; where their sender is dropped without, it is cut off, so that nobody takes a part
    /// for the whole.
    Stream(mpsc::Receiver<Bytes>),
}

/// The piece that ends a stream.
pub const END: Bytes = Bytes::new();

/// A stream whose sender could not go on.
#[derive(Debug, thiserror::Error)]
#[error("cut off")]
pub struct Unfinished;

impl Body for Payload {
    type Data = Bytes;
    type Error = Unfinished;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Payload::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Payload::Stream(pieces) => pieces.poll_recv(cx).map(|piece| match piece {
                Some(bytes) if bytes.is_empty() => None,
                Some(bytes) => Some(Ok(Frame::data(bytes))),
                None => Some(Err(Unfinished)),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Payload::Whole(body) => body.is_end_stream(),
            Payload::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Payload::Whole(body) => body.size_hint(),
            Payload::Stream(_) => SizeHint::default(),
        }
    }
}

/// What goes back to the caller.
pub type Answer = Response<Payload>;

/// `value` as JSON under `status`.
pub fn json(status: u16, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(text) => whole(status, "application/json", text),
        Err(error) => problem(&Refusal::new(Kind::Internal, format!("could not write the answer: {error}"))),
    }
}

/// `text` of `media_type` under `status`.
pub fn whole(status: u16, media_type: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Payload::Whole(Full::new(text.into())));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

/// Pieces of `media_type` as they come, up to [`END`].
pub fn stream(media_type: &'static str, pieces: mpsc::Receiver<Bytes>) -> Answer {
    let mut answer = Response::new(Payload::Stream(pieces));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Adds a header; a value that cannot stand in one is left out.
pub fn with_header(mut answer: Answer, name: HeaderName, value: &str) -> Answer {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
    answer
}

/// A refusal's body.
pub fn problem_of(refusal: &Refusal) -> Problem {
    let kind = refusal.kind;
    Problem {
        code: kind.code().to_owned(),
        title: kind.title().to_owned(),
        status: kind.status(),
        detail: refusal.detail.clone(),
    }
}

/// A refusal as a response.
pub fn problem(refusal: &Refusal) -> Answer {
    let text = serde_json::to_vec(&problem_of(refusal)).unwrap_or_default();
    let mut answer = whole(refusal.kind.status(), "application/problem+json", text);
    match refusal.kind.status() {
        401 => answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
        503 => answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_SECONDS)),
        _ => None,
    };
    answer
}

/// The refusal of a method that a path does not know.
pub fn method_not_allowed(allowed: &str) -> Answer {
    let refusal = Refusal::new(Kind::MethodNotAllowed, format!("this path knows {allowed}"));
    with_header(problem(&refusal), ALLOW, allowed)
}

/// A refusal as bytes on the wire, for where hyper gives no way to answer.
pub fn raw_problem(refusal: &Refusal) -> Vec<u8> {
    let text = serde_json::to_vec(&problem_of(refusal)).unwrap_or_default();
    let status = StatusCode::from_u16(refusal.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let retry = if status.as_u16() == 503 { format!("retry-after: {RETRY_SECONDS}\r\n") } else { String::new() };
    let mut bytes = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n{retry}connection: close\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or(""),
        text.len(),
    )
    .into_bytes();
    bytes.extend_from_slice(&text);
    bytes
}
