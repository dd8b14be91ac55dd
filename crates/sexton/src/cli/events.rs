//! `events`: the durable event log, by pages or as it grows.

use std::time::Duration;

use clap::Args;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;
use sexton_plan::id::Name;
use tokio::time::{Instant, sleep};

use super::client::{Ask, AskError, Client, Known, with_query};
use super::failure::{Failure, exit};
use super::member::Member as _;
use super::{Context, out, words};

/// `sexton events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on with what happens from now on; survives the daemon and repeats nothing.
    #[arg(short, long)]
    follow: bool,
    /// Only events behind this one.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    after: u64,
}

/// Pauses between two tries to reach the daemon again.
const PAUSES: [u64; 5] = [50, 100, 200, 500, 1_000];
/// How long it may be away before that is told.
const TELL_AFTER: Duration = Duration::from_secs(10);

/// Prints events.
pub async fn run(context: &Context, args: &EventsArgs) -> Result<u8, Failure> {
    let client = context.client()?;
    let mut feed = Feed { context, last: args.after };
    if args.follow { feed.follow(&client).await } else { feed.pages(&client).await }
}

/// What has been printed, and how.
struct Feed<'c> {
    context: &'c Context,
    last: u64,
}

impl Feed<'_> {
    async fn pages(&mut self, client: &Client) -> Result<u8, Failure> {
        loop {
            let after = self.last.to_string();
            let page = client.get(with_query("/v1/events", &[("after", &after), ("limit", "1000")])).await?;
            let before = self.last;
            for event in page.at("items").as_array().into_iter().flatten() {
                self.print(event)?;
            }
            if page.at("next").is_null() || self.last == before {
                return Ok(exit::DONE);
            }
        }
    }

    async fn follow(&mut self, client: &Client) -> Result<u8, Failure> {
        let mut known = Known::No;
        let mut tries: usize = 0;
        let mut away_since: Option<Instant> = None;
        loop {
            let after = self.last.to_string();
            let ask = Ask::get(with_query("/v1/events", &[("after", &after)]))
                .header("accept", "text/event-stream")
                .header("last-event-id", after.as_str());
            match client.open(&ask).await {
                Ok(response) if response.status() == 200 => {
                    (known, tries, away_since) = (Known::Yes, 0, None);
                    self.stream(response.into_body()).await?;
                }
                Ok(response) if response.status() != 503 => {
                    let status = response.status().as_u16();
                    return Err(Failure::of_answer(status, &client.whole(status, response.into_body()).await?.body));
                }
                Err(error @ AskError::Unreachable { .. }) if known == Known::No => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
            let away = *away_since.get_or_insert_with(Instant::now);
            if away.elapsed() > TELL_AFTER {
                out::warning("the daemon is not reachable; trying on");
                // Told once an absence.
                away_since = Some(Instant::now() + Duration::from_secs(86_400));
            }
            sleep(Duration::from_millis(PAUSES.get(tries).copied().unwrap_or(1_000))).await;
            tries += 1;
        }
    }

    /// Prints a stream of server-sent events, until it ends in whatever way.
    async fn stream(&mut self, mut body: Incoming) -> Result<(), Failure> {
        let mut lines = Lines::default();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(bytes) = frame.into_data() else { continue };
            for data in lines.data(&bytes) {
                // Half an event is none; it comes again behind the last whole one.
                if let Ok(event) = serde_json::from_slice::<Value>(&data) {
                    self.print(&event)?;
                }
            }
        }
        Ok(())
    }

    /// Prints an event that was not printed before.
    fn print(&mut self, event: &Value) -> Result<(), Failure> {
        let seq = event.at("seq").as_u64().unwrap_or(0);
        if seq <= self.last {
            return Ok(());
        }
        self.context.out.line(event, words::event)?;
        self.last = seq;
        Ok(())
    }
}

/// How far back the newest events are looked for. BOUND: one page, so that it is fast beside a long log.
const READ_BACK: u64 = 1_000;

/// The newest events of one instance, `count` at most, as far as they are not far back.
///
/// # Errors
/// The daemon refused, or is not there.
pub async fn newest(client: &Client, name: &Name, count: usize) -> Result<Vec<Value>, Failure> {
    let last = client.get("/v1/ledger").await?.at("last_seq").as_u64().unwrap_or(0);
    let after = last.saturating_sub(READ_BACK).to_string();
    let page = client.get(with_query("/v1/events", &[("after", &after), ("limit", "1000")])).await?;
    let of_name = |event: &&Value| event.at("instance") == name.as_str();
    let mut events: Vec<Value> = page.at("items").as_array().into_iter().flatten().filter(of_name).cloned().collect();
    Ok(events.split_off(events.len().saturating_sub(count)))
}

/// How a life ended that another one has followed: the data of its last event, with its state.
///
/// # Errors
/// The daemon is not there, or the event is too far back.
pub async fn end_of(client: &Client, name: &Name, life: &str) -> Result<Value, Failure> {
    let events = newest(client, name, usize::MAX).await?;
    let told = events.iter().rev().filter(|event| event.at("incarnation") == life).find_map(|event| {
        let state = event.at("kind").as_str()?.strip_prefix("instance.")?;
        let mut data = event.at("data").as_object()?.clone();
        data.insert("state".to_owned(), state.into());
        words::is_terminal(state).then(|| data.into())
    });
    let told: Option<Value> = told;
    told.ok_or_else(|| {
        Failure::new(exit::FAILED, format!("`{name}` was started anew, and the end of its life {life} is not found"))
            .hint("`sexton events` tells how it ended")
    })
}

/// Lines that come in pieces.
#[derive(Debug, Default)]
struct Lines {
    open: Vec<u8>,
}

impl Lines {
    /// The `data` of each line that `bytes` complete. The daemon writes an event's data on one line.
    fn data(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.open.extend_from_slice(bytes);
        let mut found = Vec::new();
        let mut rest = self.open.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, behind) = rest.split_at(end);
            if let Some(data) = line.strip_prefix(b"data:") {
                found.push(data.trim_ascii().to_vec());
            }
            rest = behind.get(1..).unwrap_or_default();
        }
        self.open = rest.to_vec();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_found_whatever_the_pieces() {
        let stream = b": connected\n\nid: 1\nevent: a\ndata: {\"seq\":1}\n\nid: 2\ndata:{\"seq\":2}\n\ndata: {\"se";
        for cut in 0..stream.len() {
            let (first, second) = stream.split_at(cut);
            let mut lines = Lines::default();
            let mut found = lines.data(first);
            found.extend(lines.data(second));
            assert_eq!(found, [b"{\"seq\":1}".to_vec(), b"{\"seq\":2}".to_vec()], "cut at {cut}");
        }
    }
}
