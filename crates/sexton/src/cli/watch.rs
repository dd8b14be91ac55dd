//! Waiting for something to be true of an instance, across restarts of the daemon.

use std::time::Duration;

use serde_json::Value;
use sexton_plan::id::Name;
use tokio::time::Instant;

use super::client::{Ask, Client, Known};
use super::failure::Failure;
use super::member::Member as _;

/// How long one request is held. A daemon that is replaced hangs up on those that wait, so a wait is many requests.
const HOLD: Duration = Duration::from_secs(60);

/// What is waited for, in the words of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// It is known how the main process ended, or that nobody can know.
    Exit,
    /// Terminal, and everything given back.
    Settled,
    /// Running, or terminal again.
    Running,
}

impl Until {
    const fn as_str(self) -> &'static str {
        match self {
            Until::Exit => "exit",
            Until::Settled => "settled",
            Until::Running => "running",
        }
    }
}

/// The path of an instance; a name needs no encoding.
pub fn path(name: &Name) -> String {
    format!("/v1/instances/{name}")
}

/// When a wait that begins now ends; `None` for never.
pub fn deadline(limit: Option<Duration>) -> Option<Instant> {
    limit.map(|limit| Instant::now() + limit)
}

/// What is left until `deadline`.
pub fn left(deadline: Option<Instant>) -> Duration {
    deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()))
}

/// Whether `deadline` has passed.
pub fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// What ends a wait early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// Nothing.
    Never,
    /// Something lives on that SIGKILL did not end: that may last for ever.
    WhenStuck,
}

impl GiveUp {
    /// How long one request is held: only a change makes a look that gives up see something new.
    const fn hold(self) -> Duration {
        match self {
            GiveUp::Never => HOLD,
            GiveUp::WhenStuck => Duration::from_secs(1),
        }
    }
}

/// Waits until `until` holds, `deadline` passes, or it is to give up; tells the newest view, and whether it holds.
///
/// # Errors
/// Unknown, removed meanwhile, or the daemon is not there.
pub async fn until(
    client: &Client,
    name: &Name,
    until: Until,
    deadline: Option<Instant>,
    give_up: GiveUp,
) -> Result<(Value, bool), Failure> {
    let mut known = Known::No;
    loop {
        let path = format!("{}?until={}", path(name), until.as_str());
        let answer = client.send_again(&Ask::get(path).held(deadline, give_up.hold()), known).await?;
        known = Known::Yes;
        let holds = answer.status == 200;
        let body = answer.into_body()?;
        if holds || is_over(deadline) || (give_up == GiveUp::WhenStuck && is_stuck(&body)) {
            return Ok((body, holds));
        }
    }
}

/// Whether something lives on that SIGKILL did not end.
pub fn is_stuck(instance: &Value) -> bool {
    instance.at("state") == "stuck"
}
