//! Logs: the raw bytes of one stream, from the file that the workload itself writes.

use hyper::header::HeaderName;
use sexton_core::gate;
use sexton_plan::id::Incarnation;
use tokio::sync::mpsc;

use super::instances::shown;
use super::{name, wait};
use crate::api::answer::{Answer, stream, with_header};
use crate::api::call::Call;
use crate::api::follow::{Follow, Start, life_after};
use crate::api::path::whole;
use crate::api::types::Stream;
use crate::refusal::{Kind, Refusal};

/// The life whose log comes first.
const INCARNATION: HeaderName = HeaderName::from_static("sexton-incarnation");
/// The number, in that life's log, of the first byte that comes.
const OFFSET: HeaderName = HeaderName::from_static("sexton-offset");

/// Pieces that wait for their reader, each of at most 64 KiB.
const PIECES: usize = 1;

pub(in crate::api) async fn read(call: Call) -> Result<Answer, Refusal> {
    let name = name(&call)?;
    let stream_of = |text: &str| match text {
        "stdout" => Some(Stream::Stdout),
        "stderr" => Some(Stream::Stderr),
        _ => None,
    };
    let which = call.query.parsed("stream", "`stdout` or `stderr`", stream_of)?.unwrap_or(Stream::Stdout);
    let from = start(&call)?;
    let follows = call.query.flag("follow")?;
    let rule = "an incarnation, which is a ULID";
    let named: Option<Incarnation> = call.query.parsed("incarnation", rule, |text| text.parse().ok())?;
    let last: Option<Incarnation> = call.query.parsed("after", rule, |text| text.parse().ok())?;
    let wait = wait(&call)?.unwrap_or_default();
    let life = match (named, last) {
        (Some(_), Some(_)) => {
            return Err(Refusal::new(Kind::BadArgument, "`after` cannot stand beside `incarnation`"));
        }
        (named, None) => named,
        (None, Some(last)) => {
            let Some(next) = life_after(&call.context, &name, which, &last, wait).await? else {
                return Ok(shown(202, call.context.node.one(name).await?.as_ref()));
            };
            Some(next)
        }
    };
    let (sender, pieces) = mpsc::channel(PIECES);
    // What is asked for while draining is handed out all the same, and nobody waits for it.
    let permit = call.context.host.as_ref().and_then(|host| host.gate.enter_owned(gate::Kind::LOG_EXPORT).ok());
    let status = call.context.node.status().await?;
    let follow = Follow { context: call.context, name, stream: which, from, life, sender, status, permit };
    let reading = follow.begin(follows).await?;
    let (incarnation, offset) = reading.place();
    let answer = with_header(stream("application/octet-stream", pieces), INCARNATION, incarnation);
    let answer = with_header(answer, OFFSET, &offset.to_string());
    tokio::spawn(reading.run());
    Ok(answer)
}

/// Where to begin, as the request says.
fn start(call: &Call) -> Result<Start, Refusal> {
    let tail = call.query.parsed("tail", "a whole number of lines", whole)?;
    let offset = call.query.parsed("offset", "a number of a byte", whole)?;
    match (tail, offset) {
        (None, None) => Ok(Start::First),
        (Some(lines), None) => Ok(Start::Tail(lines)),
        (None, Some(byte)) => Ok(Start::Byte(byte)),
        (Some(_), Some(_)) => Err(Refusal::new(Kind::BadArgument, "`tail` cannot stand beside `offset`")),
    }
}
