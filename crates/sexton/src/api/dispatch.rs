//! From a request to its route: access, path, method, body, in the order in which refusals are told.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, TRANSFER_ENCODING};
use hyper::{Method, Request, Response};
use serde_json::Value;

use super::answer::{Answer, Payload, Unfinished, method_not_allowed, problem, with_header};
use super::call::{Call, Peer};
use super::meter::{Meter, Phase};
use super::path::{Query, decode};
use super::table::{BodyRule, Found, Route, find};
use super::{Context, json};
use crate::config::Role;
use crate::node::request::Caller;
use crate::refusal::{Kind, Refusal};

/// The longest path and query.
const URI_MAX: usize = 8 * 1_024;

/// How long a body may pause.
const BODY_PAUSE: Duration = Duration::from_secs(10);

/// How long a body may take altogether.
const BODY_TIME: Duration = Duration::from_secs(60);

/// Answers the requests of one connection.
pub(super) struct Service {
    pub context: Arc<Context>,
    pub peer: Peer,
    pub meter: Arc<Meter>,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Metered>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.meter.enter(Phase::Busy);
        let busy = Busy(self.meter.clone());
        let (context, peer) = (self.context.clone(), self.peer.clone());
        Box::pin(async move {
            let (head, body) = request.into_parts();
            // What lies behind a chunked body is not followed on the wire, so nothing is taken from there.
            let is_chunked = head.headers.contains_key(TRANSFER_ENCODING);
            let mut upload = Upload { body, is_read: false };
            let answered = answer(context, peer, &busy.0, head, &mut upload).await;
            let mut answer = answered.unwrap_or_else(|refused| refused);
            if !upload.is_read && !upload.body.is_end_stream() {
                busy.0.is_unread.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            if is_chunked || busy.0.is_unread.load(std::sync::atomic::Ordering::Relaxed) {
                answer = with_header(answer, CONNECTION, "close");
            }
            Ok(answer.map(|payload| Metered { payload, _busy: busy }))
        })
    }
}

/// Marks its connection as idle again when it is dropped, which hyper does once the answer is written.
struct Busy(Arc<Meter>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.enter(Phase::Idle);
    }
}

/// An answer's body that keeps its connection busy for as long as it lasts.
pub(super) struct Metered {
    payload: Payload,
    _busy: Busy,
}

impl hyper::body::Body for Metered {
    type Data = Bytes;
    type Error = Unfinished;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.get_mut().payload).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.payload.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.payload.size_hint()
    }
}

/// A request's body, and whether all of it was taken off the wire.
struct Upload {
    body: Incoming,
    is_read: bool,
}

async fn answer(
    context: Arc<Context>,
    peer: Peer,
    meter: &Meter,
    head: hyper::http::request::Parts,
    upload: &mut Upload,
) -> Result<Answer, Answer> {
    let refuse = |refusal: Refusal| problem(&refusal);
    let uri = head.uri.path_and_query().map_or("", |text| text.as_str());
    if uri.len() > URI_MAX {
        return Err(refuse(Refusal::new(
            Kind::UriTooLong,
            format!("the path and query are longer than {URI_MAX} bytes"),
        )));
    }
    let (role, caller) = admit(&context, &peer, &head.headers).map_err(refuse)?;
    let (route, segments) = match find(&head.method, head.uri.path()) {
        Found::Route(route, segments) => (route, segments),
        Found::Methods(methods) => return Err(method_not_allowed(&methods)),
        Found::Nothing => {
            let told = format!("there is nothing at `{}`", head.uri.path().escape_debug());
            return Err(refuse(Refusal::new(Kind::NotFound, told)));
        }
    };
    if route.role > role {
        return Err(refuse(Refusal::new(Kind::Forbidden, "your role is `read`, and this needs `admin`")));
    }
    let call = async {
        meter.enter(Phase::Body);
        let received = receive(route, &head.headers, upload).await;
        meter.enter(Phase::Busy);
        let bytes = received?;
        let mut decoded = Vec::new();
        for segment in segments {
            let told =
                || Refusal::new(Kind::BadArgument, "the path holds a broken percent escape, or what is not UTF-8");
            decoded.push(decode(segment).ok_or_else(told)?);
        }
        let known: Vec<&str> = route.query.iter().map(|parameter| parameter.name).collect();
        let query = Query::parse(head.uri.query().unwrap_or(""), &known, &["label"])?;
        let body = read_body(route, &bytes, &head.method)?;
        let handler = route.handler;
        let is_owner = caller.uid.is_some_and(|uid| context.is_owner(uid));
        handler(Call { context, caller, is_owner, segments: decoded, query, headers: head.headers, body, bytes }).await
    };
    call.await.map_err(refuse)
}

