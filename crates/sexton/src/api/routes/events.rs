//! The event log, by the page or as it grows.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{ACCEPT, HeaderName};
use sexton_ledger::{Event, ReadError};
use tokio::sync::mpsc;

use super::limit;
use crate::api::Context;
use crate::api::answer::{Answer, json, stream};
use crate::api::call::Call;
use crate::api::path::whole;
use crate::api::types::List;
use crate::refusal::{Kind, Refusal};

static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Events read at once for a stream; bounds what one slow reader holds in memory.
const BATCH: usize = 128;

/// Pieces that wait for a stream's reader, each of at most [`BATCH`] events.
const PIECES: usize = 1;

/// A comment is sent when nothing else was for so long: it finds readers that are gone.
const HEARTBEAT: Duration = Duration::from_secs(15);

pub(in crate::api) async fn list(call: Call) -> Result<Answer, Refusal> {
    let rule = "a number of an event, or 0";
    let after = call.query.parsed("after", rule, whole)?;
    let limit = limit(&call)?;
    let wants_stream = call.headers.get_all(ACCEPT).iter().any(|value| accepts_stream(value.as_bytes()));
    if wants_stream {
        let resumed = match call.headers.get(&LAST_EVENT_ID) {
            None => None,
            Some(value) => Some(
                value
                    .to_str()
                    .ok()
                    .and_then(whole)
                    .ok_or_else(|| Refusal::new(Kind::BadArgument, format!("`Last-Event-ID` is not {rule}")))?,
            ),
        };
        // A browser that reconnects repeats the address it was given; the header is newer.
        let after = resumed.or(after).unwrap_or(0);
        if after < *call.context.last_seq.borrow() {
            // Who cannot be given the next event is told so, and not cut off again and again.
            news(&call.context, after, 1).await?;
        }
        let (sender, pieces) = mpsc::channel(PIECES);
        tokio::spawn(follow(call.context, after, sender));
        return Ok(stream("text/event-stream", pieces));
    }
    let newest = *call.context.last_seq.borrow();
    // One more than asked for tells whether there is another page; so does an event that is not given, for it is damaged.
    let mut items = page(&call.context, after.unwrap_or(0), limit + 1).await?;
    let has_more = items.len() > limit || items.last().is_some_and(|last| last.seq < newest);
    items.truncate(limit);
    let next = items.last().filter(|_| has_more).map(|last| last.seq.into());
    Ok(json(200, &List { items, next }))
}

fn accepts_stream(value: &[u8]) -> bool {
    value.split(|b| *b == b',').any(|range| {
        let essence = range.split(|b| *b == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    })
}

/// Reads a page on a thread of its own: the event log may be on a slow disk.
pub(in crate::api) async fn page(context: &Arc<Context>, after: u64, limit: usize) -> Result<Vec<Event>, Refusal> {
    let reader = context.events.0.clone();
    // Never closed; and if it were, more threads would do no harm.
    let _turn = context.disk.acquire().await;
    let read = tokio::task::spawn_blocking(move || reader.events_after(after, limit)).await;
    let told = |why: String| Refusal::new(Kind::Internal, format!("could not read the event log: {why}"));
    read.map_err(|_| Refusal::ending())?.map_err(|error| match error {
        ReadError::Damaged(_) => told(format!("{error}; what is behind it is given `after` its number")),
        ReadError::Sqlite(_) => told(error.to_string()),
    })
}

/// As [`page`], for whoever follows the log: what was recorded a moment ago is in memory.
pub(in crate::api) async fn news(context: &Arc<Context>, after: u64, limit: usize) -> Result<Vec<Arc<Event>>, Refusal> {
    let recent = context.events.0.recent_events(after, limit);
    if !recent.is_empty() {
        return Ok(recent);
    }
    Ok(page(context, after, limit).await?.into_iter().map(Arc::new).collect())
}

/// Sends every event after `after` as it comes, until its reader is gone.
async fn follow(context: Arc<Context>, mut after: u64, sender: mpsc::Sender<Bytes>) {
    let mut last_seq = context.last_seq.clone();
    // Tells the reader at once that it is connected.
    if sender.send(Bytes::from_static(b": connected\n\n")).await.is_err() {
        return;
    }
    loop {
        let newest = *last_seq.borrow_and_update();
        while after < newest {
            let events = match news(&context, after, BATCH).await {
                Ok(events) => events,
                Err(error) => {
                    tracing::error!(%error, "a stream of events ends");
                    return;
                }
            };
            let Some(last) = events.last() else { break };
            after = last.seq;
            if sender.send(written(&events)).await.is_err() {
                return;
            }
        }
        let news = tokio::select! {
            () = sender.closed() => return,
            news = tokio::time::timeout(HEARTBEAT, last_seq.changed()) => news,
        };
        match news {
            Ok(Ok(())) => {}
            // The daemon is ending.
            Ok(Err(_)) => return,
            Err(_) => {
                if sender.send(Bytes::from_static(b": still here\n\n")).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn written(events: &[Arc<Event>]) -> Bytes {
    let mut text = String::new();
    for event in events {
        // JSON on one line: it holds no line end of its own.
        let line = serde_json::to_string(&**event).unwrap_or_default();
        text.push_str(&format!("id: {}\nevent: {}\ndata: {line}\n\n", event.seq, event.kind));
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::accepts_stream;

    #[test]
    fn a_stream_is_asked_for_by_name() {
        assert!(accepts_stream(b"text/event-stream"));
        assert!(accepts_stream(b"application/json;q=0.5, Text/Event-Stream; q=1"));
        assert!(!accepts_stream(b"*/*") && !accepts_stream(b"application/json"));
    }
}
