//! Instances: taken, shown, started, stopped, signalled, removed.
//!
//! What changes something is handed to the node by a task of its own, so that it is carried out though its caller
//! hangs up meanwhile; waiting for what comes of it ends with the caller.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, LOCATION};
use sexton_ledger::Snapshot;
use sexton_ledger::entry::Entry;
use sexton_plan::id::Name;

use super::{limit, name, wait};
use crate::api::answer::{Answer, json, with_header};
use crate::api::call::{Call, detached};
use crate::api::json::{Fields, depth};
use crate::api::spec;
use crate::api::types::{ControlView, InstanceView, List};
use crate::node::adapter;
use crate::node::request::{Filter, IdempotencyKey, NewInstance, Stop, Until};
use crate::refusal::{Kind, Refusal};

/// How deep a snapshot may be nested: many a program stops at 128, and it stands within a list's objects.
pub const SNAPSHOT_DEPTH_MAX: usize = 120;

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

pub(super) fn shown(status: u16, entry: &Entry) -> Answer {
    json(status, &InstanceView::from(entry))
}

fn unknown(name: &Name) -> Refusal {
    Refusal::new(Kind::NotFound, format!("there is no instance `{name}`"))
}

pub(in crate::api) async fn create(call: Call) -> Result<Answer, Refusal> {
    wait(&call)?;
    let new = spec::new_instance(call.body.unwrap_or_default(), &call.context.settings)?;
    let key = key(&call.headers)?.map(|key| IdempotencyKey { key, fingerprint: fingerprint(&new) });
    let (node, caller) = (call.context.node.clone(), call.caller);
    let entry = detached(async move { node.create(new, key, caller).await }).await??;
    Ok(with_header(shown(201, &entry), LOCATION, &format!("/v1/instances/{}", entry.name)))
}

/// The idempotency key; given twice, it must be the same: which of two was meant nobody can tell.
fn key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut values = headers.get_all(&IDEMPOTENCY_KEY).iter();
    let Some(first) = values.next() else { return Ok(None) };
    if values.any(|value| value != first) {
        return Err(Refusal::new(Kind::BadArgument, "`Idempotency-Key` is given twice, with two values"));
    }
    key_text(first.as_bytes()).map(Some)
}

fn key_text(value: &[u8]) -> Result<String, Refusal> {
    let is_key = (1..=255).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
    let told = || Refusal::new(Kind::BadArgument, "`Idempotency-Key` must be 1 to 255 visible ASCII characters");
    if is_key { String::from_utf8(value.to_vec()).map_err(|_| told()) } else { Err(told()) }
}

