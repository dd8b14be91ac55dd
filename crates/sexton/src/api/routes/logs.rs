//! Logs: the raw bytes of one stream, from the file that the workload itself writes.

use sexton_core::gate;
use sexton_plan::id::Incarnation;
use tokio::sync::mpsc;

use super::name;
use crate::api::answer::{Answer, stream};
use crate::api::call::Call;
use crate::api::follow::Follow;
use crate::api::path::whole;
use crate::api::types::Stream;
use crate::refusal::Refusal;

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
    let tail = call.query.parsed("tail", "a whole number of lines", whole)?;
    let follows = call.query.flag("follow")?;
    let rule = "an incarnation, which is a ULID";
    let life: Option<Incarnation> = call.query.parsed("incarnation", rule, |text| text.parse().ok())?;
    let (sender, pieces) = mpsc::channel(PIECES);
    // What is asked for while draining is handed out all the same, and nobody waits for it.
    let permit = call.context.host.as_ref().and_then(|host| host.gate.enter_owned(gate::Kind::LOG_EXPORT).ok());
    let status = call.context.node.status().await?;
    let follow = Follow { context: call.context, name, stream: which, tail, life, sender, status, permit };
    let reading = follow.begin(follows).await?;
    tokio::spawn(reading.run());
    Ok(stream("application/octet-stream", pieces))
}