/// Who may come in, and as what.
fn admit(context: &Context, peer: &Peer, headers: &HeaderMap) -> Result<(Role, Caller), Refusal> {
    match peer {
        Peer::Unix { uid } => {
            let role = uid.and_then(|uid| context.role_of(uid));
            let told = || match uid {
                Some(uid) => {
                    format!("user {uid} is neither root nor the daemon's own, and is in no `[[access]]` table")
                }
                None => "the kernel does not tell which user you are".to_owned(),
            };
            let role = role.ok_or_else(|| Refusal::new(Kind::Forbidden, told()))?;
            Ok((role, Caller { uid: *uid, by: "unix".to_owned() }))
        }
        Peer::Tcp { address, token } => {
            let presented = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
            if presented.is_some_and(|presented| is_same(presented, token.as_bytes())) {
                return Ok((Role::Admin, Caller { uid: None, by: format!("token {}", address.ip()) }));
            }
            Err(Refusal::new(Kind::Unauthenticated, "a token is needed: `Authorization: Bearer …`"))
        }
    }
}

/// The token in a header's value; the scheme's name is written in any case (RFC 9110, 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii_start())
}

/// Whether two secrets are the same, without telling by its time where they differ.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// Takes the body off the wire, whole.
async fn receive(route: &Route, headers: &HeaderMap, upload: &mut Upload) -> Result<Bytes, Refusal> {
    let most = route.body.limit();
    let too_large = || Refusal::new(Kind::TooLarge, format!("the body is larger than {most} bytes"));
    if upload.body.size_hint().lower() > most as u64 {
        return Err(too_large());
    }
    if upload.body.is_end_stream() {
        upload.is_read = true;
        return Ok(Bytes::new());
    }
    check_media_type(route, headers)?;
    let whole = tokio::time::timeout(BODY_TIME, collect(&mut upload.body, most)).await;
    let bytes = whole.unwrap_or(Err(Cut::Late)).map_err(|cut| match cut {
        Cut::Large => too_large(),
        Cut::Late => Refusal::new(Kind::RequestTimeout, "the body did not arrive in time"),
        Cut::Off => Refusal::new(Kind::BadArgument, "the body was cut off, or is badly framed"),
    })?;
    upload.is_read = true;
    Ok(bytes)
}

/// Why a body is not whole.
enum Cut {
    Large,
    Late,
    Off,
}

async fn collect(body: &mut Incoming, most: usize) -> Result<Bytes, Cut> {
    let mut whole = Vec::new();
    loop {
        let frame = tokio::time::timeout(BODY_PAUSE, body.frame()).await.map_err(|_| Cut::Late)?;
        let Some(frame) = frame else { return Ok(whole.into()) };
        let Ok(piece) = frame.map_err(|_| Cut::Off)?.into_data() else { continue };
        if whole.len() + piece.len() > most {
            return Err(Cut::Large);
        }
        whole.extend_from_slice(&piece);
    }
}

fn check_media_type(route: &Route, headers: &HeaderMap) -> Result<(), Refusal> {
    if matches!(route.body, BodyRule::Ignored) {
        return Ok(());
    }
    let told =
        |what: String| Err(Refusal::new(Kind::UnsupportedMediaType, format!("{what}; a body is `application/json`")));
    if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|encoding| encoding.as_bytes() != b"identity") {
        return told(format!("content-encoding `{}`", encoding.as_bytes().escape_ascii()));
    }
    let Some(media_type) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let essence = media_type.as_bytes().split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(b"application/json") {
        return Ok(());
    }
    told(format!("content-type `{}`", media_type.as_bytes().escape_ascii()))
}

/// The body as the route takes it.
fn read_body(route: &Route, bytes: &Bytes, method: &Method) -> Result<Option<Value>, Refusal> {
    match &route.body {
        BodyRule::Ignored => Ok(None),
        BodyRule::Optional(_) | BodyRule::Empty if bytes.is_empty() => Ok(None),
        BodyRule::Empty => {
            json::Fields::new(json::parse(bytes)?)?.end("", &[])?;
            Ok(None)
        }
        BodyRule::Required { .. } if bytes.is_empty() => {
            Err(Refusal::new(Kind::BadArgument, format!("{method} needs a body here, and it is empty")))
        }
        BodyRule::Optional(_) | BodyRule::Required { .. } => json::parse(bytes).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::is_same;

    #[test]
    fn tokens_are_compared_whole() {
        assert!(is_same(b"abc", b"abc"));
        assert!(!is_same(b"abc", b"abd") && !is_same(b"ab", b"abc") && !is_same(b"", b"a"));
    }
}