/// FNV-1a of what was asked for, as it was understood: the same today, tomorrow and in a later version.
fn fingerprint(new: &NewInstance) -> u64 {
    let understood = serde_json::to_string(&(&new.name, &new.spec)).unwrap_or_default();
    understood.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

pub(in crate::api) async fn list(call: Call) -> Result<Answer, Refusal> {
    let word = "a label-like word such as `build`";
    let state = "one of starting, running, stopping, stuck, unverified, exited, failed, lost";
    let filter = Filter {
        state: call.query.parsed("state", state, |text| text.parse().ok())?,
        kind: call.query.parsed("kind", word, |text| text.parse().ok())?,
        labels: call.query.all("label").map(spec::label_filter).collect::<Result<_, _>>()?,
        after: call.query.parsed("after", "a name", |text| text.parse().ok())?,
        limit: limit(&call)?,
    };
    let page = call.context.node.list(filter).await?;
    let items: Vec<InstanceView> = page.items.iter().map(|entry| InstanceView::from(entry.as_ref())).collect();
    Ok(json(200, &List { items, next: page.next.map(|name| name.as_str().into()) }))
}

pub(in crate::api) async fn show(call: Call) -> Result<Answer, Refusal> {
    let (name, wait) = (name(&call)?, wait(&call)?);
    let until = call.query.parsed("until", "one of exit, settled, running, removed", |text| match text {
        "exit" => Some(Until::ExitKnown),
        "settled" => Some(Until::Settled),
        "running" => Some(Until::Running),
        "removed" => Some(Until::Removed),
        _ => None,
    })?;
    let entry = call.context.node.one(name.clone()).await?;
    match (until, wait) {
        (None, None) => {
            let control = adapter::look(&entry).await;
            let control = control.map(|(socket, peer)| ControlView {
                socket: socket.display().to_string(),
                peer: peer.as_str().to_owned(),
            });
            Ok(json(200, &InstanceView { control, ..InstanceView::from(entry.as_ref()) }))
        }
        (until, wait) => {
            let until = until.unwrap_or(Until::Settled);
            outcome(&call, entry, until, Some(wait.unwrap_or_default())).await
        }
    }
}

/// Answers with `entry`, or waits first: 200 when `until` holds, 202 while it does not.
async fn outcome(call: &Call, entry: Arc<Entry>, until: Until, wait: Option<Duration>) -> Result<Answer, Refusal> {
    let Some(wait) = wait else {
        let status = if until.holds(&entry) { 200 } else { 202 };
        return Ok(shown(status, &entry));
    };
    let name = entry.name.clone();
    match call.context.node.wait(name.clone(), until, Some(wait)).await? {
        (Some(newest), holds) => Ok(shown(if holds { 200 } else { 202 }, &newest)),
        // A removal ends every other waiting too; what was is all there is to show.
        (None, true) if until == Until::Removed => Ok(shown(200, &entry)),
        (None, _) => Err(unknown(&name)),
    }
}

pub(in crate::api) async fn start(call: Call) -> Result<Answer, Refusal> {
    let (name, wait) = (name(&call)?, wait(&call)?);
    let (node, caller) = (call.context.node.clone(), call.caller.clone());
    let entry = detached(async move { node.start(name, caller).await }).await??;
    outcome(&call, entry, Until::Running, wait).await
}

pub(in crate::api) async fn stop(mut call: Call) -> Result<Answer, Refusal> {
    let (name, wait) = (name(&call)?, wait(&call)?);
    let mut fields = call.body.take().map_or(Ok(Fields::default()), Fields::new)?;
    let stop = Stop { force: fields.fact("force")?, grace: fields.duration("grace")? };
    fields.end("", &["force", "grace"])?;
    let (node, caller) = (call.context.node.clone(), call.caller.clone());
    let entry = detached(async move { node.stop(name, stop, caller).await }).await??;
    outcome(&call, entry, Until::Settled, wait).await
}

pub(in crate::api) async fn signal(mut call: Call) -> Result<Answer, Refusal> {
    let name = name(&call)?;
    wait(&call)?;
    let mut fields = Fields::new(call.body.take().unwrap_or_default())?;
    let signal = spec::signal("signal", fields.take("signal"))?;
    let signal = signal.ok_or_else(|| Refusal::new(Kind::BadArgument, "field `signal`: is required"))?;
    fields.end("", &["signal"])?;
    let (node, caller) = (call.context.node.clone(), call.caller);
    let entry = detached(async move { node.signal(name, signal, caller).await }).await??;
    Ok(shown(200, &entry))
}

pub(in crate::api) async fn remove(call: Call) -> Result<Answer, Refusal> {
    let (name, wait, force) = (name(&call)?, wait(&call)?, call.query.flag("force")?);
    let (node, caller) = (call.context.node.clone(), call.caller.clone());
    let entry = detached(async move { node.remove(name, force, caller).await }).await??;
    // What holds nothing any more is gone by the time that this is asked.
    outcome(&call, entry, Until::Removed, Some(wait.unwrap_or_default())).await
}

pub(in crate::api) async fn snapshot(call: Call) -> Result<Answer, Refusal> {
    let name = name(&call)?;
    if depth(&call.body.unwrap_or_default()) > SNAPSHOT_DEPTH_MAX {
        return Err(Refusal::new(Kind::BadArgument, format!("the value is nested deeper than {SNAPSHOT_DEPTH_MAX}")));
    }
    let told = |error: &dyn Display| Refusal::new(Kind::BadArgument, format!("the body is not JSON: {error}"));
    let text = std::str::from_utf8(&call.bytes).map_err(|error| told(&error))?;
    let value = Snapshot::new(text).map_err(|error| told(&error))?;
    let (node, caller) = (call.context.node.clone(), call.caller);
    let entry = detached(async move { node.snapshot(name, value, caller).await }).await??;
    Ok(shown(200, &entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_visible_ascii_of_bounded_length() {
        assert!(key_text(b"a").is_ok() && key_text(&[b'~'; 255]).is_ok());
        for bad in [&b""[..], &[b'a'; 256], b"a b", b"\xc3\xa4", b"a\t"] {
            assert!(key_text(bad).is_err(), "{bad:?}");
        }
    }
}
