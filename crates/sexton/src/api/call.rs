//! One request, between the dispatcher that reads it and the route that carries it out.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::Bytes;
use hyper::header::HeaderMap;
use serde_json::Value;

use super::Context;
use super::answer::Answer;
use super::path::Query;
use crate::node::request::Caller;
use crate::refusal::Refusal;

/// The largest body.
pub const BODY_MAX: usize = 1 << 20;

/// Who is at the other end.
#[derive(Clone, Debug)]
pub(super) enum Peer {
    /// A process of this user (`SO_PEERCRED`), where the kernel tells.
    Unix { uid: Option<u32> },
    /// Somebody who must present this token.
    Tcp { address: SocketAddr, token: Arc<str> },
}

/// One request, as far as its route needs it.
#[derive(Debug)]
pub(super) struct Call {
    pub context: Arc<Context>,
    pub caller: Caller,
    /// Whether the caller is root or the daemon's own user.
    pub is_owner: bool,
    /// What stands in the path's braces, decoded once.
    pub segments: Vec<String>,
    pub query: Query,
    pub headers: HeaderMap,
    /// The body, where the route takes one and one was sent.
    pub body: Option<Value>,
    /// The body as it came.
    pub bytes: Bytes,
}

/// What a route's handler returns.
pub(super) type Handling = Pin<Box<dyn Future<Output = Result<Answer, Refusal>> + Send>>;

/// A future that runs to its end whoever waits for it.
///
/// CANCEL: dropping the returned future leaves the work running; a request that arrived whole is carried out.
pub(super) async fn detached<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, Refusal> {
    tokio::spawn(work).await.map_err(|_| Refusal::ending())
}
